"""Rooms with coloured walls and things lying about: know them when they come into view again."""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from ssmrl.envs.base import EnvState
from ssmrl.envs.memory import tiles
from ssmrl.envs.memory.scripted import Annotation, ScriptedEnvironment
from ssmrl.registry import envs, hp
from ssmrl.spaces import Discrete

COLORS = 6
WALL, OBJECT = len(tiles.BASE), len(tiles.BASE) + COLORS  # kinds of the first colours
NOISE = 0.05  # share of random actions in the script


class Layout(NamedTuple):
    """What the number and size of rooms fix; ``cells`` are those that are not walls.

    ``places`` int32 ``[height, width]``: 0 outside, ``1 + room`` on its walls, ``1 + rooms + cell`` on a cell;
    ``position`` int32 ``[cells, 2]``; ``room`` int32 ``[cells]``; ``inside`` int32 ``[rooms, size**2]``: the cells of
    each room but for its doors; ``next_hop`` int8 ``[cells, cells]``: the first action on a shortest way.
    """

    places: np.ndarray
    position: np.ndarray
    room: np.ndarray
    inside: np.ndarray
    next_hop: np.ndarray


@functools.cache
def layout(rows: int, columns: int, size: int) -> Layout:
    """Lay out ``rows x columns`` rooms of ``size x size`` cells, each in its own walls, with doors in their middles."""
    block, middle = size + 2, size // 2 + 1
    room_of = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns).repeat(block, 0).repeat(block, 1)
    along = [np.arange(n * block) % block for n in (rows, columns)]
    row, column = np.meshgrid(*along, indexing="ij")
    inside = (row % (block - 1) > 0) & (column % (block - 1) > 0)
    doors = ((row == middle) & ~inside) | ((column == middle) & ~inside)
    doors[[0, -1]] = doors[:, [0, -1]] = False
    inside, doors, room_of = (
        np.pad(x, 1, constant_values=v) for x, v in ((inside, False), (doors, False), (room_of, -1))
    )

    position = np.argwhere(inside | doors).astype(np.int32)
    places = room_of + 1
    places[tuple(position.T)] = 1 + rows * columns + np.arange(len(position), dtype=np.int32)
    cell_of = places - 1 - rows * columns
    room = room_of[tuple(position.T)]
    cells = np.stack([cell_of[inside & (room_of == i)] for i in range(rows * columns)])
    return Layout(places, position, room, cells, _next_hops(cell_of, position))


