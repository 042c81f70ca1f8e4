"""The registry reads declarations from source as Python would make them, and checks values against them."""

import dataclasses
import sys
import textwrap
from typing import ClassVar, Literal

import pytest

from ssmrl import registry
from ssmrl.fields import ConfigError, Field, check, hp, parse, show, unmet, validate
from ssmrl.registry import Registry, UnknownNameError, UserError

SOURCES = {
    "stack.py": """
        import dataclasses
        from ssmrl.registry import hp
        @dataclasses.dataclass(frozen=True)
        class Stack:
            num_layers: int = hp(1, "number of blocks", ge=1)
            requires = {"num_layers < 10": "deep stacks diverge"}
    """,
    "memory.py": '''
        import dataclasses
        from typing import ClassVar, Literal
        from ssmrl.registry import hp
        from toy import models

        class Base:
            """Shared."""
            width: int = hp(4, "width", ge=1, static=True)
            requires = {"width % 2 == 0": "real and imaginary parts"}

        @models.register("cell", aliases=("unit",), defaults={"num_layers": 3})
        @dataclasses.dataclass(frozen=True)
        class Cell(Base):
            """A cell.

            Details.
            """
            width: int = hp(4, "width", ge=1, static=True)
            gate: Literal["hard", "soft"] = hp("soft", "kind of gate")
            sizes: tuple[int, ...] = hp((2, 3), "sizes", ge=1)
            rate: float | None = hp(None, "rate", gt=-1.5)
            requires: ClassVar[dict[str, str]] = {"width >= num_layers": "no layer is left out"}
            hidden: int = 7

        @models.register("sized/", variants=("Small-v0", "Large-v0"), field="size")
        @dataclasses.dataclass(frozen=True)
        class Sized:
            size: str = hp("Small-v0", "size")
            other: int = hp(0, "other")

        @models.register("task", variants={"Easy": {"k": 1}, "Hard": {"k": 9}})
        @dataclasses.dataclass(frozen=True)
        class Task:
            k: int = hp(5, "lag", ge=0)
            def __post_init__(self):
                if self.k == 6:
                    raise ValueError("six is right out")

        @models.register("chain", field="length")
        @dataclasses.dataclass(frozen=True)
        class Chain:
            length: int = hp(30, "length", ge=1)
    ''',
}


@pytest.fixture
def models(tmp_path, monkeypatch):
    package = tmp_path / "toy"
    (package / "nn").mkdir(parents=True)
    models = "Registry('model', 'toy.nn', 'models', wrapper='stack.py:Stack')"
    (package / "__init__.py").write_text(f"from ssmrl.registry import Registry\nmodels = {models}\n")
    for name, source in SOURCES.items():
        (package / "nn" / name).write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("toy").models
    for name in [n for n in sys.modules if n.split(".")[0] == "toy"]:
        del sys.modules[name]


def test_source_gives_what_python_would_without_importing(models):
    entry = models.find("CELL")
    assert "toy.nn.memory" not in sys.modules
    assert (entry.name, entry.module, entry.cls, entry.doc) == ("cell", "toy.nn.memory", "Cell", "A cell.")
    assert entry.parameters() == {
        "num_layers": Field("num_layers", int, 3, "number of blocks", {"ge": 1}),
        "width": Field("width", int, 4, "width", {"ge": 1}),
        "gate": Field("gate", Literal["hard", "soft"], "soft", "kind of gate"),
        "sizes": Field("sizes", tuple[int, ...], (2, 3), "sizes", {"ge": 1}),
        "rate": Field("rate", float | None, None, "rate", {"gt": -1.5}),
    }
    assert list(entry.requires) == ["num_layers < 10", "width % 2 == 0", "width >= num_layers"]
    assert models.find("unit").alias == "unit"
    instance, shared = models.create("cell", width=6)
    assert (type(instance).__name__, instance.width, shared) == ("Cell", 6, {"num_layers": 3})


def test_names_fix_parameters(models):
    assert {n: models.find(n).parameters()["k"].default for n in ("task", "taskEasy", "TASKhard")} == {
        "task": 5,
        "taskEasy": 1,
        "TASKhard": 9,
    }
    assert models.create("chain/12")[0].length == 12
    assert models.find("chain/0012").parameters()["length"].default == 12
    assert "size" not in models.find("sized/Large-v0").parameters()
    assert models.create("sized/large-v0", other=3)[0] == models.load(models.find("sized/Large-v0"))("Large-v0", 3)
    with pytest.raises(UnknownNameError, match=r"unknown model 'sized': did you mean sized/Small-v0"):
        models.find("sized")
    for name in ("chain", "chain/x"):
        with pytest.raises(UnknownNameError, match=f"unknown model '{name}': did you mean chain/30"):
            models.find(name)


