"""The agent that learns a world model from scripted episodes: updates, populations, resuming, refusals."""

import dataclasses
import shutil
from types import SimpleNamespace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmrl
from ssmrl import envs, nn, registry, spaces, training, world_evaluation
from ssmrl.agents.s4wm import S4WM
from ssmrl.envs import Environment, EnvParams, EnvState


def cut(tree, *index):
    return jax.tree.map(lambda x: x[index], tree)


def assert_close(got, want, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, tolerance, tolerance)


@dataclasses.dataclass(frozen=True)
class Match(Environment):
    """After three steps a coin is shown, and heads after action 1 gives the reward: only the last frame tells."""

    shows: Literal["coin", "dict", "small"] = registry.hp("coin", "kind of observation")

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=3)

    def observation_space(self, params):
        if self.shows == "small":
            return spaces.Box(0, 255, (30, 30, 3), np.uint8)
        coin = spaces.MultiDiscrete((3,))
        return spaces.Dict({"coin": coin}) if self.shows == "dict" else coin

    def action_space(self, params):
        return spaces.Discrete(2)

    def reset_env(self, key, params):
        obs = jnp.zeros(1, jnp.int32)
        obs = {"coin": obs} if self.shows == "dict" else obs
        return (jnp.zeros((30, 30, 3), jnp.uint8) if self.shows == "small" else obs), EnvState(jnp.int32(0))

    def step_env(self, key, state, action, params):
        state = EnvState(state.time + 1)
        coin, last = jax.random.bernoulli(key).astype(jnp.int32), state.time == 3
        reward = (last & (action + coin == 2)).astype(jnp.float32)
        return jnp.where(last, 1 + coin, 0)[None].astype(jnp.int32), state, reward, last, {}


SMALL = {"num_envs": 16, "groups": 2, "classes": 3, "hidden": (16,), "warmup": 5.0, "anneal": "none"}
RATES = {"learning_rate": 0.02, "rep_weight": 0.2, "dyn_weight": 0.8, "free_nats": 0.0, "unimix": 0.01}
RATES |= {"obs_weight": 1.0, "reward_weight": 4.0, "continue_weight": 1.0}
MEMBERS = {"learning_rate": [0.02, 0.02, 0.0, 0.02], "rep_weight": [0.2, 0.2, 0.2, 5.0], "free_nats": [0, 0, 0, 1.0]}


@pytest.fixture(scope="module")
def trained():
    """Two updates of one run, and a population (another seed, no learning, other weights) after two and after many."""
    agent = S4WM(Match(), Match().default_params, nn.make_model("gru", d_model=8), **SMALL)

    def advance(rates, state):
        return agent.replace(**rates).update(state)

    init, update = jax.jit(agent.init), jax.jit(advance)
    m = SimpleNamespace(update=update, states=[init(jax.random.key(0))], metrics=[])
    for _ in range(2):
        state, measured = update(RATES, m.states[-1])
        m.states.append(state)
        m.metrics.append(jax.device_get(measured))
    m.other = update(RATES | {"rep_weight": 5.0, "free_nats": 1.0}, m.states[0])[0]
    rates = {k: jnp.array(MEMBERS.get(k, [v] * 4), jnp.float32) for k, v in RATES.items()}
    starts = [init(jax.random.key(i)) for i in (0, 1, 0, 0)]
    state, several = jax.jit(lambda *x: jax.tree.map(lambda *y: jnp.stack(y), *x))(*starts), jax.jit(jax.vmap(advance))
    m.population = []
    for _ in range(200):
        state, measured = several(rates, state)
        m.population.append((state, measured))
    return m


def test_two_updates_compile_once_and_move_everything(trained):
    assert trained.update._cache_size() == 1, "an update was compiled again"
    for measured in trained.metrics:
        assert all(v.shape == () and np.isfinite(v) for v in measured.values()), measured
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), s) for s in trained.states]
    assert kinds[0] == kinds[1] == kinds[2]
    assert not any(getattr(x, "weak_type", False) for x in jax.tree.leaves(trained.states[0]))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), trained.states[0].params, trained.states[2].params)
    assert all(jax.tree.leaves(moved)), f"parameters that do not learn: {moved}"
    assert float(trained.metrics[1]["learning_rate"]) == pytest.approx(0.02 * 2 / 5)


def test_a_population_is_its_members_alone(trained):
    (one, _), (two, measured) = trained.population[:2]
    assert_close(cut(two.params, 0), trained.states[2].params, 1e-4)
    assert_close(cut(two.carry, 0), trained.states[2].carry, 1e-4)
    assert_close({k: v[0] for k, v in measured.items()}, trained.metrics[1], 1e-3)
    assert_close(cut(one.params, 3), trained.other.params, 1e-4)
    assert_close(cut(two.params, 2), trained.states[0].params, 1e-6)
    assert not np.allclose(measured["loss"][0], measured["loss"][1], 1e-3)
    assert not np.allclose(measured["loss"][0], measured["loss"][3], 1e-3)


