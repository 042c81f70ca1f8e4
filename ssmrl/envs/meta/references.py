r"""Players without networks, which tell what there is to be had: optimal, Bayesian, random.

Each is a jitted function ``(env, params, key, trials) -> rewards [trials, K]``: ``env`` is an environment in trials of
K episodes (``trial_episodes=K``), ``params`` its parameters, ``key`` is consumed, and the rewards are those of each
episode, counted or not, and NaN where ``trial_steps`` leave none for it. A family says by ``references()`` which of
them play it. They know the law by which tasks are drawn, and are not shown what a trial shows, but the state of the
environment, and all but ``random`` act in it without projections:

- ``random`` acts uniformly;
- ``best_arm``, ``best_policy``, ``shortest_way`` know the task;
- ``thompson_sampling`` pulls the arm that is best in one draw from the posterior (Thompson 1933);
- ``gittins`` pulls the arm with the greatest *finite-horizon* Gittins index;
- ``psrl`` plans for one process drawn from the posterior in each episode (Osband et al. 2013).

Priors are those of the tasks: arms from U(0, 1), or from N(0, 1) with noise N(0, 1); transitions from
Dirichlet(1, ..., 1), mean rewards from N(1, 1) with noise N(0, 1), the last known to be so.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssmrl.envs.projection import Projection
from ssmrl.registry import UserError

LEVELS = 128  # of the charge in calibrating Gittins indices; linear interpolation in between


class Player(NamedTuple):
    """How a trial is played: what is known before it, how an episode is planned, how one acts and what one learns."""

    begin: Callable[[Any], Any] = lambda task: ()  # -> memory; only players that know the task may use it
    plan: Callable[..., Any] = lambda key, memory, episode: memory  # -> plan, at the start of each episode
    act: Callable[..., jax.Array] = lambda key, plan, state: plan  # -> action
    learn: Callable[..., Any] = lambda memory, state, action, reward, next_state: memory  # -> memory
    projected: bool = False  # whether it acts through projections, where there are any


def reference(make_player: Callable[[Any], Player]) -> Callable[..., jax.Array]:
    """Make a function ``(env, params, key, trials) -> rewards [trials, K]`` of one from the environment to a player."""

    @functools.partial(jax.jit, static_argnames=("env", "trials"))
    def play(env: Any, params: Any, key: jax.Array, trials: int) -> jax.Array:
        if not getattr(env, "episodes", 0):
            raise UserError(f"{env.name} has no number of episodes to play: make it with trial_episodes=10 or so")
        player = make_player(env)
        return jax.vmap(lambda k: _play(env, params, player, k))(jax.random.split(key, trials))

    return functools.wraps(make_player)(play)


def _play(trials: Any, params: Any, player: Player, key: jax.Array) -> jax.Array:
    """One trial; rewards ``[episodes]``."""
    env = trials.env
    if isinstance(env, Projection) and not player.projected:
        env, params = env.env, params.task
    key_task, key_play = jax.random.split(key)
    task = env.sample_task(key_task, params)

    def episode(carry: tuple[Any, jax.Array], inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        (memory, left), (index, key) = carry, inputs
        key_plan, key_reset, key_steps = jax.random.split(key, 3)
        plan = player.plan(key_plan, memory, index)
        start = memory, env.reset_env(key_reset, task)[1], left > 0, left

        def step(carry: tuple[Any, ...], key: jax.Array) -> tuple[tuple[Any, ...], jax.Array]:
            memory, state, running, left = carry
            key_act, key_env = jax.random.split(key)
            action = player.act(key_act, plan, state)
            _, after, reward, terminated, _ = env.step_env(key_env, state, action, task)
            learned = player.learn(memory, state, action, reward, after)
            memory = jax.tree.map(lambda new, old: jnp.where(running, new, old), learned, memory)
            left_after = left - running
            runs_on = running & ~(terminated | env.is_truncated(after, task)) & (left_after > 0)
            return (memory, after, runs_on, left_after), reward * running

        steps = env.longest_episode(env.default_params)
        (memory, _, _, left_after), rewards = lax.scan(step, start, jax.random.split(key_steps, steps))
        return (memory, left_after), jnp.where(left > 0, rewards.sum(), jnp.nan)

    episodes = trials.episodes
    inputs = jnp.arange(episodes, dtype=jnp.int32), jax.random.split(key_play, episodes)
    steps = jnp.int32(trials.steps or jnp.iinfo(jnp.int32).max)
    return lax.scan(episode, (player.begin(task), steps), inputs)[1]


@reference
def random(env: Any) -> Player:
    """Act uniformly at random."""
    return Player(act=lambda key, plan, state: env.action_space(env.default_params).sample(key), projected=True)


@reference
def best_arm(env: Any) -> Player:
    """Pull the arm that pays best."""
    return Player(begin=lambda task: jnp.argmax(task.arms).astype(jnp.int32))


@reference
def shortest_way(env: Any) -> Player:
    """Go the shortest way to the goal, by the environment's own ``way``."""
    return Player(begin=lambda task: task, act=lambda key, task, state: env.way(state, task))


