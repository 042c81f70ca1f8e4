"""The environment contract: gymnax 1.x's protocol, with spaces that hash by value.

An environment is a frozen dataclass. Its fields are the parameters that fix shapes or rules (static under ``jit``;
equal environments share compiled code); numbers that may vary under ``vmap`` go into ``EnvParams``. Authors write
``reset_env``, ``step_env`` and the two spaces; ``terminated`` is the natural end alone, the clock is ``is_truncated``.

In meta-learning the ``EnvParams`` are the *task*: ``sample_task`` draws one, and the episodes of a trial share it.
"""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.spaces import Discrete, Space


@struct.dataclass
class EnvState:
    """What changes during an episode; ``time`` is the int32 number of steps taken."""

    time: jax.Array


@struct.dataclass
class EnvParams:
    """What may vary between episodes; ``max_steps_in_episode`` is the time limit in steps."""

    max_steps_in_episode: int = 1_000


class Environment:
    """Base class of environments; compatible with ``gymnax.environments.environment.Environment``."""

    action_names: ClassVar[tuple[str, ...]] = ()  # what discrete actions mean, for people who watch

    @property
    def default_params(self) -> Any:
        """The parameters of the registered task."""
        return EnvParams()

    @property
    def name(self) -> str:
        """Class name."""
        return type(self).__name__

    @property
    def num_actions(self) -> int:
        """Number of discrete actions."""
        space = self.action_space(self.default_params)
        if not isinstance(space, Discrete):
            raise TypeError(f"{self.name} has no discrete actions: its action space is {space}")
        return space.n

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """Draw a start state; ``key`` is consumed. Returns ``(obs, state)``."""
        raise NotImplementedError(f"{self.name} must define reset_env(key, params) -> (obs, state)")

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        """Take one step, without time limit or auto-reset; ``key`` is consumed.

        Returns ``(obs, state, reward, terminated, info)``: reward float32, terminated bool, and the new state's
        ``time`` one more than the old one's.
        """
        raise NotImplementedError(
            f"{self.name} must define step_env(key, state, action, params) -> (obs, state, reward, terminated, info)"
        )

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        """Whether the clock has run out in the state that a step led to."""
        return state.time >= params.max_steps_in_episode

    def sample_task(self, key: jax.Array, params: Any) -> Any:
        """Draw the parameters that the episodes of one trial share; ``key`` is consumed. By default ``params``."""
        del key
        return params

    def reset_envs(self, keys: jax.Array, params: Any, axis: int | None = None) -> tuple[Any, Any]:
        """``reset_env`` for ``keys`` ``[B]``; ``axis`` is 0 where each environment has parameters of its own."""
        return jax.vmap(self.reset_env, in_axes=(0, axis))(keys, params)

    def step_envs(
        self, keys: jax.Array, states: Any, actions: Any, params: Any, axis: int | None = None
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        """``step_env`` for ``B`` environments, leaves ``[B, ...]``; ``axis`` as in :meth:`reset_envs`.

        Environments of several kinds override this pair: under ``vmap`` a ``lax.switch`` would run every branch.
        """
        return jax.vmap(self.step_env, in_axes=(0, 0, 0, axis))(keys, states, actions, params)

    def sample_tasks(self, keys: jax.Array, params: Any, axis: int | None = None) -> Any:
        """``sample_task`` for ``keys`` ``[B]``: parameters ``[B, ...]``; ``axis`` as in :meth:`reset_envs`."""
        return jax.vmap(self.sample_task, in_axes=(0, axis))(keys, params)

    def longest_episode(self, params: Any) -> Any:
        """Number of steps after which an episode is over at the latest; None if nothing limits it."""
        return getattr(params, "max_steps_in_episode", None)

    def observation_space(self, params: Any) -> Space:
        """Space of one observation."""
        raise NotImplementedError(f"{self.name} must define observation_space(params)")

    def action_space(self, params: Any) -> Space:
        """Space of one action."""
        raise NotImplementedError(f"{self.name} must define action_space(params)")

    def render(self, state: Any, params: Any) -> np.ndarray:
        """Draw the state of one environment, as uint8 ``[H, W, 3]``; outside ``jit``, and always of the same shape.

        It may show what the agent does not see. Raises ``NotImplementedError`` where there is no picture.
        """
        raise NotImplementedError(
            f"{self.name} has no picture: define render(state, params) -> [H, W, 3] uint8 (see ssmrl.envs.drawing)"
        )

    @partial(jax.jit, static_argnames=("self",))
    def reset(self, key: jax.Array, params: Any = None) -> tuple[Any, Any]:
        """Start an episode; ``key`` is consumed. Returns ``(obs, state)``."""
        return self.reset_env(key, self.default_params if params is None else params)

    @partial(jax.jit, static_argnames=("self",))
    def step(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any = None
    ) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """Take one step of one environment, starting a new episode when this one ends; ``key`` is consumed.

        Returns ``(obs, state, reward, terminated, truncated, info)``; after an end, ``obs`` and ``state`` are the new
        episode's and ``info["final_observation"]`` is the old one's last observation. Batches should be stepped by
        ``ssmrl.rollout``, which computes resets only when an episode ended.
        """
        params = self.default_params if params is None else params
        key_step, key_reset = jax.random.split(key)
        final_obs, stepped, reward, terminated, info = self.step_env(key_step, state, action, params)
        truncated = self.is_truncated(stepped, params)
        obs_state = self.reset_env(key_reset, params), (final_obs, stepped)
        obs, state = jax.tree.map(lambda new, old: jnp.where(terminated | truncated, new, old), *obs_state)
        info = {**info, "terminated": terminated, "truncated": truncated, "final_observation": final_obs}
        return obs, state, reward, terminated, truncated, info


def select_rows(mask: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Rows of ``new`` where ``mask`` ``[B]``, else of ``old``, both ``[B, ...]``; they may be random keys."""
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            select_rows(mask, jax.random.key_data(new), jax.random.key_data(old)), impl=jax.random.key_impl(old)
        )
    return jnp.where(mask.reshape(mask.shape + (1,) * (old.ndim - mask.ndim)), new, old)
