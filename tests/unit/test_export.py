"""An exported policy: the same bit for bit, read without run and environment, or refused in one clear sentence."""

import dataclasses
import importlib.abc
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import ssmrl
from ssmrl import cli, nn, portable, registry, spaces
from ssmrl.nn.actor_critic import ActorCritic
from ssmrl.planning import PlanningPolicy
from ssmrl.policy import Policy, RunningStats
from ssmrl.registry import UserError, hp
from ssmrl.world_model import WorldModel
from ssmrl.world_policy import WorldActorCritic

TINY = {
    "env": "popgym/PositionOnlyCartPoleEasy",
    "env.max_steps": 12,
    "agent.num_envs": 4,
    "agent.num_steps": 8,
    "agent.num_minibatches": 2,
    "agent.epochs": 1,
    "agent.heads": (8,),
    "agent.normalize_obs": True,
    "agent.reward_scale": 0.3,
    "model.d_model": 8,
    "model": "gru",
    "eval.episodes": 4,
    "log.every": 1,
    "checkpoint.keep": 2,
    "seeds": 2,
    "total_steps": 96,
    "wandb": "off",
}


FOUR = spaces.Discrete(4)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    ssmrl.train(ssmrl.resolve([], TINY | {"run.dir": str(folder)}), quiet=True)
    return folder


@pytest.fixture(scope="module")
def exported(run_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "policy"
    ssmrl.export(run_dir, folder, step="latest", seed_index=1)
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def same(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(_exact(a), _exact(b)) for a, b in leaves)


def _exact(leaf):
    return np.asarray(leaf, np.complex64)  # which numpy can compare, unlike bfloat16


def test_the_policy_is_the_same_bit_for_bit_and_acts_alike(run_dir, exported):
    original, loaded = ssmrl.load(run_dir, "latest", 1), ssmrl.load(exported)
    assert loaded.network == original.network
    assert loaded.obs_stats.count == 96
    assert float(loaded.reward_scale) == np.float32(0.3)
    assert same(original, loaded)
    assert not same(ssmrl.load(run_dir, "latest", 0), loaded)
    obs = jnp.array([[0.1, -0.2], [0.02, 0.05]])
    act = jax.jit(lambda p: p.step(p.initial_carry(2), obs, jnp.array([True, False]), jnp.ones(2))[1:])
    assert same(act(original), act(loaded))


def test_what_the_folder_says(run_dir, exported):
    assert sorted(p.name for p in exported.iterdir()) == ["arrays.npz", "policy.json"]
    facts = json.loads((exported / "policy.json").read_text())
    assert facts["source"]["run"] == run_dir.name
    assert facts["source"]["env_steps"] == 96
    assert facts["source"]["seed_index"] == 1
    assert facts["config"]["env.max_steps"] == 12
    assert facts["arrays"]["obs_stats/mean"] == "float32[2]"
    assert spaces.from_json(facts["action_space"]) == spaces.Discrete(2)


def test_reading_needs_no_environment(exported, monkeypatch):
    """Not even its package: nothing of ``ssmrl.envs`` beyond the contract is imported."""

    class Refuse(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.startswith(("ssmrl.envs.popgym", "brax", "popgym")):
                raise AssertionError(f"imported {name}")

    for name in [n for n in sys.modules if n.startswith("ssmrl.envs.popgym")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    monkeypatch.setattr(registry.envs, "find", None)
    ssmrl.load(exported)


def test_every_damage_is_noticed(exported, copy):
    """Any byte of either file that is changed, and any end that is cut off: an error, or the same policy."""
    rng, original = np.random.default_rng(0), ssmrl.load(exported)
    unnoticed = 0
    for name in ("policy.json", "arrays.npz"):
        intact = (exported / name).read_bytes()
        for place in rng.integers(0, len(intact), 12):
            damaged = bytearray(intact)
            damaged[place] ^= 1 << rng.integers(7)
            for content in (damaged, intact[:place]):
                (copy / name).write_bytes(content)
                loaded, message = None, ""
                try:
                    loaded = ssmrl.load(copy)
                except UserError as error:
                    message = str(error)
                if loaded is None:
                    assert message.startswith(str(copy))
                    assert len(message.splitlines()) == 1
                else:  # white space of the JSON
                    unnoticed += 1
                    assert same(original, loaded)
        (copy / name).write_bytes(intact)
    assert unnoticed < 6


def edited(folder, **facts):
    path = folder / "policy.json"
    known = json.loads(path.read_text()) | facts
    known.pop("crc32")
    path.write_text(json.dumps(known | {"crc32": portable._checksum(known)}))


OTHER_NETWORK = {"inputs": ["obs"], "encoder": [], "heads": [8], "activation": "relu", "shared": True}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "policy.json").unlink(), r"policy\.json is missing; copy the folder again"),
        (lambda f: (f / "arrays.npz").unlink(), r"arrays\.npz is missing; copy the folder again"),
        (lambda f: (f / "policy.json").write_text("{"), r"policy\.json is damaged: it cannot be read as JSON"),
        (lambda f: (f / "policy.json").write_text("[]"), r"is not a policy of ssmrl: make one with `ssmrl export"),
        (lambda f: (f / "policy.json").write_text('{"kind": "other"}'), r"is not a policy of ssmrl"),
        (lambda f: (f / "arrays.npz").write_bytes(b"PK"), r"arrays\.npz is damaged or cut short"),
        (
            lambda f: edited(f, format=3),
            r"has format 3, this version \(.*\) reads up to 2: pip install --upgrade ssmrl",
        ),
        (
            lambda f: edited(f, network={"class": "Oracle"}),
            r"holds a network that .* cannot build: 'Oracle'; use ssmrl",
        ),
        (lambda f: edited(f, network=OTHER_NETWORK), r"does not fit the network that this version .*encoder/Dense_0"),
    ],
)
def test_what_cannot_be_read_says_why(copy, damage, message):
    damage(copy)
    with pytest.raises(UserError, match=message):
        ssmrl.load(copy)


