"""What ``ssmrl list`` and ``--help`` show about names, their parameters and runs; each as text and as plain data."""

import json
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ssmrl import config
from ssmrl.fields import Field, show
from ssmrl.registry import Entry, Registry, UnknownNameError

_HEAD = 46  # columns of a name


def entries(registry: Registry, pattern: str = "") -> tuple[str, list[dict[str, Any]]]:
    """Entries whose names contain ``pattern``, one line per family; for one name or family, its parameters too.

    Raises ``UnknownNameError`` if there are none.
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
    return "\n".join(lines).strip("\n"), [_facts(e) for e in ([chosen] if chosen else found)]


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
        score = "" if r.get("return_mean") is None else f"return {r['return_mean']:.3f}"
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
