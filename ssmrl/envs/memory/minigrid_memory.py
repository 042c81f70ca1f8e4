"""MiniGridMemory: an object in a room tells which of two objects at the end of a hallway to go to.

Source: Chevalier-Boisvert et al. 2023, "Minigrid & Miniworld", ``MiniGrid-Memory``.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.memory import tiles
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Discrete, MultiDiscrete

TURN_LEFT, TURN_RIGHT, FORWARD = range(3)
NUM_ACTIONS = 7  # the others do nothing here
MOVES = np.array(((0, 1), (1, 0), (0, -1), (-1, 0)), np.int32)  # right, down, left, up: (row, column)
VIEW = 7  # squares a side; the agent is in the middle of the last row
UNSEEN, EMPTY, WALL, CUE, UPPER, LOWER = range(6)  # what a square of the map is
KEY = CUE  # kinds that are observed: unseen, empty, wall, key, ball
ROOM_END = 4  # column of the wall between the room and the hallway


def in_view(position: np.ndarray, facing: np.ndarray) -> np.ndarray:
    """Rows and columns of the squares in front of an agent, int ``[..., 7, 7, 2]``: farthest row first, left to right.

    ``position`` is int ``[..., 2]``, ``facing`` int ``[...]``: 0 right, 1 down, 2 left, 3 up.
    """
    ahead, aside = VIEW - 1 - np.arange(VIEW), np.arange(VIEW) - VIEW // 2
    forward, right = (MOVES[d][..., None, None, :] for d in (facing, (facing + 1) % 4))
    return position[..., None, None, :] + ahead[:, None, None] * forward + aside[None, :, None] * right


def line_of_sight(clear: np.ndarray) -> np.ndarray:
    """Which squares of views ``clear`` (bool ``[N, 7, 7]``: one can look through) are seen: MiniGrid's rule.

    Sight spreads from the agent's square along its row, to the right and then to the left, and from each clear square
    to the three squares ahead on that side, the next row then going on from there.
    """
    seen = np.zeros_like(clear)
    seen[:, -1, VIEW // 2] = True
    for row in reversed(range(VIEW)):
        for columns, side in ((range(VIEW - 1), 1), (range(VIEW - 1, 0, -1), -1)):
            for column in columns:
                through = seen[:, row, column] & clear[:, row, column]
                seen[:, row, column + side] |= through
                if row > 0:
                    seen[:, row - 1, column] |= through
                    seen[:, row - 1, column + side] |= through
    return seen


@functools.cache
def layouts(size: int, ends: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Maps for each column ``ends`` of the hallway's end, and what is seen in them; walls and objects never move.

    Returns the maps, int8 ``[ends, size, size]``, and the views ``[ends, size, size, 4, 49]`` by row, column, facing.
    """
    middle = size // 2
    maps = np.full((len(ends), size, size), EMPTY, np.int8)
    maps[:, [0, -1]] = maps[:, :, [0, -1]] = WALL
    for grid, end in zip(maps, ends, strict=True):
        grid[[middle - 2, middle + 2], 1 : ROOM_END + 1] = WALL
        grid[[middle - 1, middle + 1], ROOM_END:end] = WALL
        grid[:, [end, end + 2]] = WALL
        grid[middle, end] = EMPTY
        grid[[middle - 1, middle - 2, middle + 2], [1, end + 1, end + 1]] = CUE, UPPER, LOWER
    where = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1)
    squares = in_view(np.repeat(where[:, :, None], 4, 2), np.broadcast_to(np.arange(4), (size, size, 4)))
    inside = ((squares >= 0) & (squares < size)).all(-1)
    rows, columns = np.moveaxis(np.clip(squares, 0, size - 1), -1, 0)
    views = np.where(inside, maps[:, rows, columns], WALL).reshape(-1, VIEW, VIEW)
    views = np.where(line_of_sight(views != WALL), views, UNSEEN)
    views[:, -1, VIEW // 2] = EMPTY  # the agent's own
    return maps, views.reshape(len(ends), size, size, 4, VIEW**2).astype(np.int8)


@struct.dataclass
class State(EnvState):
    """The objects and who looks for one.

    ``cue`` and ``upper`` int32: the object in the room and the one at the upper end, 0 a key, 1 a ball; ``layout``
    int32: which of the lengths; ``position`` int32 ``[2]``: row and column; ``facing`` int32: right, down, left, up.
    """

    cue: jax.Array
    upper: jax.Array
    layout: jax.Array
    position: jax.Array
    facing: jax.Array


@envs.register(
    "memory/MiniGridMemory",
    variants={
        "-S7": {"size": 7},
        "-S9": {"size": 9},
        "-S11": {"size": 11},
        "-S13": {"size": 13},
        "-S17": {"size": 17},
        "-S13Random": {"size": 13, "random_length": True},
        "-S17Random": {"size": 17, "random_length": True},
        "-S7-Visible": {"size": 7, "visible": True},
        "-S9-Visible": {"size": 9, "visible": True},
        "-S11-Visible": {"size": 11, "visible": True},
        "-S13-Visible": {"size": 13, "visible": True},
        "-S17-Visible": {"size": 17, "visible": True},
    },
)
@dataclasses.dataclass(frozen=True)
class MiniGridMemory(Environment):
    """Go to the object, a key or a ball, that was in the room at the other end of the hallway.

    The rules, the view and the actions are MiniGrid's; the observation are the kinds of the 7x7 squares in front of the
    agent, row by row from the farthest (unseen, empty, wall, key, ball), and its direction (right, down, left, up). The
    agent starts facing right in a random column of room and hallway, where in general it must turn back to see the cue;
    with ``visible`` it always starts beside the cue (ours). The episode terminates beside either object: the reward is
    1 - 0.9 t / T at the right one and 0 at the other; the time limit T is ``5 * size**2``.
    """

    size: int = hp(7, "squares of the map a side, odd", ge=7)
    random_length: bool = hp(False, "draw each episode's length of the hallway")
    visible: bool = hp(False, "start where the cue is in view")

    requires: ClassVar[dict[str, str]] = {"size % 2 == 1": "the hallway is in the middle"}
    action_names = ("left", "right", "forward", "pickup", "drop", "toggle", "done")

    def __post_init__(self) -> None:
        check(self)

    @property
    def default_params(self) -> EnvParams:
        """MiniGrid's time limit."""
        return EnvParams(max_steps_in_episode=5 * self.size**2)

    @property
    def ends(self) -> tuple[int, ...]:
        """Columns where the hallway may end."""
        return tuple(range(ROOM_END, self.size - 2)) if self.random_length else (self.size - 3,)

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, State]:
        """Draw the objects, the length, and where the agent starts; ``key`` is consumed."""
        key_things, key_start = jax.random.split(key)
        ends = jnp.array(self.ends, jnp.int32)
        cue, upper, layout = jax.random.randint(key_things, (3,), 0, jnp.array([2, 2, len(self.ends)]), jnp.int32)
        column = jnp.int32(1) if self.visible else jax.random.randint(key_start, (), 1, ends[layout] + 1, jnp.int32)
        position = jnp.stack([jnp.int32(self.size // 2), column])
        state = State(jnp.int32(0), cue, upper, layout, position, jnp.int32(0))
        return self._observe(state), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        turn = (action == TURN_RIGHT).astype(jnp.int32) - (action == TURN_LEFT)
        ahead = state.position + jnp.asarray(MOVES)[state.facing]
        maps = jnp.asarray(layouts(self.size, self.ends)[0])
        moves = (action == FORWARD) & (maps[state.layout, ahead[0], ahead[1]] == EMPTY)
        position = jnp.where(moves, ahead, state.position)
        state = dataclasses.replace(state, time=state.time + 1, position=position, facing=(state.facing + turn) % 4)
        row, column = position
        at_junction = column == jnp.array(self.ends, jnp.int32)[state.layout] + 1
        at_upper, at_lower = (at_junction & (row == self.size // 2 + d) for d in (-1, 1))
        right = jnp.where(state.upper == state.cue, at_upper, at_lower)
        reward = jnp.where(right, 1 - 0.9 * state.time / params.max_steps_in_episode, 0).astype(jnp.float32)
        return self._observe(state), state, reward, at_upper | at_lower, {}

    def _kinds(self, state: State) -> jax.Array:
        """What the squares of the map look like, int32 ``[6]``."""
        objects = KEY + jnp.stack([state.cue, state.upper, 1 - state.upper])
        return jnp.concatenate([jnp.array([UNSEEN, EMPTY, WALL]), objects]).astype(jnp.int32)

    def _observe(self, state: State) -> jax.Array:
        views = jnp.asarray(layouts(self.size, self.ends)[1])
        seen = views[state.layout, state.position[0], state.position[1], state.facing]
        return jnp.append(self._kinds(state)[seen], state.facing)

    def render(self, state: State, params: EnvParams) -> np.ndarray:
        """Draw the map; what the agent does not see now is dark."""
        maps, views = layouts(self.size, self.ends)
        layout, facing, position = int(state.layout), int(state.facing), np.asarray(state.position)
        pictures = tiles.pictures((*tiles.BASE, ("key", 2), ("ball", 2)))
        look = np.array([tiles.FLOOR, tiles.FLOOR, tiles.WALL, len(tiles.BASE), len(tiles.BASE) + 1])
        grid = look[np.asarray(self._kinds(state))[maps[layout]]]
        grid[tuple(position)] = tiles.AGENT + (facing + 1) % 4  # there, up comes first
        seen = views[layout, position[0], position[1], facing].reshape(VIEW, VIEW) != UNSEEN
        squares = in_view(position, np.asarray(facing))[seen]
        squares = squares[((squares >= 0) & (squares < self.size)).all(-1)]
        light = np.full((self.size, self.size), 0.6)
        light[tuple(squares.T)] = 1.0
        shown = (
            np.asarray(tiles.assemble(pictures, grid)) * np.kron(light, np.ones((tiles.SIDE, tiles.SIDE)))[..., None]
        )
        canvas = drawing.Canvas()
        limit = int(params.max_steps_in_episode)
        drawing.title(canvas, "Go to the object seen in the room", f"step {int(state.time)} of {limit}")
        scale = (canvas.height - 52) // len(shown)
        side = scale * len(shown)
        shown = shown.astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
        canvas.paste(shown, (canvas.width - side) // 2, 44 + (canvas.height - 52 - side) // 2)
        return canvas.to_array()

    def observation_space(self, params: EnvParams) -> MultiDiscrete:
        """49 squares (unseen, empty, wall, key, ball), then the direction (right, down, left, up)."""
        return MultiDiscrete((*VIEW**2 * (KEY + 2,), 4))

    def action_space(self, params: EnvParams) -> Discrete:
        """Turn left, turn right, go forward; four actions that do nothing here."""
        return Discrete(NUM_ACTIONS)
