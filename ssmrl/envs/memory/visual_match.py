"""VisualMatch: a colour seen before a long distraction tells which of three doors to take after it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs.memory import phases, tiles
from ssmrl.registry import envs, hp

CUES, NUM_CUES = phases.THINGS, 8  # places where the colour may be
DOORS, NUM_DOORS = CUES + NUM_CUES, 3
CUE_TILES = DOOR_TILES = phases.APPLE + 1  # the first of three colours
CELL = """

    ccc
    c c
    ccc



"""
DOOR_HALL = """
###########
# d  d  d #
#         #
#         #
####   ####
   #   #
   #####
"""


@struct.dataclass
class State(phases.State):
    """``color`` int32: 0, 1 or 2; ``place`` int32: where it is shown, from 0; ``chosen`` bool: a door has been."""

    color: jax.Array
    place: jax.Array
    chosen: jax.Array


@envs.register(
    "memory/VisualMatch",
    variants={
        "-60": {"distractor": 60},
        "-100": {"distractor": 100},
        "-250": {"distractor": 250},
        "-500": {"distractor": 500},
        "-750": {"distractor": 750},
        "-1000": {"distractor": 1000},
    },
)
@dataclasses.dataclass(frozen=True)
class VisualMatch(phases.Phases):
    """See a colour without acting, collect apples, and take the door of that colour.

    The passive Visual Match: the agent cannot move in the first phase. Only the first door counts, and then all doors
    are gone. Red, green and blue are always in the same order, as in one instance of the original.
    """

    distractor: int = hp(60, "steps in the hall of apples", ge=1)
    apple_reward: float = hp(1.0, "what an apple is worth")
    final_reward: float = hp(5.0, "what the right door is worth")

    boards = np.stack([
        phases.board(CELL, c=CUES), phases.board(phases.HALL, a=phases.APPLES), phases.board(DOOR_HALL, d=DOORS)
    ])  # fmt: skip
    reward_start = (phases.MARGIN + 5, phases.MARGIN + 5)
    things = (("square", 1), ("square", 2), ("square", 0))
    task = "Take the door of the colour seen first"

    def begin(self, key: jax.Array) -> State:
        """See ``Phases``; the colour and where it is shown are random."""
        key_apples, key_cue = jax.random.split(key)
        color, place = jax.random.randint(key_cue, (2,), 0, jnp.array([NUM_DOORS, NUM_CUES]), jnp.int32)
        position = jnp.array([phases.MARGIN + 2, phases.MARGIN + 5], jnp.int32)
        apples, facing = phases.draw_apples(key_apples), jnp.int32(tiles.UP)
        return State(jnp.int32(0), position, facing, apples, color, place, jnp.bool_(False))

    def visit(self, state: Any, place: jax.Array) -> tuple[State, jax.Array]:
        """See ``Phases``; the first door decides."""
        right = (place == DOORS + state.color) & ~state.chosen
        return dataclasses.replace(state, chosen=state.chosen | (place >= DOORS)), right

    def blocks(self, state: Any, place: jax.Array) -> jax.Array:
        """See ``Phases``; the agent is shut in the cell."""
        return place < DOORS

    def contents(self, state: Any) -> jax.Array:
        """See ``Phases``."""
        cues = jnp.where(jnp.arange(NUM_CUES) == state.place, CUE_TILES + state.color, tiles.WALL)
        doors = jnp.where(state.chosen, tiles.FLOOR, DOOR_TILES + jnp.arange(NUM_DOORS))
        return jnp.concatenate([cues, doors]).astype(jnp.int32)
