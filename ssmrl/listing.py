"""What ``ssmrl list`` and ``--help`` show about names, their parameters and runs; each as text and as plain data.

Names and parameters are read from sources, without jax. What only the built thing knows, shapes and lengths, is shown
where a pattern fits a few environments, or one model.
"""

import json
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ssmrl import config
from ssmrl.fields import Field, show
from ssmrl.registry import Entry, Registry, UnknownNameError, UserError

_HEAD = 46  # columns of a name
_FEW = 20  # environments that are built to show their shapes


def entries(registry: Registry, pattern: str = "") -> tuple[str, list[dict[str, Any]]]:
    """Entries whose names contain ``pattern``, one line per family; for one name or family, its parameters too.

    With a pattern that fits few of them the shapes are shown as well, which imports jax. Raises ``UnknownNameError`` if
    there are none.
    """
    everything = registry.entries()
    found = [e for e in everything if pattern.lower() in e.name.lower()]
    chosen = None
    try:
        chosen = registry.find(pattern)
    except UnknownNameError:
        if not found:
            raise
    families: dict[str, list[Entry]] = {}
    for entry in found:
        families.setdefault(entry.family, []).append(entry)
    lines = _table((_family(family, members), members[0].doc) for family, members in families.items())
    if chosen is None and (len(found) == 1 or [found[0].name] == list(families)):
        chosen = found[0]
    if chosen:
        lines = lines if len(found) > 1 else []
        lines += ["", f"{chosen.name}: {chosen.doc} ({chosen.module}.{chosen.cls})"]
        lines += [field_line(f) for f in chosen.parameters().values()]
        lines += [f"  needs {expression}: {reason}" for expression, reason in chosen.requires.items()]
    shown = [chosen] if chosen else found
    facts = [_facts(e) for e in shown]
    if registry.kind == "env" and pattern and len(found) <= _FEW:
        trained = _presets_by_env()
        shapes = {e.name: _env_shapes(e) for e in found or shown}
        shapes = {name: s | {"presets": trained.get(s["name"], {})} for name, s in shapes.items()}
        facts = [fact | shapes[fact["name"]] for fact in facts]
        lines += ["", *_blocks([*shapes.values()])]
    elif registry.kind == "env":
        lines += ["", "a pattern that fits few names shows their shapes, lengths and presets too"]
    elif registry.kind == "model" and chosen:
        size = _model_size(chosen.name)
        facts = [facts[0] | size]
        lines.append(f"  so built: {size['parameters_total']:,} parameters, {size['carry']:,} numbers of memory")
    return "\n".join(lines).strip("\n"), facts


def presets(pattern: str = "") -> tuple[str, dict[str, str]]:
    """Presets whose names contain ``pattern``, with the line that each says about itself."""
    docs = {name: doc for name, doc in config.presets().items() if pattern.lower() in name.lower()}
    return "\n".join(_table(docs.items())) or f"no preset has '{pattern}' in its name", docs


def runs(root: Path, pattern: str = "") -> tuple[str, list[dict[str, Any]]]:
    """Runs in ``root`` whose paths contain ``pattern``, and how far they are."""
    found = []
    for path in sorted(root.glob("**/status.json")):
        if pattern.lower() in str(path.parent).lower():
            try:
                status = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                status = {"status": "unreadable"}
            found.append({"dir": str(path.parent), **status})
    width = max((len(r["dir"]) for r in found), default=0)
    lines = []
    for r in found:
        name = r.get("score", "return_mean")
        score = "" if r.get(name) is None else f"{name.replace('return_mean', 'return')} {r[name]:.3f}"
        steps = f"{r.get('env_steps', 0):,}/{r.get('total_steps', 0):,}"
        cells = (f"{r['dir']:{width}}", f"{r['status']:11}", f"{steps:>23}", f"{score:14}", r.get("updated", ""))
        lines.append("  ".join([*cells, r.get("reason", "")]).rstrip())
    missing = f"no run{f' like {pattern!r}' if pattern else ''} in {root} (--root=DIR looks elsewhere)"
    return "\n".join(lines) or missing, found


def field_line(field: Field) -> str:
    """One line about a parameter: name, default, documentation and range."""
    return f"  {field.name:30} {show(field.default):22} {field.doc} ({field.expected})"


