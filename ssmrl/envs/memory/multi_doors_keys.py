"""MultiDoorsKeys: a corridor with keys on one side, doors on the other, and a hand that holds one key."""

import dataclasses
from typing import Any, ClassVar

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

PICK, TOGGLE = 4, 5  # the actions after the four directions
KEY = len(tiles.BASE)  # kind of the first colour; then locked doors, then open doors
THINGS = 2  # what differs from episode to episode, after wall and floor
DOOR_ROW, TOP, BOTTOM, KEY_ROW, HEIGHT = 1, 2, 4, 5, 7
FIRST = 2  # column of the first door and of the first key
NOTHING, OPEN_DOOR, LOCKED_DOOR = range(3)  # what the last action toggled
TRIES = 2  # of each door with each key


@struct.dataclass
class State(EnvState):
    """The corridor, and who is in it.

    ``key_colors`` and ``door_colors`` int32 ``[n]``: the same colours, from left to right; ``taken`` and ``opened``
    bool ``[n]``: keys and doors by place; ``held`` int32: the colour of the key in the hand, from 1; 0 is none;
    ``position`` and ``previous`` int32 ``[2]``: row and column; ``facing`` int32; ``toggled`` int32: what the last
    action toggled.
    """

    key_colors: jax.Array
    door_colors: jax.Array
    taken: jax.Array
    opened: jax.Array
    held: jax.Array
    position: jax.Array
    previous: jax.Array
    facing: jax.Array
    toggled: jax.Array


