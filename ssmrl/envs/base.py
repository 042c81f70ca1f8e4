"""The environment contract: gymnax 1.x's protocol, with spaces that hash by value.

An environment is a frozen dataclass. Its fields are the parameters that fix shapes or rules (static under ``jit``;
equal environments share compiled code); numbers that may vary under ``vmap`` go into ``EnvParams``. Authors write
``reset_env``, ``step_env`` and the two spaces; ``terminated`` is the natural end alone, the clock is ``is_truncated``.
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