def _family(family: str, members: list[Entry]) -> str:
    """``popgym/RepeatPrevious[Easy|Medium|Hard]``, then its other names."""
    variants: dict[str, list[str]] = {}
    for e in members:
        base = (e.alias or family) + (f"/<{e.suffix}>" if e.suffix else "")
        variants.setdefault(base, []).append("" if e.suffix else e.name.removeprefix(base))
    return " = ".join(b + (f"[{'|'.join(filter(None, v))}]" if any(v) else "") for b, v in variants.items())


def _facts(entry: Entry) -> dict[str, Any]:
    fields = entry.parameters().values()
    parameters = {f.name: {"type": f.expected, "default": f.default, "doc": f.doc} for f in fields}
    return {"name": entry.name, "doc": entry.doc, "parameters": parameters, "requires": entry.requires}


def _presets_by_env() -> dict[str, dict[str, str]]:
    """For each environment the presets that train on it, with the line that each says about itself."""
    found: dict[str, dict[str, str]] = {}
    for preset, doc in config.presets().items():
        found.setdefault(config.resolve([preset]).env, {})[preset] = doc
    return found


def _env_shapes(entry: Entry) -> dict[str, Any]:
    """Build an environment and read its spaces and its time limit."""
    from ssmrl import envs

    name = entry.name if entry.suffix is None else f"{entry.name}/{entry.parameters()[entry.suffix].default}"
    try:
        env, params = envs.make(name)
    except UserError as error:
        return {"name": name, "unavailable": str(error)}
    limit = env.longest_episode(params)
    return {
        "name": name,
        "observation": _space(env.observation_space(params)),
        "action": _space(env.action_space(params)),
        "action_names": list(getattr(env, "action_names", ())),
        "max_steps": None if limit is None else int(limit),
    }


def _space(space: Any) -> str:
    """``Discrete(4)``, ``MultiDiscrete(8, 8)``, ``Box[3] in [-1, 1]``."""
    match type(space).__name__:
        case "Discrete":
            return f"Discrete({space.n})"
        case "MultiDiscrete":
            same = len(space.nvec) > 4 and len(set(space.nvec)) == 1
            return (
                f"MultiDiscrete({f'{space.nvec[0]} x {len(space.nvec)}' if same else ', '.join(map(str, space.nvec))})"
            )
        case "Box":
            low, high = (bound.min() if i == 0 else bound.max() for i, bound in enumerate(space.bounds()))
            return f"Box[{', '.join(map(str, space.shape))}] in [{low:g}, {high:g}]"
        case "Tuple":
            return f"({', '.join(_space(s) for s in space.spaces)})"
    return "{" + ", ".join(f"{name}: {_space(s)}" for name, s in space.items) + "}"


def _blocks(shapes: list[dict[str, Any]]) -> list[str]:
    """A line per environment, and one per preset for it."""
    width = max(len(s["name"]) for s in shapes)
    lines = []
    for s in shapes:
        if "unavailable" in s:
            lines.append(f"{s['name']:{width}}  cannot be built: {s['unavailable']}")
            continue
        names = f" ({', '.join(s['action_names'])})" if s["action_names"] else ""
        limit = "no time limit" if s["max_steps"] is None else f"at most {s['max_steps']:,} steps"
        lines.append(f"{s['name']:{width}}  observes {s['observation']}  acts {s['action']}{names}  {limit}")
        lines += [f"{'':{width}}  preset {preset}: {doc}" for preset, doc in s["presets"].items()]
    return lines


def _model_size(name: str) -> dict[str, int]:
    """Number of parameters and of numbers in the carry of a model with its defaults."""
    import jax
    import jax.numpy as jnp

    from ssmrl.nn import make_model

    model = make_model(name)
    carry = model.initialize_carry((1,))
    x, reset = jnp.zeros((1, 1, model.d_model)), jnp.zeros((1, 1), bool)
    params = jax.eval_shape(model.init, jax.random.key(0), carry, x, reset)
    return {
        "parameters_total": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "carry": sum(leaf.size * (1 + jnp.iscomplexobj(leaf)) for leaf in jax.tree.leaves(carry)),
    }


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    columns = shutil.get_terminal_size((120, 24)).columns
    lines = []
    for head, doc in rows:
        if len(head) > columns:
            head = head.replace("|", "| ")
        if len(head) > _HEAD:
            lines += textwrap.wrap(head, columns, subsequent_indent="    ", break_on_hyphens=False)
            head = ""
        lines.append(
            f"{head:{_HEAD}}  {textwrap.shorten(doc, max(columns - _HEAD - 2, 40), placeholder=' ...')}".rstrip()
        )
    return lines
