"""KeyToDoor: a key picked up before a long distraction opens a door after it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs.memory import phases, tiles
from ssmrl.registry import envs, hp

KEYS, NUM_KEYS = phases.THINGS, 10  # places where the key may be
RING = KEYS + NUM_KEYS  # a place in the wall that shows for a step that the key has been picked up
DOOR = RING + 1
KEY_TILE, DOOR_TILE, RING_TILE = range(phases.APPLE + 1, phases.APPLE + 4)
ROOMS = """
  ###i###
  #kkkkk#
  #kkkkk#
  ##   ##
  #     #
  #     #
  #######
"""
CLOSET = """

   ##d##
   #   #
   #   #
   #   #
   #####

"""
STARTS = np.array([(row, column) for row in (4, 5) for column in range(3, 8)], np.int32) + phases.MARGIN


@struct.dataclass
class State(phases.State):
    """``key`` int32: its place, from 0; ``taken``, ``just_taken`` (in the last step) and ``opened`` bool."""

    key: jax.Array
    taken: jax.Array
    just_taken: jax.Array
    opened: jax.Array


@envs.register(
    "memory/KeyToDoor",
    variants={
        "-60": {"distractor": 60},
        "-120": {"distractor": 120},
        "-250": {"distractor": 250},
        "-500": {"distractor": 500},
    },
)
@dataclasses.dataclass(frozen=True)
class KeyToDoor(phases.Phases):
    """Pick up a key, collect apples, and open a door with the key.

    A task of credit assignment: the key earns nothing when it is picked up, and what to do at the door needs no memory.
    The last phase has 15 steps as in Hung et al.; Ni et al. gave it 10.
    """

    distractor: int = hp(60, "steps in the hall of apples", ge=1)
    apple_reward: float = hp(1.0, "what an apple is worth")
    final_reward: float = hp(5.0, "what the open door is worth")

    boards = np.stack([
        phases.board(ROOMS, k=KEYS, i=RING), phases.board(phases.HALL, a=phases.APPLES), phases.board(CLOSET, d=DOOR)
    ])  # fmt: skip
    reward_start = (phases.MARGIN + 3, phases.MARGIN + 5)
    things = (("key", 3), ("locked", 1), ("square", 3))
    task = "The key opens the door"

    def begin(self, key: jax.Array) -> State:
        """See ``Phases``; the places of agent and key are random."""
        key_apples, key_places = jax.random.split(key)
        place, start = jax.random.randint(key_places, (2,), 0, jnp.array([NUM_KEYS, len(STARTS)]), jnp.int32)
        no = jnp.bool_(False)
        apples, facing = phases.draw_apples(key_apples), jnp.int32(tiles.UP)
        return State(jnp.int32(0), jnp.asarray(STARTS)[start], facing, apples, place, no, no, no)

    def visit(self, state: Any, place: jax.Array) -> tuple[State, jax.Array]:
        """See ``Phases``; the key is taken once, the door is opened once."""
        takes = (place == KEYS + state.key) & ~state.taken
        opens = (place == DOOR) & ~state.opened
        return dataclasses.replace(
            state, taken=state.taken | takes, just_taken=takes, opened=state.opened | opens
        ), opens

    def blocks(self, state: Any, place: jax.Array) -> jax.Array:
        """See ``Phases``; the door stops who has no key."""
        return (place == RING) | ((place == DOOR) & ~state.taken)

    def contents(self, state: Any) -> jax.Array:
        """See ``Phases``."""
        keys = jnp.where((jnp.arange(NUM_KEYS) == state.key) & ~state.taken, KEY_TILE, tiles.FLOOR)
        ring = jnp.where(state.just_taken, RING_TILE, tiles.WALL)
        return jnp.concatenate([keys, ring[None], jnp.array([DOOR_TILE])]).astype(jnp.int32)
