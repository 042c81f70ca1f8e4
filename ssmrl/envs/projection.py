"""Random projections of observations and actions: a new problem in each trial, with the same solution.

After the in-context experiments of Lu et al. (2023): an agent that sees ``M_o @ obs`` and acts by ``M_a @ action``,
under matrices that it is not told, can only find out what they are. The projections are drawn with the task.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs.wrappers import Wrapper
from ssmrl.spaces import Box, Space


@struct.dataclass
class ProjectedTask:
    """The wrapped environment's task, and the projections through which it is seen and acted in."""

    task: Any
    observation: jax.Array  # [O, size of the wrapped observation]; [0, 0] where observations are left alone
    action: jax.Array  # [size of the wrapped action, A]; [0, 0] where actions are


@dataclasses.dataclass(frozen=True)
class Projection(Wrapper):
    """An environment behind random orthonormal projections, constant within a task.

    With ``observations`` at least as large as the wrapped observation nothing is lost: the columns of the matrix are
    orthonormal. Projected actions are in ``[-1, 1]``; what they make of the wrapped ones is clipped to ``[-1, 1]`` and
    scaled to their bounds. With ``actions`` at least as large as the wrapped action they reach every direction, since
    the rows are orthonormal, but not all of the box: a turned square leaves out some of the corners. 0 leaves
    either alone. Raises ``ValueError`` if what is to be projected is no flat ``Box``, or actions have no bounds.
    """

    observations: int
    actions: int

    def __post_init__(self) -> None:
        params = self.env.default_params
        found = {"observations": self.env.observation_space(params), "actions": self.env.action_space(params)}
        for name, space in found.items():
            if getattr(self, name) and not (isinstance(space, Box) and len(space.shape) == 1):
                raise ValueError(f"project_{name}={getattr(self, name)}: {self.name} has {name} in {space}; use 0")
        if self.actions and not np.isfinite(found["actions"].bounds()).all():
            raise ValueError(f"project_actions={self.actions}: {self.name} has actions without bounds; use 0")

    def _sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        params = self.env.default_params
        obs, action = self.env.observation_space(params).shape, self.env.action_space(params).shape
        return (
            (self.observations, obs[0]) if self.observations else (0, 0),
            (action[0], self.actions) if self.actions else (0, 0),
        )

    @property
    def default_params(self) -> ProjectedTask:
        """The wrapped environment's task, seen as it is: with zeros behind, or cut off."""
        obs, action = (jnp.eye(*size) for size in self._sizes())
        return ProjectedTask(self.env.default_params, obs, action)

    def sample_tasks(self, keys: jax.Array, params: Any, axis: int | None = None) -> ProjectedTask:
        """See ``Environment``."""
        keys_task, keys_obs, keys_action = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(keys)
        obs, action = self._sizes()
        return ProjectedTask(
            self.env.sample_tasks(keys_task, params.task, axis),
            jax.vmap(lambda k: orthonormal(k, *obs))(keys_obs),
            jax.vmap(lambda k: orthonormal(k, *action))(keys_action),
        )

    def reset_envs(self, keys: jax.Array, params: Any, axis: int | None = None) -> tuple[Any, Any]:
        """See ``Environment``."""
        obs, states = self.env.reset_envs(keys, params.task, axis)
        return self._project(obs, params, axis), states

    def step_envs(
        self, keys: jax.Array, states: Any, actions: Any, params: Any, axis: int | None = None
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        if self.actions:
            low, high = self.env.action_space(self.env.default_params).bounds()
            actions = jnp.clip(jax.vmap(jnp.matmul, in_axes=(axis, 0))(params.action, actions), -1, 1)
            actions = low[None] + (actions + 1) / 2 * (high - low)[None]
        obs, states, reward, terminated, info = self.env.step_envs(keys, states, actions, params.task, axis)
        return self._project(obs, params, axis), states, reward, terminated, info

    def _project(self, obs: jax.Array, params: Any, axis: int | None) -> jax.Array:
        if not self.observations:
            return obs
        return jax.vmap(jnp.matmul, in_axes=(axis, 0))(params.observation, jnp.asarray(obs, jnp.float32))

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        """See ``Environment``."""
        return self.env.is_truncated(state, params.task)

    def longest_episode(self, params: Any) -> Any:
        """See ``Environment``."""
        return self.env.longest_episode(params.task)

    def observation_space(self, params: Any) -> Space:
        """Space of one observation."""
        if not self.observations:
            return self.env.observation_space(params.task)
        low, high = self.env.observation_space(params.task).bounds()
        reach = float(np.sqrt(np.sum(np.maximum(np.abs(low), np.abs(high)).astype(np.float64) ** 2)))
        return Box(-reach, reach, (self.observations,))  # a projection does not lengthen

    def action_space(self, params: Any) -> Space:
        """Space of one action."""
        return Box(-1.0, 1.0, (self.actions,)) if self.actions else self.env.action_space(params.task)

    def render(self, state: Any, params: Any) -> np.ndarray:
        """Draw the wrapped environment."""
        return self.env.render(state, params.task)


def orthonormal(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Draw a matrix ``[rows, columns]`` with orthonormal columns, or rows if they are fewer, uniformly (Haar).

    ``key`` is consumed.
    """
    tall = jax.random.normal(key, (max(rows, columns), min(rows, columns)))
    q, r = jnp.linalg.qr(tall)
    q = q * jnp.sign(jnp.diagonal(r))[None]  # without this the law is not uniform (Mezzadri 2007)
    return q if rows >= columns else q.T
