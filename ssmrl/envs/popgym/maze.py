"""Mazes as ``mazelib`` makes them for POPGym: hunt-and-kill with random hunts, entrances on opposite sides.

A maze of ``size x size`` cells is a grid of ``2 size + 1`` squares a side: cell ``(r, c)`` is square
``(2 r + 1, 2 c + 1)``, and the squares between are walls until they are carved.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ssmrl.envs.popgym import bitboard
from ssmrl.envs.popgym.bitboard import Cells


@partial(jax.jit, static_argnames=("size", "num_hunts"))
def hunt_and_kill(key: jax.Array, size: int, num_hunts: int | None = None) -> jax.Array:
    """Carve a random maze of ``size x size`` cells; ``key`` is consumed.

    From a random cell, walk to random unvisited neighbours until there is none; then hunt: draw any cell of the maze
    and, if it has been visited, walk on from there. There are ``num_hunts`` hunts, by default as many as squares in the
    grid; about one maze in 30,000 stays unfinished then. Most hunts find a cell from which no walk can start; their
    number until one does is geometric and is drawn at once, which leaves the law as it is and makes every iteration
    carve one cell.

    Returns the walls, bool ``[2 size + 1, 2 size + 1]``. Source: ``mazelib.generate.HuntAndKill``.
    """
    num_cells = size**2
    num_hunts = (2 * size + 1) ** 2 if num_hunts is None else num_hunts
    everywhere, nowhere = bitboard.full(size), bitboard.empty(size)

    def carve(carry: Any, draws: tuple[jax.Array, ...]) -> tuple[Any, None]:
        here, visited, east, south, hunts_left = carry
        to_resume, to_move, patience = draws
        unvisited = everywhere - visited
        open_ends = visited & unvisited.neighbours()
        stuck = ~(here & open_ends).any()

        success = jnp.maximum(open_ends.count(), 1) / num_cells
        failures = jnp.minimum(patience / -jnp.log1p(-success), num_hunts).astype(jnp.int32)
        hunts_left = jnp.where(stuck, hunts_left - failures - 1, hunts_left)
        here = open_ends.draw(to_resume).where(stuck, here)
        there = (here.neighbours() & unvisited).draw(to_move).where(hunts_left >= 0, nowhere)

        pair = here | there
        east, south = east | (pair & pair.move(0, -1)), south | (pair & pair.move(-1, 0))
        return (there, visited | there, east, south, hunts_left), None

    key_start, key_resume, key_move, key_patience = jax.random.split(key, 4)
    draws = (
        jax.random.uniform(key_resume, (num_cells - 1,)),
        jax.random.uniform(key_move, (num_cells - 1,)),
        jax.random.exponential(key_patience, (num_cells - 1,)),
    )
    start = everywhere.draw(jax.random.uniform(key_start))
    carry = (start, start, nowhere, nowhere, jnp.int32(num_hunts))
    (_, visited, east, south, _), _ = jax.lax.scan(carve, carry, draws)
    return _walls(visited, east, south)


def entrances(key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Draw the start and the goal, next to random cells at opposite sides of the grid; ``key`` is consumed.

    Returns two squares ``(row, column)``, int32 ``[2]`` each. Source: ``mazelib.Maze.generate_entrances``.
    """
    key_side, key_cells = jax.random.split(key)
    side = jax.random.randint(key_side, (), 0, 4)
    along = 2 * jax.random.randint(key_cells, (2,), 0, size) + 1
    across = jnp.where(side % 2 == 0, jnp.array([0, 2 * size]), jnp.array([2 * size, 0]))
    squares = jnp.where(side < 2, jnp.stack([across, along], axis=1), jnp.stack([along, across], axis=1))
    return squares[0], squares[1]


def _walls(visited: Cells, east: Cells, south: Cells) -> jax.Array:
    """Return the grid, where cells ``visited`` and the squares right of ``east`` and below ``south`` are no walls."""
    size = visited.size
    corner = jnp.zeros((size, size), bool)
    block = jnp.stack([visited.to_array(), east.to_array(), south.to_array(), corner], axis=-1)
    squares = block.reshape(size, size, 2, 2).transpose(0, 2, 1, 3).reshape(2 * size, 2 * size)
    return ~jnp.pad(squares, ((1, 0), (1, 0)))
