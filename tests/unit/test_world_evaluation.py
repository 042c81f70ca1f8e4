"""What the frames of a world model mean, and how it is evaluated on them."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import ssmrl
from ssmrl import registry, spaces, world_evaluation
from ssmrl.envs import Environment, EnvParams, EnvState
from ssmrl.envs.memory import tiles
from ssmrl.envs.memory.scripted import Annotation
from ssmrl.frames import open_stream, record
from ssmrl.nn.latents import CategoricalLatent
from ssmrl.world_evaluation import evaluate_world_model
from ssmrl.world_model import Latents, Predictions

ACTIONS = spaces.Discrete(3)


# Frames


@struct.dataclass
class Page(EnvState):
    episode: jax.Array
    action: jax.Array


@dataclasses.dataclass(frozen=True)
class Diary(Environment):
    """Observes the episode's number, the last action (from 1; 0 at the start) and the time.

    The reward is the time and ten times the action. One episode in three terminates after 2 steps, the clock ends the
    others after 4.
    """

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=4)

    def observation_space(self, params):
        return spaces.Box(0.0, 1e4, (3,))

    def action_space(self, params):
        return ACTIONS

    def observe(self, state):
        return jnp.stack([state.episode, state.action + 1, state.time]).astype(jnp.float32)

    def reset_env(self, key, params):
        state = Page(jnp.int32(0), jax.random.randint(key, (), 0, 10_000, jnp.int32), jnp.int32(-1))
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        state = Page(state.time + 1, state.episode, action)
        reward = (state.time + 10 * action).astype(jnp.float32)
        return self.observe(state), state, reward, (state.episode % 3 == 0) & (state.time >= 2), {}


@dataclasses.dataclass(frozen=True)
class Scripted(Diary):
    """Has nothing random about it."""

    def reset_env(self, key, params):
        state = Page(jnp.int32(0), jnp.int32(1), jnp.int32(-1))
        return self.observe(state), state

    def script(self, key, state, params):
        return jnp.array([2, 0, 1, 2], jnp.int32)


def test_frames_say_which_action_led_where_and_hold_the_ends():
    """Over two recordings, of which the second goes on where the first one ended."""
    env = Diary()
    run = jax.jit(lambda stream, key: record(env, env.default_params, stream, 15, key))
    stream = jax.jit(lambda key: open_stream(env, env.default_params, 16, key))(jax.random.key(0))
    parts = []
    for seed in (1, 2):
        stream, frames, states = run(stream, jax.random.key(seed))
        parts.append((frames, states))
    f, states = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    episode, acted, time = np.moveaxis(f.obs, -1, 0)
    np.testing.assert_array_equal(states.time, time)
    assert f.reset[0].all()
    np.testing.assert_array_equal(f.reset, time == 0)
    np.testing.assert_array_equal(acted, np.where(f.reset, 0, f.action + 1))
    np.testing.assert_array_equal(f.reward, np.where(f.reset, 0, time + 10 * f.action))
    assert not f.action[f.reset].any()
    np.testing.assert_array_equal(f.terminated, (episode % 3 == 0) & (time == 2))
    last = f.terminated | (time == 4)
    np.testing.assert_array_equal(f.reset[1:], last[:-1])
    same = episode[1:] == episode[:-1]
    np.testing.assert_array_equal(same, ~f.reset[1:])
    np.testing.assert_array_equal((time[1:] == time[:-1] + 1), same)
    assert f.terminated.sum() > 5 < (time == 4).sum()
    assert set(np.unique(f.action[~f.reset])) == {0, 1, 2}
    assert 0 < last[14].sum() < 16  # some go on from one recording to the next, some do not


def test_a_stream_that_goes_on_is_one_long_recording():
    env = Scripted()

    @jax.jit
    def run():
        start = open_stream(env, env.default_params, 2, jax.random.key(0))
        once = record(env, env.default_params, start, 14, jax.random.key(1))[1:]
        stream, *first = record(env, env.default_params, start, 7, jax.random.key(2))
        return once, first, record(env, env.default_params, stream, 7, jax.random.key(3))[1:]

    once, first, second = jax.device_get(run())
    for whole, *halves in zip(*map(jax.tree.leaves, (once, first, second)), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(halves))
    np.testing.assert_array_equal(once[0].action[:, 0], [0, 2, 0, 1, 2] * 2 + [0, 2, 0, 1])


# Evaluation, with an oracle for a model


@dataclasses.dataclass(frozen=True)
class Colours(Environment):
    """Shows a colour, then another one, and beside them the time; the last frame's reward is 1 if the first is red."""

    has_reward = True
    context = 2
    kinds = tuple(("wall", i) for i in range(5))
    num_tiles = 2

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=4)

    def lay_out(self, seen):
        return seen[:, None]

    def observation_space(self, params):
        return spaces.MultiDiscrete((5, 5))

    def action_space(self, params):
        return spaces.Discrete(2)

    def observe(self, state):
        return jnp.stack([state.episode[(state.time == 3).astype(jnp.int32)], state.time])

    def reset_env(self, key, params):
        state = Page(jnp.int32(0), jax.random.randint(key, (2,), 0, 4, jnp.int32), jnp.int32(0))
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
        reward = ((state.time == 4) & (state.episode[0] == 0)).astype(jnp.float32)
        return self.observe(state), state, reward, jnp.bool_(False), {}

    def annotate(self, state, params):
        cells = jnp.array([0, -1], jnp.int32).at[0].add(state.time == 3)
        door = {"door": jnp.array([False, True]) & (state.time > 2)}
        return Annotation(cells, door, {})


