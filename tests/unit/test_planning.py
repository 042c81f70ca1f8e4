"""Planning in hand-made worlds whose best actions are known, against plain Python."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import struct

from ssmrl import nn as models
from ssmrl import spaces
from ssmrl.agents.planner import Planner
from ssmrl.config import resolve
from ssmrl.envs import make as make_env
from ssmrl.nn.distributions import Categorical
from ssmrl.planning import PlanningPolicy, fit, weigh
from ssmrl.registry import ConfigError
from ssmrl.world_model import Latents, Predictions, WorldState
from ssmrl.world_policy import WorldActorCritic

BINS = 81
SURE = 20.0  # logit of an episode that goes on
METHODS = {"cem": None, "mppi": 0.5}


class Sure(struct.PyTreeNode):
    """A latent distribution with one outcome."""

    z: jax.Array

    def sharp(self):
        return self

    def sample(self, key):
        return self.z


class Toy(nn.Module):
    """A world model without parameters, with a world model's methods; its latent is (position, reward, continue logit).

    ``advance`` maps position ``[...]``, flat action ``[..., A]`` and a uniform number to the next latent's parts.
    """

    action_space: Any
    advance: Callable[..., Any]

    observation_space = spaces.Box(-10.0, 10.0, (1,))

    def initial_state(self, batch_shape=()):
        return WorldState((), jnp.zeros((*batch_shape, 3)))

    def observe(self, state, frames, key, draw="sample", chunk=0):
        rest = jnp.zeros_like(frames.obs)
        z = jnp.concatenate([frames.obs, rest, rest + SURE], -1)
        return WorldState((), z[-1]), Latents(jnp.zeros((*z.shape[:-1], 2)), z, None, None, WorldState((), z))

    def step(self, state, action, reset=None, luck=0.5):
        parts = self.advance(state.z[..., 0], action, luck)
        z = jnp.stack(jnp.broadcast_arrays(*map(jnp.float32, parts)), -1)
        return state, jnp.zeros((*z.shape[:-1], 2)), z

    def imagine(self, state, actions, key, draw="sample"):
        def step(state, xs):
            action, key = xs
            _, h, z = self.step(state, action, None, jax.random.uniform(key))
            return WorldState((), z), (h, z)

        flat = spaces.flatten(self.action_space, actions)
        state, (h, z) = jax.lax.scan(step, state, (flat, jax.random.split(key, len(flat))))
        return state, Latents(h, z, None)

    def make_latent(self, parameters):
        return Sure(parameters)

    def predict_outcome(self, features):
        reward, going_on = features[..., -2], features[..., -1]
        centers = np.linspace(-10, 10, BINS + 2) * (BINS + 1) / (BINS - 1)  # of the bins, and of one beyond each end
        centers = np.float32(np.sign(centers) * np.expm1(np.abs(centers)))
        centers = centers.reshape((1,) * reward.ndim + (-1,))
        beyond, gaps = reward[..., None] - centers, np.diff(centers)
        share = jnp.minimum(beyond[..., :-2] / gaps[..., :-1], -beyond[..., 2:] / gaps[..., 1:])
        return Predictions((), jnp.log(jnp.maximum(share, 1e-30)), going_on)


class Positions(WorldActorCritic):
    """A critic that expects as much as the position."""

    def value(self, inputs):
        return inputs[..., 0]


def planner(action_space, advance, **settings):
    network = Positions(Toy(action_space, advance), ("z",), ())
    defaults = {"horizon": 4, "samples": 64, "elites": 8, "iterations": 3, "proposals": 0, "draws": 1}
    more = {"value": False, "gamma": 1.0, "temperature": 0.5, "min_std": 0.05}
    return PlanningPolicy(network, **{**defaults, **more, **settings})


@functools.partial(jax.jit, static_argnames=("policy", "favoured"))
def plan(policy, position, favoured=None):
    """Distributions of the action and scores at positions ``[B]``, or ``[T, B]``; the actor does what is favoured."""
    size = spaces.flat_size(policy.action_space)
    parameters = {"kernel": jnp.zeros((3, size)), "bias": jnp.zeros(size)}
    if favoured is not None:
        parameters["bias"] = parameters["bias"].at[favoured].set(30.0)
    sequence = jnp.atleast_2d(jnp.asarray(position, jnp.float32))
    lead = sequence.shape
    _, dist, score = policy.apply(
        {"params": {"world": {}, "actor": parameters}},
        policy.initialize_carry(lead[1:]),
        sequence[..., None],
        jnp.zeros(lead, bool),
        spaces.zeros(policy.action_space, lead),
        jnp.zeros(lead),
    )
    return dist, score


def best(policy, position, **options):
    """The environment's action at one position."""
    dist, _ = plan(policy, jnp.array([position]), **options)
    return np.asarray(dist.to_env(dist.mode()))[0, 0]


