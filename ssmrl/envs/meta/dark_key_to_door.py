"""DarkKeyToDoor: find a key and then a door, neither of which can be seen."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.meta import references
from ssmrl.envs.meta.dark_room import DIRECTIONS, split, towards, walk
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Discrete, MultiDiscrete


@struct.dataclass
class KeyToDoorTask(EnvParams):
    """``key`` and ``door`` int32 ``[2]``: row and column; ``directions`` int32 ``[5]``: where each action leads."""

    key: jax.Array = struct.field(kw_only=True)
    door: jax.Array = struct.field(kw_only=True)
    directions: jax.Array = struct.field(kw_only=True)


@struct.dataclass
class State(EnvState):
    """``position`` int32 ``[2]``: row and column of the agent; ``has_key`` bool."""

    position: jax.Array
    has_key: jax.Array


@envs.register("meta/DarkKeyToDoor", defaults={"trial_episodes": 10})
@dataclasses.dataclass(frozen=True)
class DarkKeyToDoor(Environment):
    """Find the key and then the door of a dark room; the episodes of a trial have the same ones, in different cells.

    The agent starts on a random cell and sees its own row and column and nothing else. The first step that ends on the
    key earns 1; the next that ends on the door earns 1 and terminates the episode, which is truncated after
    ``episode_length`` steps, enough for every task. A fifth of the pairs of cells is ``held_out``. With
    ``permute_actions`` each task has its own meaning of the actions. Source: Laskin et al. 2022, "In-context
    Reinforcement Learning with Algorithm Distillation".
    """

    size: int = hp(9, "cells a side of the room", ge=2)
    episode_length: int = hp(50, "time limit in steps", ge=1)
    permute_actions: bool = hp(False, "each task permutes the actions")
    tasks: Literal["all", "train", "held_out"] = hp(
        "all", "key and door to draw from; train and held_out share no pair"
    )

    requires: ClassVar[dict[str, str]] = {"episode_length > 4 * (size - 1)": "there is time for the key and the door"}
    action_names = DIRECTIONS

    def __post_init__(self) -> None:
        check(self)

    @property
    def pairs(self) -> np.ndarray:
        """The key's and the door's cell that tasks are drawn from, int32 ``[n, 2]``, counted row by row."""
        cells = self.size**2
        key, door = np.divmod(np.arange(cells**2, dtype=np.int32), cells)
        chosen = split(key + 2 * door, self.tasks)
        return np.stack([key, door], axis=1)[chosen][key[chosen] != door[chosen]]

    @property
    def default_params(self) -> KeyToDoorTask:
        """The last pair, and actions as they are named."""
        return self._task(
            jnp.asarray(self.pairs[-1]), jnp.arange(len(DIRECTIONS), dtype=jnp.int32), self.episode_length
        )

    def _task(self, pair: jax.Array, directions: jax.Array, limit: int) -> KeyToDoorTask:
        key, door = jnp.stack(jnp.divmod(pair, self.size), axis=1)
        return KeyToDoorTask(max_steps_in_episode=limit, key=key, door=door, directions=directions)

    def sample_task(self, key: jax.Array, params: KeyToDoorTask) -> KeyToDoorTask:
        """See ``Environment``."""
        key_pair, key_directions = jax.random.split(key)
        pairs = jnp.asarray(self.pairs)
        directions = jnp.arange(len(DIRECTIONS), dtype=jnp.int32)
        if self.permute_actions:
            directions = jax.random.permutation(key_directions, directions)
        pair = pairs[jax.random.randint(key_pair, (), 0, len(pairs))]
        return self._task(pair, directions, params.max_steps_in_episode)

    def reset_env(self, key: jax.Array, params: KeyToDoorTask) -> tuple[jax.Array, State]:
        """See ``Environment``."""
        position = jax.random.randint(key, (2,), 0, self.size, jnp.int32)
        return position, State(jnp.int32(0), position, jnp.bool_(False))

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: KeyToDoorTask
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        position = walk(state.position, params.directions[action], self.size)
        takes_key = ~state.has_key & (position == params.key).all()
        opens = state.has_key & (position == params.door).all()
        state = State(state.time + 1, position, state.has_key | takes_key)
        return position, state, (takes_key | opens).astype(jnp.float32), opens, {}

    def way(self, state: State, params: KeyToDoorTask) -> jax.Array:
        """The first action of a shortest way to the key or, with it, to the door, int32."""
        direction = towards(state.position, jnp.where(state.has_key, params.door, params.key))
        return jnp.argmax(params.directions == direction).astype(jnp.int32)

    def references(self) -> dict[str, Callable[..., jax.Array]]:
        """See :mod:`ssmrl.envs.meta.references`."""
        return {"optimal": references.shortest_way, "random": references.random}

    def render(self, state: State, params: KeyToDoorTask) -> np.ndarray:
        """Draw the room as if it were lit."""
        canvas = drawing.Canvas()
        goal = "the door" if state.has_key else "the key, then the door"
        drawing.title(canvas, f"Find {goal}: step {int(state.time)}", "red: agent   yellow: key   green: door")
        squares = np.full((self.size, self.size, 3), drawing.WHITE)
        squares[tuple(np.asarray(params.door))] = drawing.GREEN
        if not state.has_key:
            squares[tuple(np.asarray(params.key))] = drawing.YELLOW
        left, top, side = drawing.board(canvas, squares, line=drawing.FAINT)
        y, x = np.asarray(state.position) + 0.5
        fill = drawing.YELLOW if state.has_key else drawing.RED
        canvas.circle(left + x * side, top + y * side, 0.36 * side, fill, drawing.RED, 0.1 * side)
        return canvas.to_array()

    def observation_space(self, params: KeyToDoorTask) -> MultiDiscrete:
        """Row and column."""
        return MultiDiscrete((self.size, self.size))

    def action_space(self, params: KeyToDoorTask) -> Discrete:
        """Stay, north, east, south, west."""
        return Discrete(len(DIRECTIONS))