def _count_pulls(env: Any) -> dict[str, Any]:
    """Remember how often each arm was pulled and what it paid in all, float32 ``[2, num_arms]``."""
    return {
        "begin": lambda task: jnp.zeros((2, env.num_arms)),
        "learn": lambda memory, state, arm, reward, after: memory.at[:, arm].add(jnp.stack([1.0, reward])),
    }


@reference
def thompson_sampling(env: Any) -> Player:
    """Pull the arm that is best in one draw from the posterior."""

    def plan(key: jax.Array, memory: jax.Array, episode: jax.Array) -> jax.Array:
        pulls, paid = memory
        if env.reward == "bernoulli":
            drawn = jax.random.beta(key, 1 + paid, 1 + pulls - paid)
        else:
            drawn = (paid + jax.random.normal(key, pulls.shape) * jnp.sqrt(1 + pulls)) / (1 + pulls)
        return jnp.argmax(drawn).astype(jnp.int32)

    return Player(**_count_pulls(env), plan=plan)


@reference
def gittins(env: Any) -> Player:
    """Pull the arm with the greatest Gittins index for the pulls that are left; arms pay 0 or 1."""
    indices = gittins_indices(min(env.episodes, env.steps or env.episodes))  # an episode is one pull

    def plan(key: jax.Array, memory: jax.Array, episode: jax.Array) -> jax.Array:
        pulls, paid = memory.astype(jnp.int32)
        return jnp.argmax(indices[episode, paid, pulls - paid]).astype(jnp.int32)

    return Player(**_count_pulls(env), plan=plan)


