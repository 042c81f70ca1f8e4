"""``ssmrl compare``: what runs have reached, side by side, and the settings in which they differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssmrl.fields import show
from ssmrl.plotting import plot_comparison
from ssmrl.results import Experiment, Statistic, distinguishing, label, read_experiments, summary

_MEASURES = ("final", "best", "area")


def compare_runs(run_dirs: Sequence[Path], output: Path | None = None) -> dict[str, Any]:
    """Compare runs; those that differ in their seeds alone are one experiment.

    Returns ``experiments`` (a dict each: label, env, runs, seeds, steps, the settings that differ, and mean, low and
    high of final, best and area), ``overall`` (with several tasks: the interquartile mean of the final returns over all
    seeds and tasks, per label) and ``plot``, the path of the PNG, beside which is a CSV: ``output``, or
    ``plots/comparison.png`` of the first run. Raises ``UserError`` if a folder is no run or has no curve.
    """
    experiments = read_experiments(run_dirs)
    tasks = [e.env for e in experiments]
    rows = [_row(e, experiments) for e in sorted(experiments, key=lambda e: tasks.index(e.env))]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [columns, *([_cell(row.get(key, "")) for key in columns] for row in rows)]
    path = plot_comparison(experiments, output or run_dirs[0] / "plots" / "comparison.png", table)
    return {"experiments": rows, "overall": _overall(experiments), "plot": str(path)}


def _row(e: Experiment, among: Sequence[Experiment]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "label": label(e, among),
        "env": e.env,
        "runs": [str(run) for run in e.runs],
        "seeds": len(e.final),
        "env_steps": int(e.curve.env_steps[-1]),
    }
    row |= {key: e.config[key] for key in distinguishing(among) if key in e.config}
    for name in _MEASURES:
        value, low, high = summary([getattr(e, name)], "mean")
        row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def _overall(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    """One entry per label that was run on every task: what is pooled over other tasks is not comparable."""
    tasks = {e.env for e in experiments}
    if len(tasks) < 2:
        return []
    pooled: dict[str, list[Experiment]] = {}
    for e in experiments:
        pooled.setdefault(label(e, experiments), []).append(e)
    found = []
    for name, group in pooled.items():
        if {e.env for e in group} == tasks:
            statistic: Statistic = "iqm"
            value, low, high = summary([e.final for e in group], statistic)
            found.append(
                {"label": name, "tasks": len(group), "iqm": float(value), "low": float(low), "high": float(high)}
            )
    return found


def render(facts: dict[str, Any]) -> str:
    """The facts of :func:`compare_runs` as text: a table, the aggregate over tasks, where the picture is."""
    head = ["environment", "setting", "seeds", "steps", *(f"{m} [95 %]" for m in _MEASURES)]
    rows = [
        [r["env"], r["label"], str(r["seeds"]), f"{r['env_steps']:,}", *(_interval(r, m) for m in _MEASURES)]
        for r in facts["experiments"]
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
    if facts["overall"]:
        lines += ["", "interquartile mean of the final returns over all seeds and tasks:"]
        for r in facts["overall"]:
            lines.append(f"  {r['label']}  {r['iqm']:.3f} [{r['low']:.3f}, {r['high']:.3f}]  ({r['tasks']} tasks)")
    return "\n".join([*lines, "", f"plot: {facts['plot']} (and .csv)"])


def _interval(row: dict[str, Any], name: str) -> str:
    value, low, high = (row[k] for k in (name, f"{name}_low", f"{name}_high"))
    digits = 3 if abs(value) < 10 else 1
    return f"{value:.{digits}f}" + ("" if np.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(value)
    return f"{value:.6g}" if isinstance(value, float) else show(value)
