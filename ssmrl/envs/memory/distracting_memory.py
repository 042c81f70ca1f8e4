"""DistractingMemory: a cue at one end of a hall full of distractors tells which way to turn at the other end."""

import dataclasses
from typing import Any, ClassVar

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

SQUARE = len(tiles.BASE)  # kind of the first colour
THINGS = 2  # what differs from episode to episode, after wall and floor
COLORS = 4
HALL, HEIGHT = 3, 7  # its row, and the rows of the grid
CUE, START = 1, 3  # columns


@struct.dataclass
class State(EnvState):
    """The hall, and who is in it.

    ``cue`` int32: a colour; ``ends`` int32 ``[2]``: colours above and below the junction; ``distractors`` int32
    ``[width - 1]``: 0 is none, else a colour counted from 1; ``position`` and ``previous`` int32 ``[2]``: row and
    column; ``facing`` int32.
    """

    cue: jax.Array
    ends: jax.Array
    distractors: jax.Array
    position: jax.Array
    previous: jax.Array
    facing: jax.Array


@envs.register(
    "memory/DistractingMemory",
    variants={
        "-8": {"width": 8},
        "-16": {"width": 16},
        "-32": {"width": 32},
        "-100": {"width": 100},
        "-200": {"width": 200},
        "-400": {"width": 400},
    },
)
@dataclasses.dataclass(frozen=True)
class DistractingMemory(ScriptedEnvironment):
    """At the end of a hall, turn to the colour that was seen at its start.

    The cue, two cells behind the start, is in view in the first frame alone. From the start to the junction it is
    ``width`` steps; each cell between holds, with probability one half, a square of one of four colours. The junction
    has two differently coloured ends, one of them in the cue's colour. The episode terminates on either: the reward is
    1 on the matching one and 0 on the other. The scripted policy walks to the junction and half of the way back (``1 +
    width + width // 2`` frames to observe), then to the junction again, where it turns up or down at random (``width //
    2 + 1`` frames to imagine). An agent has as many steps.

    After the Distracting Memory of Deng et al. 2023, "Facing Off World Model Backbones: RNNs, Transformers, and S4".
    """

    width: int = hp(8, "steps from the start to the junction", ge=2)
    pixels: bool = hp(False, "observe a picture of 40x40 pixels")

    has_reward: ClassVar[bool] = True
    action_names = tiles.DIRECTIONS

    @property
    def context(self) -> int:
        """The way to the junction, and half of the way back."""
        return 1 + self.width + self.width // 2

    @property
    def query(self) -> int:
        """The way to the junction again, and one step further."""
        return self.width // 2 + 1

    @property
    def kinds(self) -> tuple[tiles.Tile, ...]:
        """Wall, floor, the agent's four facings, four colours of squares."""
        return (*tiles.BASE, *(("square", i) for i in range(COLORS)))

    @property
    def fact_classes(self) -> dict[str, int]:
        """Colours of the cue and of the ends, and the agent's column."""
        return {"cue": COLORS, "ends": COLORS, "column": self._columns}

    @property
    def _columns(self) -> int:
        return START + self.width + 3

    @property
    def _junction(self) -> int:
        return START + self.width

    def _places(self) -> np.ndarray:
        """Which of ``_contents`` lies where, int32 ``[7, columns]``."""
        places = np.full((HEIGHT, self._columns), tiles.WALL, np.int32)
        places[HALL, CUE + 1 : self._junction + 1] = tiles.FLOOR
        places[HALL, START + 1 : self._junction] = THINGS + np.arange(self.width - 1)
        places[[HALL, HALL - 1, HALL + 1], [CUE, self._junction, self._junction]] = (
            THINGS + self.width - 1 + np.arange(3)
        )
        return places

    def _contents(self, state: State) -> jax.Array:
        """Kinds of tiles: wall, floor, what lies in the hall from left to right, the cue, the ends."""
        lying = jnp.where(state.distractors == 0, tiles.FLOOR, SQUARE - 1 + state.distractors)
        squares = SQUARE + jnp.append(state.cue, state.ends)
        return jnp.concatenate([jnp.array([tiles.WALL, tiles.FLOOR], jnp.int32), lying, squares])

    def _solid(self) -> np.ndarray:
        places = self._places()
        return (places == tiles.WALL) | (places == THINGS + self.width - 1)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``."""
        key_signs, key_distractors = jax.random.split(key)
        cue, apart, side = jax.random.randint(key_signs, (3,), 0, jnp.array([COLORS, COLORS - 1, 2]), jnp.int32)
        ends = jnp.array([cue, (cue + 1 + apart) % COLORS])
        distractors = jax.random.randint(key_distractors, (self.width - 1,), 1 - COLORS, COLORS + 1, jnp.int32)
        position = jnp.array([HALL, START], jnp.int32)
        state = State(
            time=jnp.int32(0),
            cue=cue,
            ends=jnp.where(side == 1, ends, ends[::-1]),
            distractors=jnp.maximum(distractors, 0),  # every other time none
            position=position,
            previous=position - tiles.FAR,
            facing=jnp.int32(tiles.RIGHT),
        )
        return self.observe(state), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        position = tiles.walk(self._solid(), state.position, action)
        facing = jnp.asarray(action, jnp.int32)
        state = dataclasses.replace(
            state, time=state.time + 1, position=position, previous=state.position, facing=facing
        )
        terminated = position[0] != HALL
        chosen = state.ends[(position[0] > HALL).astype(jnp.int32)]
        reward = (terminated & (chosen == state.cue)).astype(jnp.float32)
        return self.observe(state), state, reward, terminated, {}

    def script(self, key: jax.Array, state: State, params: Any) -> jax.Array:
        """See ``ScriptedEnvironment``; the last turn is random."""
        half = self.width // 2
        legs = np.array([tiles.RIGHT, tiles.LEFT, tiles.RIGHT], np.int32).repeat([self.width, half, half])
        turn = jnp.where(jax.random.bernoulli(key), tiles.UP, tiles.DOWN).astype(jnp.int32)
        return jnp.append(legs, turn)

    def annotate(self, state: State, params: Any) -> Annotation:
        """See ``ScriptedEnvironment``; the cells are those of the hall, the cue and the two ends, as they appear."""
        places = tiles.view(jnp.asarray(self._places()), state.position)
        appeared = tiles.appeared(state.position, state.previous)
        cells = jnp.where(appeared & (places >= THINGS), places - THINGS, -1)
        return Annotation(cells, {}, {"cue": state.cue[None], "ends": state.ends, "column": state.position[1:]})

    def see(self, state: State) -> jax.Array:
        """The tiles around the agent, int32 ``[25]``."""
        return tiles.look(self._places(), self._contents(state), state.position, state.facing)

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the hall around the agent, and above it the cue and the ends."""
        task, contents = "Turn to the colour of the cue", self._contents(state)
        canvas = tiles.draw(task, "cue", self.kinds, self._places(), contents, state)
        canvas.text(80, 25, "ends: above, below", 11, drawing.GREY)
        for x, color in ((34, state.cue), (186, state.ends[0]), (204, state.ends[1])):
            canvas.box(x, 24, 14, 14, tiles.color(int(color)))
        return canvas.to_array()

    def action_space(self, params: Any) -> Discrete:
        """Up, right, down, left."""
        return Discrete(len(tiles.DIRECTIONS))
