"""A command line taken apart: words, options and settings, and the help that lists them.

A setting is ``key=value``, ``--key=value`` or ``--key value``, so that a wandb agent's ``${args_no_hyphens}``,
``${args}`` and ``${args_no_equals}`` all work.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ssmrl import config as configuration
from ssmrl import listing
from ssmrl.config import to_flat, trace
from ssmrl.fields import Field, parse, show, validate
from ssmrl.registry import suggest

_KEY = re.compile(r"[A-Za-z_][\w.-]*")


@dataclasses.dataclass
class Arguments:
    """A command line taken apart."""

    argv: Sequence[str]
    words: list[str] = dataclasses.field(default_factory=list)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # configuration keys
    errors: list[str] = dataclasses.field(default_factory=list)
    help: bool = False


@dataclasses.dataclass(frozen=True)
class Command:
    """A sub-command: the function that runs it, and what it takes. One with ``commands`` takes one of them first."""

    run: Callable[[Arguments], int] | None
    doc: str
    words: str = ""  # placeholder of its positional arguments
    least: int = 0
    most: int | None = 0
    options: tuple[Field, ...] = ()
    settings: bool = False  # takes configuration keys
    commands: Mapping[str, "Command"] = dataclasses.field(default_factory=dict)


COMMON = (
    Field("json", bool, False, "print JSON on standard output, and nothing else there"),
    Field("quiet", bool, False, "print errors only"),
    Field("debug", bool, False, "show the traceback of an error"),
)


def read_arguments(name: str, command: Command, argv: Sequence[str]) -> Arguments:
    """Take the arguments of a command apart; what is wrong with them goes into ``errors``."""
    fields = {f.name: f for f in (*COMMON, *command.options)}
    arguments = Arguments([*name.split(), *argv], options={k: f.default for k, f in fields.items()})
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        key, equals, value = token.removeprefix("--").partition("=")
        dashed, field = token.startswith("--"), fields.get(key.replace("-", "_"))
        if token in ("-h", "--help"):
            arguments.help = True
        elif token.startswith("-") and not (dashed and _KEY.fullmatch(key)):
            arguments.errors.append(f"unknown option '{token}' (ssmrl {name} --help)")
        elif not dashed and not (equals and _KEY.fullmatch(key)):
            arguments.words.append(token)
        elif field and field.type is bool and not equals:
            arguments.options[field.name] = True
        elif not field and (error := _unknown_option(name, command, key, fields, dashed and not equals)):
            arguments.errors.append(error)
        elif not equals and (not rest or rest[0].startswith("--")):
            arguments.errors.append(f"--{key} has no value: write --{key}=VALUE")
        else:
            value = value if equals else rest.pop(0)
            if field:
                _read_option(arguments, field, f"{'--' * dashed}{key}", value)
            else:
                arguments.settings[key] = value
    if not arguments.help:
        arguments.errors += _count_errors(name, command, arguments.words)
    return arguments


def _count_errors(name: str, command: Command, words: Sequence[str]) -> list[str]:
    if len(words) < command.least:
        return [f"ssmrl {name} needs {command.words}: {len(words)} given (ssmrl {name} --help)"]
    if command.most is not None and len(words) > command.most:
        takes = f"takes {command.words} only" if command.most else "takes no names"
        return [f"ssmrl {name} {takes}: '{' '.join(words[command.most :])}' is too much (ssmrl {name} --help)"]
    return []


def _unknown_option(name: str, command: Command, key: str, fields: Mapping[str, Field], bare: bool) -> str | None:
    """Why ``key``, which is no option, is no setting either; ``bare``: it was written ``--key`` alone."""
    close = suggest(key.replace("-", "_"), fields)
    if command.settings and not (bare and close and key not in configuration.schema()):
        return None
    hint = f"did you mean --{close[0].replace('_', '-')} ({fields[close[0]].doc})? " if close else ""
    return f"unknown option '{key}': {hint}(ssmrl {name} --help)"


def _read_option(arguments: Arguments, field: Field, name: str, value: str) -> None:
    """``name`` is what was typed for the field's."""
    try:
        arguments.options[field.name] = validate(field, parse(value, field.type))
    except ValueError as error:
        arguments.errors.append(f"{name}={value}: {error}")


def help_text(name: str, command: Command, arguments: Arguments) -> str:
    """What ``ssmrl NAME --help`` prints: usage, options and, for a command that takes them, all settings."""
    options = "".join(f" [--{f.name.replace('_', '-')}{'' if f.type is bool else ' VALUE'}]" for f in command.options)
    words = f" {command.words}" if command.words else ""
    settings = " [key=value ...]" if command.settings else ""
    lines = [f"usage: ssmrl {name}{words}{settings}{options} [--json] [--quiet] [--debug]", "", command.doc, ""]
    for f in (*command.options, *COMMON):
        default = "" if f.type is bool or f.default is None else f" (default {show(f.default)})"
        lines.append(f"  --{f.name.replace('_', '-'):12} {f.doc}{default}")
    if command.settings:
        shown = arguments.words if name not in ("resume", "sweep", "adapt") else []
        taken = {"resume": configuration.RESUMABLE, "adapt": ("env",)}.get(name)
        config = trace(shown, arguments.settings, arguments.errors)[0]
        values = to_flat(config)
        lines += ["", "settings, with their values here:"]
        for key, field in configuration.schema(config).items():
            if taken is None or key.split(".")[0] in taken:
                lines.append(listing.field_line(dataclasses.replace(field, default=values[key])))
    return "\n".join(lines)
