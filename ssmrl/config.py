"""Configuration: presets and ``key=value`` overrides to one validated, frozen :class:`Config`.

There is one syntax, flat dotted keys, in YAML and on the command line::

    base: [other/preset]            # optional: composed first
    doc: one line for `ssmrl list presets`
    env: popgym/RepeatPreviousEasy  # env.X are the parameters of that environment,
    agent: ppo
    agent.learning_rate: 2.0e-3     # agent.X the fields of that agent,
    model: s5
    model.d_model: 64               # model.X the fields of that sequence model
    total_steps: 300_000

Later layers win: declared defaults, then presets from left to right (each after its own bases), then overrides. A
layer that changes ``model`` (or ``agent``) drops what earlier ones set for the old one and the new one does not have;
a change of ``env`` drops all earlier ``env.X``. Everything that is wrong is reported at once, in a
:class:`~ssmrl.fields.ConfigError`.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from ssmrl import registry
from ssmrl.fields import ConfigError, Field, declared_fields, elements, hp, parse, show, unmet, validate
from ssmrl.registry import Entry, UnknownNameError, suggest

PRESETS = Path(__file__).parent / "configs"
KINDS = ("env", "agent", "model")
RESUMABLE = ("total_steps", "eval", "checkpoint", "log", "wandb", "tensorboard", "platform", "cache", "debug")
_COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where the run directory goes."""

    dir: str | None = hp(None, "exact run directory (none: a new one under run.root)")
    root: str = hp("runs", "folder of run directories")
    name: str | None = hp(None, "name of the run (none: made from env and model)")


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases; ``mode`` is the key ``wandb`` itself."""

    mode: Literal["auto", "online", "offline", "off"] = hp(
        "auto", "log to wandb; auto: online with an API key, else offline"
    )
    project: str = hp("ssmrl", "wandb project")
    entity: str | None = hp(None, "wandb user or team (none: your default)")
    group: str | None = hp(None, "wandb group of runs")
    tags: tuple[str, ...] = hp((), "wandb tags")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Logging."""

    every: int = hp(10, "updates per line of metrics; they run as one jitted chunk", ge=1)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    every: int = hp(0, "chunks between evaluations during training (0: at the end only)", ge=0)
    episodes: int = hp(256, "episodes per evaluation and seed", ge=1)
    greedy: bool = hp(False, "take the most likely action instead of sampling")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints."""

    every: int = hp(1, "chunks between checkpoints", ge=1)
    keep: int = hp(3, "newest checkpoints to keep", ge=1)


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """Compiled programs."""

    dir: str | None = hp(None, "folder of compiled programs (none: one per user; off: do not keep them)")


@dataclasses.dataclass(frozen=True)
class DebugConfig:
    """Debugging."""

    nans: bool = hp(False, "after a NaN, repeat the update operation by operation to find the one that made it")


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run; made by :func:`resolve`, which validates them."""

    env: str = hp("popgym/RepeatPreviousEasy", "environment (ssmrl list envs)")
    env_parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    agent: str = hp("ppo", "learning algorithm (ssmrl list agents)")
    agent_parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: str = hp("s5", "sequence model (ssmrl list models)")
    model_parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = hp(0, "random seed that everything derives from", ge=0)
    seeds: int = hp(1, "independent repetitions, trained at once", ge=1)
    total_steps: int = hp(1_000_000, "environment steps per seed", ge=1)
    init_from: str | None = hp(
        None, "start with what another run has learned: its folder (its best checkpoint), or a checkpoint of it"
    )
    platform: Literal["auto", "cpu", "gpu"] = hp("auto", "where to run")
    tensorboard: bool = hp(False, "also write TensorBoard files (needs the extra ssmrl[tensorboard])")
    run: RunConfig = RunConfig()
    wandb: WandbConfig = WandbConfig()
    log: LogConfig = LogConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cache: CacheConfig = CacheConfig()
    debug: DebugConfig = DebugConfig()

    @property
    def env_changes(self) -> dict[str, str]:
        """Parameters of the environment that are not at its defaults, as they are typed: ``{"env.width": "32"}``."""
        own = {k: field.default for k, field in registry.envs.find(self.env).parameters().items()}
        return {f"env.{k}": show(v) for k, v in self.env_parameters.items() if v != own.get(k, v)}

    @property
    def task(self) -> str:
        """The environment and what is changed of it, as a title: ``memory/DistractingMemory-8 width=32``."""
        return " ".join([self.env, *(f"{k.removeprefix('env.')}={v}" for k, v in self.env_changes.items())])


