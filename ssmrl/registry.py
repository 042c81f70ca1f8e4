"""Names to classes, and the one place where a hyper-parameter is declared.

A class that users may name (an environment, a sequence model, an agent) is registered by a decorator,
and each of its hyper-parameters is one field, declared with :func:`hp`::

    @models.register("gru")
    class GRU(SequenceModel):
        d_model: int = hp(64, "width of the hidden state", ge=1)

Validation, ``--help``, ``ssmrl list`` and the YAML keys are derived from that line. The built-in classes are
catalogued by reading their *source* (``ast``, not ``import``), so that the command line can reject a typo
before it pays for importing jax. Hence the arguments of ``hp`` and ``register`` are literals.
"""

import ast
import dataclasses
import difflib
import functools
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T", bound=type)
_TYPES = {t.__name__: t for t in (int, float, bool, str, tuple)} | {"Literal": Literal, "None": None}


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
    bounds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered name: where its class is, what it takes, and which arguments the name itself fixes."""

    name: str
    module: str
    cls: str
    doc: str
    fields: dict[str, Field]  # the class's own
    kwargs: dict[str, Any]
    suffix: str | None = None  # the field that a trailing value in the name fills: bsuite/MemoryLen/30
    shared: dict[str, Field] = dataclasses.field(default_factory=dict)  # what every entry of the kind takes

    def parameters(self) -> dict[str, Field]:
        """Everything that users may set, with the defaults that hold under this name."""
        fields = {**self.shared, **self.fields}
        return {k: dataclasses.replace(f, default=self.kwargs.get(k, f.default)) for k, f in fields.items()}


class UnknownNameError(KeyError):
    """A name that no registry entry has; the message suggests the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


def suggest(name: str, candidates: Iterable[str], n: int = 1) -> list[str]:
    """Return up to ``n`` candidates close to ``name``, ignoring case."""
    by_lower = {c.lower(): c for c in candidates}
    lower = name.lower()
    close = difflib.get_close_matches(lower, by_lower, n=n, cutoff=0.6)
    close += [c for c in by_lower if lower and (lower in c or c in lower) and c not in close]
    return [by_lower[c] for c in close[:n]]