def test_create_refuses_bad_values_all_at_once(models):
    with pytest.raises(ConfigError) as error:
        models.create("cell", width=0, gate="sof", sizes=[1, 0], rate=None)
    assert error.value.errors == [
        "model 'cell': width=0: expected integer >= 1 (width; default 4)",
        "model 'cell': gate=sof: expected hard|soft (kind of gate; default soft)",
        "model 'cell': sizes=[1, 0]: expected list [a, b, ...], each integer >= 1 (sizes; default [2, 3])",
    ]
    with pytest.raises(ConfigError, match=r"^model 'cell': width=5: real and imaginary parts .*use width=4 or width=6"):
        models.create("cell", width=5)
    with pytest.raises(ConfigError, match=r"^model 'task': six is right out$"):
        models.create("task", k=6)
    with pytest.raises(TypeError, match=r"has no parameter 'widht': did you mean 'width'\?"):
        models.create("cell", widht=3)


def test_declarations_that_are_not_literals_are_located(models, tmp_path):
    path = tmp_path / "toy" / "nn" / "bad.py"
    path.write_text("@models.register(NAME)\nclass Bad:\n    pass\n")
    with pytest.raises(ValueError, match=r"bad\.py:2: register, hp and requires take literals"):
        models.entries()
    path.write_text("@models.register('bad')\nclass Bad:\n    requires = {'wdith > 1': 'typo'}\n")
    with pytest.raises(ValueError, match=r"requires is about \{'wdith'\}"):
        models.entries()


def test_registered_at_run_time(models):
    @models.register("mine", variants={"/Big": {"size": 8}})
    @dataclasses.dataclass(frozen=True)
    class Mine:
        """My own."""

        size: int = hp(2, "size", ge=1)
        requires: ClassVar[dict[str, str]] = {"size != 3": "three is taken"}

    entry = models.find("Mine/big")
    assert entry.parameters()["size"] == Field("size", int, 8, "size", {"ge": 1})
    assert (entry.doc, entry.family, entry.parameters()["num_layers"].default) == ("My own.", "mine", 1)
    assert models.create("mine/Big")[0] == Mine(8)
    with pytest.raises(ConfigError, match="three is taken"):
        models.create("mine", size=3)


def test_string_annotations_are_resolved(models, monkeypatch):
    module = type(sys)("futuristic")
    monkeypatch.setitem(sys.modules, "futuristic", module)
    source = "@dataclasses.dataclass\nclass C:\n    n: 'int | None' = hp(1, 'n')\n"
    vars(module).update(dataclasses=dataclasses, hp=hp)
    exec(source, vars(module))
    module.C.__module__ = "futuristic"
    models.register("futuristic")(module.C)
    assert models.find("futuristic").parameters()["n"].type == int | None


def test_unmet_names_the_values_and_the_nearest_that_would_do():
    fields = {
        "num_envs": Field("num_envs", int, 64, "", {"ge": 1}),
        "num_minibatches": Field("num_minibatches", int, 4, "", {"ge": 1}),
        "low": Field("low", float, 0.1, ""),
        "high": Field("high", float, 0.2, ""),
        "mode": Field("mode", Literal["a", "b"], "a", ""),
        "fast": Field("fast", bool, True, ""),
        "limit": Field("limit", int | None, None, ""),
    }
    whole = {"num_envs % num_minibatches == 0": "minibatches split environments, never time"}
    assert unmet(whole, fields, {"num_envs": 100, "num_minibatches": 6}, "agent.") == [
        "agent.num_envs=100, agent.num_minibatches=6: minibatches split environments, never time "
        "(num_envs % num_minibatches == 0 fails): use num_minibatches=5 or num_envs=102"
    ]
    assert unmet(whole, fields, {"num_envs": 1, "num_minibatches": 4})[0].endswith(
        "use num_envs=4 or num_minibatches=1"
    )
    assert unmet(whole, fields, {"num_envs": 12, "num_minibatches": 4}) == []
    assert unmet(whole, fields, {"num_envs": 100}) == []
    assert unmet({"low <= high": "an interval"}, fields, {"low": 0.5, "high": 0.2}) == [
        "low=0.5, high=0.2: an interval (low <= high fails): use high=0.5 or low=0.2"
    ]
    assert unmet({"not fast or mode == 'b'": "b is fast"}, fields, {"fast": True, "mode": "a"}) == [
        "fast=true, mode=a: b is fast (not fast or mode == 'b' fails): use fast=false or mode=b"
    ]
    assert unmet({"limit > 3": "enough"}, fields, {"limit": None}) == []
    # a remedy never breaks another requirement
    both = {**whole, "num_minibatches != 5": "five is taken"}
    assert "num_minibatches=4 or" not in unmet(whole, fields, {"num_envs": 100, "num_minibatches": 6})[0]
    assert unmet(both, fields, {"num_envs": 100, "num_minibatches": 6})[0].endswith(
        "use num_envs=102 or num_minibatches=4"
    )