class Oracle:
    """Sees everything; imagines the colour it saw last for ever, the time but for the end, and no reward."""

    observation_space = spaces.MultiDiscrete((5, 5))

    def initial_state(self, batch_shape):
        return ()

    def apply(self, variables, *inputs, method):
        return getattr(self, method)(*inputs)

    def observe(self, state, frames, key, draw):
        shape = frames.reset.shape
        prior, posterior = (
            CategoricalLatent(jnp.broadcast_to(jnp.log(jnp.array([[p, 1 - p]])), (*shape, 1, 2))) for p in (0.5, 0.25)
        )
        features = jnp.concatenate([frames.obs, frames.reward[..., None]], -1)
        return (), Latents(features, jnp.zeros((*shape, 0)), prior, posterior)

    def open_loop(self, frames, context, key, draw):
        colour = jnp.broadcast_to(frames.obs[context - 1, :, 0], (3, *frames.reset.shape[1:]))
        colour = colour if draw == "mode" else jnp.full_like(colour, 4)
        time = jnp.broadcast_to(jnp.array([2, 3, 0])[:, None], colour.shape)
        return (), Latents(jnp.stack([colour, time, jnp.zeros_like(time)], -1), jnp.zeros((*colour.shape, 0)), None)

    def predict(self, features):
        reward = jnp.where(features[..., 2:3] > 0.5, jnp.array([0, 0, 9.0]), jnp.array([0, 9.0, 0]))
        return SimpleNamespace(obs=jax.nn.one_hot(features[..., :2].astype(jnp.int32), 5), reward=reward)


def test_evaluation_by_an_oracle():
    """Three frames to imagine: the colour that was seen, one that was not, and the first again."""
    env, episodes = Colours(), 128
    scalars, curves = jax.device_get(
        jax.jit(lambda key: evaluate_world_model(Oracle(), {}, env, env.default_params, key, episodes))(
            jax.random.key(0)
        )
    )
    chance = 0.25 + 3 * (0.25 * 0.75 / episodes) ** 0.5  # with a margin
    assert scalars["tile_acc_seen"] == scalars["tile_acc_recon"] == 1
    assert scalars["tile_acc_seen_next"] == 1
    assert scalars["tile_acc_seen_sampled"] == 0
    assert 0.5 - chance < scalars["tile_acc_unseen"] < chance
    assert 0.5 - chance < scalars["tile_acc_seen_shuffled"] < chance
    assert 0.25 <= scalars["chance"] < chance
    assert scalars["door_chance"] == 0.5  # one of two times
    assert scalars["reward_chance"] == scalars["reward_acc_imagine"]  # none, the more frequent one
    np.testing.assert_array_equal(curves["tile_acc_seen"], [1, np.nan, 1])
    np.testing.assert_allclose(curves["tile_acc_unseen"], [np.nan, scalars["tile_acc_unseen"], np.nan])
    assert scalars["door_acc"] == scalars["door_acc_shuffled"] == 0.5
    np.testing.assert_array_equal(curves["door_acc"], [np.nan, 1, 0])
    assert scalars["tile_acc"] == pytest.approx((4 + scalars["tile_acc_unseen"]) / 6)
    assert scalars["recon_mse"] == 0
    wrong = ((tiles.pictures(env.kinds)[4] / 255.0 - tiles.pictures(env.kinds)[0] / 255.0) ** 2).sum()
    assert curves["gen_mse"][0] == 0
    assert curves["gen_mse"][2] == pytest.approx(wrong, rel=1e-4)
    assert scalars["gen_mse"] == pytest.approx(curves["gen_mse"].mean(), rel=1e-5)
    assert scalars["kl_seen"] == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5), rel=1e-4)
    assert scalars["prior_entropy_seen"] == pytest.approx(np.log(2), rel=1e-4)
    assert scalars["reward_acc_infer"] == 1
    assert 0.75 - chance + 0.25 < scalars["reward_acc_imagine"] < 0.5 + chance
    assert world_evaluation.score(env, env.default_params) == "reward_acc_imagine"
    assert world_evaluation.score(Diary(), Diary().default_params) == "gen_r2"


