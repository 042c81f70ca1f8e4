"""Frames: sequences as a world model reads them, terminal observations included, and where they come from.

Frame ``t`` holds observation ``x_t``, the action *that led to* it, and the reward that came with it. An episode's first
frame has ``reset`` set, a null action and no reward; its last one is in the data, and the next episode's first follows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ssmrl import spaces
from ssmrl.envs.base import select_rows
from ssmrl.envs.trials import Trials
from ssmrl.fields import UserError
from ssmrl.policy import Policy


class Frames(struct.PyTreeNode):
    """Frames, each array ``[T, B, ...]``."""

    obs: Any
    action: Any  # led to obs; zeros where reset
    reward: jax.Array  # came with obs; 0 where reset
    reset: jax.Array  # bool: obs is the first of an episode
    terminated: jax.Array  # bool: the task ended here


class Stream(struct.PyTreeNode):
    """``B`` environments that are watched, between two frames."""

    env_state: Any
    plan: Any  # what the scripted policy will do, [B, steps]; () for random actions
    carry: Any  # of the policy that acts, if one does
    frame: Frames  # the next to be recorded, [B, ...]
    done: jax.Array  # bool [B]: that frame is its episode's last


def open_stream(env: Any, params: Any, num_envs: int, key: jax.Array, policy: Policy | None = None) -> Stream:
    """Start ``num_envs`` environments, their scripts and ``policy``; ``key`` is consumed.

    Raises ``UserError`` without a policy if there is a script, but of one episode, and the environment is in trials.
    """
    if policy is None and isinstance(env, Trials) and hasattr(env, "script"):
        raise UserError(
            f"the script of {env.name} is for one episode, but here are trials: use env.trial_episodes=0 and "
            "env.trial_steps=0, or let a policy act"
        )
    keys_reset, keys_script = jax.vmap(jax.random.split, out_axes=1)(jax.random.split(key, num_envs))
    obs, state = env.reset_envs(keys_reset, params)  # at once: a row's kind may be a matter of its place in the batch
    plan = jax.vmap(env.script, in_axes=(0, 0, None))(keys_script, state, params) if _scripted(env) else ()
    no = jnp.zeros(num_envs, bool)
    action = spaces.zeros(env.action_space(params), (num_envs,))
    carry = () if policy is None else policy.initial_carry(num_envs)
    return Stream(state, plan, carry, Frames(obs, action, jnp.zeros(num_envs), ~no, no), no)


def record(
    env: Any, params: Any, stream: Stream, num_frames: int, key: jax.Array, policy: Policy | None = None
) -> tuple[Stream, Frames, Any]:
    """Record the next ``num_frames`` frames of every environment; ``key`` is consumed.

    Actions are those of ``policy``, or else of the environment's script, or random where it has none. Environments
    whose episode is over start the next one one frame later (``NEXT_STEP`` auto-reset). Returns the stream, frames
    ``[T, B, ...]`` and the environments' states behind them.
    """
    num_envs = stream.done.shape[0]

    def advance(stream: Stream, key: jax.Array) -> tuple[Stream, tuple[Frames, Any]]:
        key_act, key_step, key_reset = jax.random.split(key, 3)
        carry = stream.carry
        if policy is not None:
            action, carry = policy.act(
                carry, stream.frame.obs, stream.frame.reset, reward=stream.frame.reward, key=key_act
            )
        elif _scripted(env):
            now = jnp.minimum(stream.env_state.time, stream.plan.shape[1] - 1)
            action = jnp.take_along_axis(stream.plan, now[:, None], 1)[:, 0]
        else:
            action = jax.vmap(env.action_space(params).sample)(jax.random.split(key_act, num_envs))
        keys = jax.random.split(key_step, num_envs)
        obs, state, reward, terminated, _ = env.step_envs(keys, stream.env_state, action, params)
        truncated = jax.vmap(env.is_truncated, in_axes=(0, None))(state, params)
        frame = Frames(obs, action, reward.astype(jnp.float32), jnp.zeros_like(terminated), terminated)
        stepped = Stream(state, stream.plan, carry, frame, terminated | truncated)

        def restart(stepped: Stream) -> Stream:
            fresh = open_stream(env, params, num_envs, key_reset, policy)
            fresh = fresh.replace(carry=carry)  # which reads the reset flag
            return jax.tree.map(lambda new, old: select_rows(stream.done, new, old), fresh, stepped)

        after = lax.cond(stream.done.any(), restart, lambda stepped: stepped, stepped)
        return after, (stream.frame, stream.env_state)

    stream, (frames, states) = lax.scan(advance, stream, jax.random.split(key, num_frames))
    return stream, frames, states


def _scripted(env: Any) -> bool:
    return hasattr(env, "script") and not isinstance(env, Trials)
