"""The command line: reads and checks everything before it imports jax, then hands over to the library.

Exit codes: 0 done, 1 failed, 2 the user can put it right, 130 Ctrl-C, 143 SIGTERM.
"""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Literal

from ssmrl import commands
from ssmrl.arguments import COMMON, Command, help_text, read_arguments
from ssmrl.fields import ConfigError, Field, UserError
from ssmrl.registry import suggest


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
            for message in error.errors if isinstance(error, ConfigError) else [str(error)]:
                print(f"error: {message}", file=sys.stderr)
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
    command, rest = _find(name, _COMMANDS), argv[1:]
    if command.commands:
        if not rest or rest[0] in ("-h", "--help"):
            print(_group(name, command))
            return 0
        command, name, rest = _find(rest[0], command.commands, f"{name} "), f"{name} {rest[0]}", rest[1:]
    arguments = read_arguments(name, command, rest)
    if arguments.help:
        print(help_text(name, command, arguments))
        return 0
    if arguments.errors and not command.settings:
        raise ConfigError(arguments.errors)
    assert command.run is not None
    return command.run(arguments)


def _find(name: str, table: Mapping[str, Command], group: str = "") -> Command:
    if name not in table:
        close = suggest(name, table)
        hint = f"did you mean ssmrl {group}{close[0]}?" if close else f"it is one of {', '.join(table)}"
        raise UserError(f"unknown command '{group}{name}': {hint} (ssmrl {group}--help)")
    return table[name]


def _group(name: str, command: Command) -> str:
    lines = [f"usage: ssmrl {name} COMMAND ...", "", command.doc, ""]
    lines += [f"  {part:8} {c.doc}" for part, c in command.commands.items()]
    return "\n".join([*lines, "", f"  ssmrl {name} COMMAND --help"])


def _overview() -> str:
    lines = [
        "ssmrl: reinforcement learning with long memory",
        "",
        "usage: ssmrl COMMAND ...",
        "",
        *(f"  {name:10} {command.doc}" for name, command in _COMMANDS.items()),
        "",
        "settings are key=value, --key=value or --key value; presets are named first and later ones win:",
        "  ssmrl train demo seeds=4 agent.learning_rate=1e-3 model=gru",
        "  ssmrl train --help        all settings (also: ssmrl train model=gru --help)",
        "",
        f"every command takes {', '.join(f'--{f.name}' for f in COMMON)} and --help",
        "exit codes: 0 done, 1 failed, 2 the command line or the configuration is wrong, 130 Ctrl-C, 143 SIGTERM",
    ]
    return "\n".join(lines)


