"""T-mazes: a sign at one end of a corridor tells which way to turn at the other end.

Source: Ni et al. 2023, "When Do Transformers Shine in RL? Decoupling Memory from Credit Assignment", after Bakker 2001.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Box, Discrete

RIGHT, UP, LEFT, DOWN = range(4)
MOVES = np.array(((1, 0), (0, 1), (-1, 0), (0, -1)), np.int32)  # (x, y)


@struct.dataclass
class State(EnvState):
    """Where the agent is and where it should go.

    ``length`` int32: steps from the start to the junction; ``goal`` int32: 1 (up) or -1 (down); ``x`` int32: steps from
    the oracle; ``y`` int32: 1 or -1 in an arm; ``visited`` bool: the oracle has spoken.
    """

    length: jax.Array
    goal: jax.Array
    x: jax.Array
    y: jax.Array
    visited: jax.Array


@dataclasses.dataclass(frozen=True)
class TMaze(Environment):
    """Turn at the end of a corridor to where the oracle pointed; subclasses say how far the oracle is from the start.

    Observation ``[2]``: at the oracle 0 and, at the first visit alone, the goal (-1 or 1); in the corridor 0 and 0; at
    the junction and in its arms 1 and ``y``. The episode terminates after just as many steps as the best way takes. The
    last step earns 1 if it ends in the arm of the goal; each earlier step costs ``1 / length`` if the agent is behind
    ``x = t - oracle``. The best return is 1, the best without memory 0.5.

    With ``min_length`` (ours, not the paper's) each episode draws the length of its corridor, log-uniformly: a
    curriculum without a schedule, as one learns the way in short corridors and memory in long ones.
    """

    length: int = hp(10, "steps from the start to the junction", ge=1)
    min_length: int = hp(
        0, "draw each episode's length from this one to length, log-uniformly (0: always length)", ge=0
    )

    requires: ClassVar[dict[str, str]] = {"min_length <= length": "lengths are drawn from min_length to length"}
    action_names = ("right", "up", "left", "down")
    oracle: ClassVar[int]  # steps from the oracle to the start

    def __post_init__(self) -> None:
        check(self)

    @property
    def default_params(self) -> EnvParams:
        """A clock that never ends an episode."""
        return EnvParams(max_steps_in_episode=self.length + 2 * self.oracle + 2)

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, State]:
        """Draw a goal, and a length where they vary; ``key`` is consumed."""
        key_goal, key_length = jax.random.split(key)
        length = jnp.int32(self.length)
        if self.min_length:
            low, high = math.log(self.min_length), math.log(self.length + 1)
            drawn = jnp.exp(jax.random.uniform(key_length, minval=low, maxval=high)).astype(jnp.int32)
            length = jnp.clip(drawn, self.min_length, self.length)  # against rounding
        goal = 2 * jax.random.bernoulli(key_goal).astype(jnp.int32) - 1
        x, at_oracle = jnp.int32(self.oracle), jnp.bool_(self.oracle == 0)
        state = State(jnp.int32(0), length, goal, x, jnp.int32(0), at_oracle)
        return self._observe(state, at_oracle), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        x, y = jnp.stack([state.x, state.y]) + jnp.asarray(MOVES)[action]
        junction = self.oracle + state.length
        free = ((y == 0) & (x >= 0) & (x <= junction)) | ((x == junction) & (jnp.abs(y) <= 1))
        x, y = jnp.where(free, x, state.x), jnp.where(free, y, state.y)
        time = state.time + 1
        terminated = time == state.length + 2 * self.oracle + 1
        late = jnp.where(x < time - self.oracle, -1 / state.length, 0)
        reward = jnp.where(terminated, y == state.goal, late).astype(jnp.float32)
        after = State(time, state.length, state.goal, x, y, state.visited | (x == 0))
        return self._observe(after, (x == 0) & ~state.visited), after, reward, terminated, {}

    def _observe(self, state: State, first_visit: jax.Array) -> jax.Array:
        at_end = state.x == self.oracle + state.length
        sign = jnp.where(first_visit, state.goal, jnp.where(at_end, state.y, 0))
        return jnp.stack([at_end, sign]).astype(jnp.float32)

    def render(self, state: State, params: EnvParams) -> np.ndarray:
        """Draw the corridor from the oracle (blue) to the goal (green) and the agent; it shows the goal."""
        canvas, x, y, length = drawing.Canvas(), int(state.x), int(state.y), int(state.length)
        steps = length + 2 * self.oracle + 1
        drawing.title(
            canvas, "Turn to where the oracle pointed", f"step {int(state.time)} of {steps}, corridor {length}"
        )
        left, right, middle, side = 20, 300, 140, 28
        pitch = (right - left - side) / (self.oracle + length)
        canvas.box(left, middle - side / 2, right - left, side, drawing.WHITE, drawing.GREY)
        canvas.box(right - side, middle - 1.5 * side, side, 3 * side, drawing.WHITE, drawing.GREY)
        for place, color in ((self.oracle, drawing.GREY), (0, drawing.BLUE)):
            canvas.box(left + place * pitch + 2, middle - 12, side - 4, side - 4, outline=color, line=2)
        up = int(state.goal)
        canvas.box(right - side + 2, middle - up * side - 12, side - 4, side - 4, (172, 208, 180))
        pointer = [(left + side / 2 + dx, middle + 32 - up * dy) for dx, dy in ((-6, -8), (6, -8), (0, 8))]
        canvas.polygon(pointer, drawing.BLUE if bool(state.visited) else drawing.GREY)
        canvas.circle(left + side / 2 + x * pitch, middle - y * side, 8, drawing.RED)
        return canvas.to_array()

    def observation_space(self, params: EnvParams) -> Box:
        """Float32 ``[2]`` in ``[-1, 1]``."""
        return Box(-1.0, 1.0, (2,))

    def action_space(self, params: EnvParams) -> Discrete:
        """Right, up, left, down."""
        return Discrete(len(MOVES))


@envs.register(
    "memory/TMazePassive",
    variants={
        "-10": {"length": 10},
        "-30": {"length": 30},
        "-50": {"length": 50},
        "-100": {"length": 100},
        "-300": {"length": 300},
        "-500": {"length": 500},
        "-1000": {"length": 1000},
        "-1500": {"length": 1500},
    },
)
@dataclasses.dataclass(frozen=True)
class TMazePassive(TMaze):
    """Turn at the end of a corridor to where the oracle at its start pointed: memory alone."""

    oracle = 0


@envs.register(
    "memory/TMazeActive",
    variants={
        "-10": {"length": 10},
        "-30": {"length": 30},
        "-50": {"length": 50},
        "-100": {"length": 100},
        "-300": {"length": 300},
        "-500": {"length": 500},
        "-1000": {"length": 1000},
        "-1500": {"length": 1500},
    },
)
@dataclasses.dataclass(frozen=True)
class TMazeActive(TMaze):
    """Ask the oracle one step behind the start, then turn to where it pointed: credit assignment and memory."""

    oracle = 1
