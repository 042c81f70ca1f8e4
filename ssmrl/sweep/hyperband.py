"""Early termination by hyperband (Li et al. 2018), with the brackets and the rule of wandb's ``early_terminate``."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from ssmrl.registry import suggest

_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")
_LAST = 10**9  # no run is evaluated so often


@dataclasses.dataclass(frozen=True)
class Hyperband:
    """At the evaluations numbered ``bands``, counted from 1, the best ``1 / eta`` of the trials go on.

    ``strict`` compares the value at that evaluation, otherwise the best one up to there.
    """

    bands: tuple[int, ...]
    eta: float = 3.0
    strict: bool = True

    def stops(self, value: float, values: Sequence[float]) -> bool:
        """Whether a trial with ``value`` ends at a band that all of ``values``, its own among them, have reached.

        Higher is better. As in wandb, the one at rank ``len(values) / eta``, from 0, is the last to go on.
        """
        ranked = sorted(values, reverse=True)
        return value < ranked[min(int(len(ranked) / self.eta), len(ranked) - 1)]


def from_min_iter(min_iter: int, eta: float) -> tuple[int, ...]:
    """Bands ``min_iter``, ``min_iter * eta``, ``min_iter * eta^2``, ..."""
    powers: Iterator[float] = (min_iter * eta**k for k in itertools.count())
    return tuple(dict.fromkeys(int(band) for band in itertools.takewhile(lambda band: band < _LAST, powers)))


def from_max_iter(max_iter: int, s: int, eta: float) -> tuple[int, ...]:
    """The last ``s`` bands before ``max_iter``: ``max_iter / eta^s``, ..., ``max_iter / eta``; those of at least 1."""
    return tuple(dict.fromkeys(int(max_iter / eta**k) for k in range(s, 0, -1) if max_iter / eta**k >= 1))


def read_hyperband(given: Any, errors: list[str]) -> Hyperband | None:
    """Read ``early_terminate``; what is wrong with it goes into ``errors``."""
    if not isinstance(given, dict) or given.get("type") != "hyperband":
        errors.append(f"early_terminate: type is {_type_of(given)}: write type: hyperband")
        return None
    before = len(errors)
    for key in given:
        if key not in _KEYS:
            close = suggest(str(key), _KEYS)
            errors.append(f"early_terminate.{key}: unknown: it takes {close[0] if close else ', '.join(_KEYS)}")
    eta = given.get("eta", 3)
    if not _is_number(eta) or eta <= 1:
        errors.append(f"early_terminate.eta={eta}: expected number > 1")
    counts = {key: given[key] for key in ("min_iter", "max_iter", "s") if key in given}
    wrong = {k: n for k, n in counts.items() if type(n) is not int or n < 1}
    errors += [f"early_terminate.{k}={n}: expected integer >= 1" for k, n in wrong.items()]
    if ("min_iter" in given) == ("max_iter" in given) or ("max_iter" in given) != ("s" in given):
        errors.append("early_terminate: give min_iter, or max_iter and s (in evaluations)")
    if not isinstance(given.get("strict", True), bool):
        errors.append(f"early_terminate.strict={given['strict']}: expected true|false")
    if len(errors) > before:
        return None
    if "min_iter" in given:
        bands = from_min_iter(given["min_iter"], eta)
    else:
        bands = from_max_iter(given["max_iter"], given["s"], eta)
    if not bands:
        errors.append(f"early_terminate: no band lies below max_iter={given['max_iter']}: raise it or lower eta={eta}")
    return Hyperband(bands, float(eta), given.get("strict", True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _type_of(given: Any) -> str:
    return repr(given.get("type", "missing")) if isinstance(given, dict) else repr(given)
