"""Vectorised environments that reset themselves, and the unrolling of a policy in them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ssmrl.envs.base import select_rows
from ssmrl.policy import Policy, PolicyCarry


class EnvBatch(struct.PyTreeNode):
    """``B`` environments between two steps: what the policy reads next, and what the environments remember."""

    env_state: Any
    obs: Any  # [B, ...]
    reset: jax.Array  # bool [B]: obs is the first of an episode
    reward: jax.Array  # [B]: earned by the action that led to obs
    episode_return: jax.Array  # [B]: of the running episode so far
    episode_length: jax.Array  # int32 [B], in steps


class Outcome(struct.PyTreeNode):
    """What one step of ``B`` environments brought; each array ``[B]``."""

    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_obs: Any  # the observation that the step led to, before any reset
    episode_return: jax.Array  # of the episode up to this step: final where it ended
    episode_length: jax.Array
    trial: Any = None  # where in its trial the step was taken (ssmrl.envs.trials.Progress), if there are trials


class Transition(struct.PyTreeNode):
    """One time step of a rollout, ``[T, B, ...]`` after unrolling; field names as everywhere."""

    obs: Any
    reset: jax.Array
    prev_action: Any
    prev_reward: jax.Array
    raw_action: Any
    log_prob: jax.Array
    value: jax.Array
    final_value: jax.Array  # value of the final observation where the clock ended the episode, else 0
    outcome: Outcome


def reset_batch(env: Any, params: Any, num_envs: int, key: jax.Array) -> EnvBatch:
    """Start ``num_envs`` environments; ``key`` is consumed."""
    obs, env_state = env.reset_envs(jax.random.split(key, num_envs), params)
    zeros = jnp.zeros(num_envs)
    return EnvBatch(env_state, obs, jnp.ones(num_envs, bool), zeros, zeros, jnp.zeros(num_envs, jnp.int32))


def step_batch(env: Any, params: Any, batch: EnvBatch, action: Any, key: jax.Array) -> tuple[EnvBatch, Outcome]:
    """Step all environments; those whose episode ends start a new one from a fresh start state. ``key`` is consumed.

    New start states are computed only in steps in which an episode ends. This is the one place where ``reset`` is made.
    """
    num_envs = batch.reset.shape[0]
    key_step, key_reset = jax.random.split(key)
    keys = jax.random.split(key_step, num_envs)
    obs, env_state, reward, terminated, info = env.step_envs(keys, batch.env_state, action, params)
    truncated = jax.vmap(env.is_truncated, in_axes=(0, None))(env_state, params)
    reward, done = reward.astype(jnp.float32), terminated | truncated
    episode_return, episode_length = batch.episode_return + reward, batch.episode_length + 1
    outcome = Outcome(reward, terminated, truncated, obs, episode_return, episode_length, info.get("trial"))

    def restart(current: tuple[Any, Any]) -> tuple[Any, Any]:
        fresh = env.reset_envs(jax.random.split(key_reset, num_envs), params)
        return jax.tree.map(lambda new, old: select_rows(done, new, old), fresh, current)

    obs, env_state = lax.cond(done.any(), restart, lambda current: current, (obs, env_state))
    running = ~done
    batch = EnvBatch(env_state, obs, done, reward, outcome.episode_return * running, outcome.episode_length * running)
    return batch, outcome


def episode_numbers(episodes: int) -> list[int]:
    """The episodes of a trial that are looked at: 1, 2, 3, 5, 10, 20, ... and the last."""
    return sorted({m * 10**e for e in range(4) for m in (1, 2, 3, 5) if m * 10**e < episodes} | {episodes})


def returns_by_episode(trial: Any, episodes: int) -> dict[str, jax.Array]:
    """How returns rise within trials: the mean return of their episodes number 1, 2, 3, 5, 10, ... and ``episodes``.

    ``trial`` has the :class:`~ssmrl.envs.trials.Progress` of every step, arrays ``[T, B]``. Returns scalars
    ``episode_return/<number>``, NaN where no such episode ended.
    """
    found = {}
    for number in episode_numbers(episodes):
        counted = trial.ended & (trial.episode == number - 1)
        found[f"episode_return/{number}"] = (trial.episode_return * counted).sum() / counted.sum()
    return found


def unroll(
    env: Any,
    params: Any,
    policy: Policy,
    carry: PolicyCarry,
    batch: EnvBatch,
    num_steps: int,
    key: jax.Array,
    *,
    bootstrap: bool = True,
) -> tuple[PolicyCarry, EnvBatch, Transition]:
    """Act for ``num_steps`` steps in ``B`` environments, going on from ``carry`` and ``batch``; ``key`` is consumed.

    With ``bootstrap`` the value of the final observation is computed where the clock ended an episode, from the
    memory of that episode; it costs one more step of the network, paid only in steps in which that happens.
    Returns the new carry and batch, and the transitions ``[T, B, ...]``.
    """

    def step(state: tuple[PolicyCarry, EnvBatch], key: jax.Array) -> tuple[tuple[PolicyCarry, EnvBatch], Transition]:
        carry, batch = state
        key_act, key_env = jax.random.split(key)
        memory, dist, value = policy.step(carry, batch.obs, batch.reset, batch.reward)
        raw = dist.sample(key_act)
        action = dist.to_env(raw)
        next_carry = PolicyCarry(memory, action)
        next_batch, outcome = step_batch(env, params, batch, action, key_env)
        final_value = jnp.zeros_like(value)
        if bootstrap:
            clock_ended = outcome.truncated & ~outcome.terminated

            def value_of_final_obs() -> jax.Array:
                no_reset = jnp.zeros_like(batch.reset)
                return policy.step(next_carry, outcome.final_obs, no_reset, outcome.reward)[2]

            final_value = lax.cond(clock_ended.any(), value_of_final_obs, lambda: jnp.zeros_like(value))
            final_value = jnp.where(clock_ended, final_value, 0)
        transition = Transition(
            obs=batch.obs,
            reset=batch.reset,
            prev_action=carry.action,
            prev_reward=batch.reward,
            raw_action=raw,
            log_prob=dist.log_prob(raw),
            value=value,
            final_value=final_value,
            outcome=outcome.replace(final_obs=()),
        )
        return (next_carry, next_batch), transition

    (carry, batch), transitions = lax.scan(step, (carry, batch), jax.random.split(key, num_steps))
    return carry, batch, transitions
