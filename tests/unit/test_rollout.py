"""Unrolling keeps everything in step: observations, resets, previous actions, ends, values of final observations."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from ssmrl import nn, spaces
from ssmrl.envs import Environment, EnvParams, EnvState
from ssmrl.nn.actor_critic import ActorCritic
from ssmrl.policy import Policy, PolicyCarry
from ssmrl.rollout import reset_batch, step_batch, unroll

B, T, LIMIT = 5, 24, 4


@struct.dataclass
class DiaryState(EnvState):
    episode: jax.Array
    length: jax.Array
    action: jax.Array


@dataclasses.dataclass(frozen=True)
class Diary(Environment):
    """Observes ``[episode, step, last action]``; an episode terminates after 2 to 6 steps, the clock stops it at 4.

    An episode's number is drawn at its start, and each reward names episode and step.
    """

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=LIMIT)

    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (3,))

    def action_space(self, params):
        return spaces.Discrete(3)

    def observe(self, state):
        return jnp.stack([state.episode, state.time.astype(jnp.float32), state.action.astype(jnp.float32)])

    def reset_env(self, key, params):
        key_episode, key_length = jax.random.split(key)
        length = jax.random.randint(key_length, (), 2, 7, jnp.int32)
        state = DiaryState(jnp.int32(0), jax.random.uniform(key_episode), length, jnp.int32(0))
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1, action=action)
        return self.observe(state), state, state.episode + state.time, state.time >= state.length, {}


@struct.dataclass
class Counter:
    """A stand-in for a policy: its memory counts the observations of the episode; values tell what they come from."""

    params: jax.Array

    def step(self, carry, obs, reset, reward):
        count = jnp.where(reset, 0, carry.memory) + 1
        dist = nn.actor_critic.make_distribution(spaces.Discrete(3), jnp.broadcast_to(self.params, (*reset.shape, 3)))
        return count, dist, 1000.0 * count + 100.0 * carry.action + 10.0 * obs[:, 1] + reward


ENV = Diary()


def start(policy_carry, key):
    return policy_carry, reset_batch(ENV, ENV.default_params, B, key)


@pytest.fixture(scope="module")
def diary():
    """Two rollouts, the second going on where the first stops, as numpy arrays ``[2 T, B, ...]``; and what is left"""

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 3)
        carry, batch = start(PolicyCarry(jnp.zeros(B, jnp.int32), jnp.zeros(B, jnp.int32)), keys[0])
        first = unroll(ENV, ENV.default_params, Counter(jnp.zeros(3)), carry, batch, T, keys[1])
        second = unroll(ENV, ENV.default_params, Counter(jnp.zeros(3)), first[0], first[1], T, keys[2])
        return *second[:2], jax.tree.map(lambda *x: jnp.concatenate(x), first[2], second[2])

    carry, batch, t = jax.tree.map(np.asarray, run(jax.random.key(0)))
    done = t.outcome.terminated | t.outcome.truncated
    return SimpleNamespace(carry=carry, batch=batch, t=t, done=done, episode=t.obs[..., 0], step=t.obs[..., 1])


def test_reset_marks_the_observation_after_an_end(diary):
    assert diary.t.reset[0].all()
    np.testing.assert_array_equal(diary.t.reset[1:], diary.done[:-1])
    np.testing.assert_array_equal(diary.batch.reset, diary.done[-1])
    np.testing.assert_array_equal(diary.t.reset, diary.step == 0)


def test_previous_action_and_reward_are_those_that_led_to_the_observation(diary):
    inside = ~diary.t.reset[1:]
    np.testing.assert_array_equal(diary.t.prev_action[1:], diary.t.raw_action[:-1])
    np.testing.assert_array_equal(diary.t.prev_action[1:][inside], diary.t.obs[1:, :, 2][inside])
    np.testing.assert_array_equal(diary.t.prev_reward[1:], diary.t.outcome.reward[:-1])
    np.testing.assert_allclose(diary.t.prev_reward[1:][inside], (diary.episode + diary.step)[1:][inside])
    assert set(np.unique(diary.t.raw_action)) == {0, 1, 2}


def test_episodes_end_by_themselves_by_the_clock_or_both(diary):
    outcome, lived = diary.t.outcome, diary.step + 1
    kinds = set(zip(outcome.terminated.ravel().tolist(), outcome.truncated.ravel().tolist(), strict=True))
    assert len(kinds) == 4
    np.testing.assert_array_equal(outcome.truncated, lived == LIMIT)
    assert not outcome.terminated[lived == 1].any()
    assert (lived <= LIMIT).all()


def test_every_reset_draws_a_new_start_and_others_go_on(diary):
    started = diary.episode[diary.t.reset]
    assert len(np.unique(started)) == started.size > 2 * T * B / LIMIT
    inside = ~diary.t.reset[1:]
    np.testing.assert_array_equal(diary.episode[1:][inside], diary.episode[:-1][inside])
    np.testing.assert_array_equal(diary.step[1:][inside], diary.step[:-1][inside] + 1)


def test_statistics_of_episodes_reach_over_the_border_between_rollouts(diary):
    running_return, running_length = np.zeros(B, np.float32), np.zeros(B, np.int32)
    for i in range(2 * T):
        running_return += diary.t.outcome.reward[i]
        running_length += 1
        np.testing.assert_allclose(diary.t.outcome.episode_return[i], running_return, rtol=1e-6)
        np.testing.assert_array_equal(diary.t.outcome.episode_length[i], running_length)
        running_return, running_length = running_return * ~diary.done[i], running_length * ~diary.done[i]
    np.testing.assert_allclose(diary.batch.episode_return, running_return, rtol=1e-6)
    np.testing.assert_array_equal(diary.batch.episode_length, running_length)
    assert not diary.done[T - 1].all(), "no episode crosses the border: the test shows nothing"


def test_the_clock_alone_makes_a_final_value_from_the_memory_of_its_episode(diary):
    outcome = diary.t.outcome
    clock = outcome.truncated & ~outcome.terminated
    assert clock.any()
    lived = diary.step + 1  # the memory has counted as many, and counts the final observation too
    expected = 1000 * (lived + 1) + 100 * diary.t.raw_action + 10 * lived + outcome.reward
    np.testing.assert_allclose(diary.t.final_value, np.where(clock, expected, 0), rtol=1e-6)


def test_final_value_of_a_network_is_that_of_the_whole_episode_read_at_once():
    model = nn.make_model("gru", d_model=4, num_layers=1)
    space = ENV.observation_space(None), ENV.action_space(None)
    network = ActorCritic(*space, model, ("obs", "action", "reward", "start"), (), (4,), "relu", True)
    policy = Policy(None, None, 1.0, network)

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 3)
        carry, batch = start(policy.initial_carry(B), keys[0])
        inputs = jax.tree.map(lambda x: x[None], (batch.obs, batch.reset, carry.action, batch.reward))
        params = network.init(keys[1], carry.memory, *inputs)["params"]
        trained = policy.replace(params=params)
        return params, unroll(ENV, ENV.default_params, trained, carry, batch, LIMIT + 2, keys[2])[2]

    params, t = jax.device_get(run(jax.random.key(3)))
    outcome = t.outcome
    clock = (outcome.truncated & ~outcome.terminated)[LIMIT - 1]
    assert clock.any()
    assert not clock.all()
    whole = np.arange(LIMIT)  # the first episode of those that the clock ended, and then its final observation
    final_obs = np.stack([t.obs[LIMIT - 1, :, 0], np.full(B, LIMIT, np.float32), t.raw_action[LIMIT - 1]], -1)
    inputs = (
        np.concatenate([t.obs[whole], final_obs[None]]),
        np.repeat([[True], [False]], [1, LIMIT], axis=0) & np.ones(B, bool),
        np.concatenate([t.prev_action[whole], t.raw_action[LIMIT - 1][None]]),
        np.concatenate([t.prev_reward[whole], outcome.reward[LIMIT - 1][None]]),
    )
    read = jax.jit(lambda params: policy.replace(params=params).sequence(policy.initial_carry(B).memory, *inputs)[2])
    value = np.asarray(read(params)[-1])
    np.testing.assert_allclose(t.final_value[LIMIT - 1][clock], value[clock], rtol=1e-5, atol=1e-6)
    assert np.std(value[clock]) > 0


def test_without_bootstrap_there_are_no_final_values():
    @jax.jit
    def run(key):
        carry, batch = start(PolicyCarry(jnp.zeros(B, jnp.int32), jnp.zeros(B, jnp.int32)), key)
        return unroll(ENV, ENV.default_params, Counter(jnp.zeros(3)), carry, batch, T, key, bootstrap=False)[2]

    t = run(jax.random.key(0))
    assert t.outcome.truncated.any()
    assert not t.final_value.any()


def test_the_network_does_not_see_another_episodes_action_and_reward():
    model = nn.make_model("none", d_model=4, num_layers=1)
    network = ActorCritic(
        spaces.Box(-1, 1, (3,)), spaces.Discrete(3), model, ("action", "reward"), (), (), "relu", True
    )
    obs, reset = jnp.zeros((1, 2, 3)), jnp.array([[True, False]])
    zero, other = (jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2))), (jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2)))
    carry = network.initialize_carry((2,))
    params, apply = jax.jit(network.init)(jax.random.key(0), carry, obs, reset, *zero), jax.jit(network.apply)
    values = np.asarray([apply(params, carry, obs, reset, *previous)[2][0] for previous in (zero, other)])
    assert values[0][0] == values[1][0]
    assert values[0][1] != values[1][1]


def test_start_states_are_computed_only_when_an_episode_ends():
    computed = []

    @dataclasses.dataclass(frozen=True)
    class Watched(Diary):
        def reset_env(self, key, params):
            jax.debug.callback(lambda: computed.append(1))
            return super().reset_env(key, params)

    env = Watched()
    step = jax.jit(lambda batch, key: step_batch(env, env.default_params, batch, jnp.zeros(B, jnp.int32), key))
    batch = reset_batch(env, env.default_params, B, jax.random.key(0))
    jax.effects_barrier()
    ends = []
    for i in range(LIMIT + 1):
        computed.clear()
        batch, outcome = step(batch, jax.random.key(i))
        jax.effects_barrier()
        ends.append(bool((outcome.terminated | outcome.truncated).any()))
        assert bool(computed) == ends[-1]
    assert set(ends) == {True, False}


def test_states_that_hold_typed_keys_restart_too():
    @struct.dataclass
    class Keyed(EnvState):
        key: jax.Array

    @dataclasses.dataclass(frozen=True)
    class Dice(Diary):
        def reset_env(self, key, params):
            return jnp.zeros(3), Keyed(jnp.int32(0), key)

        def step_env(self, key, state, action, params):
            state = state.replace(time=state.time + 1)
            return jnp.zeros(3), state, jnp.float32(0), action == 1, {}

    env = Dice()
    before = reset_batch(env, env.default_params, 2, jax.random.key(0))
    after, _ = step_batch(env, env.default_params, before, jnp.array([0, 1], jnp.int32), jax.random.key(1))
    kept = jax.random.key_data(before.env_state.key) == jax.random.key_data(after.env_state.key)
    assert kept.all(-1).tolist() == [True, False]
    assert after.env_state.time.tolist() == [1, 0]
