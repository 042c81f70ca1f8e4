"""A wandb sweep file, read and checked: what it draws, how it searches, and what every trial has in common."""

import dataclasses
import difflib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssmrl import config as configuration
from ssmrl.arguments import Arguments, Command, read_arguments
from ssmrl.config import Config, trace
from ssmrl.fields import ConfigError, show
from ssmrl.registry import suggest
from ssmrl.sweep.distributions import Parameter
from ssmrl.sweep.hyperband import Hyperband, read_hyperband
from ssmrl.sweep.parameters import meant, read_number, read_parameters

FOLDER = configuration.PRESETS / "sweeps"
METHODS = ("grid", "random", "bayes")
_KEYS = (
    *("name", "description", "program", "project", "entity", "command"),
    *("method", "metric", "parameters", "early_terminate", "run_cap"),
)
_NOT_LOCAL = ("scheduler", "metrics", "job", "image_uri", "controller", "kind", "apiVersion")
_HOW = ("platform", "cache", "debug", "wandb", "tensorboard")  # settings that do not change what is learnt
_ARGS = ("args", "args_no_equals", "args_no_hyphens")  # what `ssmrl train` reads
_EVALUATED = ("return_mean", "return_std", "length_mean")


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is compared: a scalar of the run's log, by its name there."""

    name: str = "eval/return_mean"
    maximize: bool = True
    target: float | None = None

    def score(self, value: float) -> float:
        """``value``, or minus it: higher is better."""
        return value if self.maximize else -value


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep file that has been read."""

    name: str
    method: str
    parameters: tuple[Parameter, ...]
    metric: Metric = Metric()
    hyperband: Hyperband | None = None
    run_cap: int | None = None
    presets: tuple[str, ...] = ()  # that the command names
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # that the command makes
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # that the user makes, for all trials
    notes: tuple[str, ...] = ()  # what works here and would not under wandb

    @property
    def searched(self) -> tuple[Parameter, ...]:
        """The parameters that differ between trials."""
        return tuple(p for p in self.parameters if not p.constant)

    def choose(self, values: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
        """The presets and settings of the trial that draws ``values``, as ``ssmrl train`` would be given them."""
        constants = {p.name: p.values[0] for p in self.parameters if p.constant}
        settings = {**self.settings, **constants, **values, **self.overrides}
        named = configuration.elements(settings.pop("preset", None) or ())
        return [*self.presets, *map(str, named)], settings

    def resolve(self, values: Mapping[str, Any], run_dir: Path | None = None) -> Config:
        """The configuration of a trial, which logs to wandb only if that is asked for. Raises ``ConfigError``."""
        presets, settings = self.choose(values)
        own = {} if run_dir is None else {"run.dir": str(run_dir)}
        return trace(presets, {"wandb": "off", **settings, **own})[0]

    def header(self) -> dict[str, Any]:
        """What makes the sweep this one and no other."""
        return {
            "method": self.method,
            "parameters": [dataclasses.asdict(p) for p in self.parameters],
            "metric": dataclasses.asdict(self.metric),
            "early_terminate": self.hyperband and dataclasses.asdict(self.hyperband),
            "command": [*self.presets, dict(self.settings)],
            "settings": {k: v for k, v in self.overrides.items() if k.split(".")[0] not in _HOW},
        }


def read_sweep(file: str, overrides: Mapping[str, Any], errors: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, a path or the name of a built-in one; ``overrides`` hold for all trials.

    Raises ``ConfigError`` with everything that is wrong with it, ``errors`` first; :func:`check` does the values.
    """
    found = list(errors)
    path = _find(file, found)
    content = _load(path, found) if path else None
    if path is None or content is None:
        raise ConfigError(found)
    sweep = _read(path, content, overrides, found)
    if found:
        raise ConfigError(dict.fromkeys(found))
    return sweep