@envs.register(
    "memory/MultiDoorsKeys",
    variants={"-2": {"num_keys": 2}, "-3": {"num_keys": 3}, "-5": {"num_keys": 5}, "-7": {"num_keys": 7}},
)
@dataclasses.dataclass(frozen=True)
class MultiDoorsKeys(ScriptedEnvironment):
    """Open doors with the keys of their colours, one key at a time.

    The doors are above a corridor, the keys below it. It is three rows high, and keys and doors are ``spacing`` columns
    apart, so that at a door neither another door nor any key is in view. ``pick`` takes the key below the agent if the
    hand is empty, ``toggle`` tries the door above it: it opens with the key of its colour, which is used up, and stays
    open, in its colour. What the hand holds is not seen. Each door opened is worth ``1 / num_keys``; the clock alone
    ends the episode.

    The scripted policy walks past all doors and back past all keys (the frames to observe). Then, for each key in
    random order, it takes the key and tries every door in random order, twice. The time limit is the longest that this
    can take; it picks at nothing until then.

    Each episode has ``num_keys`` of the ``colors`` colours: with the colours of a larger task, what is learned in a
    smaller one fits it.

    After the Multi Doors Keys of Deng et al. 2023, "Facing Off World Model Backbones: RNNs, Transformers, and S4".
    """

    num_keys: int = hp(3, "keys, and doors", ge=1, le=9)
    colors: int = hp(0, "colours that there are, 0 for as many as keys", ge=0, le=9)
    spacing: int = hp(3, "columns from a door to the next", ge=3)
    pixels: bool = hp(False, "observe a picture of 40x40 pixels")

    requires: ClassVar[dict[str, str]] = {"colors == 0 or colors >= num_keys": "no two keys have one colour"}
    action_names = (*tiles.DIRECTIONS, "pick", "toggle")

    @property
    def context(self) -> int:
        """The way past all doors, and back past all keys."""
        return 1 + 2 * self._length + BOTTOM - TOP

    @property
    def query(self) -> int:
        """As many frames as the script can take.

        Each door is visited ``2 n`` times and each key once, in any order. A gap between neighbours is crossed at most
        twice for each visit on the side that has fewer, and once more if the tour ended on that side.
        """
        n = self.num_keys
        crossings = sum(2 * min(i + 1, n - 1 - i) * (TRIES * n + 1) + (i + 1 < n - 1 - i) for i in range(n - 1))
        climbs = (2 * n - 1) * (BOTTOM - TOP)
        return self.spacing * crossings + climbs + n + TRIES * n**2

    @property
    def _num_colors(self) -> int:
        """How many colours there are."""
        return self.colors or self.num_keys

    @property
    def _length(self) -> int:
        """Steps from the first door to the last."""
        return self.spacing * (self.num_keys - 1)

    @property
    def _columns(self) -> np.ndarray:
        """Of the doors, and of the keys."""
        return FIRST + self.spacing * np.arange(self.num_keys, dtype=np.int32)

    @property
    def kinds(self) -> tuple[tiles.Tile, ...]:
        """Wall, floor, the agent's four facings; keys, locked doors and open doors of each colour."""
        things = ((shape, i) for shape in ("key", "locked", "open") for i in range(self._num_colors))
        return (*tiles.BASE, *things)

    @property
    def fact_classes(self) -> dict[str, int]:
        """The key in the hand, which doors are open, and where the agent is."""
        return {"held": self._num_colors + 1, "opened": 2, "position": (BOTTOM - TOP + 1) * (self._length + 1)}

    def _places(self) -> np.ndarray:
        """Which of ``_contents`` lies where, int32 ``[7, length + 5]``."""
        places = np.full((HEIGHT, self._length + 2 * FIRST + 1), tiles.WALL, np.int32)
        places[TOP : BOTTOM + 1, FIRST : FIRST + self._length + 1] = tiles.FLOOR
        for i, row in enumerate((DOOR_ROW, KEY_ROW)):
            places[row, self._columns] = THINGS + np.arange(self.num_keys) + i * self.num_keys
        return places

    def _contents(self, state: State) -> jax.Array:
        """Kinds of tiles: wall, floor, the doors from left to right, the keys from left to right."""
        doors = KEY + self._num_colors * (1 + state.opened) + state.door_colors
        keys = jnp.where(state.taken, tiles.FLOOR, KEY + state.key_colors)
        return jnp.concatenate([jnp.array([tiles.WALL, tiles.FLOOR], jnp.int32), doors, keys])

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``; the agent starts below the first door."""
        keys, doors = _orders(key, 2, self.num_keys)
        if self._num_colors > self.num_keys:
            some = jax.random.permutation(jax.random.fold_in(key, 1), jnp.arange(self._num_colors, dtype=jnp.int32))
            keys, doors = some[keys], some[doors]
        position, closed = jnp.array([TOP, FIRST], jnp.int32), jnp.zeros(self.num_keys, bool)
        state = State(
            time=jnp.int32(0),
            key_colors=keys,
            door_colors=doors,
            taken=closed,
            opened=closed,
            held=jnp.int32(0),
            position=position,
            previous=position - tiles.FAR,
            facing=jnp.int32(tiles.RIGHT),
            toggled=jnp.int32(NOTHING),
        )
        return self.observe(state), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        row, here = state.position[0], self._columns == state.position[1]  # bool [n]
        picked = here & ~state.taken & (action == PICK) & (row == BOTTOM) & (state.held == 0)
        tried = here & (action == TOGGLE) & (row == TOP)
        opening = tried & ~state.opened & (state.door_colors + 1 == state.held)
        held = jnp.where(opening.any(), 0, state.held + jnp.sum(picked * (state.key_colors + 1)))
        moves = action < PICK
        walked = tiles.walk(self._places() != tiles.FLOOR, state.position, jnp.where(moves, action, 0))
        was_open = (tried & state.opened).any()
        after = dataclasses.replace(
            state,
            time=state.time + 1,
            taken=state.taken | picked,
            opened=state.opened | opening,
            held=held.astype(jnp.int32),
            position=jnp.where(moves, walked, state.position),
            previous=state.position,
            facing=jnp.where(moves, action, state.facing).astype(jnp.int32),
            toggled=jnp.where(tried.any(), jnp.where(was_open, OPEN_DOOR, LOCKED_DOOR), NOTHING).astype(jnp.int32),
        )
        reward = opening.any().astype(jnp.float32) / self.num_keys
        return self.observe(after), after, reward, jnp.bool_(False), {}

    def script(self, key: jax.Array, state: State, params: Any) -> jax.Array:
        """See ``ScriptedEnvironment``; the orders of keys and of doors are random."""
        n = self.num_keys
        orders = _orders(key, 1 + n * TRIES, n)
        visits = jnp.concatenate([orders[0, :, None], orders[1:].reshape(n, n * TRIES)], axis=1)
        places = jnp.asarray(self._columns)[visits.ravel()]
        actions = jnp.tile(jnp.array([PICK, *n * TRIES * [TOGGLE]], jnp.int32), n)

        def go(carry: Any, _: None) -> tuple[Any, jax.Array]:
            row, column, done = carry  # done: visits
            target = jnp.minimum(done, len(actions) - 1)
            goal, what = places[target], jnp.where(done < len(actions), actions[target], PICK)
            arrived = (column == goal) & (row == jnp.where(what == PICK, BOTTOM, TOP))
            sideways = jnp.where(goal > column, tiles.RIGHT, tiles.LEFT)
            climb = (what == TOGGLE) & (row > TOP)
            way = jnp.where(climb, tiles.UP, jnp.where(column == goal, tiles.DOWN, sideways))
            action = jnp.where(arrived | (done >= len(actions)), what, way).astype(jnp.int32)
            step = jnp.asarray(tiles.MOVES)[jnp.minimum(action, 3)] * (action < PICK)
            return (row + step[0], column + step[1], done + arrived), action

        tour = np.repeat(
            np.array([tiles.RIGHT, tiles.DOWN, tiles.LEFT], np.int32), [self._length, BOTTOM - TOP, self._length]
        )
        start = jnp.int32(BOTTOM), jnp.int32(FIRST), jnp.int32(0)
        _, tries = lax.scan(go, start, length=self.query)
        return jnp.concatenate([tour, tries])

    def annotate(self, state: State, params: Any) -> Annotation:
        """See ``ScriptedEnvironment``; the cells are doors and keys as they appear, also after they have changed.

        The event ``door`` is the door that has just been tried, and ``locked_door`` the same if it was locked before,
        whether or not it opened.
        """
        places = tiles.view(jnp.asarray(self._places()), state.position)
        appeared = tiles.appeared(state.position, state.previous)
        cells = jnp.where(appeared & (places >= THINGS), places - THINGS, -1)
        above = jnp.arange(self.num_tiles) == tiles.ABOVE
        events = {"door": above & (state.toggled != NOTHING), "locked_door": above & (state.toggled == LOCKED_DOOR)}
        row, column = state.position[0] - TOP, state.position[1] - FIRST
        position = row * (self._length + 1) + column
        facts = {"held": state.held[None], "opened": state.opened.astype(jnp.int32), "position": position[None]}
        return Annotation(cells, events, facts)

    def see(self, state: State) -> jax.Array:
        """The tiles around the agent, int32 ``[25]``."""
        return tiles.look(self._places(), self._contents(state), state.position, state.facing)

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the corridor, and above it the key in the hand."""
        note = f"doors open: {int(np.sum(state.opened))} of {self.num_keys}   in the hand:"
        contents = self._contents(state)
        canvas = tiles.draw("Open each door with its key", note, self.kinds, self._places(), contents, state)
        if int(state.held):
            key = tiles.pictures(self.kinds)[KEY - 1 + int(state.held)]
            canvas.paste(key.repeat(2, 0).repeat(2, 1), 180, 24)
        return canvas.to_array()

    def action_space(self, params: Any) -> Discrete:
        """Up, right, down, left, pick, toggle."""
        return Discrete(6)


def _orders(key: jax.Array, num: int, n: int) -> jax.Array:
    """Draw ``num`` permutations of ``n`` things, int32 ``[num, n]``; ``key`` is consumed."""
    return jnp.argsort(jax.random.uniform(key, (num, n)), axis=1).astype(jnp.int32)