Trail = dict[str, list[tuple[str, Any]]]  # key -> (where, value), from the default to the value in force


def resolve(presets: Sequence[str] = (), overrides: Mapping[str, Any] | Sequence[str] = ()) -> Config:
    """Compose presets (names or paths of YAML files) and overrides into a validated :class:`Config`.

    ``overrides`` is a mapping from keys to values, nested or dotted, or a sequence of ``"key=value"``; ``preset`` is a
    key too. Raises :class:`ConfigError` with everything that is wrong.
    """
    return trace(presets, overrides)[0]


def trace(
    presets: Sequence[str] = (), overrides: Mapping[str, Any] | Sequence[str] = (), errors: Sequence[str] = ()
) -> tuple[Config, Trail]:
    """Like :func:`resolve`; also returns, for each key, where its values came from, the last one being in force.

    ``errors`` are reported together with those found here.
    """
    found = list(errors)
    values = dict(_flatten(_pairs(overrides, found), found))
    names = [*presets, *elements(values.pop("preset", ()))]
    layers = [layer for name in names for layer in _read_preset(str(name), found)]
    trail, chosen = _stack([*layers, (_COMMAND_LINE, values)], found)
    flat = _validated(trail, chosen, found)
    if found:
        raise ConfigError(dict.fromkeys(found))
    return _fill(Config, flat), {key: trail[key] for key in flat}


def to_flat(config: Config) -> dict[str, Any]:
    """All settings by their dotted keys, defaults included; lists are tuples."""
    return dict(_items(config))


def to_yaml(config: Config) -> str:
    """Render all settings as YAML; :func:`resolve` makes the same :class:`Config` from it."""
    flat = {k: list(v) if isinstance(v, tuple) else v for k, v in to_flat(config).items()}
    return yaml.safe_dump(flat, sort_keys=False, default_flow_style=None, width=120)


def schema(config: Config | None = None) -> dict[str, Field]:
    """Every key that a configuration takes, with type, default, range and documentation.

    Without ``config``: those that do not depend on the environment, agent and model.
    """
    chosen = {kind: _registry(kind).find(getattr(config, kind)) for kind in KINDS} if config else {}
    return _keys(chosen)


