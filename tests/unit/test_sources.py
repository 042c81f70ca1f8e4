"""What is read from the source of ``module:Name``: parameters, where they come from, and what is wrong with it."""

import subprocess
import sys
import textwrap

import pytest

from ssmrl import sources
from ssmrl.config import resolve, to_flat
from ssmrl.fields import ConfigError, Field
from ssmrl.registry import UnknownNameError
from ssmrl.registry import envs as registry

FILES = {
    "walks/__init__.py": """
        raise RuntimeError("only the source is read")
        from .own import Walk as Stroll
        from .foreign import *
    """,
    "walks/own.py": '''
        import dataclasses
        from ssmrl import envs
        from ssmrl.registry import hp
        from .parts import Base
        class Walk(Base, envs.Environment):
            """Walk.

            Far."""
            length: int = hp(4, "cells", ge=1)
            hidden: int = 3
            requires = {"length != pace": "walking takes time"}
            def __init__(self, **everything): ...
            @property
            def default_params(self):
                return envs.EnvParams(max_steps_in_episode=9)
    ''',
    "walks/parts.py": """
        from ssmrl.registry import hp
        class Base:
            pace: float = hp(0.5, "cells a step", gt=0.0)
        class Limits:
            max_steps_in_episode: int = 1
        class Required:
            def __init__(self, kind="a"): ...
        class Many:
            legs: int
            weight: float
    """,
    "walks/foreign.py": '''
        import dataclasses
        from flax import struct
        import walks.parts as p
        @struct.dataclass
        class EnvParams(p.Limits):
            gravity: float = 10
            table: object = dataclasses.field(default_factory=dict)
            mass: float = struct.field(pytree_node=False, default=1.5)
        class Old:
            """Old."""
            @property
            def default_params(self):
                return EnvParams(max_steps_in_episode=7)
            def __init__(self, size: "int" = 3, scale=0.5, *, kind: str = KINDS[0], place: tuple[int, ...] = (1, 2)):
                ...
        class Newer(Old):
            pass
        class Strict:
            def __init__(self, size): ...
        @dataclasses.dataclass
        class Data:
            depth: int = 2
            colour: ClassVar[str] = "red"
        from walks.parts import Required
        class Required(Required):
            """Of the same name as its base."""
            @property
            def default_params(self):
                return p.Many(3, weight=2.5)
        def __getattr__(name): ...
        def factory(width: int = 8):
            """Make one."""
        try:
            if True:
                either = object()
        except ImportError:
            other = None
    ''',
    "broken.py": "def broken(:\n",
    "bare.py": """
        from ssmrl.envs import Environment
        from ssmrl.registry import hp
        DEFAULT = 3
        class Computed(Environment):
            size: int = hp(DEFAULT, "size")
    """,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with modules of a user's own, where the program is started."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def defaults(name):
    return {k: (f.type, f.default) for k, f in registry.find(name).fields.items()}


def test_own_environments_declare_their_parameters(folder):
    entry = registry.find("walks.own:Walk")
    assert (entry.name, entry.doc) == ("walks.own:Walk", "Walk.")
    assert entry.fields == {
        "pace": Field("pace", float, 0.5, "cells a step", {"gt": 0.0}),
        "length": Field("length", int, 4, "cells", {"ge": 1}),
    }
    assert entry.requires["length != pace"] == "walking takes time"
    assert {"max_steps", "flat_actions"} < entry.parameters().keys()
    assert registry.find("walks:Stroll").fields == entry.fields


def test_parameters_of_other_classes_and_functions(folder):
    some = int | float | bool | str | None
    params = {
        "max_steps_in_episode": (int, 7),
        "gravity": (float, 10),
        "table": (some, None),
        "mass": (float, 1.5),
    }
    arguments = {
        "size": (int, 3),
        "scale": (float, 0.5),
        "kind": (str | None, None),
        "place": (tuple[int, ...], (1, 2)),
    }
    for name in ("walks.foreign:Old", "walks:Old", "walks.foreign:Newer"):
        assert defaults(name) == params | arguments
    assert registry.find("walks:Old").fields["gravity"].doc == "field of EnvParams"
    assert registry.find("walks:Old").fields["kind"].doc == "argument of Old (none: its own)"
    assert defaults("walks.foreign:Data") == {"depth": (int, 2)}
    needed = {"legs": (int | None, None), "weight": (float, 2.5)}
    assert defaults("walks.foreign:Required") == needed
    assert defaults("walks.foreign:made_when_asked_for") == {}
    assert defaults("walks.foreign:factory") == {"width": (int, 8)}
    assert registry.find("walks.foreign:factory").doc == "Make one."
    assert defaults("walks.foreign:either") == defaults("walks.foreign:other") == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wakls.own:Walk", "no module 'wakls' in the current folder or on Python's path; did you mean 'walks'?"),
        ("walks.won:Walk", "no module 'walks.won' .* did you mean 'own'?"),
        ("walks.own.more:Walk", "no module 'walks.own.more'"),
        ("walks.own:walk", "own.py has no 'walk'; did you mean 'Walk'?"),
        ("walks.own:Zzz", "own.py has no 'Zzz'; envs of yours go by package.module:Name"),
        ("walks-own:Walk", "write package.module:Name"),
        ("walks.own:", "write package.module:Name"),
        ("broken:Walk", "broken.py, line 1: "),
        ("bare:Computed", "env 'bare:Computed': hp and requires take literals: "),
        ("walks.foreign:Strict", "argument 'size' has no default: give it one, or name a function"),
    ],
)
def test_what_is_wrong_with_a_name(folder, name, message):
    with pytest.raises(UnknownNameError, match=message.replace("(", r"\(").replace("?", r"\?")):
        registry.find(name)


def test_configurations_take_the_parameters(folder):
    config = resolve([], {"env": "walks:Old", "env.gravity": "3", "env.place": "[4]", "env.max_steps": 5})
    assert to_flat(config) | {"env.gravity": 3.0, "env.place": (4,), "env.max_steps": 5, "env.size": 3} == to_flat(
        config
    )
    with pytest.raises(ConfigError) as error:
        resolve([], {"env": "walks:Stroll", "env.length": 0, "env.pase": 2})
    assert error.value.errors == [
        "unknown key 'env.pase': did you mean env.pace (cells a step; default 0.5)?",
        "env.length=0: expected integer >= 1 (cells; default 4)",
    ]
    (folder / "mine.yaml").write_text("env: walks:Stroll\nenv.length: 7\n")
    assert resolve(["mine.yaml"]).env_parameters["length"] == 7
    assert "length" not in resolve(["mine.yaml"], {"env": "walks:Old"}).env_parameters


def test_nothing_is_imported(folder):
    code = """
        import sys
        from ssmrl.config import resolve
        assert resolve([], {"env": "walks:Old"}).env_parameters["mass"] == 1.5
        print(sorted({"jax", "walks", "flax"} & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_module_without_source_is_taken_at_its_word(folder):
    assert sources.find("math", "anything") == sources.Found("", {}, {})
