"""A policy is pure: it acts the same under jit, vmap and scan, and remembers what its carry holds and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import nn, spaces
from ssmrl.nn.actor_critic import ActorCritic
from ssmrl.policy import Policy, RunningStats

B = 3
OBS = jnp.array([[0.1, -0.2], [0.3, 0.4], [-0.5, 0.6]])
START, GOING = jnp.ones(B, bool), jnp.zeros(B, bool)


def make_policy(action_space):
    """A small policy that reads everything, with made-up parameters."""
    inputs = ("obs", "action", "reward", "start")
    network = ActorCritic(
        spaces.Box(-1.0, 1.0, (2,)), action_space, nn.make_model("gru", d_model=4), inputs, (), (4,), "tanh", True
    )
    carry = network.initialize_carry((B,))
    inputs = OBS[None], START[None], spaces.zeros(action_space, (1, B)), jnp.zeros((1, B))
    shapes = jax.eval_shape(network.init, jax.random.key(0), carry, *inputs)["params"]
    params = jax.tree.map(
        lambda p: jax.device_put(np.float32(0.8 * np.sin(1 + np.arange(p.size))).reshape(p.shape)), shapes
    )
    return Policy(params, None, 1.0, network)


@pytest.fixture(scope="module")
def policy():
    return make_policy(spaces.Discrete(4))


@pytest.fixture(scope="module")
def act():
    return jax.jit(
        lambda policy, *args, greedy=False, **kw: policy.act(*args, greedy=greedy, **kw), static_argnames="greedy"
    )


@jax.jit
def step(policy, *args):
    return policy.step(*args)


@pytest.fixture(scope="module")
def used(policy, act):
    """A carry that has seen something, and remembers an action."""
    _, carry = act(policy, policy.initial_carry(B), OBS, START, key=jax.random.key(0))
    return carry.replace(action=jnp.array([1, 2, 3], jnp.int32))


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


def test_same_key_same_action_and_nothing_is_kept_outside(policy, act, used):
    once = act(policy, used, OBS, GOING, key=jax.random.key(1))
    act(policy, policy.initial_carry(B), -OBS, START, key=jax.random.key(2))
    assert same(once, act(policy, used, OBS, GOING, key=jax.random.key(1)))
    actions = jnp.stack([act(policy, used, OBS, GOING, key=jax.random.key(i))[0] for i in range(20)])
    assert len(np.unique(actions)) > 1


def test_a_stochastic_policy_needs_a_key(policy, used):
    with pytest.raises(ValueError, match=r"needs randomness: pass key=.* or greedy=True"):
        policy.act(used, OBS, GOING)


def test_greedy_takes_the_most_likely_action(policy, act, used):
    _, dist, _ = step(policy, used, OBS, GOING, jnp.zeros(B))
    action, carry = act(policy, used, OBS, GOING, greedy=True)
    np.testing.assert_array_equal(action, dist.logits.argmax(-1))
    assert same(action, act(policy, used, OBS, GOING, key=jax.random.key(9), greedy=True)[0])
    np.testing.assert_array_equal(carry.action, action)


def test_actions_follow_their_probabilities(policy, used):
    _, dist, _ = step(policy, used, OBS, GOING, jnp.zeros(B))
    keys = jax.random.split(jax.random.key(0), 4000)
    actions = jax.jit(jax.vmap(lambda key: policy.act(used, OBS, GOING, key=key)[0]))(keys)
    frequency = jax.nn.one_hot(actions, 4).mean(0)
    np.testing.assert_allclose(frequency, jax.nn.softmax(dist.logits), atol=0.03)


def test_the_carry_remembers_and_a_reset_forgets(policy, act, used):
    def values(carry, reset, reward=0.0):
        return np.asarray(step(policy, carry, OBS, reset, jnp.full(B, reward))[2])

    fresh = policy.initial_carry(B)
    other = used.replace(action=(used.action + 1) % 4)
    assert (values(used, GOING) != values(fresh, GOING)).all()
    assert (values(used, GOING) != values(other, GOING)).all(), "the previous action is not read"
    assert (values(used, GOING) != values(used, GOING, 1.0)).all(), "the reward is not read"
    np.testing.assert_array_equal(values(used, START, 1.0), values(fresh, START))
    forgotten = act(policy, used, OBS, START, reward=5.0, key=jax.random.key(3))
    assert same(forgotten, act(policy, fresh, OBS, START, key=jax.random.key(3)))


def test_the_reward_is_zero_unless_given_and_may_be_one_number(policy, act, used):
    silent = act(policy, used, OBS, GOING, greedy=True)
    assert same(silent, act(policy, used, OBS, GOING, reward=jnp.zeros(B), greedy=True))
    one = act(policy, used, OBS, GOING, reward=2.0, greedy=True)
    assert same(one, act(policy, used, OBS, GOING, reward=jnp.full(B, 2.0), greedy=True))
    assert not same(one, silent)


def test_acting_in_a_scan_is_reading_the_sequence(policy):
    """And each lane of a batch is its own."""
    T = 6
    obs = jnp.sin(jnp.arange(T * B * 2)).reshape(T, B, 2)
    reset = jnp.zeros((T, B), bool).at[0].set(True).at[3, 1].set(True)

    @jax.jit
    def scan(policy):
        def move(carry, inputs):
            action, carry = policy.act(carry, *inputs, greedy=True)
            return carry, action

        return jax.lax.scan(move, policy.initial_carry(B), (obs, reset))

    carry, actions = scan(policy)
    previous = jnp.concatenate([jnp.zeros((1, B), jnp.int32), actions[:-1]])
    sequence = jax.jit(lambda policy, *args: policy.sequence(policy.initial_carry(B).memory, *args))
    memory, dist, _ = sequence(policy, obs, reset, previous, jnp.zeros((T, B)))
    np.testing.assert_array_equal(actions, dist.mode())
    np.testing.assert_allclose(carry.memory, memory, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(carry.action, actions[-1])
    changed, _, _ = sequence(policy, obs.at[:, 0].add(1.0), reset, previous, jnp.zeros((T, B)))
    np.testing.assert_allclose(changed[1:], memory[1:], rtol=1e-6)
    assert (changed[0] != memory[0]).any()


def test_a_population_acts_at_once(policy, used):
    policies = jax.tree.map(lambda x: jnp.stack([x, 1.5 * x]), policy)
    act = jax.jit(jax.vmap(lambda p: p.step(used, OBS, GOING, jnp.zeros(B))[2]))
    values = act(policies)
    np.testing.assert_allclose(values[0], step(policy, used, OBS, GOING, jnp.zeros(B))[2], rtol=1e-5)
    assert (values[0] != values[1]).all()


@pytest.mark.parametrize(
    ("space", "inside"),
    [
        (spaces.MultiDiscrete((2, 5)), lambda a: (a >= 0).all() and (a < jnp.array([[2, 5]])).all()),
        (spaces.Box(-2.0, 5.0, (2,)), lambda a: (a > -2).all() and (a < 5).all()),
    ],
)
def test_other_action_spaces(space, inside):
    policy = make_policy(space)
    start = policy.initial_carry(B)
    action, carry = jax.jit(lambda p: p.act(start, OBS, START, key=jax.random.key(0)))(policy)
    assert (action.shape, action.dtype) == ((B, *space.shape), space.dtype)
    assert inside(action)
    kinds = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), (start, carry))
    assert kinds[0] == kinds[1]


def test_observations_and_rewards_are_scaled_for_the_network(policy, used):
    stats = RunningStats(jnp.array([1.0, 2.0]), jnp.array([4.0, 0.25]), jnp.float32(10))
    scaled = policy.replace(obs_stats=stats, reward_scale=0.5)
    raw = jnp.array([1.0, 2.0])[None] + OBS * jnp.array([2.0, 0.5])[None]
    _, _, value = step(scaled, used, raw, GOING, jnp.full(B, 3.0))
    np.testing.assert_allclose(value, step(policy, used, OBS, GOING, jnp.full(B, 1.5))[2], rtol=1e-4)


def test_running_statistics_are_those_of_the_whole_stream():
    x = np.random.default_rng(0).normal(3.0, 2.0, (7, 5, 2)).astype(np.float32)
    stats = RunningStats.create((2,))
    np.testing.assert_array_equal(stats.normalize(x), x)
    for part in (x[:1], x[1:2], x[2:]):
        stats = stats.update(jnp.asarray(part))
    np.testing.assert_allclose(stats.mean, x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(stats.var, x.var((0, 1)), rtol=1e-4)
    assert stats.count == 35
    z = stats.normalize(jnp.asarray(x))
    np.testing.assert_allclose(z.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(z.std((0, 1)), 1, rtol=1e-4)
    assert stats.normalize(jnp.full((1, 2), 1e9)).max() == 10
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(stats))
    scalar = RunningStats.create().update(jnp.array([[1.0, 3.0]]))
    assert (scalar.mean, scalar.var, scalar.count) == (2, 1, 2)