def check(sweep: Sweep, trials: Sequence[Mapping[str, Any]] = (), errors: Sequence[str] = ()) -> Config:
    """Validate every value that may be drawn, and ``trials`` that are known; returns one trial's configuration.

    Each choice, and both ends of each range, is tried with every combination of environment, agent, model and preset.
    Raises ``ConfigError`` with everything that is wrong, ``errors`` first.
    """
    found: list[str] = list(errors)
    first = None
    for candidates in (_corners(sweep), trials):
        before = len(found)
        for values in candidates:
            try:
                resolved = sweep.resolve(values)
                first = first or resolved
            except ConfigError as error:
                found += error.errors
        if len(found) > before:  # what is drawn would only repeat it
            break
    if first and sweep.hyperband and not first.eval.every:
        found.append("early_terminate needs evaluations during training: add eval.every: {value: 1}")
    if found or first is None:
        raise ConfigError(dict.fromkeys(found))
    return first


def _corners(sweep: Sweep) -> Iterator[dict[str, Any]]:
    kinds = [p for p in sweep.searched if p.name in (*configuration.KINDS, "preset")]
    others = [p for p in sweep.searched if p not in kinds]
    usual = {p.name: p.values[0] for p in others if p.values}
    for combination in itertools.product(*(p.values for p in kinds)):
        chosen = {p.name: v for p, v in zip(kinds, combination, strict=True)}
        yield {**usual, **chosen}
        for p in others:
            yield from ({**usual, **chosen, p.name: value} for value in p.extremes())


def _find(file: str, errors: list[str]) -> Path | None:
    builtin = {p.stem: p for p in sorted(FOLDER.glob("*.yaml"))}
    name = file.removeprefix("sweeps/")
    if Path(file).is_file():
        return Path(file)
    if name not in builtin:
        close = suggest(Path(name).stem, builtin)
        hint = f"did you mean {close[0]}?" if close else f"built-in ones are {', '.join(builtin) or 'none'}"
        errors.append(f"no sweep file '{file}': {hint}")
    return builtin.get(name)


def _load(path: Path, errors: list[str]) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        errors.append(f"sweep file '{path}' cannot be read: {' '.join(str(error).split())}")
        return None
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict) or not content["parameters"]:
        errors.append(f"'{path}' is no sweep file: it needs method: and parameters: (a preset goes to ssmrl train)")
        return None
    return content


def _read(path: Path, content: dict[str, Any], overrides: Mapping[str, Any], errors: list[str]) -> Sweep:
    for key in content:
        if key in _NOT_LOCAL:
            errors.append(f"{key}: ssmrl sweep has no such thing; only wandb's server does: remove it to run locally")
        elif key not in _KEYS:
            errors.append(f"unknown key '{key}'{meant(str(key), _KEYS)}")
    method = content.get("method")
    if method not in METHODS:
        errors.append(f"method: {show(method)}: {_hint(str(method), METHODS)}it is one of {', '.join(METHODS)}")
    name = str(content.get("name") or path.stem)
    if not re.fullmatch(r"[\w.@+ -]+", name) or name.strip(". ") == "":
        errors.append(f"name: '{name}' names a folder too: use letters, digits, spaces, . _ - only")
    run_cap = content.get("run_cap")
    if run_cap is not None and (not isinstance(run_cap, int) or run_cap < 1):
        errors.append(f"run_cap: {show(run_cap)}: expected integer >= 1")
    notes: list[str] = []
    parameters = tuple(read_parameters(content["parameters"], "", errors, notes))
    presets, settings = _command(content.get("command"), errors)
    _check_names(parameters, overrides, errors)
    errors += [
        f"parameters.{p.name}: a grid cannot list {p.distribution}: give values:, q_uniform or int_uniform, or use"
        " method: random"
        for p in parameters
        if method == "grid" and p.grid() is None
    ]
    early = content.get("early_terminate")
    hyperband = read_hyperband(early, errors) if early is not None else None
    return Sweep(
        name=name,
        method=str(method),
        parameters=parameters,
        metric=_metric(content.get("metric"), errors),
        hyperband=hyperband,
        run_cap=run_cap,
        presets=tuple(presets),
        settings=settings,
        overrides=dict(overrides),
        notes=tuple(notes),
    )


