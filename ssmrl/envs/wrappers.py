"""What any environment can be given on top, always in the same order: flat actions, then a time limit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl.envs.base import Environment
from ssmrl.registry import hp
from ssmrl.spaces import Discrete, MultiDiscrete, Space


@dataclasses.dataclass(frozen=True)
class Wrapper(Environment):
    """An environment with flat actions or another time limit; ``make`` applies it where one is asked for."""

    env: Any
    flat_actions: bool = hp(False, "turn a vector of discrete actions into one discrete action, row-major")
    max_steps: int = hp(0, "time limit in steps that truncates the episode (0: the environment's own)", ge=0)

    @property
    def name(self) -> str:
        """Name of the wrapped environment."""
        return self.env.name

    @property
    def default_params(self) -> Any:
        """Parameters of the wrapped environment, with the time limit given here where they have one."""
        params = self.env.default_params
        if self.max_steps and hasattr(params, "max_steps_in_episode"):
            params = params.replace(max_steps_in_episode=self.max_steps)
        return params

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """See ``Environment``."""
        return self.env.reset_env(key, params)

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        space = self.env.action_space(self.env.default_params)  # params may be traced, and do not change the kind
        if self.flat_actions and isinstance(space, MultiDiscrete):
            action = jnp.stack(jnp.unravel_index(action, space.nvec), axis=-1).astype(jnp.int32)
        return self.env.step_env(key, state, action, params)

    def __getattr__(self, name: str) -> Any:
        """What else the wrapped environment has, say a scripted policy."""
        if name.startswith("_") or name == "env":  # not yet there while an instance is copied or read
            raise AttributeError(name)
        return getattr(self.env, name)

    @property
    def action_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the wrapped environment's actions."""
        return self.env.action_names

    def render(self, state: Any, params: Any) -> np.ndarray:
        """Draw the wrapped environment."""
        return self.env.render(state, params)

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        """See ``Environment``; a time limit given here holds whatever the environment's own rule."""
        own = self.env.is_truncated(state, params)
        return own | (state.time >= self.max_steps) if self.max_steps else own

    def observation_space(self, params: Any) -> Space:
        """Space of one observation."""
        return self.env.observation_space(params)

    def action_space(self, params: Any) -> Space:
        """Space of one action."""
        space = self.env.action_space(params)
        if self.flat_actions and isinstance(space, MultiDiscrete):
            return Discrete(int(np.prod(space.nvec)))
        return space
