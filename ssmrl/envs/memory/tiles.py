"""Tiles of gridworlds: what they look like, and the 5x5 of them around an agent that it sees.

A grid is an int32 array of tile kinds, an index into a tuple of :data:`Tile`, with a margin of two tiles around the
cells that an agent can reach. The view does not turn with the agent, whose own tile, in the middle, shows its facing.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssmrl.envs import drawing

Tile = tuple[str, int]  # shape, and index of its colour in drawing.CHANNELS
GREY = len(drawing.CHANNELS) - 1  # of walls that mean nothing; the others are for what varies
VIEW = 5  # tiles a side
CENTRE = VIEW**2 // 2
ABOVE = CENTRE - VIEW
SIDE = 8  # pixels of a tile
DIRECTIONS = ("up", "right", "down", "left")
UP, RIGHT, DOWN, LEFT = range(4)
MOVES = np.array(((-1, 0), (0, 1), (1, 0), (0, -1)), np.int32)
WALL, FLOOR, AGENT = 0, 1, 2
BASE: tuple[Tile, ...] = (("wall", GREY), ("floor", 0), *((name, 0) for name in DIRECTIONS))  # kinds in every grid
FAR = 2 * VIEW  # a cell so far away shares nothing with the view
_OFFSETS = np.stack(np.divmod(np.arange(VIEW**2, dtype=np.int32), VIEW), axis=1) - VIEW // 2

# '#' is the tile's colour, '+' ink, '.' the floor.
_SHAPES = {
    "floor": "........ ........ ........ ........ ........ ........ ........ ........",
    "wall": "######## ######## ######## ######## ######## ######## ######## ########",
    "ball": "........ ..####.. .######. .######. .######. .######. ..####.. ........",
    "square": "........ .######. .######. .######. .######. .######. .######. ........",
    "key": "........ ..###... ..#.#... ..###... ...#.... ...##... ...##... ........",
    "locked": "++++++++ +######+ +######+ +####+#+ +####+#+ +######+ +######+ ++++++++",
    "open": "######## #......# #......# #......# #......# #......# #......# ########",
    "up": "........ ...++... ...++... ..++++.. ..++++.. .++++++. .++++++. ........",
}


@functools.cache
def pictures(kinds: tuple[Tile, ...]) -> np.ndarray:
    """What tiles look like, uint8 ``[kinds, 8, 8, 3]``."""
    drawn = []
    for shape, color in kinds:
        quarter_turns = DIRECTIONS.index(shape) if shape in DIRECTIONS else 0
        art = np.array([list(row) for row in _SHAPES["up" if quarter_turns else shape].split()])
        palette = {"#": drawing.CHANNELS[color], "+": drawing.INK, ".": drawing.PAPER}
        drawn.append(np.array([[palette[c] for c in row] for row in np.rot90(art, -quarter_turns)]))
    return np.array(drawn, np.uint8)


def assemble(table: jax.Array | np.ndarray, board: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Lay out pictures ``[kinds, 8, 8, 3]`` as a board of kinds ``[rows, columns]``; both of jax or both of numpy."""
    rows, columns = board.shape
    return table[board].transpose(0, 2, 1, 3, 4).reshape(rows * SIDE, columns * SIDE, 3)


def view(grid: jax.Array, position: jax.Array) -> jax.Array:
    """Cut the 25 tiles around ``position`` (row and column, int32 ``[2]``) out of a grid, row by row."""
    corner = position - VIEW // 2
    return lax.dynamic_slice(grid, (corner[0], corner[1]), (VIEW, VIEW)).ravel()


def look(places: np.ndarray, contents: jax.Array, position: jax.Array, facing: jax.Array) -> jax.Array:
    """The kinds of the 25 tiles in view, of which the agent's own is the middle one.

    ``places`` is a grid of indices into ``contents``, the kinds of what there is; kind 2 is an agent that faces up.
    """
    return contents[view(jnp.asarray(places), position)].at[CENTRE].set(AGENT + facing)


def appeared(position: jax.Array, previous: jax.Array) -> jax.Array:
    """Which of the 25 tiles the view from ``previous`` did not show: bool, those outside it and under the agent."""
    apart = jnp.abs(position[None] + _OFFSETS - previous[None]).max(-1)
    return ((apart > VIEW // 2) | (apart == 0)).at[CENTRE].set(False)


def walk(solid: jax.Array | np.ndarray, position: jax.Array, direction: jax.Array) -> jax.Array:
    """Go one cell in a direction unless what is there is solid (bool, shaped like the grid); returns the position."""
    target = position + jnp.asarray(MOVES)[direction]
    return jnp.where(jnp.asarray(solid)[target[0], target[1]], position, target)


def draw(
    task: str, note: str, kinds: tuple[Tile, ...], places: np.ndarray, contents: jax.Array, state: Any
) -> drawing.Canvas:
    """Draw a grid, or what fits of it around the agent, with a frame around what the agent sees."""
    grid, position = np.asarray(contents)[places], np.asarray(state.position)
    grid[tuple(position)] = AGENT + int(state.facing)
    canvas = drawing.Canvas()
    drawing.title(canvas, task, note)
    room = np.array([canvas.height - 52, canvas.width - 20]) // SIDE  # in tiles
    first = np.clip(position - room // 2, 0, np.maximum(grid.shape - room, 0))
    rows, columns = (slice(f, f + n) for f, n in zip(first, room, strict=True))
    shown = assemble(pictures(kinds), grid[rows, columns])
    scale = max(1, int(min((canvas.height - 52) / shown.shape[0], (canvas.width - 20) / shown.shape[1])))
    shown = np.asarray(shown).repeat(scale, 0).repeat(scale, 1)
    left, top = (canvas.width - shown.shape[1]) // 2, 44 + (canvas.height - 52 - shown.shape[0]) // 2
    canvas.paste(shown, left, top)
    y, x = (position - first - VIEW // 2) * SIDE * scale
    canvas.box(left + x, top + y, *(2 * (VIEW * SIDE * scale,)), outline=drawing.INK, line=2)
    return canvas


def color(index: int) -> drawing.Color:
    """A tile's colour, for drawing."""
    red, green, blue = (int(c) for c in drawing.CHANNELS[index])
    return red, green, blue
