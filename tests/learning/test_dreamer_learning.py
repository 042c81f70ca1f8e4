"""Dreamer learns what needs memory, and its model says the right thing about the right frame."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import ssmrl
from ssmrl import nn, spaces
from ssmrl.agents.dreamer import Dreamer
from ssmrl.envs import Environment, EnvParams, EnvState
from ssmrl.frames import open_stream, record
from ssmrl.nn import observations
from ssmrl.world_model import Latents


@struct.dataclass
class SecretState(EnvState):
    cue: jax.Array


@dataclasses.dataclass(frozen=True)
class Secret(Environment):
    """One of four cues, seen at the start alone: its low bit is the last action to take, its high one the length.

    Observes cue (from 1; 0 later), last action (from 1; 0 at the start) and time. Right at the end is worth 1.
    """

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=10)

    def observation_space(self, params):
        return spaces.MultiDiscrete((5, 3, 4))

    def action_space(self, params):
        return spaces.Discrete(2)

    def reset_env(self, key, params):
        cue = jax.random.randint(key, (), 0, 4, jnp.int32)
        return jnp.stack([cue + 1, 0, 0]), SecretState(jnp.int32(0), cue)

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
        terminated = state.time >= 2 + state.cue // 2
        reward = (terminated & (action == state.cue % 2)).astype(jnp.float32)
        return jnp.stack([0, action + 1, state.time]), state, reward, terminated, {}


@dataclasses.dataclass(frozen=True)
class Safe(Environment):
    """One of two buttons pays 1, four times in a row always the same one; there is nothing to see."""

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=4)

    def observation_space(self, params):
        return spaces.Discrete(2)

    def action_space(self, params):
        return spaces.Discrete(2)

    def reset_env(self, key, params):
        return jnp.int32(0), SecretState(jnp.int32(0), jax.random.randint(key, (), 0, 2, jnp.int32))

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
        return jnp.int32(0), state, (action == state.cue).astype(jnp.float32), jnp.bool_(False), {}


def learn(env, updates, **options):
    """The agent, its final state and the metrics of its updates."""
    memory = nn.make_model("gru", d_model=32)
    data = {"num_envs": 8, "num_steps": 8, "replay_size": 8192, "prefill": 256, "replay_ratio": 24}
    batch = {"batch_size": 16, "batch_length": 16, "dream_every": 2, "horizon": 4}
    sizes = {"groups": 4, "classes": 4, "hidden": (32,), "heads": (32,), "bins": 41}
    rates = {"learning_rate": 3e-3, "actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3, "warmup": 20.0}
    weights = {"obs_weight": 2.0, "reward_weight": 5.0, "anneal": "none"}
    agent = Dreamer(env, env.default_params, memory, **data, **batch, **sizes, **rates, **weights, **options)
    run = jax.jit(lambda key: jax.lax.scan(lambda s, _: agent.update(s), agent.init(key), length=updates))
    return agent, *jax.device_get(run(jax.random.key(0)))


@pytest.fixture(scope="module")
def trained():
    """See :func:`learn`."""
    return learn(Secret(), 72)


@pytest.fixture(scope="module")
def predicted(trained):
    """Random play from the start of 512 episodes, 4 frames each, and what the model says about it."""
    agent, state, _ = trained
    env, params, world = agent.env, agent.env_params, agent.world_model

    @jax.jit
    def run(key):
        apply = lambda *x, **k: world.apply({"params": state.params["world"]}, *x, **k)  # noqa: E731
        _, frames, _ = record(env, params, open_stream(env, params, 512, key), 4, key)
        _, seen = apply(world.initial_state((512,)), frames, key, "mode", method="observe")
        one_step = Latents(seen.h, seen.prior.mode(), None)
        imagined = apply(frames, 1, key, "mode", method="open_loop")[1]
        outcomes = {}
        for name, latents in (("seen", seen), ("one_step", one_step), ("imagined", imagined)):
            made = apply(latents.features, method="predict")
            obs = observations.observation_mode(world.observation_space, made.obs)
            outcomes[name] = obs, observations.two_hot_mean(made.reward), jax.nn.sigmoid(made.going_on)
        return frames, outcomes

    return jax.device_get(run(jax.random.key(1)))


def test_the_losses_fall_and_the_return_rises_above_what_is_possible_without_memory(trained):
    _, _, metrics = trained
    assert (metrics["loss"][:3] == 0).all(), "it learns before there are enough frames"
    begun, ended = slice(4, 8), slice(-16, None)
    for name in ("loss", "obs_loss", "reward_loss", "continue_loss"):
        assert metrics[name][ended].mean() < 0.7 * metrics[name][begun].mean(), name
    returns = metrics["return_mean"]
    assert returns[:4].mean() < 0.65
    assert returns[ended].mean() > 0.9, returns[ended].mean()


@pytest.mark.parametrize("kind", ["one_step", "imagined"])
def test_predictions_are_not_late(predicted, kind):
    """Action and time of the very frame, given the actions; those of the next are another matter."""
    frames, outcomes = predicted
    obs = outcomes[kind][0][-3:]
    valid = np.cumsum(frames.reset, 0)[1:] == 1
    right = obs[..., 1:] == frames.obs[1:, :, 1:]
    assert right[valid].mean(0).min() > 0.95, right[valid].mean(0)
    both = valid[1:] & valid[:-1]
    for late, true in ((obs[1:], frames.obs[1:-1]), (obs[:-1], frames.obs[2:])):
        lagged = late[..., 1:] == true[..., 1:]
        assert abs(lagged[..., 0][both].mean() - 0.5) < 0.15
        assert lagged[..., 1][both].mean() < 0.05


@pytest.mark.parametrize("kind", ["seen", "imagined"])
def test_a_reward_at_the_end_alone_is_learnt(predicted, kind):
    """And where the end is, which only the cue could tell."""
    frames, outcomes = predicted
    _, reward, going_on = (x[-3:] for x in outcomes[kind])
    valid = np.cumsum(frames.reset, 0)[1:] == 1
    paid = frames.reward[1:] > 0
    assert 0.15 < paid[valid].mean() < 0.25
    assert reward[valid & paid].min() > 0.5, reward[valid & paid].min()
    assert np.abs(reward[valid & ~paid]).mean() < 0.05
    end = frames.terminated[1:]
    assert going_on[valid & end].max() < 0.5
    assert going_on[valid & ~end].min() > 0.5


def test_what_only_rewards_tell_is_learnt_by_a_model_that_reads_them():
    """2 of 4 are earned without, 3.5 with the first reward in mind."""
    _, _, metrics = learn(Safe(), 120, read_reward=True)
    assert metrics["return_mean"][:20].mean() < 2.2
    assert metrics["return_mean"][-20:].mean() > 2.6, metrics["return_mean"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "steps", "score"),
    [
        ("dreamer/cartpole", 20_000, 400),
        ("dreamer/position_only_cart_pole", 20_000, 0.9),
        ("dreamer/repeat_previous_easy", 30_000, 0.8),
        ("dreamer/memory_len", 30_000, 0.9),
        ("dreamer/pendulum", 20_000, -300),
    ],
)
def test_what_the_readme_says(preset, steps, score, tmp_path):
    settings = {"run.dir": str(tmp_path / "run"), "total_steps": steps, "eval.episodes": 128}
    run = ssmrl.train(preset, seeds=3, quiet=True, wandb="off", **settings)
    assert run.summary["return_mean"] > score


@pytest.mark.slow
def test_what_will_be_asked_for_is_in_the_memory_alone(tmp_path):
    settings = {"run.dir": str(tmp_path / "run"), "agent.inputs": ("z", "h")}
    run = ssmrl.train("dreamer/repeat_previous_easy", quiet=True, wandb="off", **settings)
    assert run.summary["return_mean"] < 0.3