def gittins_indices(horizon: int) -> jax.Array:
    r"""Finite-horizon Gittins indices of a Bernoulli arm under the prior U(0, 1), undiscounted.

    Entry ``[t, s, f]`` of the result, uint16 ``[horizon, horizon, horizon]``, is for pull t, when m = horizon - t are
    left, of an arm with s successes and f failures, in units of 1/65535: the charge c per pull at which it is just
    worth while to pull it once more, and then for as long as is best,

    .. math:: Q_m(s, f) = p - c + p V_{m-1}(s + 1, f) + (1 - p) V_{m-1}(s, f + 1) = 0, \quad V_m = \max(0, Q_m),

    with p = (s + 1) / (s + f + 2), for ``LEVELS`` charges at once, and in between by linear interpolation of Q, which
    is convex in c. Entries with s + f > t are never needed, and not meant. Source: Nino-Mora 2011, "Computing
    a classic index for finite-horizon bandits".
    """
    charges = jnp.linspace(0, 1, LEVELS)[:, None, None]
    s, f = jnp.arange(horizon)[:, None], jnp.arange(horizon)[None]
    p = ((s + 1) / (s + f + 2))[None]

    def one_more(value: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        won, lost = (
            jnp.pad(value, ((0, 0), (0, 1), (0, 1)))[:, 1:, :-1],
            jnp.pad(value, ((0, 0), (0, 0), (0, 1)))[..., 1:],
        )
        q = p - charges + p * won + (1 - p) * lost
        last = jnp.maximum((q > 0).sum(0) - 1, 0)[None]  # the greatest charge that is worth paying
        above = jnp.take_along_axis(q, last, 0)[0]
        below = jnp.take_along_axis(q, jnp.minimum(last + 1, LEVELS - 1), 0)[0]
        index = (last[0] + above / jnp.maximum(above - below, 1e-9)) / (LEVELS - 1)
        return jnp.maximum(q, 0), jnp.round(jnp.clip(index, 0, 1) * 65535).astype(jnp.uint16)

    return lax.scan(one_more, jnp.zeros((LEVELS, horizon, horizon)), None, length=horizon, reverse=True)[1]


def plan_ahead(transitions: jax.Array, rewards: jax.Array, horizon: int) -> jax.Array:
    """The best actions by value iteration, int32 ``[horizon, S]`` by time and state.

    ``transitions`` are ``[S, A, S]``, ``rewards`` ``[S, A]`` the means.
    """

    def step(value: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        q = rewards + transitions @ value
        return q.max(-1), jnp.argmax(q, -1).astype(jnp.int32)

    return lax.scan(step, jnp.zeros(rewards.shape[0]), None, length=horizon, reverse=True)[1]


def _to_the_end(env: Any, plan: jax.Array, episode: jax.Array) -> jax.Array:
    """A plan ``[horizon, S]`` of a whole episode, entered later where the trial ends within the episode."""
    left = env.longest_episode(env.default_params) - episode * len(plan)
    return jnp.roll(plan, jnp.clip(left, 0, len(plan)) - len(plan), 0)


@reference
def best_policy(env: Any) -> Player:
    """Follow the best policy of the process, of all that depend on time and state."""
    horizon = env.env.longest_episode(env.default_params)
    return Player(
        begin=lambda task: plan_ahead(task.transitions, task.rewards, horizon),
        plan=lambda key, memory, episode: _to_the_end(env, memory, episode),
        act=lambda key, plan, state: plan[state.time, state.place],
    )


@reference
def psrl(env: Any) -> Player:
    """Posterior sampling: in each episode follow the best policy of one process drawn from the posterior."""
    shape = env.num_states, env.num_actions, env.num_states
    size = env.num_states**2 * env.num_actions
    horizon = env.env.longest_episode(env.default_params)

    def begin(task: Any) -> Any:
        never = jnp.full(env.episodes * horizon, size, jnp.int32)
        return never, jnp.int32(0), jnp.zeros((2, *shape[:2]))

    def learn(memory: Any, state: Any, action: jax.Array, reward: jax.Array, after: Any) -> Any:
        seen, steps, rewards = memory
        transition = (state.place * shape[1] + action) * shape[2] + after.place
        rewards = rewards.at[:, state.place, action].add(jnp.stack([1.0, reward]))
        return seen.at[steps].set(transition.astype(jnp.int32)), steps + 1, rewards

    def plan(key: jax.Array, memory: Any, episode: jax.Array) -> jax.Array:
        key_prior, key_seen, key_rewards = jax.random.split(key, 3)
        seen, _, (visits, paid) = memory
        # Dirichlet(1 + n) is Gamma(1 + n), normalised, and that the sum of 1 + n exponentials
        weights = jax.random.exponential(key_prior, (size,))
        weights = weights.at[seen].add(jax.random.exponential(key_seen, seen.shape), mode="drop").reshape(shape)
        noise = jax.random.normal(key_rewards, paid.shape) / jnp.sqrt(1 + visits)
        rewards = (1 + paid) / (1 + visits) + noise  # the prior's mean counts as one reward of 1
        plan = plan_ahead(weights / weights.sum(-1, keepdims=True), rewards, horizon)
        return _to_the_end(env, plan, episode)

    return Player(begin, plan, lambda key, plan, state: plan[state.time, state.place], learn)
