"""The command line: reads and checks everything before it imports jax, then hands over to the library.

Exit codes: 0 done, 1 failed, 2 the user can put it right, 130 Ctrl-C, 143 SIGTERM.
"""

import dataclasses
import json
import os
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ssmrl import config as configuration
from ssmrl import listing, registry
from ssmrl.arguments import COMMON, Arguments, Command, help_text, read_arguments
from ssmrl.config import Config, check_resumable, resolve, to_flat, to_yaml, trace
from ssmrl.fields import ConfigError, Field, UserError, show
from ssmrl.registry import suggest

_EXIT_CODES = {"done": 0, "interrupted": 130, "terminated": 143}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _main(argv)
    except Exception as error:
        if isinstance(error, BrokenPipeError):  # the reader, say `head`, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if "--debug" in argv:
            traceback.print_exc()
        if isinstance(error, UserError):
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
            return 2
        first = (str(error).strip().splitlines() or [""])[0]
        print(f"error: {type(error).__name__}: {first} (--debug shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _main(argv: Sequence[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name in ("-V", "--version"):
        print(f"ssmrl {version('ssmrl')}")
        return 0
    if name not in _COMMANDS:
        close = suggest(name, _COMMANDS)
        hint = f"did you mean ssmrl {close[0]}?" if close else f"it is one of {', '.join(_COMMANDS)}"
        raise UserError(f"unknown command '{name}': {hint} (ssmrl --help)")
    command = _COMMANDS[name]
    arguments = read_arguments(name, command, argv[1:])
    if arguments.help:
        print(help_text(name, command, arguments))
        return 0
    if arguments.errors and not command.settings:
        raise ConfigError(arguments.errors)
    return command.run(arguments)


def prepare_jax(platform: str = "auto", cache_dir: str | None = None) -> None:
    """Set the environment variables that jax reads when it is imported; the user's own stand unless overridden.

    Raises ``UserError`` if ``platform`` is ``"gpu"`` and there is none.
    """
    if platform == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    elif platform == "gpu":
        os.environ.pop("JAX_PLATFORMS", None)  # jax prefers a GPU of any make
    if cache_dir == "off":
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    else:
        if cache_dir is not None:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = cache_dir
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(default_cache_dir()))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    if platform == "gpu":
        import jax

        if jax.default_backend() != "gpu":
            raise UserError("platform=gpu: jax finds no GPU; use platform=auto, or see ssmrl doctor")


