"""DarkRoom: find a goal that cannot be seen, then go straight to it."""

import dataclasses
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
from ssmrl.spaces import Discrete, MultiDiscrete

DIRECTIONS = ("stay", "north", "east", "south", "west")
MOVES = np.array(((0, 0), (-1, 0), (0, 1), (1, 0), (0, -1)), np.int32)  # row, column


@struct.dataclass
class DarkRoomTask(EnvParams):
    """``goal`` int32 ``[2]``: row and column."""

    goal: jax.Array = struct.field(kw_only=True)


@struct.dataclass
class State(EnvState):
    """``position`` int32 ``[2]``: row and column of the agent."""

    position: jax.Array


def walk(position: jax.Array, direction: jax.Array, size: int) -> jax.Array:
    """Go one cell in a direction, but not out of the room; returns the position, int32 ``[2]``."""
    return jnp.clip(position + jnp.asarray(MOVES)[direction], 0, size - 1)


def split(numbers: np.ndarray, tasks: str) -> np.ndarray:
    """The indices of ``all`` tasks, of those ``held_out`` or of the others, ``train``: multiples of 5 are held out."""
    held_out = numbers % 5 == 0
    return np.flatnonzero({"all": held_out | True, "held_out": held_out, "train": ~held_out}[tasks])


@envs.register("meta/DarkRoom", variants={"-Hard": {"size": 17, "hard": True}}, defaults={"trial_episodes": 10})
@dataclasses.dataclass(frozen=True)
class DarkRoom(Environment):
    """Find the goal of a dark room; the episodes of a trial have the same one.

    The agent starts in the middle, sees its own row and column and nothing else, and earns 1 in each step that ends on
    the goal, drawn from all cells. Episodes are truncated after ``episode_length`` steps; if ``hard`` they also
    terminate on the goal. A fifth of the goals, a knight's move apart from one another, is ``held_out``; the others
    are for ``train``. Source: Laskin et al. 2022, "In-context Reinforcement Learning with Algorithm Distillation".
    """

    size: int = hp(9, "cells a side of the room", ge=3)
    episode_length: int = hp(20, "time limit in steps", ge=1)
    hard: bool = hp(False, "episodes end on the goal")
    tasks: Literal["all", "train", "held_out"] = hp("all", "goals to draw from; train and held_out share none")

    action_names = DIRECTIONS

    def __post_init__(self) -> None:
        check(self)

    @property
    def goals(self) -> np.ndarray:
        """The cells from which goals are drawn, int32 ``[n, 2]``."""
        row, column = np.divmod(np.arange(self.size**2, dtype=np.int32), self.size)
        return np.stack([row, column], axis=1)[split(row + 2 * column, self.tasks)]

    @property
    def default_params(self) -> DarkRoomTask:
        """The last goal."""
        return DarkRoomTask(max_steps_in_episode=self.episode_length, goal=jnp.asarray(self.goals[-1]))

    def sample_task(self, key: jax.Array, params: DarkRoomTask) -> DarkRoomTask:
        """See ``Environment``."""
        goals = jnp.asarray(self.goals)
        return dataclasses.replace(params, goal=goals[jax.random.randint(key, (), 0, len(goals))])

    def reset_env(self, key: jax.Array, params: DarkRoomTask) -> tuple[jax.Array, State]:
        """See ``Environment``; ``key`` is not used."""
        position = jnp.full(2, self.size // 2, jnp.int32)
        return position, State(jnp.int32(0), position)

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: DarkRoomTask
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        position = walk(state.position, action, self.size)
        found = (position == params.goal).all()
        state = State(state.time + 1, position)
        return position, state, found.astype(jnp.float32), found & self.hard, {}

    def way(self, state: State, params: DarkRoomTask) -> jax.Array:
        """The first action of a shortest way to the goal, int32."""
        return towards(state.position, params.goal)

    def references(self) -> dict[str, Callable[..., jax.Array]]:
        """See :mod:`ssmrl.envs.meta.references`."""
        return {"optimal": references.shortest_way, "random": references.random}

    def render(self, state: State, params: DarkRoomTask) -> np.ndarray:
        """Draw the room as if it were lit."""
        walls = np.zeros((self.size, self.size), bool)
        return scenes.maze(walls, state.position, params.goal, f"Find the hidden goal: step {int(state.time)}")

    def observation_space(self, params: DarkRoomTask) -> MultiDiscrete:
        """Row and column."""
        return MultiDiscrete((self.size, self.size))

    def action_space(self, params: DarkRoomTask) -> Discrete:
        """Stay, north, east, south, west."""
        return Discrete(len(DIRECTIONS))


def towards(position: jax.Array, target: jax.Array) -> jax.Array:
    """The direction of a first step from ``position`` to ``target``, int32 ``[2]`` both; there: to stay."""
    row, column = target - position
    vertical = jnp.where(row < 0, 1, 3)
    horizontal = jnp.where(column > 0, 2, 4)
    return jnp.where(row != 0, vertical, jnp.where(column != 0, horizontal, 0)).astype(jnp.int32)
