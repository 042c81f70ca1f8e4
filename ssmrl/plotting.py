"""Learning curves of one or several runs, as a picture and the numbers behind it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from ssmrl.registry import UserError


def read_curve(run_dir: Path, metric: str = "return_mean") -> tuple[np.ndarray, np.ndarray]:
    """Steps ``[N]`` and values ``[N, seeds]`` of a logged metric. Raises ``UserError`` if there are none."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run directory: it has no metrics.jsonl (ssmrl list runs)")
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # the torn last line of a killed run
            continue
    lines = [line for line in lines if metric in line]
    if not lines:
        raise UserError(f"{run_dir} has logged no '{metric}' yet")
    steps = np.array([line["env_steps"] for line in lines])
    return steps, np.array([np.atleast_1d(np.array(line[metric], float)) for line in lines])


def plot_runs(run_dirs: list[Path], output: Path | None = None) -> Path:
    """Draw the training return of each run, mean over seeds with its range, and write the CSV beside the PNG.

    Returns the path of the PNG: ``output``, or ``plots/learning_curve.png`` of the first run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    output = output or run_dirs[0] / "plots" / "learning_curve.png"
    curves = {run: read_curve(run) for run in run_dirs}
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for run, (steps, values) in curves.items():
        (line,) = axes.plot(steps, values.mean(1), marker=".", markersize=4, label=_label(run, values.shape[1]))
        if values.shape[1] > 1:
            axes.fill_between(steps, values.min(1), values.max(1), color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return (mean over seeds, shaded: their range)")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    with output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "env_steps", "seed", "return_mean"])
        for run, (steps, values) in curves.items():
            for step, row in zip(steps, values, strict=True):
                writer.writerows([run.name, int(step), seed, value] for seed, value in enumerate(row))
    return output


def _label(run: Path, seeds: int) -> str:
    return f"{run.name} ({seeds} seeds)" if seeds > 1 else run.name