def default_cache_dir() -> Path:
    """The user's folder of compiled programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssmrl" / "jax"


def _train(arguments: Arguments) -> int:
    presets = arguments.words
    if not presets and not arguments.settings and "demo" in configuration.presets():
        presets = ["demo"]
    config = trace(presets, arguments.settings, arguments.errors)[0]
    prepare_jax(config.platform, config.cache.dir)
    from ssmrl import tracking, training

    quiet = arguments.options["quiet"] or arguments.options["json"]
    if arguments.options["dry_run"]:
        _print_facts(training.dry_run(config), arguments)
        return 0
    tracking.check_sinks(config)
    run = training.train(config, quiet=quiet, command=shlex.join(["ssmrl", *arguments.argv]))
    return _finish(run, arguments)


def _resume(arguments: Arguments) -> int:
    if len(arguments.words) != 1:
        raise ConfigError(arguments.errors)
    run_dir, saved = _run(arguments.words[0])
    try:
        overrides = check_resumable(saved, arguments.settings)
    except ConfigError as error:
        raise ConfigError([*arguments.errors, *error.errors]) from None
    if arguments.errors:
        raise ConfigError(arguments.errors)
    config = resolve([str(run_dir / "config.yaml")], overrides)
    prepare_jax(config.platform, config.cache.dir)
    from ssmrl import tracking, training

    tracking.check_sinks(config)
    run = training.resume(run_dir, overrides, quiet=arguments.options["quiet"] or arguments.options["json"])
    return _finish(run, arguments)


def _finish(run: Any, arguments: Arguments) -> int:
    if arguments.options["json"]:
        _print_facts({"dir": str(run.dir), "status": run.status, **run.summary}, arguments)
    return _EXIT_CODES[run.status]


def _sweep(arguments: Arguments) -> int:
    from ssmrl.sweep import search, spec

    if len(arguments.words) != 1:
        raise ConfigError(arguments.errors)
    sweep, options = spec.read_sweep(arguments.words[0], arguments.settings, arguments.errors), arguments.options
    count = search.trial_count(sweep, options["count"])
    trials = search.known_trials(sweep, count, options["seed"])
    config = spec.check(sweep, [trial.parameters for trial in trials], search.cannot_search(sweep, count))
    prepare_jax(config.platform, config.cache.dir)
    from ssmrl import tracking
    from ssmrl.sweep import report, runner

    tracking.check_sinks(config)
    batch = max(1, options["population"] // config.seeds)
    for note in () if options["quiet"] else sweep.notes:
        print(f"note: {note}", file=sys.stderr)
    if options["dry_run"]:
        text, facts = report.plan(sweep, trials, count, batch, options["seed"])
        print(json.dumps(facts) if options["json"] else text)
        return 0
    quiet = options["quiet"] or options["json"]
    done = runner.run_sweep(
        sweep,
        count,
        seed=options["seed"],
        root=Path(options["root"]),
        population=options["population"],
        batch=batch,
        quiet=quiet,
        command=shlex.join(["ssmrl", *arguments.argv]),
    )
    text = json.dumps(report.facts(done)) if options["json"] else report.summary(done)
    if options["json"] or not quiet:
        print(text)
    return int(done.status == "done" and not done.succeeded) or _EXIT_CODES[done.status]


def _eval(arguments: Arguments) -> int:
    if (Path(arguments.words[0]) / "policy.json").is_file():
        return _eval_exported(arguments)
    run_dir, saved = _run(arguments.words[0])
    chosen = {k: arguments.options[k] for k in ("step", "episodes", "env", "greedy", "seed")}
    if chosen["env"] is not None:
        chosen["env"] = registry.envs.find(chosen["env"]).name
    prepare_jax(cache_dir=saved.cache.dir)
    from ssmrl.evaluation import evaluate_run

    _print_facts(evaluate_run(run_dir, **chosen), arguments)
    return 0


def _eval_exported(arguments: Arguments) -> int:
    chosen = {k: arguments.options[k] for k in ("episodes", "env", "greedy", "seed")}
    if arguments.options["step"] != "best":
        raise UserError(f"--step={arguments.options['step']}: {arguments.words[0]} is an exported policy; leave it out")
    if chosen["env"] is not None:
        chosen["env"] = registry.envs.find(chosen["env"]).name
    prepare_jax()
    from ssmrl.evaluation import evaluate_exported

    _print_facts(evaluate_exported(arguments.words[0], **chosen), arguments)
    return 0


def _export(arguments: Arguments) -> int:
    run_dir, saved = _run(arguments.words[0])
    prepare_jax(cache_dir=saved.cache.dir)
    from ssmrl.evaluation import export

    chosen = {k: arguments.options[k] for k in ("step", "seed_index")}
    _print_facts(export(run_dir, arguments.words[1], **chosen), arguments)
    return 0


def _play(arguments: Arguments) -> int:
    run_dir, saved = _run(arguments.words[0])
    chosen = {k: v for k, v in arguments.options.items() if k not in {f.name for f in COMMON}}
    errors = _output_errors(chosen["output"]) if chosen["output"] else []
    if chosen["text"] and chosen["output"] and Path(chosen["output"]).suffix != ".txt":
        errors.append(f"--text, --output={chosen['output']}: a table or a picture; leave one out")
    if chosen["seed_index"] >= saved.seeds:
        errors.append(f"--seed-index={chosen['seed_index']}: {run_dir} has {saved.seeds} seed(s), counted from 0")
    if chosen["env"] is not None:
        try:
            chosen["env"] = registry.envs.find(chosen["env"]).name
        except registry.UnknownNameError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError(errors)
    prepare_jax("cpu", saved.cache.dir)
    from ssmrl.playing import play

    facts = play(run_dir, **chosen)
    if not arguments.options["json"]:
        table = facts.pop("table", None)
        if facts["output"] is None:
            print(table)
            del facts["output"]
    _print_facts(facts, arguments)
    return 0


def _output_errors(output: str) -> list[str]:
    path, suffixes = Path(output), (".gif", ".png", ".txt", ".html")
    folder = next(p for p in path.absolute().parents if p.exists())
    if path.suffix not in suffixes:
        return [f"--output={output}: the suffix says what is written, one of {', '.join(suffixes)}"]
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        return [f"--output={output}: cannot be written; name a file in a folder of yours"]
    return []


def _plot(arguments: Arguments) -> int:
    run_dirs = [_run(word)[0] for word in arguments.words]
    chosen = {k: arguments.options[k] for k in ("metric", "statistic", "x")}
    output = _picture(arguments)
    from ssmrl.plotting import plot_runs

    path = plot_runs(run_dirs, output, **chosen)
    print(json.dumps({"plot": str(path)}) if arguments.options["json"] else path)
    return 0


def _compare(arguments: Arguments) -> int:
    run_dirs = [_run(word)[0] for word in arguments.words]
    output = _picture(arguments)
    from ssmrl.comparison import compare_runs, render
    from ssmrl.tracking import jsonable

    facts = compare_runs(run_dirs, output)
    print(json.dumps(jsonable(facts)) if arguments.options["json"] else render(facts))
    return 0


def _picture(arguments: Arguments) -> Path | None:
    output = arguments.options["output"]
    if output is not None and Path(output).suffix != ".png":
        raise UserError(f"--output={output}: pictures are PNG; write --output={Path(output).with_suffix('.png')}")
    return Path(output) if output else None


def _config(arguments: Arguments) -> int:
    config, trail = trace(arguments.words, arguments.settings, arguments.errors)
    key = arguments.options["explain"]
    if key is None:
        print(json.dumps(to_flat(config)) if arguments.options["json"] else to_yaml(config).rstrip())
        return 0
    fields = configuration.schema(config)
    if key not in fields:
        raise ConfigError(
            [configuration.unknown_key(key, fields, {kind: getattr(config, kind) for kind in configuration.KINDS})]
        )
    value, field = to_flat(config)[key], fields[key]
    if arguments.options["json"]:
        print(json.dumps({"key": key, "value": value, "trail": trail[key]}))
        return 0
    print(f"{key}={show(value)}\n  {field.doc}\n  {field.expected}")
    for where, given in trail[key]:
        print(f"  {where}: {show(given)}")
    return 0


def _doctor(arguments: Arguments) -> int:
    prepare_jax()
    from ssmrl.doctor import examine

    findings = examine(default_cache_dir())
    if arguments.options["json"]:
        print(json.dumps([dataclasses.asdict(f) for f in findings], indent=1))
    else:
        width = max(len(f.name) for f in findings)
        for f in findings:
            print(f"{f.verdict:>6}  {f.name:{width}}  {f.detail}")
    return int(any(f.verdict == "broken" for f in findings))


def _list(arguments: Arguments) -> int:
    what, pattern = [*arguments.words, ""][:2]
    what = what if what.endswith("s") else f"{what}s"
    choices = {"envs": registry.envs, "models": registry.models, "agents": registry.agents}
    facts: Any
    if what in choices:
        prepare_jax("cpu")
        text, facts = listing.entries(choices[what], pattern)
    elif what == "presets":
        text, facts = listing.presets(pattern)
    elif what == "runs":
        text, facts = listing.runs(Path(arguments.options["root"]), pattern)
    else:
        close = suggest(what, [*choices, "presets", "runs"])
        hint = f"did you mean {close[0]}?" if close else f"it is one of {', '.join(choices)}, presets, runs"
        raise UserError(f"ssmrl list '{arguments.words[0]}': {hint}")
    print(json.dumps(facts, indent=1) if arguments.options["json"] else text)
    return 0


def _run(name: str) -> tuple[Path, Config]:
    """A run's folder and configuration, by path or by name within ``runs/``."""
    path = next((p for p in (Path(name), Path("runs") / name) if (p / "config.yaml").is_file()), None)
    if path is None:
        close = suggest(Path(name).name, [p.parent.name for p in Path("runs").glob("*/config.yaml")])
        hint = f"did you mean runs/{close[0]}?" if close else "it has no config.yaml"
        raise UserError(f"'{name}' is no run: {hint} (ssmrl list runs)")
    return path, resolve([str(path / "config.yaml")])


