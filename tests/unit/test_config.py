"""Presets and overrides become one validated configuration, and every mistake is told at once."""

import dataclasses
import textwrap
from typing import ClassVar, Literal

import pytest
import yaml

from ssmrl import config, film, registry
from ssmrl.config import ConfigError, check_resumable, resolve, schema, to_flat, to_yaml, trace
from ssmrl.fields import hp
from ssmrl.registry import Registry


@pytest.fixture(autouse=True)
def _toys(tmp_path, monkeypatch):
    """A small library: two environments, one agent and two models, and presets in ``tmp_path``."""
    (tmp_path / "package" / "toylib").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    for kind in ("env", "agent", "model"):
        monkeypatch.setattr(registry, f"{kind}s", Registry(kind, "toylib", f"{kind}s"))

    @registry.envs.register("popgym/RepeatPrevious", variants={"Easy": {"k": 4}, "Hard": {"k": 64}})
    @dataclasses.dataclass
    class RepeatPrevious:
        k: int = hp(4, "lag", ge=1)
        num_decks: int = hp(1, "decks", ge=1)

    @registry.envs.register("bsuite/MemoryLen", field="length")
    @dataclasses.dataclass
    class MemoryLen:
        length: int = hp(30, "delay", ge=1)

    @registry.agents.register("ppo")
    @dataclasses.dataclass
    class PPO:
        learning_rate: float = hp(5e-4, "Adam's step size", ge=0.0)
        num_envs: int = hp(64, "environments stepped in parallel", ge=1)
        num_minibatches: int = hp(4, "minibatches per epoch", ge=1)
        heads: tuple[int, ...] = hp((64,), "widths")
        anneal: Literal["none", "linear"] = hp("none", "schedule")
        requires: ClassVar[dict[str, str]] = {
            "num_envs % num_minibatches == 0": "minibatches split environments, never time"
        }

    @registry.models.register("s5")
    @dataclasses.dataclass
    class S5:
        d_model: int = hp(64, "width", ge=1)
        d_state: int = hp(64, "state size", ge=1)

    @registry.models.register("gru")
    @dataclasses.dataclass
    class GRU:
        d_model: int = hp(32, "width", ge=1)
        gate: bool = hp(True, "with a gate")

    monkeypatch.setattr(config, "PRESETS", tmp_path / "configs")
    preset(
        "configs/demo.yaml", "doc: sixty seconds\ntotal_steps: 300_000\nagent.learning_rate: 2e-3\nmodel.d_state: 16"
    )
    preset("configs/popgym/hard.yaml", "base: demo\nenv: popgym/RepeatPreviousHard\nrun: {name: hard}\nwandb: off")
    preset("configs/sweeps/lr.yaml", "method: grid\nparameters: {}")


def preset(path, text):
    from pathlib import Path

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(textwrap.dedent(text))


def errors(presets=(), overrides=()):
    with pytest.raises(ConfigError) as caught:
        resolve(presets, overrides)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return caught.value.errors


