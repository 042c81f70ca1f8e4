"""Pictures of what runs have reached, each with the numbers behind it in a CSV of the same name."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssmrl.results import Experiment, Statistic, label, profile, read_experiments, score_name, summary

_AXES = {"env_steps": "environment steps per seed", "wall_s": "seconds of training"}
_NAMES = {"mean": "mean", "iqm": "interquartile mean"}


def plot_runs(
    run_dirs: Sequence[Path],
    output: Path | None = None,
    *,
    metric: str | None = None,
    statistic: Statistic = "mean",
    x: Literal["env_steps", "wall_s"] = "env_steps",
) -> Path:
    """Draw learning curves of the runs' score, or of ``metric``: means (or interquartile means) over seeds.

    With 95 % bootstrap intervals. Runs that differ in their seeds alone are one curve; each environment has a panel.
    Returns the path of the PNG: ``output``, or ``plots/learning_curve.png`` of the first run. Raises ``UserError`` if a
    run has no such metric.
    """
    output = output or run_dirs[0] / "plots" / "learning_curve.png"
    experiments = read_experiments(run_dirs, metric)
    envs = list(dict.fromkeys(e.env for e in experiments))
    columns = min(len(envs), 4)
    rows = -(-len(envs) // columns)
    figure = _figure(7 if columns == 1 else 4 * columns, 4 if rows == 1 else 3 * rows)
    panels = dict(zip(envs, figure.subplots(rows, columns, squeeze=False).flat, strict=False))
    table: list[list[Any]] = []
    drawn: dict[str, Any] = {}  # label -> colour, the same in every panel
    for e in experiments:
        known = np.isfinite(e.curve.values).all(axis=1)
        value, low, high = summary([e.curve.values[known]], statistic)
        where = getattr(e.curve, x)[known]
        name = label(e, experiments)
        seeds = e.curve.values.shape[1]
        (line,) = panels[e.env].plot(
            where,
            value,
            ".-",
            markersize=4,
            color=drawn.get(name),
            label=f"{name} ({seeds} seeds)" if seeds > 1 else name,
        )
        drawn[name] = line.get_color()
        panels[e.env].fill_between(where, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        rest = (e.curve.env_steps[known], e.curve.wall_s[known], value, low, high, e.curve.values[known])
        table += [[name, e.env, int(n), *_plain(t, v, lo, hi, *s)] for n, t, v, lo, hi, s in zip(*rest, strict=True)]
    for env, axes in panels.items():
        axes.set_title(env if len(envs) > 1 else "", fontsize="small")
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="x-small" if len(envs) > 1 else "small")
    figure.supxlabel(_AXES[x], fontsize="medium")
    figure.supylabel(
        f"{metric or score_name(run_dirs[0])}: {_NAMES[statistic]} over seeds, 95 % interval", fontsize="medium"
    )
    most = max(e.curve.values.shape[1] for e in experiments)
    header = ["experiment", "env", "env_steps", "wall_s", statistic, "low", "high", *(f"seed_{i}" for i in range(most))]
    return _save(figure, output, [header, *table])


def plot_comparison(experiments: Sequence[Experiment], output: Path, table: Sequence[Sequence[Any]]) -> Path:
    """Draw final returns with their intervals, task by task, and with several tasks the performance profiles.

    ``table`` is what the CSV gets. Returns the path of the PNG.
    """
    envs = list(dict.fromkeys(e.env for e in experiments))
    names = list(dict.fromkeys(label(e, experiments) for e in experiments))
    figure = _figure(7 if len(envs) == 1 else 11, max(2.0 + 0.22 * len(experiments), 3))
    axes, *rest = figure.subplots(1, 1 if len(envs) == 1 else 2, squeeze=False)[0]
    for i, name in enumerate(names):
        colour = f"C{i}"
        chosen = [e for e in experiments if label(e, experiments) == name]
        values = [summary([e.final], "mean") for e in chosen]
        offset = (i - (len(names) - 1) / 2) * 0.6 / len(names)
        rows = np.array([envs.index(e.env) for e in chosen]) + offset
        axes.hlines(
            rows, [low for _, low, _ in values], [high for _, _, high in values], color=colour, linewidth=3, alpha=0.5
        )
        axes.plot([value for value, _, _ in values], rows, "o", color=colour, markersize=4, label=name)
        if rest:
            scores = np.concatenate([e.final[np.isfinite(e.final)] for e in experiments])
            levels = np.linspace(scores.min(initial=0), scores.max(initial=0), 201)
            fraction, low, high = profile([e.final for e in chosen], levels)
            rest[0].plot(levels, fraction, color=colour, label=name)
            rest[0].fill_between(levels, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_yticks(range(len(envs)), envs, fontsize="small")
    axes.set_ylim(len(envs) - 0.5, -0.5)
    axes.set_xlabel(f"final {_name(experiments)} (mean over seeds, 95 % interval)")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="best", fontsize="small")
    if rest:
        rest[0].set_xlabel(_name(experiments))
        rest[0].set_ylabel("fraction of runs above it (tasks alike, 95 % interval)")
        rest[0].grid(alpha=0.3)
    return _save(figure, output, table)


def plot_horizon(curves: Mapping[str, np.ndarray], control: Mapping[str, np.ndarray], output: Path) -> Path:
    """Draw what a world model imagines well against how far ahead that is: means over seeds, 95 % intervals.

    ``curves`` and those of the ``control`` are ``[S, Q]`` by metric: accuracies of tiles in one panel, the squared
    error in another; the control has the lines of the same names. Where some frames have no tile that counts as unseen,
    the others have few, and that line is left out. The CSV has all curves. Returns ``output``.
    """
    known = {k: np.isfinite(v) for k, v in curves.items() if "_acc" in k and not k.endswith(("_recon", "_sampled"))}
    drawn = [k for k, v in known.items() if (v.all() if "unseen" in k else v.any())]
    drawn = [k for k in drawn if not k.startswith("tile_acc") or "seen" in k] or drawn
    panels = [names for names in (drawn, [k for k in curves if "_acc" not in k]) if names]
    figure = _figure(6 * len(panels), 4)
    panel_of = dict(zip(map(tuple, panels), figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    horizon = np.arange(1, 1 + next(iter(curves.values())).shape[1])
    columns: dict[str, np.ndarray] = {"horizon": horizon}
    for kind, group, style in (("", curves, ".-"), ("control/", control, ".--")):
        for name, values in group.items():
            found, known = np.full((3, len(horizon)), np.nan), np.isfinite(values).all(axis=0)
            if known.any():
                found[:, known] = summary([values[:, known].T], "mean")
            columns |= {f"{kind}{name}{end}": row for end, row in zip(("", "/low", "/high"), found, strict=True)}
            for names, axes in panel_of.items():
                if name in names and not (kind and name.endswith("_shuffled")):
                    (line,) = axes.plot(horizon, found[0], style, markersize=4, label=f"{kind}{name}")
                    axes.fill_between(horizon, *found[1:], color=line.get_color(), alpha=0.2, linewidth=0)
    for names, axes in panel_of.items():
        axes.set_xlabel("frames after the context")
        axes.set_xlim(0, len(horizon) + 1)
        axes.set_ylim(0, 1.03 if names == tuple(drawn) else 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small")
    rows = [_plain(*row) for row in zip(*columns.values(), strict=True)]
    return _save(figure, output, [list(columns), *rows])


def plot_adaptation(x: np.ndarray, curves: Mapping[str, np.ndarray], output: Path, by: str) -> Path:
    """Draw what players earn against how far a trial is: means and 95 % intervals ``[3, P]`` at points ``x`` ``[P]``.

    ``by`` says what points are, episodes or steps. References, those after the first two, are dashed. The CSV has all
    numbers. Returns ``output``.
    """
    figure = _figure(8, 4)
    axes = figure.subplots()
    columns = {by: x}
    for i, (name, found) in enumerate(curves.items()):
        (line,) = axes.plot(x, found[0], ".-" if i < 2 else "--", markersize=4, linewidth=1 + (i < 2), label=name)
        if i < 2:
            axes.fill_between(x, *found[1:], color=line.get_color(), alpha=0.2, linewidth=0)
        columns |= {f"{name}{end}": row for end, row in zip(("", "/low", "/high"), found, strict=True)}
    axes.set_xlabel("episode of the trial" if by == "episode" else "step of the trial")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("return, 95 % interval" if by == "episode" else "reward since the point before, 95 % interval")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    rows = [_plain(*row) for row in zip(*columns.values(), strict=True)]
    return _save(figure, output, [list(columns), *rows])


def _name(experiments: Sequence[Experiment]) -> str:
    """What is compared."""
    return " or ".join(dict.fromkeys(score_name(e.runs[0]) for e in experiments)).replace("return_mean", "return")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, output: Path, table: Sequence[Sequence[Any]]) -> Path:
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    with output.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    return output


def _plain(*values: Any) -> list[float | str]:
    return ["" if np.isnan(v) else round(float(v), 6) for v in values]
