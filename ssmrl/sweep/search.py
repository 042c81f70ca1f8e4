"""What a sweep tries next: all of a grid, random draws, or what Optuna suggests after what came of those before."""

import importlib.util
import itertools
import math
import random
import warnings
from collections.abc import Mapping
from typing import Any

from ssmrl.sweep.ledger import Trial
from ssmrl.sweep.spec import Sweep


def trial_count(sweep: Sweep, count: int | None) -> int:
    """How many trials there will be: at most ``count``, or those of the file; 0 if nothing bounds them."""
    sizes = [len(p.grid() or ()) for p in sweep.parameters]
    bounds = (count, sweep.run_cap, math.prod(sizes) if sweep.method == "grid" else None)
    return min((n for n in bounds if n is not None), default=0)


def known_trials(sweep: Sweep, count: int, seed: int) -> list[Trial]:
    """All trials of a method that learns nothing from them; for bayes: none.

    A grid is in the order of the file, the last parameter changing fastest. Random trial ``i`` depends on ``seed`` and
    ``i`` alone.
    """
    if sweep.method == "grid":
        grids = {p.name: p.grid() or () for p in sweep.parameters}
        rows = itertools.islice(itertools.product(*grids.values()), count)
        drawn = [dict(zip(grids, row, strict=True)) for row in rows]
        searched = {p.name for p in sweep.searched}
        return [Trial(i, {k: v for k, v in values.items() if k in searched}) for i, values in enumerate(drawn)]
    if sweep.method == "random":
        return [
            Trial(i, {p.name: p.at(random.Random(f"{seed}/{i}/{p.name}").random()) for p in sweep.searched})
            for i in range(count)
        ]
    return []


def cannot_search(sweep: Sweep, count: int) -> list[str]:
    """Why the method cannot work, in words; empty if it can."""
    errors = []
    if not count:
        errors.append(f"method: {sweep.method} never ends: give --count=20, or run_cap: 20 in the file")
    if sweep.method == "bayes" and importlib.util.find_spec("optuna") is None:
        errors.append("method: bayes searches with Optuna, which is not installed: pip install 'ssmrl[sweep]'")
    return errors


def suggest_trials(sweep: Sweep, trials: Mapping[int, Trial], n: int, seed: int) -> list[Trial]:
    """The next ``n`` trials after ``trials``, by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

    It searches over the quantile of each number and the position of each choice. The result depends on the arguments
    alone, so that a sweep can be continued.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space: dict[str, Any] = {
        p.name: optuna.distributions.CategoricalDistribution(tuple(range(len(p.values))))
        if p.values
        else optuna.distributions.FloatDistribution(0.0, 1.0)
        for p in sweep.searched
    }
    drawing = random.Random(f"{seed}/{len(trials)}").getrandbits(31)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # before version 5 it calls constant_liar experimental
        sampler = optuna.samplers.TPESampler(seed=drawing, constant_liar=True)  # a batch keeps its trials apart
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for _, trial in sorted(trials.items()):
        failed = trial.value is None or trial.status == "failed"
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.point,
                distributions=space,
                value=None if failed else sweep.metric.score(trial.value or 0.0),
                state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
            )
        )
    asked = [study.ask(space).params for _ in range(n)]
    return [
        Trial(i, {p.name: p.values[point[p.name]] if p.values else p.at(point[p.name]) for p in sweep.searched}, point)
        for i, point in enumerate(asked, len(trials))
    ]
