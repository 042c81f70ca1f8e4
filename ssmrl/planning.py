"""Planning in latent space: a policy that searches the futures which a world model imagines for the best actions.

Legend: T time, B batch, H steps of a plan, N plans, A actions, D width of the memory.

The cross-entropy method as in PlaNet (Hafner et al. 2019, algorithm 2), and model-predictive path integral control
(Williams et al. 2015) as in TD-MPC (Hansen et al. 2022, algorithm 1): draw plans, imagine them, refit the distribution
that they are drawn from to the best ones, and again. They differ in how much each of the best counts. As in PlaNet,
every search starts from scratch, not from the plan before.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ssmrl import spaces
from ssmrl.frames import Frames
from ssmrl.nn import observations
from ssmrl.nn.distributions import Distribution, make_distribution, num_parameters
from ssmrl.returns import lambda_returns
from ssmrl.world_model import WorldModel, WorldState
from ssmrl.world_policy import WorldActorCritic


@dataclasses.dataclass(frozen=True)
class PlanningPolicy:
    """Acts by planning with the world model of ``network``: a :class:`ssmrl.policy.Network` with the same parameters.

    A plan is worth the discounted sum of predicted rewards, each weighted by the predicted chance that the episode
    gets there; with ``value``, what the critic expects after the last step is added. Of stochastic worlds, ``draws``
    futures are averaged. A search draws from a fixed key, the same for every state: equal states get equal plans, and
    the plans of one iteration meet the same chances in the same futures (common random numbers).
    """

    network: WorldActorCritic
    horizon: int  # H
    samples: int  # plans drawn in an iteration
    elites: int  # of those, how many the next iteration's distribution is fitted to
    iterations: int
    proposals: int  # plans that the actor adds to those of each iteration
    draws: int
    value: bool
    gamma: float
    temperature: float | None  # a plan counts by exp(score / temperature); None: elites count alike (cross-entropy)
    min_std: float  # of continuous actions, before the squashing

    @property
    def observation_space(self) -> spaces.Space:
        """Of the world model."""
        return self.network.observation_space

    @property
    def action_space(self) -> spaces.Space:
        """Of the world model."""
        return self.network.action_space

    @property
    def world(self) -> WorldModel:
        """The world model."""
        return self.network.world

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> WorldState:
        """The state of a world model that has seen nothing."""
        return self.network.initialize_carry(batch_shape)

    def init(self, key: jax.Array, *inputs: Any) -> Any:
        """Make parameters, those of ``network``; arguments as of :meth:`apply`, ``key`` is consumed."""
        return self.network.init(key, *inputs)

    def apply(
        self, variables: Any, carry: WorldState, obs: Any, reset: jax.Array, prev_action: Any, prev_reward: jax.Array
    ) -> tuple[WorldState, Distribution, jax.Array]:
        """Observe a sequence ``[T, B, ...]`` and plan at every step, as if it were the last.

        Returns the new carry; the distributions ``[T, B]`` of the first action of the plans that the last iteration
        chose; and their mean score ``[T, B]``.
        """
        frames = Frames(obs, prev_action, prev_reward, reset, jnp.zeros_like(reset))
        world = {"params": variables["params"]["world"]}
        observed: Any = self.network.world.apply(
            world, carry, frames, jax.random.key(0), "mode", chunk=1, method="observe"
        )
        carry, seen = observed
        each = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (seen.states, seen.h))
        chosen = self._search(variables, *each)
        dist, score = jax.tree.map(lambda x: x.reshape(*reset.shape, *x.shape[1:]), chosen)
        return carry, dist, score

    def _search(self, variables: Any, state: WorldState, h: jax.Array) -> tuple[Distribution, jax.Array]:
        """Plan from states ``[B, ...]`` with their ``h`` ``[B, D]``; see :meth:`apply`."""
        key, key_propose = jax.random.split(jax.random.key(0))
        proposed = self._propose(variables, state, h, key_propose) if self.proposals else None

        def iterate(dist: Distribution, key: jax.Array) -> tuple[Distribution, jax.Array]:
            key_plan, key_draw = jax.random.split(key)
            plans = jax.vmap(lambda one: _repeat(one, self.samples).sample(key_plan))(dist)
            plans = plans if proposed is None else jnp.concatenate([plans, proposed], 1)
            score = self._score(variables, state, dist.to_env(plans), key_draw)
            weight = weigh(score, self.elites, self.temperature)
            dist = fit(self.action_space, plans, weight, self.min_std).mix_uniform(self.network.unimix)
            return dist, (weight * score).sum(-1)

        nothing = jnp.zeros((h.shape[0], self.horizon, num_parameters(self.action_space)))
        anything = make_distribution(self.action_space, nothing, nothing)
        dist, score = lax.scan(iterate, anything, jax.random.split(key, self.iterations))
        return jax.tree.map(lambda x: x[:, 0], dist), score[-1]

    def _propose(self, variables: Any, state: WorldState, h: jax.Array, key: jax.Array) -> jax.Array:
        """What the actor would do, raw actions ``[B, proposals, H, ...]``."""

        def dream(state: WorldState, h: jax.Array) -> jax.Array:
            start = _repeat((state, h), self.proposals)
            found: Any = self.network.apply(variables, *start, self.horizon, key, method="dream")
            return jnp.moveaxis(found.raw_action, 1, 0)

        return jax.vmap(dream)(state, h)

    def _score(self, variables: Any, state: WorldState, plans: jax.Array, key: jax.Array) -> jax.Array:
        """The returns ``[B, N]`` of plans ``[B, N, H, ...]``, which are made of the environment's actions."""
        world = {"params": variables["params"]["world"]}

        def score(state: WorldState, actions: jax.Array, key: jax.Array) -> jax.Array:
            imagined: Any = self.network.world.apply(world, state, actions, key, method="imagine")
            end, seen = imagined
            outcome: Any = self.network.world.apply(world, seen.features, method="predict_outcome")
            value = jnp.zeros(self.horizon)
            if self.value:
                inputs: Any = self.network.apply(variables, seen.h[-1], end.z, end.memory, method="read")
                beyond: Any = self.network.apply(variables, inputs, method="value")
                value += beyond
            reward, over = observations.two_hot_mean(outcome.reward), 1 - jax.nn.sigmoid(outcome.going_on)
            return lambda_returns(reward, value, over, jnp.zeros_like(reward), self.gamma, 1.0)[0]

        of_plans = jax.vmap(score, (None, 0, None))
        of_states = jax.vmap(of_plans, (0, 0, None))
        of_draws = jax.vmap(of_states, (None, None, 0))  # outermost: otherwise imagination takes 1.4 times as long
        return of_draws(state, plans, jax.random.split(key, self.draws)).mean(0)