def test_defaults():
    c = resolve()
    assert (c.env, c.agent, c.model) == ("popgym/RepeatPreviousEasy", "ppo", "s5")
    assert c.env_parameters == {"k": 4, "num_decks": 1}
    assert (c.seed, c.seeds, c.platform, c.run.root, c.run.dir, c.wandb.mode) == (0, 1, "auto", "runs", None, "auto")
    assert (c.eval.every, c.eval.episodes, c.eval.greedy) == (0, 256, False)
    assert (c.checkpoint.every, c.checkpoint.keep, c.tensorboard, c.wandb.tags) == (1, 3, False, ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.seed = 1


def test_layers_win_from_left_to_right_and_bases_come_first():
    c = resolve(["popgym/hard"], ["seeds=2", "agent.heads=[8, 8]", "agent.num_envs=1e2"])
    assert (c.env, c.env_parameters["k"], c.run.name, c.wandb.mode) == ("popgym/RepeatPreviousHard", 64, "hard", "off")
    assert (c.total_steps, c.agent_parameters["learning_rate"], c.model_parameters["d_state"]) == (300_000, 2e-3, 16)
    assert (c.seeds, c.agent_parameters["heads"], c.agent_parameters["num_envs"]) == (2, (8, 8), 100)
    preset("a.yaml", "seed: 1\ntotal_steps: 5")
    assert resolve(["popgym/hard", "a.yaml"]).total_steps == 5
    assert resolve(["a.yaml", "popgym/hard"]).total_steps == 300_000
    assert resolve(["a.yaml"], {"preset": "popgym/hard"}) == resolve([], ["preset=a.yaml, popgym/hard"])
    assert resolve(["a.yaml", "popgym/hard"], ["total_steps=7"]).total_steps == 7


def test_yaml_and_command_line_and_python_say_the_same():
    preset("x.yaml", "agent.learning_rate: 1e-5\nagent: ppo\nagent.heads: [4, '5']\nlog: {every: '1_000'}\nrun.name: 7")
    c = resolve(["x.yaml"])
    assert c == resolve([], ["agent.learning_rate=1e-05", "agent.heads=4,5", "log.every=1e3", "run.name=7"])
    assert c == resolve(
        [], {"agent": {"learning_rate": 1e-5, "heads": (4, 5)}, "log.every": 1000, "run": {"name": "7"}}
    )
    assert resolve([], {"agent": {"heads": []}}).agent_parameters["heads"] == ()


def test_a_base_may_be_a_file_beside_the_preset():
    preset("deep/a.yaml", "base: [b.yaml, demo]\nseed: 1")
    preset("deep/b.yaml", "seeds: 3\ntotal_steps: 1")
    c = resolve(["deep/a.yaml"])
    assert (c.seed, c.seeds, c.total_steps) == (1, 3, 300_000)


def test_round_trip_through_yaml():
    c = resolve(["popgym/hard"], {"agent.heads": [1, 2], "wandb.tags": ["a", "b"], "agent.learning_rate": 1e-7})
    preset("config.yaml", to_yaml(c))
    assert resolve(["config.yaml"]) == c
    assert resolve([], to_flat(c)) == c
    assert to_flat(c)["agent.heads"] == (1, 2)
    assert to_flat(c)["wandb"] == "off"
    assert to_flat(c).keys() == schema(c).keys() == yaml.safe_load(to_yaml(c)).keys()
    assert resolve([], ["env=bsuite/memorylen/7"]).env == "bsuite/MemoryLen/7"
    assert resolve([], to_flat(resolve([], ["env=bsuite/MemoryLen/7"]))).env_parameters == {"length": 7}


def test_a_title_names_what_is_changed_of_the_environment():
    assert resolve([], ["env=popgym/RepeatPreviousHard"]).task == "popgym/RepeatPreviousHard"
    changed = resolve([], ["env=popgym/RepeatPreviousHard", "env.k=9"])
    assert (changed.task, changed.env_changes) == ("popgym/RepeatPreviousHard k=9", {"env.k": "9"})
    assert film.title("memory/TwoRooms room_size=3 context=48", 31) == "memory/TwoRooms room_size=3..."


def test_another_choice_drops_what_belonged_to_the_old_one():
    preset("s5.yaml", "model: s5\nmodel.d_model: 8\nmodel.d_state: 16\nenv.k: 9")
    c = resolve(["s5.yaml"], ["model=gru"])
    assert c.model_parameters == {"d_model": 8, "gate": True}
    assert c.env_parameters["k"] == 9
    assert resolve(["s5.yaml"], ["model=S5"]).model_parameters == {"d_model": 8, "d_state": 16}
    assert resolve(["s5.yaml"], ["env=popgym/repeatprevioushard"]).env_parameters["k"] == 64
    # set for a model that a later layer chooses
    preset("gate.yaml", "model.gate: false")
    assert resolve(["gate.yaml"], ["model=gru"]).model_parameters["gate"] is False
    # in the same layer, order does not matter, and everything must fit
    assert errors(["s5.yaml"], ["model.d_state=3", "model=gru"]) == [
        "unknown key 'model.d_state': model 'gru' takes d_model, gate; s5 has it"
    ]
    # a typo is one, whatever is chosen later
    preset("typo.yaml", "model.d_modell: 8\nenv.kk: 3")
    found = errors(["typo.yaml"], ["model=gru", "env=bsuite/MemoryLen/3"])
    assert [e.split(":")[1].strip() for e in found] == ["unknown key 'model.d_modell'", "unknown key 'env.kk'"]


def test_every_error_is_told_at_once_with_what_would_do():
    found = errors(
        ["demoo", "none.yaml", "popgym/RepeatPreviousHard", "sweeps/lr", "configs/sweeps/lr.yaml"],
        [
            "env=popgym/RepeatPrevEasy",
            "agent.learning_rat=1e-3",
            "agent.lr=1",
            "learning_rate=1",
            "evall.episodes=3",
            "nonsense=1",
            "model.zzz=1",
            "model.gate=1",
            "agent.num_envs=abc",
            "agent.num_minibatches=0",
            "agent.heads=[1, x]",
            "agent.anneal=lnear",
            "seeds=0",
            "eval.greedy=maybe",
            "total_steps=1.5",
            "env.anything=1",
            "justaword",
        ],
    )
    rate = "did you mean agent.learning_rate (Adam's step size; default 0.0005)?"
    assert found == [
        "override 'justaword': write key=value",
        "unknown preset 'demoo': did you mean demo? (ssmrl list presets)",
        "no file 'none.yaml': a preset is a name (ssmrl list presets) or an existing YAML file",
        "unknown preset 'popgym/RepeatPreviousHard': did you mean env=popgym/RepeatPreviousHard?",
        "'sweeps/lr' is a sweep: ssmrl sweep lr",
        "'configs/sweeps/lr.yaml' is a sweep, not a preset: ssmrl sweep configs/sweeps/lr.yaml "
        "(or wandb sweep configs/sweeps/lr.yaml)",
        "unknown env 'popgym/RepeatPrevEasy': did you mean popgym/RepeatPreviousEasy or popgym/RepeatPrevious or "
        "popgym/RepeatPreviousHard? (ssmrl list envs popgym)",
        f"unknown key 'agent.learning_rat': {rate}",
        f"unknown key 'agent.lr': {rate}",
        f"unknown key 'learning_rate': {rate}",
        "unknown key 'evall.episodes': did you mean eval.episodes (episodes per evaluation and seed; default 256)?",
        "unknown key 'nonsense': ssmrl train --help shows all keys",
        "unknown key 'model.zzz': model 's5' takes d_model, d_state",
        "unknown key 'model.gate': model 's5' takes d_model, d_state; gru has it",
        "agent.num_envs=abc: expected integer >= 1 (environments stepped in parallel; default 64)",
        "agent.num_minibatches=0: expected integer >= 1 (minibatches per epoch; default 4)",
        "agent.heads=[1, x]: expected list [a, b, ...], each integer (widths; default [64])",
        "agent.anneal=lnear: did you mean linear? expected none|linear (schedule; default none)",
        "seeds=0: expected integer >= 1 (independent repetitions, trained at once; default 1)",
        "total_steps=1.5: expected integer >= 1 (environment steps per seed; default 1000000)",
        "eval.greedy=maybe: expected true|false (take the most likely action instead of sampling; default false)",
    ]


def test_requirements_across_fields():
    assert errors((), ["agent.num_envs=100", "agent.num_minibatches=6"]) == [
        "agent.num_envs=100, agent.num_minibatches=6: minibatches split environments, never time "
        "(num_envs % num_minibatches == 0 fails): use num_minibatches=5 or num_envs=102"
    ]


def test_errors_say_which_file():
    preset("a.yaml", "seeds: 0\nmodel: lstm\nagent.foo: 1\nrun: {dir: x}\nrun.dir: y")
    found = errors(["a.yaml"])
    assert found[0] == "preset a.yaml: run.dir: set twice; keep one"
    assert found[1].startswith("preset a.yaml: unknown model 'lstm': ")
    assert found[2].startswith("preset a.yaml: unknown key 'agent.foo': agent 'ppo' takes ")
    assert found[3].startswith("preset a.yaml: seeds=0: expected integer >= 1")
    # an overridden mistake in a value is none, an unknown name stays one
    assert len(errors(["a.yaml"], ["seeds=1", "model=gru"])) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: bad.yaml", "preset 'bad.yaml' is its own base: bad -> bad"),
        ("- 1", "preset 'bad.yaml' holds a list: write one 'key: value' per line"),
        ("a: [", "preset 'bad.yaml' cannot be read: while parsing a flow"),
        ("base: gone", "unknown preset 'gone': known: demo, popgym/hard (ssmrl list presets)"),
    ],
)
def test_unreadable_presets(text, message):
    preset("bad.yaml", text)
    assert errors(["bad.yaml"])[0].startswith(message)