CODE = (2, 0, 1, 1, 2, 0)


def lock(position, action, luck):
    """The right digit opens the next door, a wrong one locks them all; only the last door hides something."""
    code = jnp.array(CODE)
    right = jnp.take_along_axis(action, code[jnp.clip(position, 0, 5).astype(int)][..., None], -1)[..., 0]
    after = jnp.where(right > 0, position + 1, 0.0)
    return after, after == 6, SURE


@pytest.mark.parametrize("method", METHODS)
def test_it_finds_the_way_through_a_lock(method):
    """Four digits lie within the plan: of 81 plans one is rewarded, and each step is planned anew."""
    policy = planner(spaces.Discrete(3), lock, temperature=METHODS[method], samples=256)
    assert [int(best(policy, p)) for p in range(2, 6)] == list(CODE[2:])
    dist, score = plan(policy, jnp.array([5.0]))
    assert dist.logits.shape == (1, 1, 3)
    assert jax.nn.softmax(dist.logits)[0, 0, CODE[5]] > 0.95
    np.testing.assert_allclose(score, 1.0, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_it_drives_to_a_point(method):
    """Two coordinates of the action, one costs; bounds are not symmetric, positions 1.5 and -1 are one step away."""

    def move(position, action, luck):
        after = position + action[..., 0]
        return after, -((after - 1) ** 2) - action[..., 1] ** 2, SURE

    space = spaces.Box((-2.0, -1.0), (3.0, 2.0), (2,))
    policy = planner(space, move, temperature=METHODS[method] and 0.05, iterations=8, samples=128, horizon=2)
    dist, _ = plan(policy, jnp.array([[-1.0, 1.5], [1.0, 0.0]]))
    action = dist.to_env(dist.mode())
    np.testing.assert_allclose(action, [[[2, 0], [-0.5, 0]], [[0, 0], [1, 0]]], atol=0.1)
    np.testing.assert_allclose(jnp.exp(dist.log_std).min(), 0.05, rtol=1e-5)  # it has converged, to the least deviation


def test_it_chooses_every_part_of_an_action():
    def move(position, action, luck):  # worth: 2 of the first part, then 0 of the second
        return position, action[..., 2] + action[..., 3], SURE

    policy = planner(spaces.MultiDiscrete((3, 4)), move, horizon=1)
    np.testing.assert_array_equal(best(policy, 0.0), [2, 0])


def investment(position, action, luck):
    """Action 0 pays .1; action 1 pays nothing, but twice in a row it pays 1."""
    after = jnp.where(action[..., 1] > 0, position + 1, 0.0)
    return after, jnp.where(after == 0, 0.1, jnp.where(after % 2 == 0, 1.0, 0.0)), SURE


@pytest.mark.parametrize("method", METHODS)
def test_it_looks_further_than_one_step(method):
    policy = planner(spaces.Discrete(2), investment, temperature=METHODS[method])
    assert best(policy, 0.0) == 1
    shortsighted = planner(spaces.Discrete(2), investment, temperature=METHODS[method], horizon=1)
    assert best(shortsighted, 0.0) == 0


def temptation(position, action, luck):
    """Action 1 pays 1 and ends the episode, where 3 more would follow; action 0 pays .5 for ever."""
    tempted = action[..., 1] > 0
    return position, jnp.where(tempted, 1.0, 0.5), jnp.where(tempted, -SURE, SURE)


def test_it_avoids_the_end():
    policy = planner(spaces.Discrete(2), temptation)
    assert best(policy, 0.0) == 0
    _, score = plan(policy, jnp.array([0.0]))
    np.testing.assert_allclose(score, 2.5, atol=0.1)  # .5 three times, and 1 at the last step, which may end
    assert best(planner(spaces.Discrete(2), temptation, horizon=1), 0.0) == 1


def test_the_value_of_the_end_counts_when_asked_for():
    def move(position, action, luck):  # action 0 pays .3, action 1 leads on
        return position + action[..., 1], 0.3 * action[..., 0], SURE

    space = spaces.Discrete(2)
    assert best(planner(space, move), 0.0) == 0
    assert best(planner(space, move, value=True), 0.0) == 1


def test_the_score_is_the_discounted_return():
    """Whatever is done, position and reward rise by one; the episode goes on by 3 in 4. Against plain Python."""

    def walk(position, action, luck):
        return position + 1, position + 1, jnp.log(3.0)

    policy = planner(spaces.Discrete(2), walk, horizon=3, value=True, gamma=0.9)
    _, score = plan(policy, jnp.array([[0.0, 4.0]]))
    for position, found in ((0, score[0, 0]), (4, score[0, 1])):
        expected, chance = 0.0, 1.0
        for i in range(3):
            expected += 0.9**i * chance * (position + i + 1)
            chance *= 0.75
        expected += 0.9**3 * chance * (position + 3)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_actor_proposes_what_sampling_would_not_find():
    def needle(position, action, luck):  # six times the last of 9 actions
        after = jnp.where(action[..., 8] > 0, position + 1, 0.0)
        return after, after == 6, SURE

    settings = {"horizon": 6, "samples": 32, "elites": 2}
    alone, helped = (planner(spaces.Discrete(9), needle, proposals=n, **settings) for n in (0, 2))
    found = {p: plan(policy, jnp.array([0.0]), favoured=8)[1][0, 0] for p, policy in ((0, alone), (2, helped))}
    np.testing.assert_allclose(found[0], 0.0, atol=1e-6)
    assert found[2] > 0.99
    assert best(helped, 0.0, favoured=8) == 8


def test_chance_is_averaged_over_draws():
    """Not to play pays nothing; to play pays 1 by three chances in four, and else costs 11: 2 on average."""

    def lottery(position, action, luck):
        return position, action[..., 1] * jnp.where(luck < 0.75, 1.0, -11.0), SURE

    reckless, careful = (planner(spaces.Discrete(2), lottery, draws=n, horizon=1, iterations=1) for n in (1, 64))
    assert best(careful, 0.0) == 0
    assert best(reckless, 0.0) == 1  # it plans for the future that it draws as if that were known
    certain = planner(spaces.Discrete(2), lambda p, a, luck: (p, luck, SURE), draws=256, horizon=1)
    np.testing.assert_allclose(plan(certain, jnp.array([0.0]))[1], 0.5, atol=0.07)


def test_rows_and_steps_are_planned_apart():
    """Equal states get equal plans, wherever they stand in a batch; a sequence is planned at each step."""
    policy = planner(spaces.Discrete(2), investment, proposals=2, value=True, iterations=1, temperature=1.0)
    dist, score = plan(policy, jnp.array([[0.0, 1.0, 0.0], [1.0, 3.0, 2.0]]))
    for t, b, position in ((0, 0, 0.0), (0, 2, 0.0), (0, 1, 1.0), (1, 0, 1.0), (1, 2, 2.0)):
        alone, worth = plan(policy, jnp.array([position]))
        np.testing.assert_allclose(dist.logits[t, b], alone.logits[0, 0], rtol=1e-5)
        np.testing.assert_allclose(score[t, b], worth[0, 0], rtol=1e-5)
    assert not np.allclose(score[0, 0], score[0, 1])


def test_a_model_that_knows_nothing_prefers_nothing():
    """Ties are all elites: the shares of actions are those of all samples, not of a few."""
    nothing = planner(spaces.Discrete(4), lambda p, a, luck: (p, 0.0, SURE), samples=256, temperature=None)
    dist, _ = plan(nothing, jnp.array([0.0]))
    assert jax.nn.softmax(dist.logits[0, 0]).min() > 0.15


@pytest.mark.parametrize("temperature", [None, 0.3])
def test_weights(temperature):
    score = np.array([[0.5, -1.0, 2.0, 1.9, 0.4], [1.0, 0.0, 1.0, 1.0, -3.0]])
    expected = []
    for row, chosen in zip(score, ([2, 3], [0, 2, 3]), strict=True):  # in the second row, three tie
        counts = [np.exp((x - 2) / temperature) if temperature else 1.0 for x in row]
        counts = [c if i in chosen else 0.0 for i, c in enumerate(counts)]
        expected.append([c / sum(counts) for c in counts])
    np.testing.assert_allclose(weigh(jnp.asarray(score), 2, temperature), expected, rtol=1e-5)


def test_fitted_distributions():
    rng = np.random.default_rng(0)
    weight = rng.dirichlet(np.ones(5), 2)
    plans = rng.integers(0, 3, (2, 5, 4))
    share = np.zeros((2, 4, 3))
    for b, n, h in np.ndindex(plans.shape):
        share[b, h, plans[b, n, h]] += weight[b, n]
    dist = fit(spaces.Discrete(3), jnp.asarray(plans), jnp.asarray(weight), 0.1)
    assert isinstance(dist, Categorical)
    np.testing.assert_allclose(jax.nn.softmax(dist.logits), share, atol=1e-6)

    plans = rng.normal(size=(2, 5, 4, 1)) * [[[[0.01]]], [[[2.0]]]]
    box = fit(spaces.Box(-1.0, 1.0, (1,)), jnp.asarray(plans), jnp.asarray(weight), 0.1)
    for b, h in np.ndindex(2, 4):
        mean = sum(weight[b, n] * plans[b, n, h, 0] for n in range(5))
        variance = sum(weight[b, n] * (plans[b, n, h, 0] - mean) ** 2 for n in range(5))
        np.testing.assert_allclose(box.mean[b, h, 0], mean, atol=1e-6)
        np.testing.assert_allclose(jnp.exp(box.log_std[b, h, 0]), max(variance**0.5, 0.1), rtol=1e-4)


SMALL = {"num_envs": 2, "num_steps": 4, "batch_size": 2, "batch_length": 4, "dream_every": 4, "replay_ratio": 1}


@pytest.mark.parametrize(
    ("env", "model", "options"),
    [
        ("gymnax/Pendulum-v1", "s5", {"planner": "cem", "plan_value": False, "plan_proposals": 0}),
        ("popgym/BattleshipEasy", "gru", {"inputs": ("z", "h", "x"), "posterior": "rssm", "reward_scale": 2.0}),
    ],
    ids=["box", "multi"],
)
def test_the_agent_collects_by_planning_with_its_own_world_model(env, model, options):
    """Traced, not run: plans of the agent's settings, in spaces and memories of other kinds than CartPole's."""
    env, params = make_env(env)
    agent = Planner(env=env, env_params=params, model=models.make_model(model, d_model=8), **SMALL, **options)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    policy = agent.policy(state)
    assert isinstance(policy.network, PlanningPolicy)
    assert policy.network.network == agent.network
    assert policy.network.temperature == (None if "planner" in options else 0.5)
    assert (policy.network.value, policy.network.proposals) == ((False, 0) if "planner" in options else (True, 4))
    assert policy.reward_scale == options.get("reward_scale", 1.0)
    after, _ = jax.eval_shape(agent.update, state)
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), s) for s in (state, after)]
    assert kinds[0] == kinds[1]


def test_more_elites_than_plans_are_refused():
    with pytest.raises(ConfigError, match="plan_samples=4: the best plans are some of those drawn"):
        resolve([], {"env": "gymnax/CartPole-v1", "agent": "planner", "agent.plan_samples": 4})


def test_a_horizon_that_is_followed_is_refused_as_plans_would_not_keep_to_it():
    with pytest.raises(ConfigError, match="held_out=2: plans have plan_horizon steps"):
        resolve([], {"env": "gymnax/CartPole-v1", "agent": "planner", "agent.held_out": 2})