def weigh(score: jax.Array, elites: int, temperature: Any = None) -> jax.Array:
    """How much each of N plans counts, ``[..., N]`` summing to 1, given their scores ``[..., N]``.

    Those below the best ``elites`` count 0 and the others by ``exp(score / temperature)``, or all alike. Plans that tie
    with the last of the best are among them: a model that knows nothing yet shall prefer nothing.
    """
    least = lax.top_k(score, elites)[0][..., -1:]
    logits = jnp.zeros_like(score) if temperature is None else score / temperature
    return jax.nn.softmax(jnp.where(score >= least, logits, -jnp.inf))


def fit(space: spaces.Space, plans: jax.Array, weight: jax.Array, min_std: float) -> Distribution:
    """The distribution over ``space``, ``[B, H]``, of raw actions ``[B, N, H, ...]`` with weights ``[B, N]``.

    Independent over steps and parts: the shares of discrete actions, or mean and deviation, not below ``min_std``.
    """
    if not isinstance(space, spaces.Box):
        share = jnp.einsum("bn,bnha->bha", weight, spaces.flatten(space, plans))
        return make_distribution(space, jnp.log(share + 1e-8))
    mean = jnp.einsum("bn,bnha->bha", weight, plans)
    variance = jnp.einsum("bn,bnha->bha", weight, (plans - mean[:, None]) ** 2)
    return make_distribution(space, mean, jnp.log(jnp.maximum(jnp.sqrt(variance), min_std)))


def _repeat(tree: Any, n: int) -> Any:
    return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (n, *x.shape)), tree)