def test_folders_of_the_first_format_are_read(exported, copy):
    """It knew one class of networks, and did not name it."""
    network = json.loads((copy / "policy.json").read_text())["network"]
    assert network.pop("class") == "ActorCritic"
    assert network.keys() == OTHER_NETWORK.keys()
    edited(copy, format=1, network=network)
    assert ssmrl.load(copy).network == ssmrl.load(exported).network
    assert same(ssmrl.load(copy), ssmrl.load(exported))


def test_nothing_stored_is_run(copy):
    """An object array is a pickle: numpy is told to refuse it, even where all checksums fit."""

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was run",))

    facts = json.loads((copy / "policy.json").read_text())
    np.savez(copy / "arrays.npz", **{name: np.array([Bomb()], object) for name in facts["arrays"]})
    edited(copy, arrays_crc32=portable._crc((copy / "arrays.npz").read_bytes()))
    with pytest.raises(UserError, match=r"does not hold the arrays .*allow_pickle=False"):
        ssmrl.load(copy)


@pytest.fixture
def own_models(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry.models, "_user", {})
    return registry.models._user


def hand_made(memory, observation_space=FOUR, action_space=FOUR, stats=None):
    network = ActorCritic(observation_space, action_space, memory, ("obs", "start"), (4,), (), "tanh", False)
    return with_parameters(network, stats)


def with_parameters(network, stats=None):
    observation_space, action_space = network.observation_space, network.action_space
    inputs = spaces.zeros(observation_space, (1, 1)), jnp.ones((1, 1), bool), spaces.zeros(action_space, (1, 1))
    init = lambda: network.init(jax.random.key(0), network.initialize_carry((1,)), *inputs, jnp.zeros((1, 1)))  # noqa: E731
    shapes = jax.eval_shape(init)["params"]
    params = jax.tree.map(lambda p: jax.device_put(np.sin(np.arange(p.size)).reshape(p.shape).astype(p.dtype)), shapes)
    return Policy(params, stats, 1.0, network)


def test_a_model_of_the_users_own(tmp_path, own_models):
    @registry.models.register("echo")
    class Echo(nn.SequenceModel):
        """Remembers nothing."""

        d_model: int = hp(4, "width", ge=1)
        widths: tuple[int, ...] = hp((4,), "a list", ge=1)

        def initialize_carry(self, batch_shape=()):
            return jnp.zeros(batch_shape)

        @linen.compact
        def __call__(self, carry, x, reset):
            return carry, linen.Dense(self.d_model, param_dtype=jnp.bfloat16)(x)

    policy = hand_made(nn.make_model("echo", d_model=4, widths=(2, 3)))
    config = {"model": "echo", "model.d_model": 4, "model.widths": (2, 3), "agent.gamma": float("inf")}
    portable.write(policy, config, {"env_steps": 1, "return_mean": float("nan")}, tmp_path / "deep" / "own")
    loaded, facts = portable.read(tmp_path / "deep" / "own")
    assert loaded.network == policy.network
    assert jax.tree.map(lambda x: x.dtype, loaded.params) == jax.tree.map(lambda x: x.dtype, policy.params)
    assert same(policy, loaded)
    assert facts["source"]["return_mean"] == "nan"
    own_models.clear()
    with pytest.raises(UserError, match="'echo', which is not registered here: import the module that registers it"):
        portable.read(tmp_path / "deep" / "own")


def test_every_kind_of_space_survives(tmp_path):
    observation_space = spaces.Dict({"b": spaces.Tuple((spaces.Discrete(2), spaces.Box(-np.inf, 0.1, (2,)))),
                                     "a": spaces.MultiDiscrete((2, 3))})  # fmt: skip
    policy = hand_made(nn.make_model("none", d_model=4), observation_space, spaces.Box((-1, -2), (1.5, 2), (2,)))
    portable.write(policy, {"model": "none", "model.d_model": 4}, {"env_steps": 1}, tmp_path / "p")
    loaded = ssmrl.load(tmp_path / "p")
    assert loaded.network == policy.network
    assert same(policy, loaded)
    image = hand_made(nn.make_model("none", d_model=4), spaces.Box(0, 255, (8, 8, 1), jnp.uint8),
                      stats=RunningStats.create((8, 8, 1)))  # fmt: skip
    portable.write(image, {"model": "none", "model.d_model": 4}, {"env_steps": 1}, tmp_path / "image")
    assert ssmrl.load(tmp_path / "image").network.observation_space == spaces.Box(0, 255, (8, 8, 1), jnp.uint8)