def test_a_reward_on_the_last_frame_alone_is_learnt(trained):
    """One frame in 16 has reward 1, and only who reads the last frame and the action that led to it knows which."""
    share = (np.log(2) / 20 + 1) / 2 * 40 - 20  # of reward 1 that goes to the upper one of its two bins
    entropy = lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p)  # noqa: E731
    baseline, best = entropy(share / 16), entropy(share) / 16
    loss = np.mean([measured["reward_loss"] for _, measured in trained.population[-50:]], axis=0)
    assert (loss[:2] < best + 0.2 * (baseline - best)).all(), (loss, best, baseline)
    assert loss[2] > baseline


def test_free_nats_stop_the_gradient_below_them_exactly(trained):
    """With nothing but divergences in the loss, prior and posterior learn above the threshold and not below it."""
    alone = RATES | dict.fromkeys(("obs_weight", "reward_weight", "continue_weight"), 0.0)
    above, below = (
        jax.device_get(trained.update(alone | {"free_nats": nats}, trained.states[2])[1]) for nats in (0.0, 50.0)
    )
    assert above["grad_norm"] > 1e-3
    assert below["grad_norm"] == 0
    assert below["kl"] == above["kl"] > 0
    np.testing.assert_allclose([above["loss"], below["loss"]], [above["kl"], 50], rtol=1e-5)  # .8 + .2 = 1


def test_the_frames_after_the_context_are_learned_imagined_too():
    """With the reward alone in the loss: of all frames as observed, and of the last two of four as imagined."""
    alone = dict.fromkeys(("obs_weight", "continue_weight", "dyn_weight", "rep_weight"), 0.0)
    env = Match()
    agent = S4WM(env, env.default_params, nn.make_model("gru", d_model=8), open_loop=True, **SMALL, **alone)
    _, measured = jax.device_get(jax.jit(lambda key: agent.update(agent.init(key)))(jax.random.key(0)))
    imagined = measured["imagined_reward_loss"]
    assert measured["loss"] == pytest.approx(measured["reward_loss"] + imagined * 2 / 4)
    assert imagined > 0
    assert measured["imagined_obs_loss"] > 0


TINY = {
    "env": "test/Match",
    "agent": "s4wm",
    "agent.num_envs": 4,
    "agent.num_steps": 3,  # shorter than an episode: carry and stream go on
    "agent.hidden": (8,),
    "agent.groups": 1,
    "agent.anneal": "none",
    "model": "gru",
    "model.d_model": 8,
    "log.every": 1,
    "eval.episodes": 4,
    "wandb": "off",
}


@pytest.fixture
def match():
    envs.register("test/Match")(Match)
    yield
    registry.envs._user.clear()


def test_a_resumed_run_is_bit_for_bit_the_one_that_never_stopped(match, tmp_path):
    config = ssmrl.resolve([], {**TINY, "run.dir": str(tmp_path / "run"), "total_steps": 60, "checkpoint.keep": 9})
    whole = ssmrl.train(config, quiet=True)
    killed = shutil.copytree(
        whole.dir, tmp_path / "killed", ignore=shutil.ignore_patterns("36", "48", "60", "final.json")
    )
    resumed = training.resume(killed, quiet=True)
    for a, b in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(whole.state), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert whole.state.updates[0] == 5
    assert whole.state.carry.z.any()
    assert 0 <= whole.summary["tile_acc"] <= 1


@pytest.mark.parametrize(
    ("shows", "message"),
    [("dict", "a world model reads Discrete"), ("small", "square, uint8, with a side divisible by 8: got .*30, 30, 3")],
)
def test_what_cannot_be_modelled_is_refused_before_anything_is_written(match, tmp_path, shows, message):
    config = ssmrl.resolve([], {**TINY, "env.shows": shows, "run.dir": str(tmp_path / "run"), "total_steps": 12})
    with pytest.raises(registry.UserError, match=message):
        ssmrl.train(config, quiet=True)
    assert not list(tmp_path.iterdir())


def test_parts_of_episodes_have_no_context_to_imagine_from(match):
    with pytest.raises(registry.UserError, match="an episode's context is in its first part"):
        ssmrl.resolve([], {**TINY, "agent.open_loop": True})


def test_the_score_of_tiles_that_are_no_layout_is_their_accuracy():
    assert world_evaluation.score(Match(), Match().default_params) == "tile_acc"
