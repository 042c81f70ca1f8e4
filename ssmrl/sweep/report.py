"""What a sweep found: a table, the best command line, a CSV and a picture in parallel coordinates."""

import csv
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssmrl.fields import show
from ssmrl.sweep.distributions import Parameter
from ssmrl.sweep.ledger import Trial
from ssmrl.sweep.runner import SweepRun, make_groups
from ssmrl.sweep.search import suggest_trials
from ssmrl.sweep.spec import Sweep

_GREY: Any = "#999999"


def table(state: SweepRun, most: int = 30) -> str:
    """The trials that ended, the best first, as text."""
    names = [p.name for p in state.sweep.searched]
    heads = ["trial", "status", state.sweep.metric.name, *names]
    ranked = state.ranked()
    rows = [heads]
    for t in ranked[:most]:
        value = "" if t.value is None else f"{t.value:.4g}"
        rows.append([str(t.number), t.status, value, *(show(t.parameters.get(n)) for n in names)])
    return "\n".join([*_aligned(rows), *([f"... and {len(ranked) - most} more"] if len(ranked) > most else [])])


def plan(sweep: Sweep, trials: Sequence[Trial], count: int, batch: int, seed: int) -> tuple[str, dict[str, Any]]:
    """What a sweep would train, as text and as plain data; of a bayes search its first batch."""
    trials = trials or suggest_trials(sweep, {}, min(count, batch), seed)
    failures: list[str] = []
    groups = make_groups(
        sweep, trials, lambda t: Path(str(t.number)), lambda t, error: failures.append(f"trial {t.number}: {error}")
    )
    names = [p.name for p in sweep.searched]
    lines = _aligned([["trial", *names], *([str(t.number), *(show(t.parameters[n]) for n in names)] for t in trials)])
    lines += [f"program {i}: {group.describe()}" for i, group in enumerate(groups, 1)]
    lines += failures
    lines.append(f"{count} trials of {sweep.name} ({sweep.method}), {_programs(len(groups))}")
    facts = {
        "sweep": sweep.name,
        "count": count,
        "programs": len(groups),
        "trials": [{"trial": t.number, "parameters": t.parameters} for t in trials],
        "groups": [[t.number for t, _, _ in group.members] for group in groups],
        "failures": failures,
    }
    return "\n".join(lines), facts


def summary(state: SweepRun) -> str:
    """What to print at the end: the table, the best line to type, and where the rest is."""
    best = state.best()
    ended = [t.status for t in state.trials.values() if t.ended]
    counts = ", ".join(f"{ended.count(s)} {s}" for s in ("done", "stopped", "failed") if s in ended) or "none ended"
    lines = [
        table(state),
        "",
        f"{counts} of {state.count} trials in {state.seconds:.0f} s; {_programs(state.programs)} compiled",
    ]
    if best:
        lines.append(f"files: {write_csv(state)}, {draw(state)}")
        lines += [f"best: {state.dir(best)}", f"  {command_line(state.sweep, best)}"]
    if state.status != "done":
        command = (state.folder / "command.txt").read_text().strip()
        lines.append(f"{state.status}: everything is saved; go on with:\n  {command}")
    return "\n".join(lines)


def _programs(n: int) -> str:
    return f"{n} program{'s' * (n != 1)}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def command_line(sweep: Sweep, trial: Trial) -> str:
    """What to type to train a trial's configuration alone."""
    presets, settings = sweep.choose(trial.parameters)
    return shlex.join(["ssmrl", "train", *presets, *(f"{k}={show(v)}" for k, v in settings.items())])


def facts(state: SweepRun) -> dict[str, Any]:
    """Everything as plain data, for ``--json``."""
    ranked, best = state.ranked(), state.best()
    if best:
        write_csv(state)
        draw(state)
    return {
        "sweep": state.sweep.name,
        "dir": str(state.folder),
        "status": state.status,
        "metric": state.sweep.metric.name,
        "programs": state.programs,
        "seconds": state.seconds,
        "best": best and {**_row(state, best), "command": command_line(state.sweep, best)},
        "trials": [_row(state, t) for t in ranked],
    }