def _next_hops(cell_of: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The first actions on shortest ways, int8 ``[cells, cells]`` from where to where."""
    from scipy.sparse.csgraph import shortest_path

    n = len(position)
    neighbours = np.stack([cell_of[tuple((position + move).T)] for move in tiles.MOVES], axis=1)  # negative: none
    graph = np.zeros((n, n))
    cell, direction = np.nonzero(neighbours >= 0)
    graph[cell, neighbours[cell, direction]] = 1
    distance = shortest_path(graph, unweighted=True)
    onwards = np.where((neighbours >= 0)[..., None], distance[neighbours], np.inf)
    return onwards.argmin(1).astype(np.int8)


@struct.dataclass
class State(EnvState):
    """The rooms, and who is in them.

    ``walls`` int32 ``[rooms]``: colours; ``objects`` int32 ``[cells]``: 0 is none, else a colour counted from 1;
    ``position`` and ``previous`` int32 ``[2]``: row and column; ``facing`` int32; ``poses`` int32 ``[tour, 3]``: row,
    column and facing in the frames before the jump; ``jump`` int32: to which of them.
    """

    walls: jax.Array
    objects: jax.Array
    position: jax.Array
    previous: jax.Array
    facing: jax.Array
    poses: jax.Array
    jump: jax.Array


@envs.register("memory/TwoRooms", variants={"-Teleport": {"teleport": True}})
@envs.register(
    "memory/FourRooms",
    variants={"-Teleport": {"teleport": True}},
    defaults={"rows": 2, "columns": 2, "context": 128, "query": 64},
)
@envs.register(
    "memory/TenRooms",
    variants={"-Teleport": {"teleport": True}},
    defaults={"rows": 2, "columns": 5, "context": 320, "query": 160},
)
@dataclasses.dataclass(frozen=True)
class Rooms(ScriptedEnvironment):
    """Know the walls and objects of rooms when they come back into view.

    Each room has walls of a random colour and two objects of random colours on random cells. A task of prediction: the
    reward is always 0. Neighbouring rooms are joined by doors in the middles of their walls; the agent starts in the
    middle of the first room and can step onto objects. The scripted policy walks to random cells on shortest ways, with
    5 % random actions. With ``teleport``, the agent jumps to where it was, and as it stood, in a random earlier frame,
    whatever the action; of the frames to observe, the one where it lands and ``observed`` more are the last.

    After the Two, Four and Ten Rooms of Deng et al. 2023, "Facing Off World Model Backbones: RNNs, Transformers, and
    S4", which are three-dimensional.
    """

    rows: int = hp(1, "rows of rooms", ge=1)
    columns: int = hp(2, "rooms in a row", ge=1)
    room_size: int = hp(5, "cells a side of a room", ge=2)
    context: int = hp(64, "frames to observe, the first one included", ge=2)
    query: int = hp(32, "frames to imagine after them", ge=1)
    teleport: bool = hp(False, "jump to an earlier position before the frames to imagine")
    observed: int = hp(0, "frames to observe after the one in which a jump ends", ge=0)
    pixels: bool = hp(False, "observe a picture of 40x40 pixels")

    requires: ClassVar[dict[str, str]] = {
        "observed + 2 <= context": "some frames must come before the jump",
        "teleport or observed == 0": "without a jump no frame comes after it",
    }
    action_names = tiles.DIRECTIONS

    @property
    def layout(self) -> Layout:
        """What is the same in every episode."""
        return layout(self.rows, self.columns, self.room_size)

    @property
    def tour(self) -> int:
        """Number of frames before the jump; 1 if there is none."""
        return self.context - 1 - self.observed if self.teleport else 1

    @property
    def kinds(self) -> tuple[tiles.Tile, ...]:
        """Outside, floor, the agent's four facings, six colours of walls and of objects."""
        colored = ((shape, i) for shape in ("wall", "ball") for i in range(COLORS))
        return (*tiles.BASE, *colored)

    @property
    def fact_classes(self) -> dict[str, int]:
        """The room and the cell in which the agent is, and the colours of all walls."""
        return {"room": self.rows * self.columns, "position": len(self.layout.position), "walls": COLORS}

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``."""
        key_rooms, key_jump = jax.random.split(key)
        inside = jnp.asarray(self.layout.inside)
        rooms, size = inside.shape
        kinds = jnp.array([size, size - 1, COLORS, COLORS, COLORS], jnp.int32)
        first, apart, walls, *colors = jax.random.randint(key_rooms, (5, rooms), 0, kinds[:, None], jnp.int32)
        where = jnp.stack([first, (first + 1 + apart) % size], axis=1)  # of the objects: [rooms, 2]
        where = jnp.take_along_axis(inside, where, axis=1)
        start = self.layout.position[self.layout.inside[0, self.room_size // 2 * (self.room_size + 1)]]
        position = jnp.asarray(start, jnp.int32)
        pose = jnp.array([*start, tiles.UP], jnp.int32)
        state = State(
            time=jnp.int32(0),
            walls=walls,
            objects=jnp.zeros(len(self.layout.position), jnp.int32).at[where].set(1 + jnp.stack(colors, axis=1)),
            position=position,
            previous=position - tiles.FAR,
            facing=jnp.int32(tiles.UP),
            poses=jnp.zeros((self.tour, 3), jnp.int32).at[0].set(pose),
            jump=jax.random.randint(key_jump, (), 0, self.tour, jnp.int32),
        )
        return self.observe(state), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        solid = self.layout.places <= self.rows * self.columns
        pose = jnp.append(tiles.walk(solid, state.position, action), jnp.asarray(action, jnp.int32))
        poses = state.poses
        if self.teleport:
            pose = jnp.where(state.time + 1 == self.tour, poses[state.jump], pose)
            poses = poses.at[state.time + 1].set(pose, mode="drop")
        state = dataclasses.replace(
            state, time=state.time + 1, position=pose[:2], previous=state.position, facing=pose[2], poses=poses
        )
        return self.observe(state), state, jnp.float32(0), jnp.bool_(False), {}

    def script(self, key: jax.Array, state: State, params: Any) -> jax.Array:
        """See ``ScriptedEnvironment``; ways to random cells, with some noise."""
        next_hop = jnp.asarray(self.layout.next_hop)
        num_cells = len(next_hop)

        def go(carry: tuple[State, jax.Array], key: jax.Array) -> tuple[tuple[State, jax.Array], jax.Array]:
            state, goal = carry
            key_goal, key_noise, key_random, key_step = jax.random.split(key, 4)
            here = self._cell(state)
            goal = jnp.where(goal == here, jax.random.randint(key_goal, (), 0, num_cells, jnp.int32), goal)
            way = next_hop[here, goal].astype(jnp.int32)
            anywhere = jax.random.randint(key_random, (), 0, len(tiles.DIRECTIONS), jnp.int32)
            action = jnp.where(jax.random.bernoulli(key_noise, NOISE), anywhere, way)
            return (self.step_env(key_step, state, action, params)[1], goal), action

        _, actions = lax.scan(go, (state, self._cell(state)), jax.random.split(key, self.num_steps))
        return actions

    def _cell(self, state: State) -> jax.Array:
        place = jnp.asarray(self.layout.places)[state.position[0], state.position[1]]
        return place - 1 - self.rows * self.columns

    def annotate(self, state: State, params: Any) -> Annotation:
        """See ``ScriptedEnvironment``; the cells are the walls of a room, by room, then objects, by place.

        Walls count when the previous frame showed none of their room, objects when they come into view.
        """
        places, rooms = jnp.asarray(self.layout.places), self.rows * self.columns
        now, before = tiles.view(places, state.position), tiles.view(places, state.previous)
        known = (now[:, None] == before[None]).any(1) & (state.time > 0)
        is_wall = (now > 0) & (now <= rooms)
        is_object = self._contents(state)[now] >= OBJECT
        recalled = (is_wall & ~known) | (is_object & tiles.appeared(state.position, state.previous))
        cell = self._cell(state)
        facts = {"room": jnp.asarray(self.layout.room)[cell][None], "position": cell[None], "walls": state.walls}
        return Annotation(jnp.where(recalled, now - 1, -1), {}, facts)

    def _contents(self, state: State) -> jax.Array:
        """Kinds of tiles: outside, the walls of each room, then what is on each cell."""
        lying = jnp.where(state.objects == 0, tiles.FLOOR, OBJECT - 1 + state.objects)
        return jnp.concatenate([jnp.full(1, tiles.WALL, jnp.int32), WALL + state.walls, lying])

    def see(self, state: State) -> jax.Array:
        """The tiles around the agent, int32 ``[25]``."""
        return tiles.look(self.layout.places, self._contents(state), state.position, state.facing)

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the rooms, or those around the agent."""
        note = f"step {int(state.time)}" + (f"   jump at step {self.tour}" if self.teleport else "")
        return tiles.draw(
            "Know the rooms again", note, self.kinds, self.layout.places, self._contents(state), state
        ).to_array()

    def action_space(self, params: Any) -> Discrete:
        """Up, right, down, left."""
        return Discrete(len(tiles.DIRECTIONS))
