"""Names to classes: every environment, sequence model and agent that users may ask for.

A class that users may name is registered by a decorator, and each of its hyper-parameters is one field, declared with
:func:`ssmrl.fields.hp`::

    @models.register("gru")
    class GRU(SequenceModel):
        d_model: int = hp(64, "width of the hidden state", ge=1)

Validation, ``--help``, ``ssmrl list`` and the YAML keys are derived from that line. The built-in classes are
catalogued by reading their *source* (``ast``, not ``import``), so that the command line can reject a typo
before it pays for importing jax. Hence the arguments of ``hp`` and ``register`` are literals, and so is ``requires``.
Classes and functions of users that are not registered go by ``module:Name``, where a kind has an ``importer``.
"""

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from ssmrl import sources
from ssmrl.fields import (
    ConfigError,
    Field,
    UserError,
    check,
    declared_fields,
    declared_requires,
    hp,
    names_in,
    violations,
)

__all__ = ["ConfigError", "Entry", "Field", "Registry", "UnknownNameError", "UserError", "check", "hp", "suggest"]

T = TypeVar("T", bound=type)


class UnknownNameError(UserError, KeyError):
    """A name that no registry entry has; the message suggests the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


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
    requires: dict[str, str] = dataclasses.field(default_factory=dict)  # expression over the fields -> reason
    family: str = ""  # the registered name, without variant
    alias: str = ""  # the other name that this entry goes by, without variant
    imported: bool = False  # from a user's module:Name, of which only the source was looked at

    def parameters(self) -> dict[str, Field]:
        """Everything that users may set, with the defaults that hold under this name."""
        fields = {**self.shared, **self.fields}
        return {k: dataclasses.replace(f, default=self.kwargs.get(k, f.default)) for k, f in fields.items()}


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
    (``file:Class``) is a class about what each entry's instance is wrapped with; its fields are parameters of every
    entry. ``importer``
    (``module:function`` in the package) makes the instance of a ``module:Name``, from that and keyword arguments.
    """

    def __init__(self, kind: str, package: str, variable: str, wrapper: str | None = None, importer: str | None = None):
        self.kind, self.package, self.variable, self.wrapper = kind, package, variable, wrapper
        self.importer = importer
        self._user: dict[str, Entry] = {}
        self._user_classes: dict[tuple[str, str], type] = {}

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
                doc = (cls.__doc__ or "").strip().split("\n")[0]
                fields, requires = declared_fields(cls), declared_requires(cls)
                base = Entry(name, cls.__module__, cls.__qualname__, doc, fields, defaults or {}, requires=requires)
                self._user_classes[base.module, base.cls] = cls
                for entry in _expand(base, variants, field, aliases):
                    self._user[entry.name.lower()] = self._complete(entry)
            return cls

        return decorate

    @functools.cached_property
    def _root(self) -> Path:
        spec = importlib.util.find_spec(self.package)  # imports the parent package only
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"no package '{self.package}': {self.kind}s are read from it")
        return Path(next(iter(spec.submodule_search_locations)))

    @functools.cached_property
    def _wrapper(self) -> tuple[dict[str, Field], dict[str, str]]:
        if self.wrapper is None:
            return {}, {}
        file, cls = self.wrapper.split(":")
        classes = sources.classes((self._root / file).read_text(encoding="utf-8"))
        return sources.read_class(classes[cls], classes)

    def _complete(self, entry: Entry) -> Entry:
        shared, requires = self._wrapper
        entry = dataclasses.replace(entry, shared=shared, requires={**requires, **entry.requires})
        unknown = {name for e in entry.requires for name in names_in(e)} - entry.parameters().keys()
        if unknown:
            raise ValueError(
                f"{entry.module}.{entry.cls}: requires is about {unknown}, which are no fields declared by hp"
            )
        return entry

    @functools.cached_property
    def _builtin(self) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for path in sorted(self._root.rglob("*.py")):
            parts = (self.package, *path.relative_to(self._root).with_suffix("").parts)
            module = ".".join(p for p in parts if p != "__init__")
            for entry in _read_source(path, module, self.variable):
                entries[entry.name.lower()] = self._complete(entry)
        return entries

    def entries(self) -> list[Entry]:
        """All entries, built-in ones first, without importing their modules."""
        return [*self._builtin.values(), *self._user.values()]

    def find(self, name: str) -> Entry:
        """Look a name up (case-insensitive but for ``module:Name``), without importing its module.

        Raises :class:`UnknownNameError` with suggestions.
        """
        if self.importer and ":" in name:
            return self._find_import(name)
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
        heads = dict.fromkeys(n.split("/")[0] for n in names)  # families, where there are any
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(heads)}"
        family = f" {name.split('/')[0]}" if "/" in name else ""
        raise UnknownNameError(f"unknown {self.kind} '{name}': {hint} (ssmrl list {self.kind}s{family})")

    def _find_import(self, name: str) -> Entry:
        """The entry of ``module:Name``, which is looked for in the current folder too, as by ``python -m``."""
        module, _, attribute = name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), attribute)):
            raise UnknownNameError(f"unknown {self.kind} '{name}': write package.module:Name, or a name without colon")
        if not {"", os.getcwd()} & {*sys.path}:
            sys.path.insert(0, os.getcwd())
        try:
            found = sources.find(module, attribute)
            entry = Entry(name, module, attribute, found.doc, found.fields, {}, requires=found.requires, family=name)
            entry = self._complete(entry)
        except LookupError as error:
            problem, part, known = error.args
            close = suggest(part, known)
            hint = f"did you mean '{close[0]}'?" if close else f"{self.kind}s of yours go by package.module:Name"
            raise UnknownNameError(f"unknown {self.kind} '{name}': {problem}; {hint}") from error
        except (ValueError, NameError) as error:
            raise UnknownNameError(f"{self.kind} '{name}': {error}") from error
        shared = {k: f for k, f in entry.shared.items() if k not in found.fields}  # its own, say max_steps, stand
        return dataclasses.replace(entry, shared=shared, imported=True)

    def load(self, entry: Entry) -> Callable[..., Any]:
        """Import and return the class of an entry, or what makes instances of it."""
        if entry.imported:
            file, function = str(self.importer).split(":")
            return functools.partial(getattr(importlib.import_module(f"{self.package}.{file}"), function), entry.name)
        user = self._user_classes.get((entry.module, entry.cls))
        return user if user is not None else getattr(importlib.import_module(entry.module), entry.cls)

    def create(self, name: str, /, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Construct the class that ``name`` stands for; keyword arguments override what the name fixes.

        Returns the instance and the values of the shared parameters, for the caller to wrap it with. Raises
        :class:`UnknownNameError`, ``TypeError`` for an unknown keyword, and :class:`ConfigError` (a ``ValueError``)
        for values of a wrong type, out of range or refused by the class.
        """
        entry = self.find(name)
        parameters = entry.parameters()
        unknown = [k for k in kwargs if k not in parameters]
        if unknown:
            close = suggest(unknown[0], parameters)
            hint = f"did you mean '{close[0]}'?" if close else f"it takes: {', '.join(parameters) or 'nothing'}"
            raise TypeError(f"{self.kind} '{entry.name}' has no parameter '{unknown[0]}': {hint}")
        values = {k: kwargs.get(k, f.default) for k, f in parameters.items()}
        errors = violations(parameters, entry.requires, values)
        if errors:
            raise ConfigError(f"{self.kind} '{entry.name}': {e}" for e in errors)
        shared = {k: values.pop(k) for k in entry.shared}
        if entry.imported:  # its defaults are its own business
            values = {k: v for k, v in values.items() if v != entry.fields[k].default}
        fixed = {k: v for k, v in entry.kwargs.items() if k not in parameters}  # fields that users cannot set
        try:
            return self.load(entry)(**fixed, **values), shared
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError([f"{self.kind} '{entry.name}': {error}"]) from error


def _expand(
    base: Entry,
    variants: dict[str, dict[str, Any]] | tuple[str, ...] | None,
    field: str | None,
    aliases: tuple[str, ...],
) -> Iterable[Entry]:
    for name in (base.name, *aliases):
        root = dataclasses.replace(base, name=name, family=base.name, alias=name if name != base.name else "")
        if variants is None or isinstance(variants, dict):
            yield dataclasses.replace(root, suffix=field if variants is None else None)
        if isinstance(variants, tuple):  # the name alone sets the field
            root = dataclasses.replace(root, fields={k: f for k, f in base.fields.items() if k != field})
        for variant in variants or ():
            fixed = variants[variant] if isinstance(variants, dict) else {str(field): variant}
            yield dataclasses.replace(root, name=name + variant, kwargs={**base.kwargs, **fixed})


def _read_source(path: Path, module: str, variable: str) -> Iterable[Entry]:
    """Yield the entries that the decorators in a source file would register."""
    source = path.read_text(encoding="utf-8")
    if f"@{variable}.register(" not in source:
        return
    known = sources.with_bases(source, Path(__file__).parent)
    for node in sources.classes(source).values():
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{variable}.register":
                try:
                    options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
                    name, doc = ast.literal_eval(call.args[0]), (ast.get_docstring(node) or "").split("\n")[0]
                    fields, requires = sources.read_class(node, known)
                except (ValueError, NameError) as error:
                    raise ValueError(
                        f"{path}:{node.lineno}: register, hp and requires take literals: {error}"
                    ) from error
                base = Entry(name, module, node.name, doc, fields, options.get("defaults") or {}, requires=requires)
                yield from _expand(base, options.get("variants"), options.get("field"), options.get("aliases", ()))


envs = Registry("env", "ssmrl.envs", "envs", wrapper="wrappers.py:Options", importer="imported:make")
models = Registry("model", "ssmrl.nn", "models", wrapper="stack.py:Stack")
agents = Registry("agent", "ssmrl.agents", "agents")