def write_csv(state: SweepRun) -> Path:
    """``trials.csv`` in the sweep's folder, the best trial first."""
    path = state.folder / "trials.csv"
    names = [p.name for p in state.sweep.searched]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "status", state.sweep.metric.name, *names, "dir", "reason"])
        for t in state.ranked():
            drawn = [show(t.parameters.get(n)) for n in names]
            writer.writerow([t.number, t.status, t.value, *drawn, str(state.dir(t)), t.reason])
    return path


def _row(state: SweepRun, trial: Trial) -> dict[str, Any]:
    facts = {k: getattr(trial, k) for k in ("status", "value", "parameters", "reason")}
    return {"trial": trial.number, **facts, "dir": str(state.dir(trial))}


def draw(state: SweepRun) -> Path:
    """``parallel_coordinates.png`` in the sweep's folder: a line for each trial, coloured by the metric."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric, path = state.sweep.metric, state.folder / "parallel_coordinates.png"
    trials = state.ranked()[::-1]  # the best one is drawn last, on top
    values = [t.value for t in trials if t.value is not None]
    columns = [_Column.of(p, trials) for p in state.sweep.searched]
    columns.append(_Column(metric.name, [t.value for t in trials], min(values, default=0), max(values, default=1)))
    figure = Figure(figsize=(max(6.0, 1.7 * len(columns)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, trial in enumerate(trials):
        heights = [column.height(i) for column in columns]
        known = [(x, y) for x, y in enumerate(heights) if y is not None]
        style, colour = ":", _GREY
        if (height := heights[-1]) is not None:
            style = "--" if trial.status == "stopped" else "-"
            colour = colormaps["viridis"](height if metric.maximize else 1 - height)
        best = i == len(trials) - 1 and trial.value is not None
        axes.plot(*zip(*known, strict=True), style, color=colour, linewidth=2.5 if best else 1.3, alpha=0.9)
    box: dict[str, Any] = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    for x, column in enumerate(columns):
        axes.axvline(x, color="black", linewidth=0.8, zorder=0)
        align, shift = ("left", 4) if column is columns[-1] else ("right", -4)
        for height, text in column.ticks():
            tick = axes.annotate(text, (x, height), (shift, 0), textcoords="offset points", ha=align, va="center")
            tick.set(fontsize=8, bbox=box, zorder=3)
    axes.set_xticks(range(len(columns)), [c.name.replace(".", ".\n", 1) for c in columns], fontsize=9)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-0.05, 1.05)
    axes.set_yticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(f"{state.sweep.name}: {len(trials)} trials; dashed: stopped early, dotted: failed", fontsize=10)
    figure.savefig(path, dpi=150)
    return path


class _Column:
    """One axis of the picture."""

    def __init__(self, name: str, values: Sequence[Any], low: float, high: float, *, log: bool = False):
        self.name, self.values, self.low, self.high, self.log = name, values, low, high, log
        self.labels: list[str] = []

    @classmethod
    def of(cls, parameter: Parameter, trials: Sequence[Trial]) -> "_Column":
        drawn = [t.parameters.get(parameter.name) for t in trials]
        if parameter.values:
            labels = [show(v) for v in parameter.values]
            column = cls(parameter.name, [labels.index(show(v)) for v in drawn], 0, max(len(labels) - 1, 1))
            column.labels = labels
            return column
        numbers = [float(v) for v in drawn if v is not None]
        low, high = min(numbers, default=0.0), max(numbers, default=1.0)
        return cls(parameter.name, drawn, low, high, log=parameter.logarithmic and low > 0)

    def height(self, i: int) -> float | None:
        value = self.values[i]
        if value is None:
            return None
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, float(value)))
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        if self.labels:
            return [(i / self.high if len(self.labels) > 1 else 0.5, text) for i, text in enumerate(self.labels)]
        if self.high <= self.low:
            return [(0.5, f"{self.low:.3g}")]
        if self.log:
            ends = [self.low * (self.high / self.low) ** (i / 4) for i in range(5)]
        else:
            ends = [self.low + (self.high - self.low) * i / 4 for i in range(5)]
        return [(i / 4, f"{x:.3g}") for i, x in enumerate(ends)]
