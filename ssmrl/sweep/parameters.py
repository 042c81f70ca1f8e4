"""The ``parameters:`` of a sweep file, read and checked."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssmrl.fields import show
from ssmrl.registry import suggest
from ssmrl.sweep.distributions import CHOICES, DISTRIBUTIONS, Parameter


def read_parameters(given: Mapping[Any, Any], prefix: str, errors: list[str], notes: list[str]) -> Iterator[Parameter]:
    """The parameters ``given`` under ``prefix``; what is wrong goes into ``errors``, what looks so into ``notes``."""
    for name, spec in given.items():
        key = f"{prefix}{name}"
        if not isinstance(spec, dict):
            errors.append(f"parameters.{key}: {show(spec)}: write {key}: {{value: {show(spec)}}}")
        elif isinstance(spec.get("parameters"), dict):
            notes.append(f"parameters.{key} is nested, which wandb passes as one argument: write {key}.NAME for wandb")
            yield from read_parameters(spec["parameters"], f"{key}.", errors, notes)
        else:
            parameter = _parameter(key, spec, errors, notes)
            if parameter:
                yield parameter


def _parameter(name: str, spec: dict[str, Any], errors: list[str], notes: list[str]) -> Parameter | None:
    where, before = f"parameters.{name}", len(errors)
    distribution = spec.get("distribution") or _inferred(where, spec, errors)
    if distribution is None:
        return None
    if distribution not in DISTRIBUTIONS and distribution not in CHOICES:
        every = [*CHOICES, *DISTRIBUTIONS]
        errors.append(f"{where}: unknown distribution '{distribution}'{meant(str(distribution), every)}")
        return None
    if distribution == "categorical" and "probabilities" in spec:
        distribution = "categorical_w_probabilities"
    takes = CHOICES.get(distribution) or tuple(DISTRIBUTIONS[distribution].numbers)
    errors += [
        f"{where}.{k}: {distribution} takes {', '.join(takes)} only" for k in spec if k not in (*takes, "distribution")
    ]
    if distribution in CHOICES:
        parameter = _choice(where, name, distribution, spec, errors)
    else:
        parameter = _range(where, name, distribution, spec, errors, notes)
    return parameter if len(errors) == before else None


def _inferred(where: str, spec: Mapping[str, Any], errors: list[str]) -> str | None:
    """The distribution that wandb infers where none is named."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if {"min", "max"} <= spec.keys():
        kinds = {type(read_number(spec[k])) for k in ("min", "max")}
        if kinds == {int}:
            return "int_uniform"
        if kinds == {float}:
            return "uniform"
        errors.append(f"{where}: min is an integer and max is not, or the reverse: name the distribution")
        return None
    errors.append(f"{where}: give value, values, min and max, or a distribution")
    return None


def _choice(where: str, name: str, distribution: str, spec: dict[str, Any], errors: list[str]) -> Parameter | None:
    if distribution == "constant":
        if "value" not in spec:
            errors.append(f"{where}: constant needs value")
        return Parameter(name, distribution, (spec.get("value"),))
    values, probabilities = spec.get("values"), spec.get("probabilities", ())
    if not isinstance(values, list) or not values:
        errors.append(f"{where}.values: {show(values)}: expected a list of at least one")
        return None
    if distribution == "categorical_w_probabilities":
        numbers = [read_number(p) for p in probabilities] if isinstance(probabilities, list) else []
        valid = [p for p in numbers if p is not None and p >= 0]
        if not len(valid) == len(values) == len(numbers) or sum(valid) <= 0:
            errors.append(f"{where}.probabilities: {show(probabilities)}: expected {len(values)} numbers >= 0")
        probabilities = valid
    return Parameter(name, distribution, tuple(values), tuple(probabilities))


def _range(
    where: str, name: str, distribution: str, spec: dict[str, Any], errors: list[str], notes: list[str]
) -> Parameter | None:
    numbers: dict[str, Any] = {}
    for key, default in DISTRIBUTIONS[distribution].numbers.items():
        given = spec.get(key, default)
        number = read_number(given)
        if number is None:
            errors.append(f"{where}.{key}: " + (f"{show(given)}: expected number" if key in spec else "missing"))
            continue
        if isinstance(given, str):
            notes.append(f"{where}.{key}: YAML reads {given} as text, which wandb refuses: write {_plain(number)}")
        if (key in ("q", "sigma", "a", "b") and number <= 0) or (distribution == "int_uniform" and number % 1):
            errors.append(f"{where}.{key}: {show(given)}: expected {'integer' if number % 1 else 'number > 0'}")
        numbers[key] = number
    if {"min", "max"} <= numbers.keys():
        low, high = numbers["min"], numbers["max"]
        if not low < high:
            errors.append(f"{where}: min={low} is not below max={high}")
        if distribution.endswith("_values") and low <= 0:
            errors.append(f"{where}.min: {low}: the logarithm needs min > 0")
        if "log_uniform" in distribution and not distribution.endswith("_values"):
            hint = f"{distribution} takes exponents of e; did you mean {distribution}_values?"
            if high > 30:
                errors.append(f"{where}.max: {high}: {hint}")
            elif low > 0 and high <= 1:
                notes.append(f"{where}: {low} to {high}: {hint}")
    return Parameter(name, distribution, numbers=numbers)


def read_number(value: Any) -> int | float | None:
    """A number, also as the text that YAML takes ``1e-5`` for."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _plain(number: float) -> str:
    """A number as YAML reads it: ``1.0e-05``, not ``1e-05``."""
    text = repr(float(number))
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}e{exponent}" if e else text


def meant(name: str, candidates: Sequence[str]) -> str:
    """The end of a message about an unknown name: what was meant."""
    close = suggest(name, candidates)
    return f": did you mean {close[0]}?" if close else f": it is one of {', '.join(candidates)}"
