"""The distributions of wandb's sweep files, as quantile functions: a value for each ``u`` in [0, 1].

Drawing ``u`` uniformly samples one; searching over ``u`` searches in its own scale. Names, bounds and rounding are
wandb's (docs.wandb.ai, "Sweep configuration options").
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

_TINY = 1e-12
_DIGITS = 6  # of a continuous value: enough, and they fit on a command line
Numbers = Mapping[str, float]


def _uniform(u: float, p: Numbers) -> float:
    return p["min"] + u * (p["max"] - p["min"])


def _log_uniform(u: float, p: Numbers) -> float:
    return math.exp(_uniform(u, p))


def _log_uniform_values(u: float, p: Numbers) -> float:
    return math.exp(_uniform(u, {k: math.log(p[k]) for k in ("min", "max")}))


def _inv_log_uniform(u: float, p: Numbers) -> float:
    return math.exp(-_uniform(1 - u, p))


def _normal(u: float, p: Numbers) -> float:
    u = min(max(u, _TINY), 1 - _TINY)
    return p["mu"] + p["sigma"] * NormalDist().inv_cdf(u)


def _log_normal(u: float, p: Numbers) -> float:
    return math.exp(_normal(u, p))


def _beta(u: float, p: Numbers) -> float:
    from scipy.special import betaincinv

    return float(betaincinv(p["a"], p["b"], u))


def _int_uniform(u: float, p: Numbers) -> int:
    low, high = int(p["min"]), int(p["max"])
    return min(low + int(u * (high - low + 1)), high)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """How ``u`` becomes a number, and the numbers that this takes: None where there is no default."""

    quantile: Callable[[float, Numbers], float]
    numbers: Mapping[str, float | None]


_RANGE = {"min": None, "max": None}
_NORMAL = {"mu": 0.0, "sigma": 1.0}
_BETA = {"a": 1.0, "b": 1.0}
_PLAIN = {
    "uniform": Distribution(_uniform, _RANGE),
    "log_uniform": Distribution(_log_uniform, _RANGE),  # min and max are exponents
    "log_uniform_values": Distribution(_log_uniform_values, _RANGE),
    "normal": Distribution(_normal, _NORMAL),
    "log_normal": Distribution(_log_normal, _NORMAL),
    "beta": Distribution(_beta, _BETA),
}
DISTRIBUTIONS: dict[str, Distribution] = {
    **_PLAIN,
    **{f"q_{name}": Distribution(d.quantile, {**d.numbers, "q": 1}) for name, d in _PLAIN.items()},
    "inv_log_uniform": Distribution(_inv_log_uniform, _RANGE),
    "inv_log_uniform_values": Distribution(_log_uniform_values, _RANGE),  # the same by symmetry
    "int_uniform": Distribution(_int_uniform, _RANGE),
}
CHOICES = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One key of the configuration and what it is drawn from."""

    name: str
    distribution: str
    values: tuple[Any, ...] = ()  # of a constant or a categorical one
    probabilities: tuple[float, ...] = ()  # of each value; empty: equal ones
    numbers: Numbers = dataclasses.field(default_factory=dict)

    @property
    def constant(self) -> bool:
        """Whether all trials have the same value."""
        return len(self.values) == 1

    @property
    def logarithmic(self) -> bool:
        """Whether its values are best shown on a logarithmic scale."""
        return "log" in self.distribution

    def at(self, u: float) -> Any:
        """The value below which a share ``u`` in [0, 1] of the draws lies; rounded to six digits, or to ``q``."""
        if self.values:
            return self.values[self._choice(u)]
        x = DISTRIBUTIONS[self.distribution].quantile(u, self.numbers)
        if isinstance(x, int):
            return x
        if "q" not in self.numbers:
            return float(f"{x:.{_DIGITS}g}")
        q = self.numbers["q"]
        steps = round(x / q)
        return steps * q if isinstance(q, int) else float(f"{steps * q:.12g}")

    def extremes(self) -> tuple[Any, ...]:
        """The values to check before any trial: all choices, the ends of a range, the median of what has no ends."""
        if self.values:
            return self.values
        return (self.at(0.5),) if "normal" in self.distribution else (self.at(0.0), self.at(1.0))

    def grid(self) -> tuple[Any, ...] | None:
        """All values, if they are finitely many and equally likely; else None."""
        if self.values:
            return None if self.probabilities else self.values
        if self.distribution == "int_uniform":
            return tuple(range(int(self.numbers["min"]), int(self.numbers["max"]) + 1))
        if self.distribution == "q_uniform":
            first, last = (round(self.numbers[k] / self.numbers["q"]) for k in ("min", "max"))
            q = self.numbers["q"]
            return tuple(n * q if isinstance(q, int) else float(f"{n * q:.12g}") for n in range(first, last + 1))
        return None

    def _choice(self, u: float) -> int:
        if not self.probabilities:
            return min(int(u * len(self.values)), len(self.values) - 1)
        cumulative = list(itertools.accumulate(self.probabilities))
        return min(bisect.bisect_right(cumulative, u * cumulative[-1]), len(self.values) - 1)
