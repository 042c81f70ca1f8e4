"""What the source of a class says about it, without importing it: nothing runs, and jax is not waited for.

The registry reads the built-in classes like this, and ``module:Name``, by which users name a class or a function of
their own. What cannot be known so, such as names made when a module runs, is left open.
"""

import ast
import dataclasses
import functools
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from ssmrl.fields import Field, validate

BASE = ("ssmrl.envs.base", "Environment")  # whose subclasses declare their parameters with hp
ANY = int | float | bool | str | None
_TYPES = {t.__name__: t for t in (int, float, bool, str, tuple)} | {"Literal": Literal, "None": None}
_OPEN = object()  # the value of an expression that is no literal


@dataclasses.dataclass(frozen=True)
class Found:
    """What ``module:Name`` stands for, as far as its source tells."""

    doc: str
    fields: dict[str, Field]
    requires: dict[str, str]


def classes(source: str) -> dict[str, ast.ClassDef]:
    """The classes at the top of a source, by name."""
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def with_bases(source: str, package: Path) -> dict[str, ast.ClassDef]:
    """The classes at the top of a source and, of those that it imports from the package in a folder, their bases."""
    own = classes(source)
    missing = {b.id for node in own.values() for b in node.bases if isinstance(b, ast.Name)} - own.keys()
    found: dict[str, ast.ClassDef] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and missing & {name.name for name in node.names}:
            package_name, *parts = str(node.module).split(".")
            path = package.joinpath(*parts).with_suffix(".py")
            if package_name == package.name and path.is_file():
                found |= _read_module(path, package)
    return found | own


@functools.cache
def _read_module(path: Path, package: Path) -> dict[str, ast.ClassDef]:
    return with_bases(path.read_text(encoding="utf-8"), package)