def test_a_policy_of_a_world_model(tmp_path):
    """With its model and its heads, bit for bit: a network in a network."""
    memory = nn.make_model("s5", d_model=4, d_state=4, memories=2)
    world = WorldModel(spaces.Box(-1.0, 1.0, (2,)), spaces.MultiDiscrete((2, 3)), memory, latent="gaussian",
                       groups=3, classes=2, unimix=0.02, hidden=(4, 5), bins=5)  # fmt: skip
    network = WorldActorCritic(world, ("z", "x"), (), unimix=1 / 3, bins=7)
    policy = with_parameters(network, RunningStats(jnp.array([0.1, 0.2]), jnp.array([0.3, 3.0]), jnp.float32(7)))
    config = {"model": "s5", "model.d_model": 4, "model.d_state": 4, "model.memories": 2}
    portable.write(policy, config, {"env_steps": 1}, tmp_path / "p")
    loaded = ssmrl.load(tmp_path / "p")
    assert loaded.network == network
    assert loaded.params.keys() == {"world", "actor", "critic"}
    assert "decoder" in loaded.params["world"]
    assert same(policy, loaded)
    obs = jnp.array([[0.1, -0.2], [0.02, 0.05]])
    act = jax.jit(lambda p: p.step(p.initial_carry(2), obs, jnp.array([True, False]), jnp.ones(2)))
    assert same(act(policy), act(loaded))
    planner = policy.replace(network=PlanningPolicy(network, 5, 8, 2, 2, 1, 1, True, 0.9, None, 0.1))
    portable.write(planner, config, {"env_steps": 1}, tmp_path / "planner")
    assert ssmrl.load(tmp_path / "planner").network == planner.network
    assert same(planner, ssmrl.load(tmp_path / "planner"))


def test_a_network_of_another_class_is_refused(tmp_path):
    class Mine(ActorCritic):
        """Does not say how it is built again."""

    policy = hand_made(nn.make_model("none", d_model=4))
    mine = Mine(**{f.name: getattr(policy.network, f.name) for f in dataclasses.fields(ActorCritic)[:8]})
    with pytest.raises(UserError, match=r"a network of the class Mine cannot be exported: ActorCritic, .* can"):
        portable.write(policy.replace(network=mine), {}, {}, tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_never_overwritten(run_dir, exported, tmp_path, monkeypatch):
    before = (exported / "policy.json").read_bytes()
    with pytest.raises(UserError, match="exists and is not empty: choose another folder"):
        ssmrl.export(run_dir, exported)
    assert (exported / "policy.json").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        ssmrl.export(run_dir, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert ssmrl.export(run_dir, ".")["bytes"] > 1000
    monkeypatch.chdir(tmp_path)
    assert same(ssmrl.load(tmp_path / "empty"), ssmrl.load(run_dir))
    assert not list(tmp_path.glob(".*"))


def test_a_failed_export_leaves_nothing(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; choose another folder"):
        ssmrl.export(run_dir, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_what_only_a_run_can_choose(run_dir, exported, tmp_path):
    with pytest.raises(UserError, match="is an exported policy: step and seed_index choose in a run directory"):
        ssmrl.load(exported, seed_index=1)
    with pytest.raises(UserError, match=r"has 2 seed\(s\): seed_index=2; use 0 to 1"):
        ssmrl.export(run_dir, tmp_path / "new", seed_index=2)
    with pytest.raises(UserError, match=r"is no run directory: it has no config\.yaml; nor is it an exported policy"):
        ssmrl.load(tmp_path)


def test_from_the_command_line(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(run_dir), "out", "--step", "latest", "--seed-index=1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["policy"], facts["env_steps"], facts["seed_index"]) == (str(tmp_path / "out"), 96, 1)
    assert facts["bytes"] == sum(p.stat().st_size for p in Path("out").iterdir())
    assert facts["parameters"] == sum(x.size for x in jax.tree.leaves(ssmrl.load("out").params))
    assert cli.main(["eval", "out", "--episodes", "4", "--seed", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    env, params = ssmrl.make_env("popgym/PositionOnlyCartPoleEasy", max_steps=12)
    expected = ssmrl.evaluate(ssmrl.load("out"), env, 4, seed=3, env_params=params)
    assert {k: result[k] for k in expected} == expected
    assert result["env_steps"] == 96
    for words, message in (
        (["export", str(run_dir), "out"], "error: out exists and is not empty"),
        (["export", str(run_dir)], "error: ssmrl export needs RUN FOLDER: 1 given"),
        (["export", "out", "more"], "error: 'out' is no run"),
        (["eval", "out", "--step=latest"], "error: --step=latest: out is an exported policy; leave it out"),
        (["eval", "out", "--env=gymnax/CartPole-v1"], "error: the policy was trained with observations in Box"),
    ):
        assert cli.main(words) == 2
        assert capsys.readouterr().err.startswith(message)
