"""PointRobot: find a point of the plane by what moving around is worth."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import scenes
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.meta import references
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Box

STEP = 0.1  # greatest move along each axis


@struct.dataclass
class PointTask(EnvParams):
    """``goal`` float32 ``[2]``."""

    goal: jax.Array = struct.field(kw_only=True)


@struct.dataclass
class State(EnvState):
    """``position`` float32 ``[2]``."""

    position: jax.Array


@envs.register("meta/PointRobot", variants={"-Dense": {"reward": "dense"}}, defaults={"trial_episodes": 3})
@dataclasses.dataclass(frozen=True)
class PointRobot(Environment):
    """Go to a goal that cannot be seen; the episodes of a trial have the same one.

    The agent starts in the origin, sees its position and moves by up to 0.1 along each axis. Goals are drawn uniformly
    from the upper half of the unit circle (``semicircle``) or from [-1, 1] x [-1, 1] (``square``). The ``dense`` reward
    is minus the distance d to the goal; the ``sparse`` one is 1 - d where d <= ``goal_radius``, and 0 elsewhere.
    Episodes are truncated after ``episode_length`` steps. After Rakelly et al. 2019 (PEARL) and Zintgraf et al. 2020
    (VariBAD).
    """

    goals: Literal["semicircle", "square"] = hp("semicircle", "where goals are")
    reward: Literal["dense", "sparse"] = hp("sparse", "reward everywhere, or near the goal alone")
    goal_radius: float = hp(0.2, "distance from the goal within which there is a sparse reward", gt=0.0)
    episode_length: int = hp(100, "time limit in steps", ge=1)

    def __post_init__(self) -> None:
        check(self)

    @property
    def default_params(self) -> PointTask:
        """A goal in (0, 1)."""
        return PointTask(max_steps_in_episode=self.episode_length, goal=jnp.array([0.0, 1.0]))

    def sample_task(self, key: jax.Array, params: PointTask) -> PointTask:
        """See ``Environment``."""
        if self.goals == "square":
            return dataclasses.replace(params, goal=jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0))
        angle = jax.random.uniform(key, maxval=math.pi)
        return dataclasses.replace(params, goal=jnp.stack([jnp.cos(angle), jnp.sin(angle)]))

    def reset_env(self, key: jax.Array, params: PointTask) -> tuple[jax.Array, State]:
        """See ``Environment``; ``key`` is not used."""
        position = jnp.zeros(2)
        return position, State(jnp.int32(0), position)

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: PointTask
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        position = state.position + STEP * jnp.clip(action, -1, 1)
        distance = jnp.linalg.norm(position - params.goal)
        near = jnp.where(distance <= self.goal_radius, 1 - distance, 0.0)
        reward = -distance if self.reward == "dense" else near
        return position, State(state.time + 1, position), reward, jnp.bool_(False), {}

    def way(self, state: State, params: PointTask) -> jax.Array:
        """The action that leads nearest to the goal, float32 ``[2]``."""
        return jnp.clip((params.goal - state.position) / STEP, -1, 1)

    def references(self) -> dict[str, Callable[..., jax.Array]]:
        """See :mod:`ssmrl.envs.meta.references`."""
        return {"optimal": references.shortest_way, "random": references.random}

    def render(self, state: State, params: PointTask) -> np.ndarray:
        """Draw the plane from -1.4 to 1.4, and the goal."""
        arc, shown = float(self.goals == "semicircle"), np.clip(state.position, -1.4, 1.4)
        return scenes.plane(
            f"Find the hidden goal: step {int(state.time)}", 1.4, [shown], params.goal, self.goal_radius, arc=arc
        )

    def observation_space(self, params: PointTask) -> Box:
        """The position."""
        return Box(-math.inf, math.inf, (2,))

    def action_space(self, params: PointTask) -> Box:
        """The move, in tenths."""
        return Box(-1.0, 1.0, (2,))