def check_resumable(config: Config, overrides: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Return overrides as parsed values by key, after checking that a run of ``config`` may be resumed with them.

    The length of the run and what is written may change, what is learned may not. Raises :class:`ConfigError`.
    """
    errors: list[str] = []
    values = dict(_flatten(_pairs(overrides, errors), errors))
    known, saved = schema(config), to_flat(config)
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            errors.append(unknown_key(key, known, {kind: getattr(config, kind) for kind in KINDS}))
        elif key.split(".")[0] in RESUMABLE:
            _parse_into(parsed, known[key], value, "", errors)
        elif parse(value, known[key].type) != saved[key]:
            errors.append(
                f"{key}={show(value)}: a resumed run keeps {show(saved[key])}; only {', '.join(RESUMABLE)} may change "
                f"(a new run: ssmrl train RUN/config.yaml {key}={show(value)})"
            )
    if errors:
        raise ConfigError(errors)
    return parsed


def unknown_key(key: str, known: Mapping[str, Field], names: Mapping[str, str]) -> str:
    """Say that ``key`` is not among the ``known`` ones of the entries called ``names``, and which was meant."""
    group, _, name = key.rpartition(".")
    siblings = [k for k in known if group and k.rpartition(".")[0] == group]
    short = {k.rpartition(".")[2]: k for k in reversed(siblings or [*known])}
    initials = [k for s, k in short.items() if "".join(word[:1] for word in s.split("_")) == name]
    whole = [] if siblings else suggest(key, known)
    close = initials or whole or [short[s] for s in suggest(name, short)]
    if close:
        field = known[close[0]]
        return f"unknown key '{key}': did you mean {field.name} ({field.doc}; default {show(field.default)})?"
    if group in names:
        others = [e.name for e in _registry(group).entries() if name in e.parameters() and not e.alias]
        owners = f"; {', '.join(others[:3])} {'has' if len(others) == 1 else 'have'} it" if others else ""
        takes = ", ".join(k.rpartition(".")[2] for k in siblings) or "no parameters"
        return f"unknown key '{key}': {group} '{names[group]}' takes {takes}{owners}"
    return f"unknown key '{key}': ssmrl train --help shows all keys"


def presets() -> dict[str, str]:
    """Names of the built-in presets, and the one line that each says about itself."""
    docs = {}
    for name, path in _preset_files().items():
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        docs[name] = str(content.get("doc", "")) if isinstance(content, dict) else ""
    return docs


def _registry(kind: str) -> registry.Registry:
    return getattr(registry, f"{kind}s")


def _key(prefix: str, name: str) -> str:
    return f"{prefix}.{name}".strip(".").removesuffix(".mode")


@functools.cache
def _static_keys(cls: type = Config, prefix: str = "") -> dict[str, Field]:
    """The keys of a group of settings; ``Config``'s do not include those of the environment, agent and model."""
    fields, table = declared_fields(cls), {}
    for f in dataclasses.fields(cls):
        key = _key(prefix, f.name)
        if f.name in fields:
            table[key] = dataclasses.replace(fields[f.name], name=key)
        elif dataclasses.is_dataclass(f.type):
            table |= _static_keys(typing.cast(type, f.type), key)
    return table


def _keys(chosen: Mapping[str, Entry | None]) -> dict[str, Field]:
    """All keys, given the entries chosen, in the order in which they are shown and written."""
    table = {}
    for key, field in _static_keys().items():
        table[key] = field
        entry = chosen.get(key)
        for name, parameter in (entry.parameters() if entry else {}).items():
            table[f"{key}.{name}"] = dataclasses.replace(parameter, name=f"{key}.{name}")
    return table


def _items(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for f in dataclasses.fields(group):
        value = getattr(group, f.name)
        if f.name.endswith("_parameters"):
            kind = f.name.removesuffix("_parameters")
            yield from ((f"{kind}.{name}", v) for name, v in value.items())
        elif dataclasses.is_dataclass(value):
            yield from _items(value, _key(prefix, f.name))
        else:
            yield _key(prefix, f.name), value


def _fill(cls: Any, flat: Mapping[str, Any], prefix: str = "") -> Any:
    """The inverse of :func:`_items`."""
    values = {}
    for f in dataclasses.fields(cls):
        if f.name.endswith("_parameters"):
            kind = f.name.removesuffix("_parameters") + "."
            values[f.name] = {k.removeprefix(kind): v for k, v in flat.items() if k.startswith(kind)}
        elif dataclasses.is_dataclass(f.type):
            values[f.name] = _fill(f.type, flat, _key(prefix, f.name))
        else:
            values[f.name] = flat[_key(prefix, f.name)]
    return cls(**values)


def _pairs(overrides: Mapping[str, Any] | Sequence[str], errors: list[str]) -> Mapping[str, Any]:
    if isinstance(overrides, Mapping):
        return overrides
    errors += [f"override '{text}': write key=value" for text in overrides if "=" not in text]
    return dict(text.split("=", 1) for text in overrides if "=" in text)


def _flatten(
    mapping: Mapping[Any, Any], errors: list[str], source: str = "", prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for name, value in mapping.items():
        pairs = [(f"{prefix}{name}", value)]
        if isinstance(value, Mapping):
            pairs = list(_flatten(value, errors, source, f"{prefix}{name}."))
        for key, v in pairs:
            if key in seen:
                errors.append(f"{source}{key}: set twice; keep one")
            seen.add(key)
            yield key, v


def _preset_files() -> dict[str, Path]:
    files = ((path.relative_to(PRESETS).with_suffix("").as_posix(), path) for path in sorted(PRESETS.rglob("*.yaml")))
    return {name: path for name, path in files if not name.startswith("sweeps/")}


def _read_preset(
    name: str, errors: list[str], folder: Path = Path(), within: tuple[Path, ...] = ()
) -> list[tuple[str, dict[str, Any]]]:
    """The layers of a preset, its bases first; ``folder`` is where relative paths start, ``within`` who asks for it."""
    path = _preset_files().get(name)
    if path is None:
        path = next((p for p in (folder / name, Path(name)) if p.suffix in (".yaml", ".yml") and p.is_file()), None)
    if path is None:
        sweep = PRESETS / "sweeps" / f"{name.removeprefix('sweeps/')}.yaml"
        errors.append(f"'{name}' is a sweep: ssmrl sweep {sweep.stem}" if sweep.is_file() else _unknown_preset(name))
        return []
    if path.resolve() in within:
        errors.append(f"preset '{name}' is its own base: {' -> '.join(p.stem for p in (*within, path))}")
        return []
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        errors.append(f"preset '{name}' cannot be read: {' '.join(str(error).split())}")
        return []
    if content is not None and not isinstance(content, dict):
        errors.append(f"preset '{name}' holds a {type(content).__name__}: write one 'key: value' per line")
        return []
    values = dict(content or {})
    if {"method", "parameters"} <= values.keys():
        errors.append(f"'{name}' is a sweep, not a preset: ssmrl sweep {name} (or wandb sweep {path})")
        return []
    values.pop("doc", None)
    bases = elements(values.pop("base", None) or ())
    layers = [
        layer for base in bases for layer in _read_preset(str(base), errors, path.parent, (*within, path.resolve()))
    ]
    source = f"preset {name}"
    return [*layers, (source, dict(_flatten(values, errors, f"{source}: ")))]


def _unknown_preset(name: str) -> str:
    if name.endswith((".yaml", ".yml")):
        return f"no file '{name}': a preset is a name (ssmrl list presets) or an existing YAML file"
    for kind in KINDS:
        try:
            return f"unknown preset '{name}': did you mean {kind}={_registry(kind).find(name).name}?"
        except UnknownNameError:
            continue
    names = list(_preset_files())
    close = suggest(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names[:12]) or 'none'}"
    return f"unknown preset '{name}': {hint} (ssmrl list presets)"


def _stack(layers: Sequence[tuple[str, dict[str, Any]]], errors: list[str]) -> tuple[Trail, dict[str, Entry | None]]:
    """Lay layers over the defaults; also returns the entry that each kind ended up with, None if there is none."""
    set_by_user = {kind for _, values in layers for kind in KINDS if kind in values}
    trail: Trail = {kind: [("default", _static_keys()[kind].default)] for kind in KINDS}
    chosen = {k: _find(k, v, source, [] if k in set_by_user else errors) for k, [(source, v)] in trail.items()}
    for source, values in layers:
        for kind in KINDS:
            if kind in values:
                entry, previous = _find(kind, values[kind], source, errors), chosen[kind]
                if entry and previous and entry.name != previous.name:
                    _drop(trail, kind, entry, previous)
                chosen[kind] = entry
        for key, value in values.items():
            trail.setdefault(key, []).append((source, value))
    return trail, chosen


def _find(kind: str, name: Any, source: str, errors: list[str]) -> Entry | None:
    try:
        return _registry(kind).find(str(name))
    except UnknownNameError as error:
        errors.append(_located(source, str(error)))
        return None


def _drop(trail: Trail, kind: str, entry: Entry, previous: Entry) -> None:
    """Forget what was set for the previous choice of a kind; what no entry at all has stays, to be reported."""
    known = {name for e in (*_registry(kind).entries(), previous) for name in e.parameters()}
    shared = entry.parameters() if kind != "env" else {}
    for key in [k for k in trail if k.startswith(f"{kind}.")]:
        name = key.removeprefix(f"{kind}.")
        if name in known and name not in shared:
            del trail[key]


def _validated(trail: Trail, chosen: Mapping[str, Entry | None], errors: list[str]) -> dict[str, Any]:
    """The value in force for every key; completes ``trail`` with defaults and parsed values."""
    known = _keys(chosen)
    names = {kind: entry.name for kind, entry in chosen.items() if entry}
    for key in trail:
        kind = key.split(".")[0]
        if key not in known and not (kind in chosen and chosen[kind] is None):
            errors.append(_located(trail[key][-1][0], unknown_key(key, known, names)))
    flat: dict[str, Any] = {}
    for key, field in known.items():
        if key in KINDS:
            flat[key] = names.get(key)
            continue
        history = trail.get(key, [])
        trail[key] = [("default", field.default), *((s, parse(v, field.type)) for s, v in history)]
        if history:
            _parse_into(flat, field, history[-1][1], history[-1][0], errors)
        else:
            flat[key] = field.default
    for kind, entry in chosen.items():
        if entry:
            values = {n: flat[f"{kind}.{n}"] for n in entry.parameters() if f"{kind}.{n}" in flat}
            errors += unmet(entry.requires, entry.parameters(), values, f"{kind}.")
    return flat


def _parse_into(flat: dict[str, Any], field: Field, value: Any, source: str, errors: list[str]) -> None:
    try:
        flat[field.name] = validate(field, parse(value, field.type))
    except ValueError as error:
        choices = typing.get_args(field.type) if typing.get_origin(field.type) is Literal else ()
        close = suggest(str(value), [str(c) for c in choices])
        hint = f"did you mean {close[0]}? " if close else ""
        errors.append(_located(source, f"{field.name}={show(value)}: {hint}{error}"))


def _located(source: str, message: str) -> str:
    return message if source in ("", "default", _COMMAND_LINE) else f"{source}: {message}"