def test_an_empty_preset_is_the_defaults():
    preset("empty.yaml", "")
    assert resolve(["empty.yaml"]) == resolve()


def test_trace_tells_where_values_come_from():
    preset("s5.yaml", "base: demo\nmodel.d_state: 32")
    c, trail = trace(["s5.yaml"], ["model.d_state=1e2"])
    assert trail["model.d_state"] == [
        ("default", 64),
        ("preset demo", 16),
        ("preset s5.yaml", 32),
        ("command line", 100),
    ]
    assert trail["seed"] == [("default", 0)]
    assert trail.keys() == to_flat(c).keys()
    assert trace([], ["env=popgym/RepeatPreviousHard"])[1]["env.k"] == [("default", 64)]


def test_what_a_resumed_run_may_change():
    c = resolve([], ["model.d_model=8"])
    allowed = ["total_steps=2e6", "eval.episodes=3", "checkpoint.keep=9", "log.every=2", "wandb=off", "wandb.tags=[a]"]
    assert check_resumable(c, allowed) == {
        "total_steps": 2_000_000,
        "eval.episodes": 3,
        "checkpoint.keep": 9,
        "log.every": 2,
        "wandb": "off",
        "wandb.tags": ("a",),
    }
    assert check_resumable(c, ["model.d_model=8", "tensorboard=True"]) == {"tensorboard": True}
    with pytest.raises(ConfigError) as caught:
        check_resumable(
            c, ["model.d_model=16", "seed=1", "agent.foo=1", "eval.episodes=0", "env=popgym/RepeatPreviousHard"]
        )
    lines = caught.value.errors
    assert [line.split(":")[0] for line in lines] == [
        "model.d_model=16",
        "seed=1",
        "unknown key 'agent.foo'",
        "eval.episodes=0",
        "env=popgym/RepeatPreviousHard",
    ]
    assert "a resumed run keeps 8; only total_steps, eval, checkpoint, " in lines[0]


def test_presets_are_listed_with_their_line():
    assert config.presets() == {"demo": "sixty seconds", "popgym/hard": ""}