def test_requirements_are_arithmetic_only():
    with pytest.raises(ValueError, match="only arithmetic and comparisons"):
        unmet({"__import__('os').getcwd() == a": ""}, {}, {"a": 1})


def test_check_of_an_instance():
    @dataclasses.dataclass
    class Agent:
        n: int = hp(4, "number", ge=1)
        rate: float = hp(0.1, "rate", gt=0.0)
        array: float = hp(0.1, "may be an array", gt=0.0)
        requires: ClassVar[dict[str, str]] = {"n * rate <= 1": "stable"}

    check(Agent())
    check(Agent(array=object()))
    with pytest.raises(
        ConfigError, match=r"^Agent: n=0: expected integer >= 1 \(number; default 4\)\nAgent: rate=-1.0"
    ):
        check(Agent(0, -1.0))
    with pytest.raises(ConfigError, match=r"Agent: n=11, rate=0.1: stable .*: use n=10"):
        check(Agent(11))
    assert issubclass(ConfigError, UserError)
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize(
    ("text", "type_", "value"),
    [
        ("1e6", int, 1_000_000),
        ("1_000_000", int, 1_000_000),
        (300000.0, int, 300_000),
        ("-3", int, -3),
        ("1e-05", float, 1e-5),
        ("3e-4", float, 3e-4),
        ("inf", float, float("inf")),
        (2, float, 2.0),
        *((t, bool, True) for t in ("true", "True", "1", "yes", True)),
        *((t, bool, False) for t in ("false", "False", "0", "no", False)),
        *((t, int | None, None) for t in ("none", "None", "null", None)),
        ("5", int | None, 5),
        ("none", str, "none"),
        ("None", str | None, None),
        (2024, str, "2024"),
        ("[64, 64]", tuple[int, ...], (64, 64)),
        ("(64,64)", tuple[int, ...], (64, 64)),
        ("64,64", tuple[int, ...], (64, 64)),
        ("64", tuple[int, ...], (64,)),
        ("[]", tuple[int, ...], ()),
        ([], tuple[int, ...], ()),
        (["1e2", 3.0], tuple[int, ...], (100, 3)),
        ("['a', \"b\"]", tuple[str, ...], ("a", "b")),
        ("[1e-5, 1]", tuple[float, float], (1e-5, 1.0)),
        ("[1, x]", tuple, (1, "x")),
        ("off", Literal["on", "off"], "off"),
        (False, Literal["on", "off"], "off"),
        ("8", Literal[4, 8], 8),
        ("best", Literal["best"] | int, "best"),
        ("7", Literal["best"] | int, 7),
    ],
)
def test_text_and_yaml_are_read_by_type(text, type_, value):
    read = validate(Field("x", type_, None, ""), parse(text, type_))
    assert read == value
    assert type(read) is type(value)
    assert parse(show(value), type_) == value


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("abc", int),
        ("1.5", int),
        ("inf", int),
        (True, int),
        (None, int),
        ("none", int),
        ("x", float),
        (True, float),
        ("maybe", bool),
        ("2", bool),
        (None, str),
        ("[1, x]", tuple[int, ...]),
        ("[1]", tuple[int, int]),
        ("[1, 2, 3]", tuple[int, int]),
        ("ON", Literal["on", "off"]),
        ("worst", Literal["best"] | int),
        ({"a": 1}, int),
    ],
)
def test_what_cannot_be_read_is_refused(text, type_):
    with pytest.raises(ValueError, match="expected"):
        validate(Field("x", type_, None, ""), parse(text, type_))


@pytest.mark.parametrize("kind", ["envs", "models", "agents"])
def test_declarations_of_the_library_are_consistent(kind):
    entries: Registry = getattr(registry, kind)
    assert entries.entries()
    for entry in entries.entries():
        parameters = entry.parameters()
        assert entry.doc, f"{entry.name} has no docstring"
        assert all(f.doc for f in parameters.values())
        defaults = {k: validate(f, f.default) for k, f in parameters.items()}
        assert unmet(entry.requires, parameters, defaults) == [], entry.name
