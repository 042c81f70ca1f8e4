"""Hyper-parameters: how one is declared, read from text and checked, and what several must satisfy together.

A hyper-parameter is a dataclass field declared with :func:`hp`. What several must satisfy is a class attribute, from
an expression over the fields to the reason for it::

    class PPO:
        num_envs: int = hp(64, "environments stepped in parallel", ge=1)
        num_minibatches: int = hp(4, "minibatches per epoch", ge=1)
        requires = {"num_envs % num_minibatches == 0": "minibatches split environments, never time"}
"""

import ast
import dataclasses
import functools
import operator
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

_WORDS = {int: "integer", float: "number", bool: "true|false", str: "text", type(None): "none", tuple: "list"}
_BOUNDS = {"ge": (operator.ge, ">="), "gt": (operator.gt, ">"), "le": (operator.le, "<="), "lt": (operator.lt, "<")}
_NONE = ("none", "null", "~")
_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_PLAIN = (bool, int, float, str, tuple, list, type(None))
_SAFE: tuple[type, ...] = (ast.Expression, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Compare, ast.Name, ast.Constant)
_SAFE += (ast.boolop, ast.unaryop, ast.operator, ast.cmpop, ast.expr_context, ast.Tuple)


class UserError(Exception):
    """Something that the user can put right: the command line prints the message alone and exits with code 2."""


class ConfigError(UserError, ValueError):
    """Invalid settings; ``errors`` has one line for each of them."""

    def __init__(self, errors: Iterable[str]):
        self.errors = list(errors)
        super().__init__("\n".join(self.errors))


def hp(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    static: bool | None = None,
) -> Any:
    """Declare a hyper-parameter: a dataclass field with a default, one line of documentation and a range.

    Works in plain dataclasses, flax modules and ``flax.struct`` pytrees. In the last, a float is a pytree leaf
    (so that populations can ``vmap`` over it) and everything else is static; ``static`` overrides that.
    """
    bounds = {k: v for k, v in {"ge": ge, "gt": gt, "le": le, "lt": lt}.items() if v is not None}
    leaf = isinstance(default, float) if static is None else not static
    return dataclasses.field(default=default, metadata={"doc": doc, "bounds": bounds, "pytree_node": leaf})


@dataclasses.dataclass(frozen=True)
class Field:
    """A declared hyper-parameter."""

    name: str
    type: Any
    default: Any
    doc: str
    bounds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def expected(self) -> str:
        """What a value must be, in words: ``integer >= 1``."""
        return _describe(self.type, " and ".join(f"{_BOUNDS[k][1]} {v:g}" for k, v in self.bounds.items()))


def declared_fields(cls: type) -> dict[str, Field]:
    """The hyper-parameters of a dataclass, by name."""
    fields = {}
    for f in dataclasses.fields(cls):
        if "doc" in f.metadata:
            # annotations are strings in a module that imports them from __future__
            type_ = eval(f.type, {**vars(sys.modules[cls.__module__])}) if isinstance(f.type, str) else f.type
            fields[f.name] = Field(f.name, type_, f.default, f.metadata["doc"], dict(f.metadata["bounds"]))
    return fields


def declared_requires(cls: type) -> dict[str, str]:
    """The requirements that a class declares or inherits: from expression to reason."""
    return {k: v for base in reversed(cls.__mro__) for k, v in vars(base).get("requires", {}).items()}


def check(instance: Any) -> None:
    """Raise :class:`ConfigError` with every declared type, range and requirement that an instance's fields break.

    For classes made directly rather than by name. Fields that hold arrays are not looked at.
    """
    fields = declared_fields(type(instance))
    values = {name: getattr(instance, name) for name in fields}
    errors = violations(fields, declared_requires(type(instance)), values)
    if errors:
        raise ConfigError(f"{type(instance).__name__}: {e}" for e in errors)


def violations(fields: Mapping[str, Field], requires: Mapping[str, str], values: Mapping[str, Any]) -> list[str]:
    """One line for each value of a wrong type or out of range or, where there is none, each requirement unmet."""
    values = {name: value for name, value in values.items() if isinstance(value, _PLAIN)}
    errors = []
    for name, value in values.items():
        try:
            validate(fields[name], value)
        except ValueError as error:
            errors.append(f"{name}={show(value)}: {error}")
    return errors or unmet(requires, fields, values)


def validate(field: Field, value: Any) -> Any:
    """Return ``value`` as the field's type (a list becomes a tuple, an integer a float where one is declared).

    Raises ``ValueError``, saying what was expected, for a wrong type and for a value out of range.
    """
    try:  # pydantic's ValidationError is a ValueError
        value = _adapter(field.type).validate_python(tuple(value) if isinstance(value, list) else value, strict=True)
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, int | float)]
        if all(_BOUNDS[k][0](v, bound) for v in numbers for k, bound in field.bounds.items()):
            return value
    except ValueError:
        pass
    raise ValueError(f"expected {field.expected} ({field.doc}; default {show(field.default)})")