def read_class(node: ast.ClassDef, known: dict[str, ast.ClassDef]) -> tuple[dict[str, Field], dict[str, str]]:
    """The fields and requirements that a class declares or inherits from bases that are ``known``.

    Raises ``ValueError`` or ``NameError`` where they are no literals.
    """
    bases = [known[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in known]
    own = _own(node)
    targets = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
    plain = {target.id for target in targets if isinstance(target, ast.Name)}
    inherited, requires = _merged([read_class(base, known) for base in bases])
    kept = {name: field for name, field in inherited.items() if name not in plain}  # no longer a hyper-parameter
    return _merged([(kept, requires), own])


def find(module: str, name: str) -> Found:
    """Look for a class or a function in a module's source, and in those from which that imports it.

    Raises ``LookupError`` with what is wrong, the part of the name that is and what there is instead of it, and
    ``ValueError`` where parameters cannot be read.
    """
    importlib.invalidate_caches()
    source = _open(module)
    definition = source.definition(name) if source else _OPEN
    match definition:
        case None:
            assert source
            raise LookupError(f"{source.path} has no '{name}'", name, sorted(source.names()))
        case _Class(node=node) if any((c.source.module, c.node.name) == BASE for c in definition.lineage()):
            try:
                return Found(_doc(node), *_merged([_own(c.node) for c in reversed(definition.lineage())]))
            except (ValueError, NameError) as error:
                raise ValueError(f"hp and requires take literals: {error}") from error
        case _Class(node=node):
            return Found(_doc(node), _parameters(definition.lineage()), {})
        case ast.FunctionDef():
            return Found(_doc(definition), dict(_arguments(definition, name)), {})
    return Found("", {}, {})


def _doc(node: ast.ClassDef | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").split("\n")[0]


def _merged(parts: list[tuple[dict[str, Field], dict[str, str]]]) -> tuple[dict[str, Field], dict[str, str]]:
    fields = {name: field for part in parts for name, field in part[0].items()}
    return fields, {expression: reason for part in parts for expression, reason in part[1].items()}


def _own(node: ast.ClassDef) -> tuple[dict[str, Field], dict[str, str]]:
    """The fields declared with hp, and the requirements, in the body of one class."""
    fields: dict[str, Field] = {}
    requires: dict[str, str] = {}
    for item in node.body:
        match item:
            case ast.AnnAssign(
                target=ast.Name(id=name),
                annotation=annotation,
                value=ast.Call(func=ast.Name(id="hp") | ast.Attribute(attr="hp")) as call,
            ):
                default, doc = (ast.literal_eval(arg) for arg in call.args)
                bounds = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg != "static"}
                type_ = eval(ast.unparse(annotation), {"__builtins__": {}}, dict(_TYPES))
                fields[name] = Field(name, type_, default, doc, bounds)
            case (
                ast.Assign(targets=[ast.Name(id="requires")], value=value)
                | ast.AnnAssign(target=ast.Name(id="requires"), value=ast.expr() as value)
            ):
                requires |= ast.literal_eval(value)
    return fields, requires


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
    module: str
    path: Path
    tree: ast.Module

    def statements(self) -> Iterator[ast.AST]:
        """Statements of the module, in blocks of conditions too, the last one first: it gives a name its meaning."""
        return _statements(self.tree.body)

    def names(self) -> set[str]:
        """The classes and functions that the module defines or imports."""
        names = set()
        for node in self.statements():
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in node.names}
        return names - {"*"}

    def definition(self, name: str, seen: frozenset[str] = frozenset()) -> Any:
        """The class, function or other statement that defines a name here or where it is imported from."""
        stars, dynamic = [], None
        for node in self.statements():
            match node:
                case ast.ClassDef(name=n) if n == name:
                    return _Class(self, node)
                case ast.FunctionDef(name=n) if n == name:
                    return node
                case ast.FunctionDef(name="__getattr__"):
                    dynamic = _OPEN
                case ast.ImportFrom(names=aliases):
                    stars += [node] if aliases[0].name == "*" else []
                    original = next((a.name for a in aliases if (a.asname or a.name) == name), None)
                    if original:
                        return self._imported(node, original, seen) or node
                case ast.Import(names=aliases) if any((a.asname or a.name) == name for a in aliases):
                    return node
                case ast.Assign(targets=targets) if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                    return node
                case ast.AnnAssign(target=ast.Name(id=n)) if n == name:
                    return node
        return next((d for star in stars if (d := self._imported(star, name, seen))), dynamic)

    def _imported(self, node: ast.ImportFrom, name: str, seen: frozenset[str]) -> Any:
        module = self._absolute(node)
        if module in seen:
            return None
        try:
            source = _open(module)
        except LookupError:
            return None
        return source.definition(name, seen | {module}) if source else None

    def _absolute(self, node: ast.ImportFrom) -> str:
        parts = self.module.split(".")
        package = parts if self.path.name == "__init__.py" else parts[:-1]
        head = package[: len(package) - node.level + 1] if node.level else []
        return ".".join([*head, *([node.module] if node.module else [])])

    def class_of(self, expression: ast.expr) -> "_Class | None":
        """The class that an expression such as ``Base``, ``module.Base`` or ``Base[int]`` names."""
        match expression:
            case ast.Subscript(value=value):
                return self.class_of(value)
            case ast.Name(id=name):
                found = self.definition(name)
            case ast.Attribute(value=value, attr=name):
                source = self._module_of(ast.unparse(value))
                found = source.definition(name) if source else None
            case _:
                found = None
        return found if isinstance(found, _Class) else None

    def _module_of(self, name: str) -> "_Source | None":
        head, _, rest = name.partition(".")
        for node in self.statements():
            for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if (alias.asname or alias.name) in (head, name):
                    first = [self._absolute(node)] if isinstance(node, ast.ImportFrom) else []
                    last = [rest] if rest and alias.name != name else []
                    try:
                        return _open(".".join([*first, alias.name, *last]))
                    except LookupError:
                        return None
        return None


def _statements(block: Sequence[ast.AST]) -> Iterator[ast.AST]:
    for node in reversed(block):
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            for name in ("body", "handlers", "orelse", "finalbody"):
                yield from _statements(getattr(node, name, []))


@dataclasses.dataclass(frozen=True, eq=False)
class _Class:
    source: _Source
    node: ast.ClassDef

    def lineage(self) -> "list[_Class]":
        """The class, then the bases whose source there is, nearest first."""
        bases = [self.source.class_of(base) for base in self.node.bases]
        return [self, *(c for base in bases if base and base.node is not self.node for c in base.lineage())]

    def fields(self) -> Iterator[tuple[str, Field]]:
        """What a dataclass holds, of its bases' too."""
        for c in reversed(self.lineage()):
            for item in c.node.body:
                match item:
                    case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                        if "ClassVar" not in ast.unparse(annotation):
                            yield name, _field(name, annotation, value, f"field of {self.node.name}")


