"""What runs have reached: their curves and scores, the seeds of one setting together, and how sure one can be of them.

Scores are compared as Agarwal et al. 2021 (Deep RL at the edge of the statistical precipice) advise: interquartile
means over all seeds and tasks, intervals from a bootstrap that resamples the seeds of each task apart, and performance
profiles.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from ssmrl.fields import UserError, show

Statistic = Literal["mean", "iqm"]
_SCORE = "return_mean"
_RESAMPLES = 2000
# what may differ between runs of one setting: which repetition it is, where it goes, and how it is watched
_BOOKKEEPING = ("seed", "seeds", "run", "wandb", "tensorboard", "platform", "cache", "debug", "checkpoint", "eval")


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric logged during training, at ``N`` points for ``S`` seeds."""

    env_steps: np.ndarray  # [N], per seed
    wall_s: np.ndarray  # [N], seconds of training up to there
    values: np.ndarray  # [N, S]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One setting: the runs of it, which differ in their seeds."""

    runs: tuple[Path, ...]
    config: Mapping[str, Any]  # by dotted keys; empty for a folder without config.yaml
    curve: Curve
    final: np.ndarray  # [S] return of each seed in the last evaluation, or in the last chunk of a run that goes on

    @property
    def env(self) -> str:
        """The environment's id."""
        return str(self.config.get("env", ""))

    @property
    def best(self) -> np.ndarray:
        """``[S]`` the highest point of each seed's curve (the MMER of Morad et al. 2023)."""
        return np.fmax.reduce(self.curve.values, axis=0)

    @property
    def area(self) -> np.ndarray:
        """``[S]`` the mean height of each seed's curve over the steps trained."""
        steps, values = self.curve.env_steps, self.curve.values
        known = np.isfinite(values).all(axis=1)
        if known.sum() < 2:
            return values[known][0] if known.any() else np.full(values.shape[1], np.nan)
        return np.trapezoid(values[known], steps[known], axis=0) / np.ptp(steps[known])


def score_name(run_dir: Path) -> str:
    """The metric that the run is judged by."""
    path = run_dir / "status.json"
    return json.loads(path.read_text()).get("score", _SCORE) if path.is_file() else _SCORE


def read_curve(run_dir: Path, metric: str | None = None) -> Curve:
    """The curve of one run: of its score, unless ``metric`` names another. Raises ``UserError`` if there is none."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run directory: it has no metrics.jsonl (ssmrl list runs)")
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # the torn last line of a killed run
            continue
    metric = metric or score_name(run_dir)
    if not any(metric in line for line in lines):
        metric = f"eval/{metric}" if any(f"eval/{metric}" in line for line in lines) else metric
    found = [i for i, line in enumerate(lines) if metric in line]
    if not found:
        known = sorted({key for line in lines for key in line} - {"env_steps", "updates"})
        raise UserError(f"{run_dir} has logged no '{metric}' yet" + (f": it has {', '.join(known)}" if known else ""))
    steps = np.array([line["env_steps"] for line in lines])
    values = [np.atleast_1d(np.array(lines[i][metric], float)) for i in found]
    speed = np.array([line.get("steps_per_s", np.nan) for line in lines])  # of all seeds together
    wall_s = np.cumsum(np.diff(steps, prepend=0) * len(values[0]) / speed)
    return Curve(steps[found], wall_s[found], np.array(values))


def read_experiments(run_dirs: Sequence[Path], metric: str | None = None) -> list[Experiment]:
    """Read runs, and put together those that differ in their seeds alone.

    Runs of one setting are cut to the points that all of them have reached. Raises ``UserError`` if a folder is no run
    or has not logged the metric.
    """
    groups: dict[str, list[tuple[Path, dict[str, Any], Curve]]] = {}
    for run in dict.fromkeys(run_dirs):
        curve, config = read_curve(run, metric), _read_config(run)
        setting = {k: v for k, v in config.items() if k.split(".")[0] not in _BOOKKEEPING}
        group = groups.setdefault(json.dumps(setting, sort_keys=True, default=str) if config else str(run), [])
        if any(config.get("seed") == other.get("seed") for _, other, _ in group):
            raise UserError(f"{run} and {group[0][0]} are the same experiment with the same seed: name one of them")
        group.append((run, config, curve))
    return [_together(group) for group in groups.values()]


def _read_config(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def _together(group: list[tuple[Path, dict[str, Any], Curve]]) -> Experiment:
    steps = functools.reduce(np.intersect1d, [curve.env_steps for _, _, curve in group])
    if not steps.size:
        raise UserError(f"{', '.join(str(run) for run, _, _ in group)}: they logged at no common step")
    kept = [np.isin(curve.env_steps, steps) for _, _, curve in group]
    curve = Curve(
        steps,
        np.max([c.wall_s[k] for (_, _, c), k in zip(group, kept, strict=True)], axis=0),
        np.concatenate([c.values[k] for (_, _, c), k in zip(group, kept, strict=True)], axis=1),
    )
    final = np.concatenate([_final(run, c) for run, _, c in group])
    return Experiment(tuple(run for run, _, _ in group), group[0][1], curve, final)


def _final(run: Path, curve: Curve) -> np.ndarray:
    path = run / "eval" / "final.json"
    if path.is_file():
        facts = json.loads(path.read_text())
        return np.array([facts[f"{score_name(run)}/seed_{i}"] for i in range(facts["seeds"])], float)
    return curve.values[-1]


def label(experiment: Experiment, among: Sequence[Experiment]) -> str:
    """What tells an experiment from the others of its environment: ``model=gru``, or its folder's name."""
    keys = [k for k in distinguishing(among) if k in experiment.config]
    return ", ".join(f"{k}={show(experiment.config[k])}" for k in keys) or experiment.runs[0].name


