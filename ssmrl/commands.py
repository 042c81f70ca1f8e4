"""What each command does: checks what was typed before it imports jax, hands over to the library, and prints."""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmrl import config as configuration
from ssmrl import listing, registry
from ssmrl.arguments import COMMON, Arguments
from ssmrl.config import Config, check_resumable, resolve, to_flat, to_yaml, trace
from ssmrl.fields import ConfigError, UserError, show
from ssmrl.registry import suggest

_WORLD_MODEL = "s4wm"
_EXIT_CODES = {"done": 0, "interrupted": 130, "terminated": 143}


def prepare_jax(platform: str = "auto", cache_dir: str | None = None) -> None:
    """Set the environment variables that jax reads when it is imported; the user's own stand unless overridden.

    Raises ``UserError`` if ``platform`` is ``"gpu"`` and there is none, and if they ask for double precision.
    """
    x64 = os.environ.get("JAX_ENABLE_X64", "")
    if x64.lower() in ("1", "on", "true", "t", "yes", "y"):  # as jax reads it
        raise UserError(f"ssmrl computes in float32: JAX_ENABLE_X64={x64} is set; unset it")
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


def train(arguments: Arguments) -> int:
    """Train a new run."""
    presets = arguments.words
    if not presets and not arguments.settings and "demo" in configuration.presets():
        presets = ["demo"]
    return _train(trace(presets, arguments.settings, arguments.errors)[0], arguments)


def _train(config: Config, arguments: Arguments) -> int:
    prepare_jax(config.platform, config.cache.dir)
    from ssmrl import tracking, training

    quiet = arguments.options["quiet"] or arguments.options["json"]
    if arguments.options["dry_run"]:
        _print_facts(training.dry_run(config), arguments)
        return 0
    tracking.check_sinks(config)
    run = training.train(config, quiet=quiet, command=shlex.join(["ssmrl", *arguments.argv]))
    return _finish(run, arguments)


def resume(arguments: Arguments) -> int:
    """Go on with a run."""
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


def sweep(arguments: Arguments) -> int:
    """Run the trials of a sweep file, or show them."""
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


def eval_(arguments: Arguments) -> int:
    """Measure the policy of a run, or an exported one."""
    path, saved = _run_or_policy(arguments.words[0])
    chosen = {k: arguments.options[k] for k in ("step", "episodes", "env", "greedy", "seed")}
    if saved is None and chosen.pop("step") != "best":
        raise UserError(f"--step={arguments.options['step']}: {path} is an exported policy; leave it out")
    if chosen["env"] is not None:
        chosen["env"] = registry.envs.find(chosen["env"]).name
    prepare_jax(cache_dir=saved.cache.dir if saved else None)
    from ssmrl import evaluation
    from ssmrl.vector import MAX_STEPS

    measure = evaluation.evaluate_run if saved else evaluation.evaluate_exported
    facts = measure(path, **chosen)
    _print_facts(facts, arguments)
    if facts.get("episodes") == 0 and not arguments.options["quiet"]:
        print(
            f"note: no episode ended within {MAX_STEPS:,} steps, so that none has a return:"
            " train with env.max_steps=1000, which cuts episodes off",
            file=sys.stderr,
        )
    return 0


def adapt(arguments: Arguments) -> int:
    """Show how a policy adapts within trials."""
    if len(arguments.words) != 1:
        raise ConfigError(arguments.errors)
    run_dir, saved = _run(arguments.words[0])
    errors = [*arguments.errors]
    errors += [f"{k}: ssmrl adapt takes env and env.KEY only" for k in arguments.settings if k.split(".")[0] != "env"]
    preset, settings = [str(run_dir / "config.yaml")], arguments.settings
    test = trace(preset, settings, errors)[0]
    if test.env_parameters.get("tasks") == "train" and "env.tasks" not in settings:
        test = trace(preset, {**settings, "env.tasks": "held_out"}, errors)[0]
    prepare_jax(cache_dir=saved.cache.dir)
    from ssmrl import adaptation
    from ssmrl.tracking import jsonable

    chosen = {k: arguments.options[k] for k in ("trials", "step", "greedy", "seed")}
    facts = adaptation.adapt(run_dir, test, **chosen)
    print(json.dumps(jsonable(facts)) if arguments.options["json"] else adaptation.render(facts))
    return 0


def export(arguments: Arguments) -> int:
    """Write a policy to a folder."""
    run_dir, saved = _run(arguments.words[0])
    prepare_jax(cache_dir=saved.cache.dir)
    from ssmrl import evaluation

    chosen = {k: arguments.options[k] for k in ("step", "seed_index")}
    _print_facts(evaluation.export(run_dir, arguments.words[1], **chosen), arguments)
    return 0


def play(arguments: Arguments) -> int:
    """Show a policy at work."""
    path, saved = _run_or_policy(arguments.words[0])
    chosen = {k: v for k, v in arguments.options.items() if k not in {f.name for f in COMMON}}
    kinds = (".gif", ".png", ".txt") if chosen["dream"] else (".gif", ".png", ".txt", ".html")
    errors = _output_errors(chosen["output"], kinds) if chosen["output"] else []
    if chosen["dream"] and saved and "posterior" not in saved.agent_parameters:
        errors.append(f"--dream: {path} has no world model, its agent is {saved.agent}; train one with agent=dreamer")
    if chosen["dream_steps"] != 15 and not chosen["dream"]:
        errors.append(f"--dream-steps={chosen['dream_steps']}: nothing is dreamt; add --dream, or leave it out")
    if chosen["text"] and chosen["output"] and Path(chosen["output"]).suffix != ".txt":
        errors.append(f"--text, --output={chosen['output']}: a table or a picture; leave one out")
    if saved is None:
        for name, default in (("step", "best"), ("seed_index", 0)):
            if chosen[name] != default:
                option = f"--{name.replace('_', '-')}={chosen[name]}"
                errors.append(f"{option}: {path} is an exported policy; leave it out")
    elif chosen["seed_index"] >= saved.seeds:
        errors.append(f"--seed-index={chosen['seed_index']}: {path} has {saved.seeds} seed(s), counted from 0")
    if chosen["env"] is not None:
        try:
            chosen["env"] = registry.envs.find(chosen["env"]).name
        except registry.UnknownNameError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError(errors)
    prepare_jax("cpu", saved.cache.dir if saved else None)
    from ssmrl import playing

    return _show(playing.play(path, **chosen), arguments)