def _open(module: str) -> _Source | None:
    """The source of a module; None where it has none. Raises ``LookupError``."""
    parts, path, spec = module.split("."), None, None
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        found = (f.find_spec(name, path) for f in sys.meta_path if i == 0 or path is not None)
        spec = next((s for s in found if s), None)
        if spec is None:
            known = [m.name for m in pkgutil.iter_modules([os.getcwd()] if i == 0 else path)]
            raise LookupError(f"no module '{name}' in the current folder or on Python's path", parts[i], known)
        path = spec.submodule_search_locations
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return _Source(module, Path(spec.origin), _parse(spec.origin, Path(spec.origin).stat().st_mtime_ns))


@functools.cache
def _parse(path: str, _changed: int) -> ast.Module:
    try:
        return ast.parse(Path(path).read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise LookupError(f"{path}, line {error.lineno}: {error.msg}", "", []) from error


def _parameters(lineage: list[_Class]) -> dict[str, Field]:
    """What the constructor of somebody else's class takes, and the fields of its default parameters."""
    owner = next((c for c in lineage if _function(c.node, "default_params")), None)
    fields = dict(_default_params(owner)) if owner else {}
    for c in lineage:
        constructor = _function(c.node, "__init__")
        if constructor:
            return fields | dict(_arguments(constructor, c.node.name, skip=1))
        if any("dataclass" in ast.unparse(decorator) for decorator in c.node.decorator_list):
            return fields | dict(c.fields())
    return fields


def _function(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == name), None)


def _default_params(owner: _Class) -> Iterator[tuple[str, Field]]:
    """The fields of the class that ``default_params`` returns an instance of."""
    function = _function(owner.node, "default_params")
    returned = [n.value for n in ast.walk(function) if isinstance(n, ast.Return)] if function else []
    if len(returned) != 1 or not isinstance(returned[0], ast.Call):
        return
    params = owner.source.class_of(returned[0].func)
    given = {k.arg: k.value for k in returned[0].keywords}
    for name, field in params.fields() if params else ():
        yield name, _field(name, None, given[name], field.doc) if name in given else field


def _arguments(function: ast.FunctionDef, owner: str, skip: int = 0) -> Iterator[tuple[str, Field]]:
    """The arguments that can be given by name; raises ``ValueError`` for one that has to be."""
    a = function.args
    named = [*a.posonlyargs, *a.args]
    defaults = [*(len(named) - len(a.defaults)) * [None], *a.defaults]
    pairs = [*[*zip(named, defaults, strict=True)][skip:], *zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    for argument, default in pairs:
        name = argument.arg
        if default is None:
            raise ValueError(f"argument '{name}' has no default: give it one, or name a function that makes the thing")
        yield name, _field(name, argument.annotation, default, f"argument of {owner}")


def _field(name: str, annotation: ast.expr | None, value: ast.expr | None, doc: str) -> Field:
    """A parameter; none stands for a default that is no literal: the class's own."""
    default, type_ = _literal(value), _type(annotation)
    if default not in (_OPEN, None):
        for candidate in (type_, type(default)):
            try:
                validate(Field(name, candidate, None, ""), default)
            except Exception:  # an annotation may be anything
                continue
            return Field(name, candidate, default, doc)
    return Field(name, ANY if type_ is None else Union[type_, None], None, f"{doc} (none: its own)")  # noqa: UP007


def _type(annotation: ast.expr | None) -> Any:
    """The type of an annotation that consists of numbers, text and tuples; None for others."""
    if annotation is None:
        return None
    text = str(annotation.value) if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    try:
        return eval(text, {"__builtins__": {}}, dict(_TYPES))
    except Exception:  # an annotation may be anything
        return None


def _literal(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):  # dataclasses.field and its kind
        value = next((k.value for k in value.keywords if k.arg == "default"), value)
    try:
        literal = ast.literal_eval(value) if value else _OPEN
    except (ValueError, TypeError):
        return _OPEN
    return literal if isinstance(literal, bool | int | float | str | tuple | None) else _OPEN