@pytest.mark.parametrize("name", ["RingRecall-8", "NoisyTile", "DistractingMemory-8"])  # 1, 2 and 25 tiles
def test_tiles_are_read_off_pictures(name):
    tiles_env, params = ssmrl.make_env(f"memory/{name}")
    pixel_env, _ = ssmrl.make_env(f"memory/{name}", pixels=True)

    @jax.jit
    def read(key):
        tiles, pictures = (world_evaluation.record_episodes(env, params, 2, key) for env in (tiles_env, pixel_env))
        space = pixel_env.observation_space(params)
        network = SimpleNamespace(observation_space=space)
        batch = world_evaluation._Batch(network, {}, pixel_env, params, pictures)
        want = tiles.frames.obs[batch.context :]
        others = jnp.roll(want, 1, axis=1)
        guess = jnp.roll(pictures.frames.obs[batch.context :], 1, axis=1) / 255.0
        network = SimpleNamespace(observation_space=tiles_env.observation_space(params))
        of_tiles = world_evaluation._Batch(network, {}, tiles_env, params, tiles)
        outputs = jax.nn.one_hot(others, len(tiles_env.kinds))
        errors = (b._squared_error(Predictions(x, None, None)) for b, x in ((of_tiles, outputs), (batch, guess)))
        return batch._truth(), want, *errors

    got, want, error, error_of_pictures = read(jax.random.key(0))
    np.testing.assert_array_equal(got, want)
    assert error.sum() > 0
    np.testing.assert_allclose(error, error_of_pictures, rtol=1e-4, atol=1e-3)


def test_a_time_limit_keeps_the_script_and_must_leave_something_to_imagine():
    plain, params = ssmrl.make_env("memory/CueRecall", delay=4)
    limited, limits = ssmrl.make_env("memory/CueRecall", delay=4, max_steps=7)
    same, longer = (
        jax.jit(lambda key, e=e, p=p: world_evaluation.record_episodes(e, p, 2, key))(jax.random.key(0))
        for e, p in ((plain, params), (limited, limits))
    )
    np.testing.assert_array_equal(same.frames.action[:, 0], [0, 0, 0, 0, 0, 1])  # waits, then asks
    np.testing.assert_array_equal(longer.frames.action[:6], same.frames.action)
    assert (longer.cells[5] == 0).all()  # the cue, which is annotated as without the limit
    endless = SimpleNamespace(name="my/Endless", longest_episode=lambda params: None)
    with pytest.raises(registry.UserError, match=r"my/Endless has no time limit; use env\.max_steps=1000"):
        world_evaluation.context_length(endless, None)
    with pytest.raises(registry.UserError, match=r"after 5 steps: env.max_steps=4 ends .* use env.max_steps=5 or more"):
        world_evaluation.context_length(*ssmrl.make_env("memory/DistractingMemory", width=2, max_steps=4))
    with pytest.raises(registry.UserError, match=r"observes 5 of an episode's 5 frames.* env.max_steps=5 or more"):
        ssmrl.train("worldmodel/cue_recall", quiet=True, **{"env.delay": 4, "env.max_steps": 4})


@pytest.mark.parametrize("max_steps", [5, 9])
def test_the_reward_is_that_of_the_episode_s_last_frame_however_long_it_might_last(max_steps):
    env, params = ssmrl.make_env("memory/DistractingMemory", width=2, max_steps=max_steps)
    recording = jax.jit(lambda key: world_evaluation.record_episodes(env, params, 64, key))(jax.random.key(0))
    network = SimpleNamespace(observation_space=env.observation_space(params))
    batch = world_evaluation._Batch(network, {}, env, params, recording)

    def right(reward):
        bins = jnp.linspace(-10, 10, 3)
        logits = jnp.where(reward[..., None] > 0.5, 100.0 * (bins == 10.0), 100.0 * (bins == 0.0))
        return float(batch._reward_right(Predictions(None, logits, None)).mean())

    truth = recording.frames.reward[batch.context :]
    assert right(truth) == 1
    assert 0.25 < right(jnp.zeros_like(truth)) < 0.75  # one arm of two pays


def test_the_query_of_an_environment_without_a_context_is_each_episodes_second_half():
    """Episodes have 3 or 5 frames, and their times say which ones these are."""
    env = Diary()
    context = world_evaluation.context_length(env, env.default_params)
    recording = jax.jit(lambda key: world_evaluation.record_episodes(env, env.default_params, 32, key))(
        jax.random.key(0)
    )
    episode, _, time = np.moveaxis(np.asarray(recording.frames.obs), -1, 0)
    for e in range(32):
        frames = 3 if episode[context, e] % 3 == 0 else 5
        own = slice(context - frames // 2, context - frames // 2 + frames)
        np.testing.assert_array_equal(time[own, e], np.arange(frames))
        assert len(set(episode[own, e])) == 1
        assert recording.frames.reset[own.start, e]
        assert own.stop == 5 or recording.frames.reset[own.stop, e]
    assert {3, 5} == {3 if x % 3 == 0 else 5 for x in episode[context]}


def test_the_score_is_the_first_event_that_is_declared():
    """And not the first one of the alphabet."""

    class Later(Colours):
        has_reward = False

        def annotate(self, state, params):
            notes = super().annotate(state, params)
            return Annotation(notes.cells, {"window": notes.events["door"], **notes.events}, {})

    assert world_evaluation.score(Later(), EnvParams(4)) == "window_acc"
    assert world_evaluation.score(*ssmrl.make_env("memory/NoisyTile")) == "constant_acc"
