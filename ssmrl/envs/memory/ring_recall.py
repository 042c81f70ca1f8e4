"""RingRecall: walk around a ring of coloured cells, and know their colours when they come again."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import EnvState
from ssmrl.envs.memory import tiles
from ssmrl.envs.memory.scripted import Annotation, ScriptedEnvironment
from ssmrl.registry import envs, hp
from ssmrl.spaces import Discrete

STAY, FORWARD, BACK = range(3)
TURNS, STAYS = 0.2, 0.05  # how often the scripted policy does


@struct.dataclass
class State(EnvState):
    """``ring`` int32 ``[size]``: colours; ``position`` int32, and ``previous``: -1 at the start."""

    ring: jax.Array
    position: jax.Array
    previous: jax.Array


@envs.register(
    "memory/RingRecall",
    variants={
        "-8": {"size": 8, "colors": 4, "context": 32, "query": 16},
        "-64": {"size": 64, "colors": 6, "context": 512, "query": 128},
    },
)
@dataclasses.dataclass(frozen=True)
class RingRecall(ScriptedEnvironment):
    """Know the colours of the cells of a ring when they come again.

    The cells have random colours, and the agent sees the one where it is. A task of prediction: the reward is always 0.
    The scripted policy goes on in its direction with probability 0.8, turns with 0.2, and stays where it is in 5 % of
    the steps. It starts in cell 0.
    """

    size: int = hp(8, "cells of the ring", ge=2)
    colors: int = hp(4, "colours that cells have", ge=2, le=9)
    context: int = hp(32, "frames to observe, the first one included", ge=1)
    query: int = hp(16, "frames to imagine after them", ge=1)
    pixels: bool = hp(False, "observe a picture of 40x40 pixels")

    action_names = ("stay", "forward", "back")

    @property
    def kinds(self) -> tuple[tiles.Tile, ...]:
        """A cell of each colour."""
        return tuple(("wall", i) for i in range(self.colors))

    @property
    def num_tiles(self) -> int:
        """One tile."""
        return 1

    @property
    def fact_classes(self) -> dict[str, int]:
        """Where the agent is, and the colour of each cell."""
        return {"position": self.size, "ring": self.colors}

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``."""
        ring = jax.random.randint(key, (self.size,), 0, self.colors, jnp.int32)
        state = State(jnp.int32(0), ring, position=jnp.int32(0), previous=jnp.int32(-1))
        return self.observe(state), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        position = (state.position + jnp.array([0, 1, -1], jnp.int32)[action]) % self.size
        state = State(state.time + 1, state.ring, position, previous=state.position)
        return self.observe(state), state, jnp.float32(0), jnp.bool_(False), {}

    def script(self, key: jax.Array, state: State, params: Any) -> jax.Array:
        """See ``ScriptedEnvironment``: a sticky random walk."""
        key_start, key_turns, key_stays = jax.random.split(key, 3)
        turns = jax.random.bernoulli(key_turns, TURNS, (self.num_steps,))
        backwards = (jax.random.bernoulli(key_start) + jnp.cumsum(turns)) % 2
        stays = jax.random.bernoulli(key_stays, STAYS, (self.num_steps,))
        return jnp.where(stays, STAY, jnp.where(backwards == 1, BACK, FORWARD)).astype(jnp.int32)

    def annotate(self, state: State, params: Any) -> Annotation:
        """See ``ScriptedEnvironment``; a cell is its position on the ring, unless the agent stayed there."""
        cell = jnp.where(state.position == state.previous, -1, state.position)
        return Annotation(cell[None], {}, {"position": state.position[None], "ring": state.ring})

    def see(self, state: State) -> jax.Array:
        """The colour under the agent, int32 ``[1]``."""
        return state.ring[state.position][None]

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the ring, and a frame around the cell in which the agent is."""
        canvas = drawing.Canvas()
        drawing.title(canvas, "Know the colours of the ring", f"step {int(state.time)}   red frame: agent")
        radius = min(24.0, 240 / self.size)
        for i, color in enumerate(np.asarray(state.ring).tolist()):
            angle = 2 * math.pi * i / self.size
            x, y = 160 + 75 * math.sin(angle), 138 - 75 * math.cos(angle)
            if i == int(state.position):
                canvas.circle(x, y, radius + 5, outline=drawing.RED, line=3)
            canvas.circle(x, y, radius, tiles.color(color))
        return canvas.to_array()

    def action_space(self, params: Any) -> Discrete:
        """Stay, forward, back."""
        return Discrete(3)
