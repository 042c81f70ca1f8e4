"""NoisyTile: what can be known and what cannot, side by side."""

import dataclasses
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


@struct.dataclass
class State(EnvState):
    """``noise`` and ``constant`` int32: the colours of the two tiles."""

    noise: jax.Array
    constant: jax.Array


@envs.register("memory/NoisyTile")
@dataclasses.dataclass(frozen=True)
class NoisyTile(ScriptedEnvironment):
    """Tell what is noise from what stays.

    One tile has a fresh random colour in every frame, the other a random colour that stays for the episode. A control
    for world models: the entropy of a prediction should be ``log(colors)`` for the first tile and 0 for the second. The
    one action does nothing and the reward is always 0.
    """

    colors: int = hp(4, "colours that tiles have", ge=2, le=9)
    context: int = hp(48, "frames to observe, the first one included", ge=1)
    query: int = hp(16, "frames to imagine after them", ge=1)
    pixels: bool = hp(False, "observe a picture of 40x40 pixels")

    action_names = ("wait",)

    @property
    def kinds(self) -> tuple[tiles.Tile, ...]:
        """A tile of each colour."""
        return tuple(("wall", i) for i in range(self.colors))

    @property
    def num_tiles(self) -> int:
        """Two tiles: the noise, the constant."""
        return 2

    @property
    def fact_classes(self) -> dict[str, int]:
        """The constant colour."""
        return {"constant": self.colors}

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``."""
        noise, constant = jax.random.randint(key, (2,), 0, self.colors, jnp.int32)
        state = State(jnp.int32(0), noise, constant)
        return self.observe(state), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        noise = jax.random.randint(key, (), 0, self.colors, jnp.int32)
        state = State(state.time + 1, noise, state.constant)
        return self.observe(state), state, jnp.float32(0), jnp.bool_(False), {}

    def script(self, key: jax.Array, state: State, params: Any) -> jax.Array:
        """See ``ScriptedEnvironment``; there is one action."""
        return jnp.zeros(self.num_steps, jnp.int32)

    def annotate(self, state: State, params: Any) -> Annotation:
        """See ``ScriptedEnvironment``; an event for each of the tiles, in every frame but the first."""
        later = (state.time > 0) & (jnp.arange(2) >= 0)
        events = {name: later & (jnp.arange(2) == i) for name, i in (("constant", 1), ("noise", 0))}
        cells = jnp.where(later, -1, jnp.array([-1, 0], jnp.int32))
        return Annotation(cells, events, {"constant": state.constant[None]})

    def see(self, state: State) -> jax.Array:
        """The noise and the constant, int32 ``[2]``."""
        return jnp.stack([state.noise, state.constant])

    def lay_out(self, seen: jax.Array) -> jax.Array:
        """Two columns of noise at the left, three of the constant at the right."""
        columns = seen[jnp.array([0, 0, 1, 1, 1])]
        return jnp.broadcast_to(columns[None], (tiles.VIEW, tiles.VIEW))

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the two tiles."""
        canvas = drawing.Canvas()
        drawing.title(canvas, "Know which tile is noise", f"step {int(state.time)}")
        for x, label, color in ((50, "noise", state.noise), (190, "constant", state.constant)):
            canvas.box(x, 72, 80, 80, tiles.color(int(color)))
            canvas.text(x + 40, 165, label, 12, anchor="mt")
        return canvas.to_array()

    def action_space(self, params: Any) -> Discrete:
        """Wait."""
        return Discrete(1)