_DRY_RUN = Field("dry_run", bool, False, "check everything and show shapes and sizes, without compiling")
_STEP = Field("step", Literal["best", "latest"] | int, "best", "which checkpoint: best, latest or env steps")
_SEED_INDEX = Field("seed_index", int, 0, "which seed of the run", {"ge": 0})
_COMMANDS = {
    "train": Command(
        commands.train,
        "train an agent in a new run directory; without arguments: the preset demo",
        "[PRESET ...]",
        most=None,
        settings=True,
        options=(_DRY_RUN,),
    ),
    "resume": Command(
        commands.resume, "go on with a run where its last checkpoint is, bit for bit", "RUN", 1, 1, settings=True
    ),
    "sweep": Command(
        commands.sweep,
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
        commands.eval_,
        "measure a trained policy over whole episodes",
        "RUN|POLICY",
        1,
        1,
        (
            Field("episodes", int, 256, "episodes per seed", {"ge": 1}),
            _STEP,
            Field("env", str | None, None, "another environment"),
            Field("greedy", bool, False, "take the most likely action instead of sampling"),
            Field("seed", int, 0, "random seed", {"ge": 0}),
        ),
    ),
    "adapt": Command(
        commands.adapt,
        "watch a policy learn in its memory: returns within trials, beside a memory that is wiped, and references",
        "RUN",
        1,
        1,
        (
            Field("trials", int, 512, "trials per seed", {"ge": 2}),
            _STEP,
            Field("greedy", bool, False, "take the most likely action instead of sampling"),
            Field("seed", int, 0, "random seed", {"ge": 0}),
        ),
        settings=True,
    ),
    "export": Command(
        commands.export,
        "write a trained policy to one portable folder",
        "RUN FOLDER",
        2,
        2,
        (
            _STEP,
            _SEED_INDEX,
        ),
    ),
    "play": Command(
        commands.play,
        "watch a trained policy: a film of whole episodes, or a table of their steps",
        "RUN|POLICY",
        1,
        1,
        (
            Field("output", str | None, None, "file to write: .gif, .png, .txt or .html (default: RUN/media, or here)"),
            Field("text", bool, False, "print every step as a line of a table"),
            Field("dream", bool, False, "show beside it what the world model of the policy imagines"),
            Field("dream_steps", int, 15, "steps that each of these dreams lasts", {"ge": 1}),
            Field("episodes", int, 2, "whole episodes to show", {"ge": 1}),
            Field("max_steps", int, 500, "cut episodes off after so many steps", {"ge": 1}),
            _STEP,
            _SEED_INDEX,
            Field("env", str | None, None, "another environment"),
            Field("greedy", bool, False, "take the most likely action instead of sampling"),
            Field("seed", int, 0, "random seed", {"ge": 0}),
            Field("fps", float | None, None, "frames per second (default: the film lasts about 20 s)", {"gt": 0.0}),
        ),
    ),
    "worldmodel": Command(
        None,
        "train a world model, measure what it remembers, watch it imagine",
        commands={
            "train": Command(
                commands.worldmodel_train,
                "train a world model in a new run directory, as ssmrl train does",
                "[PRESET ...]",
                most=None,
                settings=True,
                options=(_DRY_RUN,),
            ),
            "eval": Command(
                commands.worldmodel_eval,
                "measure a world model over fresh episodes: imagination, probes, calibration, controls",
                "RUN",
                1,
                1,
                (
                    Field("control", str | None, None, "a run of the same with model=none, the floor"),
                    Field("episodes", int, 1024, "episodes per seed", {"ge": 2}),
                    _STEP,
                    Field("seed", int, 0, "random seed", {"ge": 0}),
                ),
            ),
            "imagine": Command(
                commands.worldmodel_imagine,
                "watch a world model imagine: a film of the truth beside it, or a table",
                "RUN",
                1,
                1,
                (
                    Field("output", str | None, None, "file to write: .gif, .png or .txt (default: in RUN/media)"),
                    Field("episodes", int, 2, "episodes to show", {"ge": 1}),
                    Field("max_frames", int, 300, "frames of each at most; the context's first go", {"ge": 2}),
                    Field("draw", Literal["mode", "sample"], "mode", "the most likely latents, or random ones"),
                    _STEP,
                    _SEED_INDEX,
                    Field("seed", int, 0, "random seed", {"ge": 0}),
                    Field(
                        "fps", float | None, None, "frames per second (default: the film lasts about 20 s)", {"gt": 0.0}
                    ),
                ),
            ),
        },
    ),
    "record": Command(
        commands.record,
        "record a data set of whole episodes, to learn a world model from (agent.data) or to imitate (agent.demos)",
        "[PRESET ...]",
        most=None,
        settings=True,
        options=(
            Field("policy", str | None, None, "a run whose policy acts (default: the environment's script, or chance)"),
            Field("output", str | None, None, "file to write (default: here, named after the environment)"),
            Field("sequences", int, 10_000, "sequences to record, as long as the longest episode", {"ge": 1}),
        ),
    ),
    "plot": Command(
        commands.plot,
        "draw learning curves of one or several runs; those that differ in their seeds alone are one curve",
        "RUN ...",
        1,
        None,
        (
            Field("output", str | None, None, "PNG to write (default: in the first run's folder)"),
            Field("metric", str | None, None, "which logged metric (default: what the run is judged by)"),
            Field("statistic", Literal["mean", "iqm"], "mean", "mean or interquartile mean over seeds"),
            Field("x", Literal["env_steps", "wall_s"], "env_steps", "against environment steps or seconds of training"),
        ),
    ),
    "compare": Command(
        commands.compare,
        "table and picture of what runs have reached, and of the settings in which they differ",
        "RUN ...",
        1,
        None,
        (Field("output", str | None, None, "PNG to write (default: in the first run's folder)"),),
    ),
    "list": Command(
        commands.list_,
        "list envs, models, agents, presets or runs; with the name of one: its parameters",
        "envs|models|agents|presets|runs [PATTERN]",
        1,
        2,
        (Field("root", str, "runs", "folder of run directories"),),
    ),
    "config": Command(
        commands.config,
        "show the configuration that presets and settings make, as YAML",
        "[PRESET ...]",
        most=None,
        options=(Field("explain", str | None, None, "show where this key's value comes from"),),
        settings=True,
    ),
    "doctor": Command(commands.doctor, "check versions, devices, wandb and the compilation cache"),
}

if __name__ == "__main__":
    sys.exit(main())