class Registry:
    """All classes of one kind, by case-insensitive name.

    ``kind`` is the word that error messages use; ``package`` is where the built-in classes live. ``wrapper``
    (``file:Class``) is a class that wraps each entry's instance; its fields are parameters of every entry.
    """

    def __init__(self, kind: str, package: str, variable: str, wrapper: str | None = None):
        self.kind, self.package, self.variable, self.wrapper = kind, package, variable, wrapper
        self._user: dict[str, tuple[Entry, type]] = {}

    def register(
        self,
        name: str,
        *,
        variants: dict[str, dict[str, Any]] | tuple[str, ...] | None = None,
        field: str | None = None,
        aliases: tuple[str, ...] = (),
        defaults: dict[str, Any] | None = None,
    ) -> Callable[[T], T]:
        """Class decorator: make a dataclass known as ``name``.

        ``variants`` extends the name: a dict gives each variant's field values (``name`` alone is then valid too);
        a tuple of strings gives the values of ``field``. ``field`` alone makes ``<name>/<value>`` fill that field.
        ``aliases`` are further names, with the same variants. ``defaults`` are this class's defaults for the
        parameters that the whole kind shares. The decorated class is returned unchanged.
        """

        def decorate(cls: T) -> T:
            if not cls.__module__.startswith(self.package + "."):
                fields = {f.name: _runtime_field(f) for f in dataclasses.fields(cls) if "doc" in f.metadata}
                doc = (cls.__doc__ or "").strip().split("\n")[0]
                base = Entry(name, cls.__module__, cls.__qualname__, doc, fields, defaults or {}, shared=self._shared)
                for entry in _expand(base, variants, field, aliases):
                    self._user[entry.name.lower()] = (entry, cls)
            return cls

        return decorate

    @property
    def _root(self) -> Path:
        return Path(__file__).parent.joinpath(*self.package.split(".")[1:])

    @functools.cached_property
    def _shared(self) -> dict[str, Field]:
        if self.wrapper is None:
            return {}
        file, cls = self.wrapper.split(":")
        classes = _classes((self._root / file).read_text(encoding="utf-8"))
        return _source_fields(classes[cls], classes)

    @functools.cached_property
    def _builtin(self) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for path in sorted(self._root.rglob("*.py")):
            parts = (self.package, *path.relative_to(self._root).with_suffix("").parts)
            module = ".".join(p for p in parts if p != "__init__")
            for entry in _read_source(path, module, self.variable):
                entries[entry.name.lower()] = dataclasses.replace(entry, shared=self._shared)
        return entries

    def entries(self) -> list[Entry]:
        """All entries, built-in ones first, without importing their modules."""
        return [*self._builtin.values(), *(entry for entry, _ in self._user.values())]

    def find(self, name: str) -> Entry:
        """Look a name up (case-insensitive, without importing its module).

        Raises :class:`UnknownNameError` with suggestions.
        """
        table = {e.name.lower(): e for e in self.entries()}
        entry = table.get(name.lower())
        if entry is not None and entry.suffix is None:
            return entry
        base, _, value = name.rpartition("/")
        entry = table.get(base.lower())
        if entry is not None and entry.suffix is not None and value:
            try:
                parsed = entry.fields[entry.suffix].type(value)
            except ValueError:
                pass
            else:
                return dataclasses.replace(
                    entry, name=f"{entry.name}/{value}", kwargs={**entry.kwargs, entry.suffix: parsed}, suffix=None
                )
        names = [e.name + (f"/{e.fields[e.suffix].default}" if e.suffix else "") for e in table.values()]
        close = suggest(name, names, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names[:12])}"
        family = f" {name.split('/')[0]}" if "/" in name else ""
        raise UnknownNameError(f"unknown {self.kind} '{name}': {hint} (ssmrl list {self.kind}s{family})")

    def load(self, entry: Entry) -> type:
        """Import and return the class of an entry."""
        key = entry.name.lower()
        if key in self._user:
            return self._user[key][1]
        return getattr(importlib.import_module(entry.module), entry.cls)

    def create(self, name: str, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Construct the class that ``name`` stands for; keyword arguments override what the name fixes.

        Returns the instance and the values of the shared parameters, for the caller to wrap it with. Raises
        :class:`UnknownNameError`, and ``TypeError`` for an unknown keyword.
        """
        entry = self.find(name)
        parameters = entry.parameters()
        unknown = [k for k in kwargs if k not in parameters]
        if unknown:
            close = suggest(unknown[0], parameters)
            hint = f"did you mean '{close[0]}'?" if close else f"it takes: {', '.join(parameters) or 'nothing'}"
            raise TypeError(f"{self.kind} '{entry.name}' has no parameter '{unknown[0]}': {hint}")
        values = {k: kwargs.get(k, f.default) for k, f in parameters.items()}
        shared = {k: values.pop(k) for k in entry.shared}
        return self.load(entry)(**values), shared


def _runtime_field(f: dataclasses.Field) -> Field:
    return Field(f.name, f.type, f.default, f.metadata["doc"], dict(f.metadata["bounds"]))


def _expand(
    base: Entry,
    variants: dict[str, dict[str, Any]] | tuple[str, ...] | None,
    field: str | None,
    aliases: tuple[str, ...],
) -> Iterable[Entry]:
    for name in (base.name, *aliases):
        if variants is None or isinstance(variants, dict):
            yield dataclasses.replace(base, name=name, suffix=field if variants is None else None)
        for variant in variants or ():
            fixed = variants[variant] if isinstance(variants, dict) else {str(field): variant}
            yield dataclasses.replace(base, name=name + variant, kwargs={**base.kwargs, **fixed})


def _classes(source: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _read_source(path: Path, module: str, variable: str) -> Iterable[Entry]:
    """Yield the entries that the decorators in a source file would register."""
    source = path.read_text(encoding="utf-8")
    if f"@{variable}.register(" not in source:
        return
    classes = _classes(source)
    for node in classes.values():
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{variable}.register":
                options = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
                name, doc = ast.literal_eval(call.args[0]), (ast.get_docstring(node) or "").split("\n")[0]
                fields = _source_fields(node, classes)
                base = Entry(name, module, node.name, doc, fields, options.get("defaults") or {})
                yield from _expand(base, options.get("variants"), options.get("field"), options.get("aliases", ()))


def _source_fields(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for base in node.bases:  # fields are inherited from bases in the same file
        if isinstance(base, ast.Name) and base.id in classes:
            fields |= _source_fields(classes[base.id], classes)
    for item in node.body:
        match item:
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=annotation, value=ast.Call(func=ast.Name(id="hp")) as call
            ):
                default, doc = (ast.literal_eval(arg) for arg in call.args)
                bounds = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg != "static"}
                type_ = eval(ast.unparse(annotation), {"__builtins__": {}}, dict(_TYPES))
                fields[name] = Field(name, type_, default, doc, bounds)
    return fields


envs = Registry("env", "ssmrl.envs", "envs", wrapper="wrappers.py:Wrapper")
models = Registry("model", "ssmrl.nn", "models", wrapper="stack.py:Stack")
agents = Registry("agent", "ssmrl.agents", "agents")