def distinguishing(experiments: Sequence[Experiment]) -> list[str]:
    """The keys by which experiments in the same environment differ.

    Where models (or agents) differ, their parameters count only among experiments with the same model.
    """
    keys: dict[str, None] = {}
    for group in _split(experiments, "env"):
        keys |= dict.fromkeys(_differing(group, [k for k in group[0].config if k.split(".")[0] not in _BOOKKEEPING]))
    return list(keys)


def _split(experiments: Sequence[Experiment], key: str) -> list[list[Experiment]]:
    groups: dict[Any, list[Experiment]] = {}
    for e in experiments:
        groups.setdefault(e.config.get(key), []).append(e)
    return list(groups.values())


def _differing(group: Sequence[Experiment], keys: Sequence[str]) -> list[str]:
    found = [k for k in keys if any(e.config.get(k) != group[0].config.get(k) for e in group)]
    for kind in ("agent", "model"):
        if kind in found:
            found = [k for k in found if not k.startswith(f"{kind}.")]
            for part in _split(group, kind):
                found += _differing(part, [k for k in part[0].config if k.startswith(f"{kind}.") and k not in found])
    return found


def statistic(name: Statistic, samples: Sequence[np.ndarray], axis: int = -1) -> np.ndarray:
    """The mean, or the mean of the middle half, of all samples (one array of seeds per task) along ``axis``."""
    together = np.concatenate(samples, axis=axis)
    if name == "mean":
        return together.mean(axis=axis)
    from scipy.stats import trim_mean

    return trim_mean(together, 0.25, axis=axis)


def interval(
    samples: Sequence[np.ndarray], of: Callable[..., np.ndarray], confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic, the seeds of each task resampled apart.

    ``samples`` has one array ``[..., S]`` per task, ``of(*samples, axis=)`` reduces them. Returns low and high
    ``[...]``, NaN if any task has fewer than two seeds or an unknown score. Deterministic.
    """
    if min(s.shape[-1] for s in samples) < 2 or not all(s.size and np.isfinite(s).all() for s in samples):
        nothing = np.full(samples[0].shape[:-1], np.nan)
        return nothing, nothing
    from scipy.stats import bootstrap

    found = bootstrap(
        tuple(samples),
        of,
        axis=-1,
        n_resamples=_RESAMPLES,
        batch=max(1, 10_000_000 // sum(s.size for s in samples)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return found.low, found.high


def summary(
    samples: Sequence[np.ndarray], name: Statistic, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The statistic and its bootstrap interval: value, low, high."""
    low, high = interval(samples, lambda *s, axis: statistic(name, s, axis), confidence)
    return statistic(name, samples), low, high


def profile(samples: Sequence[np.ndarray], levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Performance profile: the fraction of runs that score above each level, tasks weighted alike; with its interval.

    ``samples`` has the scores ``[S]`` of each task, ``levels`` is ``[L]``. Returns fraction, low, high, each ``[L]``
    (Agarwal et al. 2021, equation 3).
    """
    above = [(s[None] > levels[:, None]).astype(float) for s in samples]

    def fraction(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([s.mean(axis=axis) for s in samples], axis=0)

    return fraction(*above), *interval(above, fraction)
