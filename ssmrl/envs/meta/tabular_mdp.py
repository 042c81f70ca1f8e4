"""TabularMDP: a small random Markov decision process, to be learned within a trial."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.meta import references
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Discrete


@struct.dataclass
class TabularTask(EnvParams):
    """``transitions`` float32 ``[S, A, S]``: probabilities of the next state; ``rewards`` ``[S, A]``: means."""

    transitions: jax.Array = struct.field(kw_only=True)
    rewards: jax.Array = struct.field(kw_only=True)


@struct.dataclass
class State(EnvState):
    """``place`` int32: the state that the process is in."""

    place: jax.Array


@envs.register(
    "meta/TabularMDP",
    variants={
        "-n10": {"trial_episodes": 10},
        "-n25": {"trial_episodes": 25},
        "-n50": {"trial_episodes": 50},
        "-n75": {"trial_episodes": 75},
        "-n100": {"trial_episodes": 100},
    },
    defaults={"trial_episodes": 10},
)
@dataclasses.dataclass(frozen=True)
class TabularMDP(Environment):
    """Act in a random Markov decision process; the episodes of a trial have the same one.

    The next state's probabilities are drawn from Dirichlet(1, ..., 1) and the mean reward from N(1, 1), for each state
    and action; a reward is its mean plus fresh noise from N(0, 1). Episodes start in state 0 and are truncated after
    ``horizon`` steps. Source: Duan et al. 2016, "RL^2", section 3.2, after Osband et al. 2013.
    """

    num_states: int = hp(10, "number of states", ge=1)
    num_actions: int = hp(5, "number of actions", ge=1)
    horizon: int = hp(10, "steps of an episode", ge=1)

    def __post_init__(self) -> None:
        check(self)

    @property
    def default_params(self) -> TabularTask:
        """The n-th action leads n states on and pays n / A."""
        states, actions = np.arange(self.num_states)[:, None], np.arange(self.num_actions)[None]
        transitions = np.eye(self.num_states, dtype=np.float32)[(states + actions) % self.num_states]
        rewards = jnp.broadcast_to(
            jnp.arange(self.num_actions, dtype=jnp.float32)[None], (self.num_states, self.num_actions)
        )
        return TabularTask(
            max_steps_in_episode=self.horizon, transitions=jnp.asarray(transitions), rewards=rewards / self.num_actions
        )

    def sample_task(self, key: jax.Array, params: TabularTask) -> TabularTask:
        """See ``Environment``."""
        key_transitions, key_rewards = jax.random.split(key)
        shape = self.num_states, self.num_actions
        weights = jax.random.exponential(key_transitions, (*shape, self.num_states))  # normalised: Dirichlet(1, ..., 1)
        transitions = weights / weights.sum(-1, keepdims=True)
        return dataclasses.replace(params, transitions=transitions, rewards=1 + jax.random.normal(key_rewards, shape))

    def reset_env(self, key: jax.Array, params: TabularTask) -> tuple[jax.Array, State]:
        """See ``Environment``; ``key`` is not used."""
        return jnp.int32(0), State(jnp.int32(0), jnp.int32(0))

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: TabularTask
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        key_place, key_noise = jax.random.split(key)
        below = jnp.cumsum(params.transitions[state.place, action]) < jax.random.uniform(key_place)
        place = jnp.minimum(below.sum(dtype=jnp.int32), self.num_states - 1)  # the sum of all may round to below 1
        reward = params.rewards[state.place, action] + jax.random.normal(key_noise)
        return place, State(state.time + 1, place), reward, jnp.bool_(False), {}

    def references(self) -> dict[str, Callable[..., jax.Array]]:
        """See :mod:`ssmrl.envs.meta.references`."""
        return {"optimal": references.best_policy, "PSRL": references.psrl, "random": references.random}

    def render(self, state: State, params: TabularTask) -> np.ndarray:
        """Draw the mean rewards, the state, and where each of its actions may lead."""
        canvas, place = drawing.Canvas(), int(state.place)
        note = "left: mean rewards, blue to red   right: next states"
        drawing.title(canvas, f"Learn the process: state {place}, step {int(state.time)} of {self.horizon}", note)
        shades = np.clip(np.asarray(params.rewards)[..., None] / 4 + 0.25, 0, 1)  # -1 to 3
        _table(canvas, 30, 120, (1 - shades) * drawing.BLUE + shades * drawing.RED)
        odds = np.asarray(params.transitions)[place].T[..., None] ** 0.5
        _table(canvas, 180, 120, (1 - odds) * drawing.WHITE + odds * drawing.INK)
        side = (232 - 60) / self.num_states
        canvas.circle(18, 60 + (place + 0.5) * side, min(7, side / 2), drawing.RED)
        return canvas.to_array()

    def observation_space(self, params: TabularTask) -> Discrete:
        """The state."""
        return Discrete(self.num_states)

    def action_space(self, params: TabularTask) -> Discrete:
        """The action."""
        return Discrete(self.num_actions)


def _table(canvas: drawing.Canvas, left: float, width: float, colors: np.ndarray) -> None:
    """Draw squares in ``colors`` ``[states, actions, 3]``."""
    rows, columns = colors.shape[:2]
    height, width = (232 - 60) / rows, width / columns
    for row, column in np.ndindex(rows, columns):
        red, green, blue = (int(c) for c in colors[row, column])
        canvas.box(left + column * width, 60 + row * height, width, height, (red, green, blue), drawing.PAPER)