def parse(value: Any, type_: Any) -> Any:
    """Read command-line text, or a value from YAML or Python, as a type.

    Integers may be written ``1e6`` and ``1_000_000``, lists ``[64, 64]``, ``(64, 64)`` and ``64,64``, nothing as
    ``none`` or ``null``. What cannot be read is returned as it is, for :func:`validate` to refuse.
    """
    text, args, origin = str(value).strip(), typing.get_args(type_), typing.get_origin(type_)
    if origin in (typing.Union, types.UnionType):
        if types.NoneType in args and text.lower() in _NONE:
            return None
        readings = ((t, parse(value, t)) for t in args if t is not types.NoneType)
        return next((v for t, v in readings if _accepts(t, v)), value)
    if type_ is tuple or origin is tuple:
        items = elements(value)
        if type_ is tuple or args[1:] == (...,):
            args = (args[0] if args else int | float | str,) * len(items)
        return tuple(map(parse, items, args)) if len(items) == len(args) else tuple(items)
    if value is None or isinstance(value, Mapping | list | tuple):
        return value
    if origin is Literal:  # YAML reads off and on as booleans
        text = {"False": "off", "True": "on"}[text] if isinstance(value, bool) else text
        return next((a for a in args if str(a) == text), value)
    if type_ is bool:
        return _BOOLS.get(text.lower(), value)
    try:
        return _integer(text) if type_ is int else type_(text)
    except ValueError:
        return value


def elements(value: Any) -> list[Any]:
    """The items of a list, or of the text of one."""
    if isinstance(value, list | tuple):
        return list(value)
    text = str(value).strip()
    if text.lower() in _NONE:
        return []
    if text[:1] + text[-1:] in ("[]", "()"):
        text = text[1:-1]
    return [item.strip().strip("'\"") for item in text.split(",") if item.strip()]


def show(value: Any) -> str:
    """Write a value as one would on the command line: ``[64, 64]``, ``true``, ``none``."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(show, value))}]"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


def _accepts(type_: Any, value: Any) -> bool:
    try:
        validate(Field("", type_, None, ""), value)
    except ValueError:
        return False
    return True


@functools.cache
def _adapter(type_: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(type_)


def _describe(type_: Any, bounds: str = "") -> str:
    args, origin = typing.get_args(type_), typing.get_origin(type_)
    if origin is Literal:
        return "|".join(str(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a, bounds) for a in args)
    if origin is tuple and args[1:] == (...,):
        return f"list [a, b, ...], each {_describe(args[0], bounds)}"
    if origin is tuple:
        return f"list of {len(args)}: {', '.join(_describe(a, bounds) for a in args)}"
    return f"{_WORDS[type_]} {bounds}" if bounds and type_ in (int, float) else _WORDS[type_]


def unmet(
    requires: Mapping[str, str], fields: Mapping[str, Field], values: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """One line for each requirement that does not hold, with the nearest values that would do.

    ``values`` are valid ones of ``fields``; a requirement on a field without a value, or on none, is passed over.
    ``prefix`` goes before the fields' names: ``agent.``.
    """
    given = {name for name, value in values.items() if value is not None}
    applicable = {e: names_in(e) for e in requires if given.issuperset(names_in(e))}
    holding = [e for e in applicable if _holds(e, values)]
    errors = []
    for expression, names in applicable.items():
        if expression not in holding:
            found = [pair for name in names for pair in _nearest(fields[name], [expression, *holding], values)]
            remedy = f": use {' or '.join(text for _, text in sorted(found))}" if found else ""
            text = ", ".join(f"{prefix}{name}={show(values[name])}" for name in names)
            errors.append(f"{text}: {requires[expression]} ({expression} fails){remedy}")
    return errors


def _nearest(field: Field, expressions: list[str], values: Mapping[str, Any]) -> list[tuple[float, str]]:
    """The nearest values of one field for which all expressions hold, each after its distance from the present one."""
    found: list[tuple[float, str]] = []
    for distance, candidate in _candidates(field, expressions[0], values):
        if found and distance > found[0][0]:
            break
        if all(_holds(e, {**values, field.name: candidate}) for e in expressions):
            try:
                validate(field, candidate)
            except ValueError:
                continue
            found.append((distance, f"{field.name}={show(candidate)}"))
    return found


def _candidates(field: Field, expression: str, values: Mapping[str, Any]) -> Iterable[tuple[float, Any]]:
    """Other values that a field might take, nearest first."""
    value = values[field.name]
    if typing.get_origin(field.type) is Literal:
        yield from ((1, choice) for choice in typing.get_args(field.type) if choice != value)
    elif isinstance(value, bool):
        yield 1, not value
    elif isinstance(value, int):
        for distance in range(1, max(1_000, min(value, 10_000)) + 1):
            yield distance, value - distance
            yield distance, value + distance
    elif isinstance(value, float):  # the other side of a comparison
        numbers = {float(values[n]) for n in names_in(expression) if isinstance(values[n], int | float)}
        yield from sorted((abs(n - value), n) for n in numbers - {value})


@functools.cache
def names_in(expression: str) -> tuple[str, ...]:
    """The fields that a requirement mentions, in its order; refuses anything but arithmetic and comparisons."""
    nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    unsafe = [ast.unparse(n) for n in nodes if not isinstance(n, _SAFE)]
    if unsafe:
        raise ValueError(f"requirement '{expression}': only arithmetic and comparisons of fields, not {unsafe[0]}")
    named = sorted((n for n in nodes if isinstance(n, ast.Name)), key=lambda n: n.col_offset)
    return tuple(dict.fromkeys(n.id for n in named))


@functools.cache
def _compiled(expression: str) -> types.CodeType:
    return compile(expression, "<requires>", "eval")


def _holds(expression: str, values: Mapping[str, Any]) -> bool:
    try:
        return bool(eval(_compiled(expression), {"__builtins__": {}}, dict(values)))
    except ZeroDivisionError:
        return False