def _show(facts: dict[str, Any], arguments: Arguments) -> int:
    """Print what a film or a table is of, and the table itself if it is in no file."""
    if not arguments.options["json"]:
        table = facts.pop("table", None)
        if facts["output"] is None:
            print(table)
            del facts["output"]
    _print_facts(facts, arguments)
    return 0


def worldmodel_train(arguments: Arguments) -> int:
    """Train a new run, of a world model."""
    config = trace(arguments.words, arguments.settings, arguments.errors)[0]
    if config.agent != _WORLD_MODEL:
        raise ConfigError(
            [
                f"agent={config.agent}: a world model is agent={_WORLD_MODEL}; name a preset of one "
                f"(ssmrl list presets worldmodel), or use ssmrl train"
            ]
        )
    return _train(config, arguments)


def worldmodel_eval(arguments: Arguments) -> int:
    """Measure what a world model remembers."""
    run_dir, saved = _run(arguments.words[0])
    chosen = {k: arguments.options[k] for k in ("control", "episodes", "step", "seed")}
    if chosen["control"] is not None:
        chosen["control"] = _run(chosen["control"])[0]
    prepare_jax(cache_dir=saved.cache.dir)
    from ssmrl import world_report
    from ssmrl.tracking import jsonable

    facts = world_report.evaluate_run(run_dir, **chosen)
    print(json.dumps(jsonable(facts)) if arguments.options["json"] else world_report.render(facts))
    return 0


def worldmodel_imagine(arguments: Arguments) -> int:
    """Show what a world model imagines."""
    run_dir, saved = _run(arguments.words[0])
    chosen = {k: v for k, v in arguments.options.items() if k not in {f.name for f in COMMON}}
    errors = _output_errors(chosen["output"], (".gif", ".png", ".txt")) if chosen["output"] else []
    if chosen["seed_index"] >= saved.seeds:
        errors.append(f"--seed-index={chosen['seed_index']}: {run_dir} has {saved.seeds} seed(s), counted from 0")
    if errors:
        raise ConfigError(errors)
    prepare_jax("cpu", saved.cache.dir)
    from ssmrl import imagining

    return _show(imagining.imagine(run_dir, **chosen), arguments)


def record(arguments: Arguments) -> int:
    """Record a data set."""
    words, by = arguments.words, arguments.options["policy"]
    if by is not None:
        run_dir = _run(by)[0]
        words = words or [str(run_dir / "config.yaml")]
    config = trace(words, arguments.settings, arguments.errors)[0]
    output = arguments.options["output"] or f"{config.env.split('/')[-1]}.npz"
    errors = _output_errors(output, (".npz",))
    if errors or Path(output).exists():
        raise ConfigError(errors or [f"--output={output}: it exists; choose another name, or delete it"])
    prepare_jax(config.platform, config.cache.dir)
    from ssmrl import datasets, evaluation

    policy = None if by is None else evaluation.load(run_dir)
    chosen = config.env, config.env_parameters, arguments.options["sequences"], config.seed
    data = datasets.record_dataset(*chosen, policy=policy)
    datasets.save(data, output)
    facts = {"output": output, "env": config.env, "sequences": data.sequences, "frames": data.frames}
    _print_facts(facts | {"bytes": Path(output).stat().st_size, "sha256": data.sha256}, arguments)
    return 0


def _output_errors(output: str, suffixes: tuple[str, ...]) -> list[str]:
    path = Path(output)
    folder = next(p for p in path.absolute().parents if p.exists())
    if path.suffix not in suffixes:
        return [f"--output={output}: the suffix says what is written, one of {', '.join(suffixes)}"]
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        return [f"--output={output}: cannot be written; name a file in a folder of yours"]
    return []


def plot(arguments: Arguments) -> int:
    """Draw learning curves."""
    run_dirs = [_run(word)[0] for word in arguments.words]
    chosen = {k: arguments.options[k] for k in ("metric", "statistic", "x")}
    output = _picture(arguments)
    from ssmrl.plotting import plot_runs

    path = plot_runs(run_dirs, output, **chosen)
    print(json.dumps({"plot": str(path)}) if arguments.options["json"] else path)
    return 0


def compare(arguments: Arguments) -> int:
    """Compare what runs have reached."""
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


def config(arguments: Arguments) -> int:
    """Show a configuration, or where one key of it comes from."""
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


def doctor(arguments: Arguments) -> int:
    """Examine the installation."""
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


def list_(arguments: Arguments) -> int:
    """List what there is."""
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


def _run_or_policy(name: str) -> tuple[Path, Config | None]:
    """The same, or the folder of an exported policy."""
    exported = (Path(name) / "policy.json").is_file()
    return (Path(name), None) if exported else _run(name)


def _print_facts(facts: Mapping[str, Any], arguments: Arguments) -> None:
    if arguments.options["json"]:
        from ssmrl.tracking import jsonable

        print(json.dumps(jsonable(facts)))
        return
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print(f"{name:{width}}  {f'{value:.4g}' if isinstance(value, float) else show(value)}")