def _print_facts(facts: Mapping[str, Any], arguments: Arguments) -> None:
    if arguments.options["json"]:
        from ssmrl.tracking import jsonable

        print(json.dumps(jsonable(facts)))
        return
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print(f"{name:{width}}  {f'{value:.4g}' if isinstance(value, float) else show(value)}")


def _overview() -> str:
    lines = [
        "ssmrl: reinforcement learning with long memory",
        "",
        "usage: ssmrl COMMAND ...",
        "",
        *(f"  {name:8} {command.doc}" for name, command in _COMMANDS.items()),
        "",
        "settings are key=value, --key=value or --key value; presets are named first and later ones win:",
        "  ssmrl train demo seeds=4 agent.learning_rate=1e-3 model=gru",
        "  ssmrl train --help        all settings (also: ssmrl train model=gru --help)",
        "",
        "every command takes",
        *(f"  --{f.name:8} {f.doc}" for f in COMMON),
        "exit codes: 0 done, 1 failed, 2 the command line or the configuration is wrong, 130 Ctrl-C, 143 SIGTERM",
    ]
    return "\n".join(lines)


_COMMANDS = {
    "train": Command(
        _train,
        "train an agent in a new run directory; without arguments: the preset demo",
        "[PRESET ...]",
        most=None,
        settings=True,
        options=(Field("dry_run", bool, False, "check everything and show shapes and sizes, without compiling"),),
    ),
    "resume": Command(
        _resume, "go on with a run where its last checkpoint is, bit for bit", "RUN", 1, 1, settings=True
    ),
    "sweep": Command(
        _sweep,
        "run a wandb sweep file here, without an account; the same command continues it",
        "FILE",
        1,
        1,
        (
            Field("count", int | None, None, "trials at most (random and bayes need a number)", {"ge": 1}),
            Field("population", int, 16, "trials x seeds trained at once in one program (1: one by one)", {"ge": 1}),
            Field("seed", int, 0, "random seed of the search", {"ge": 0}),
            Field("root", str, "runs", "folder that the sweep's folder is made in"),
            Field("dry_run", bool, False, "check everything and show the trials, without training"),
        ),
        settings=True,
    ),
    "eval": Command(
        _eval,
        "measure a trained policy over whole episodes",
        "RUN|POLICY",
        1,
        1,
        (
            Field("episodes", int, 256, "episodes per seed", {"ge": 1}),
            Field("step", Literal["best", "latest"] | int, "best", "which checkpoint: best, latest or env steps"),
            Field("env", str | None, None, "another environment"),
            Field("greedy", bool, False, "take the most likely action instead of sampling"),
            Field("seed", int, 0, "random seed", {"ge": 0}),
        ),
    ),
    "export": Command(
        _export,
        "write a trained policy to one portable folder",
        "RUN FOLDER",
        2,
        2,
        (
            Field("step", Literal["best", "latest"] | int, "best", "which checkpoint: best, latest or env steps"),
            Field("seed_index", int, 0, "which seed of the run", {"ge": 0}),
        ),
    ),
    "play": Command(
        _play,
        "watch a trained policy: a film of whole episodes, or a table of their steps",
        "RUN",
        1,
        1,
        (
            Field("output", str | None, None, "file to write: .gif, .png, .txt or .html (default: in the run's media)"),
            Field("text", bool, False, "print every step as a line of a table"),
            Field("episodes", int, 2, "whole episodes to show", {"ge": 1}),
            Field("max_steps", int, 500, "cut episodes off after so many steps", {"ge": 1}),
            Field("step", Literal["best", "latest"] | int, "best", "which checkpoint: best, latest or env steps"),
            Field("seed_index", int, 0, "which seed of the run", {"ge": 0}),
            Field("env", str | None, None, "another environment"),
            Field("greedy", bool, False, "take the most likely action instead of sampling"),
            Field("seed", int, 0, "random seed", {"ge": 0}),
            Field("fps", float | None, None, "frames per second (default: the film lasts about 20 s)", {"gt": 0.0}),
        ),
    ),
    "plot": Command(
        _plot,
        "draw learning curves of one or several runs; those that differ in their seeds alone are one curve",
        "RUN ...",
        1,
        None,
        (
            Field("output", str | None, None, "PNG to write (default: in the first run's folder)"),
            Field("metric", str, "return_mean", "which logged metric"),
            Field("statistic", Literal["mean", "iqm"], "mean", "mean or interquartile mean over seeds"),
            Field("x", Literal["env_steps", "wall_s"], "env_steps", "against environment steps or seconds of training"),
        ),
    ),
    "compare": Command(
        _compare,
        "table and picture of what runs have reached, and of the settings in which they differ",
        "RUN ...",
        1,
        None,
        (Field("output", str | None, None, "PNG to write (default: in the first run's folder)"),),
    ),
    "list": Command(
        _list,
        "list envs, models, agents, presets or runs; with the name of one: its parameters",
        "envs|models|agents|presets|runs [PATTERN]",
        1,
        2,
        (Field("root", str, "runs", "folder of run directories"),),
    ),
    "config": Command(
        _config,
        "show the configuration that presets and settings make, as YAML",
        "[PRESET ...]",
        most=None,
        options=(Field("explain", str | None, None, "show where this key's value comes from"),),
        settings=True,
    ),
    "doctor": Command(_doctor, "check versions, devices, wandb and the compilation cache"),
}

if __name__ == "__main__":
    sys.exit(main())
