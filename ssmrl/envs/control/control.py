"""The pool of control tasks as ``control/PendulumSwingup``: the small ones of the DeepMind Control Suite, in plain jnp.

Physics, motors, observations and rewards are those of the suite as far as a docstring does not say otherwise; what
differs is the clock. An episode has 200 steps of 0.04 or 0.05 s, the suite's has 1000 steps of 0.01 or 0.02 s. No
episode ends before. All tasks have states of one shape, and a batch of 256 makes about a million steps/s on a CPU.

Source: Tassa et al. 2018, "DeepMind Control Suite".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.control.ball_in_cup import BallInCup
from ssmrl.envs.control.cart_pole import CartPole
from ssmrl.envs.control.finger import Finger
from ssmrl.envs.control.links import Acrobot, Reacher
from ssmrl.envs.control.pendulum import Pendulum
from ssmrl.envs.control.point_mass import PointMass, draw_mixing
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Box


class Task(Protocol):
    """One task: pure functions of a state ``x`` ``[size]`` and an action ``[num_actions]`` in ``[-1, 1]``."""

    @property
    def size(self) -> int:
        """Numbers in a state."""

    @property
    def usual(self) -> tuple[float, ...]:
        """How large each number in an observation usually is: its root mean square under random actions, rounded."""

    @property
    def num_actions(self) -> int:
        """Numbers in an action."""

    @property
    def time_step(self) -> float:
        """Seconds between two actions."""

    def reset(self, key: jax.Array, mixing: jax.Array) -> jax.Array:
        """Draw a start state; ``key`` is consumed."""

    def dynamics(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """The state one time step later."""

    def observe(self, x: jax.Array) -> jax.Array:
        """What is seen of a state."""

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """What a step is worth, from 0 to 1, by the state that it led to."""

    def draw(self, x: np.ndarray) -> np.ndarray:
        """A picture of a state."""


TASKS: Mapping[str, Task] = {
    "AcrobotSwingup": Acrobot(),
    "BallInCupCatch": BallInCup(),
    "CartpoleBalance": CartPole(swing_up=False),
    "CartpoleSwingup": CartPole(swing_up=True),
    "FingerSpin": Finger(target=0.0),
    "FingerTurnEasy": Finger(target=0.07),
    "FingerTurnHard": Finger(target=0.03),
    "PendulumSwingup": Pendulum(),
    "PointMassEasy": PointMass(mixed=False),
    "PointMassHard": PointMass(mixed=True),
    "ReacherEasy": Reacher(target=0.05),
    "ReacherHard": Reacher(target=0.015),
}
SIZE = max(task.size for task in TASKS.values())


@struct.dataclass
class State(EnvState):
    """``x`` float32 ``[9]``: the state of the task, then zeros."""

    x: jax.Array


@struct.dataclass
class Params(EnvParams):
    """``mixing`` float32 ``[2, 2]``: in its columns, where the motors of a hard point mass pull; zeros (the default):
    they are drawn anew in each episode, as in the suite.
    """

    mixing: jax.Array = dataclasses.field(default_factory=lambda: jnp.zeros((2, 2)))


@envs.register(
    "control/",
    field="id",
    variants=(
        "AcrobotSwingup",
        "BallInCupCatch",
        "CartpoleBalance",
        "CartpoleSwingup",
        "FingerSpin",
        "FingerTurnEasy",
        "FingerTurnHard",
        "PendulumSwingup",
        "PointMassEasy",
        "PointMassHard",
        "ReacherEasy",
        "ReacherHard",
    ),
)
@dataclasses.dataclass(frozen=True)
class Control(Environment):
    """A small task of continuous control: observations ``[n]``, actions ``[m]`` in ``[-1, 1]``, rewards from 0 to 1.

    Raises ``ValueError`` for an unknown task.
    """

    id: str = hp("PendulumSwingup", "the task, by the suite's name")
    scaled: bool = hp(False, "observe each number in units of its usual size, as what is to be projected should be")

    def __post_init__(self) -> None:
        check(self)
        if self.id not in TASKS:
            raise ValueError(f"unknown control task '{self.id}': there are {', '.join(TASKS)}")

    @property
    def name(self) -> str:
        """The id."""
        return self.id

    @property
    def task(self) -> Task:
        """Its physics and rules."""
        return TASKS[self.id]

    @property
    def default_params(self) -> Params:
        """200 steps."""
        return Params(max_steps_in_episode=200)

    def sample_task(self, key: jax.Array, params: Params) -> Params:
        """Draw where the motors of a hard point mass pull; ``key`` is consumed. Nothing else differs."""
        return dataclasses.replace(params, mixing=draw_mixing(key))

    def reset_env(self, key: jax.Array, params: Params) -> tuple[jax.Array, State]:
        """Draw a start state; ``key`` is consumed."""
        return self._observed(jnp.int32(0), self.task.reset(key, params.mixing))

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Params
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; nothing is random, ``key`` is not used. Actions are clipped to ``[-1, 1]``."""
        action = jnp.clip(action, -1, 1)
        x = self.task.dynamics(state.x[: self.task.size], action)
        obs, after = self._observed(state.time + 1, x)
        return obs, after, self.task.reward(x, action).astype(jnp.float32), jnp.bool_(False), {}

    def _observed(self, time: jax.Array, x: jax.Array) -> tuple[jax.Array, State]:
        obs = self.task.observe(x)
        if self.scaled:
            obs /= jnp.array(self.task.usual)
        return obs, State(time, jnp.pad(x, (0, SIZE - len(x))))

    def render(self, state: State, params: Params) -> np.ndarray:
        """Draw the task."""
        return self.task.draw(np.asarray(state.x, float))

    def observation_space(self, params: Params) -> Box:
        """Float32 ``[n]``, unbounded."""
        return Box(-np.inf, np.inf, (len(self.task.usual),))

    def action_space(self, params: Params) -> Box:
        """Float32 ``[m]`` in ``[-1, 1]``: a share of each motor's strength."""
        return Box(-1.0, 1.0, (self.task.num_actions,))