def _check_names(parameters: Sequence[Parameter], overrides: Mapping[str, Any], errors: list[str]) -> None:
    seen: set[str] = set()
    for p in parameters:
        if p.name in seen:
            errors.append(f"parameters.{p.name}: given twice; keep one")
        seen.add(p.name)
        if p.name == "run.dir":
            errors.append("parameters.run.dir: trials get folders of their own: remove it")
        elif p.name in overrides and not p.constant:
            errors.append(f"{p.name}={show(overrides[p.name])}: the sweep file searches it: remove it here or there")
    if "run.dir" in overrides:
        errors.append(f"run.dir={overrides['run.dir']}: trials get folders of their own: use --root")


def _metric(given: Any, errors: list[str]) -> Metric:
    if given is None:
        return Metric()
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        errors.append("metric: give name: eval/return_mean and goal: maximize")
        return Metric()
    unknown = [key for key in given if key not in ("name", "goal", "target", "impute", "impute_while_running")]
    errors += [f"metric.{key}: unknown: it takes name, goal, target" for key in unknown]
    goal, target, name = given.get("goal"), given.get("target"), given["name"]
    if goal not in ("maximize", "minimize"):
        what = "wandb minimizes where none is given" if goal is None else f"'{goal}' is none"
        errors.append(f"metric.goal: {what}: write goal: maximize or goal: minimize")
    if target is not None and read_number(target) is None:
        errors.append(f"metric.target: {show(target)}: expected number")
    prefix, _, rest = name.rpartition("/")
    names = [f"eval/{n}" for n in _EVALUATED]
    close = difflib.get_close_matches(rest, _EVALUATED, cutoff=0.8)  # agents may evaluate something else
    if prefix and name not in names and (prefix != "eval" or not rest or close):
        errors.append(f"metric.name: no run logs '{name}'{meant(name, names)}")
    return Metric(name, goal == "maximize", read_number(target))


def _command(given: Any, errors: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The presets and settings of a ``command`` that runs ``ssmrl train``."""
    if given is None:  # wandb would run `program`
        return [], {}
    if not isinstance(given, list):
        errors.append(f"command: {show(given)}: expected a list of words")
        return [], {}
    words = [re.sub(r"\$\{envvar:(\w+)\}", lambda m: os.environ.get(m[1], m[1]), str(w)) for w in given]
    macros = [w for w in words if re.search(r"\$\{.*\}", w)]
    allowed = [f"${{{name}}}" for name in ("env", "interpreter", *_ARGS)]
    for macro in macros:
        if macro not in allowed:
            close = difflib.get_close_matches(macro, allowed, n=1)
            hint = f"did you mean {close[0]}?" if close else f"ssmrl train takes one of {', '.join(allowed[2:])}"
            errors.append(f"command: {macro}: {hint} (wandb drops what it does not know, silently)")
    if not any(m in allowed[2:] for m in macros) and all(m in allowed for m in macros):
        errors.append("command: no parameter reaches it: add ${args_no_hyphens}")
    rest = [w for w in words if w not in macros]
    program = rest[: rest.index("train")] if "train" in rest else rest
    if program not in (["ssmrl"], ["-m", "ssmrl"]) or "train" not in rest:
        errors.append(f"command: runs '{' '.join(rest)}': ssmrl sweep runs ssmrl train only")
        return [], {}
    command = Command(_nothing, "", "", most=None, settings=True)
    arguments = read_arguments("train", command, rest[len(program) + 1 :])
    errors += [f"command: {e}" for e in arguments.errors]
    return arguments.words, arguments.settings


def _nothing(arguments: Arguments) -> int:
    return 0


def _hint(name: str, candidates: Sequence[str]) -> str:
    close = suggest(name, candidates)
    return f"did you mean {close[0]}? " if close else ""
