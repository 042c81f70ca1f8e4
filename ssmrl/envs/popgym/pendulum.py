"""Pendulum without its velocity: gymnasium's Pendulum, observed in its angle alone."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import scenes
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Box

GRAVITY, MASS, LENGTH, TIME_STEP, MAX_SPEED, MAX_TORQUE = 10.0, 1.0, 1.0, 0.05, 8.0, 2.0  # SI units
MEAN_COST = 16.2736044 / 2  # half of the largest cost, at rest below with full torque and speed


@struct.dataclass
class State(EnvState):
    """``theta`` float32: angle (rad, 0 is upright, in [-pi, pi)); ``theta_dot`` float32: angular velocity (rad/s)."""

    theta: jax.Array
    theta_dot: jax.Array


@envs.register(
    "popgym/PositionOnlyPendulum",
    variants={
        "Easy": {"max_episode_length": 200},
        "Medium": {"max_episode_length": 150},
        "Hard": {"max_episode_length": 100},
    },
    aliases=("popgym/StatelessPendulum",),
)
@dataclasses.dataclass(frozen=True)
class PositionOnlyPendulum(Environment):
    """Swing a pendulum up and hold it there, observing its angle and not its velocity.

    The reward is gymnasium's, shifted and scaled into ``[-1/T, 1/T]``, where ``T`` is ``max_episode_length``. The
    episode never terminates, it is truncated after ``T`` steps. Source: ``gymnasium.envs.classic_control.PendulumEnv``.
    """

    max_episode_length: int = hp(200, "length of an episode in steps", ge=1)

    def __post_init__(self) -> None:
        check(self)

    @property
    def default_params(self) -> Any:
        """The time limit is ``max_episode_length``."""
        return EnvParams(max_steps_in_episode=self.max_episode_length)

    def get_obs(self, state: State) -> jax.Array:
        """Return the observation before any noise, float32 ``[2]``: cosine and sine of the angle."""
        return jnp.stack([jnp.cos(state.theta), jnp.sin(state.theta)])

    def observe(self, key: jax.Array, state: State) -> jax.Array:
        """Return the observation, float32 ``[2]``; ``key`` is consumed."""
        return self.get_obs(state)

    def draw_physics(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw ``theta`` uniformly and ``theta_dot`` from U(-1, 1), float32; ``key`` is consumed."""
        theta, theta_dot = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return math.pi * theta, theta_dot

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``."""
        key_physics, key_obs = jax.random.split(key)
        state = State(jnp.int32(0), *self.draw_physics(key_physics))
        return self.observe(key_obs, state), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        torque = jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE)
        cost = state.theta**2 + 0.1 * state.theta_dot**2 + 0.001 * torque**2
        reward = (1 - cost / MEAN_COST) / self.max_episode_length
        acceleration = 1.5 * GRAVITY / LENGTH * jnp.sin(state.theta) + 3 / (MASS * LENGTH**2) * torque
        theta_dot = jnp.clip(state.theta_dot + TIME_STEP * acceleration, -MAX_SPEED, MAX_SPEED)
        # The original lets the angle grow without bound; kept in one turn, it stays exact in float32.
        theta = (state.theta + TIME_STEP * theta_dot + math.pi) % (2 * math.pi) - math.pi
        state = State(state.time + 1, theta, theta_dot)
        return self.observe(key, state), state, reward, jnp.bool_(False), {}

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the pendulum."""
        return scenes.pendulum(state.theta)

    def get_state(self, state: State) -> jax.Array:
        """Return the Markov state, float32 ``[3]``: cosine and sine of the angle, angular velocity."""
        return jnp.stack([jnp.cos(state.theta), jnp.sin(state.theta), state.theta_dot])

    def observation_space(self, params: Any) -> Box:
        """Cosine and sine of the angle."""
        return Box(-1.0, 1.0, (2,))

    def action_space(self, params: Any) -> Box:
        """Torque (N m)."""
        return Box(-MAX_TORQUE, MAX_TORQUE, (1,))


@envs.register(
    "popgym/NoisyPositionOnlyPendulum",
    variants={"Easy": {"noise_sigma": 0.1}, "Medium": {"noise_sigma": 0.2}, "Hard": {"noise_sigma": 0.3}},
    aliases=("popgym/NoisyStatelessPendulum",),
)
@dataclasses.dataclass(frozen=True)
class NoisyPositionOnlyPendulum(PositionOnlyPendulum):
    """Swing a pendulum up, observing its angle with Gaussian noise, clipped to the observation space."""

    noise_sigma: float = hp(0.1, "standard deviation of the noise on cosine and sine", ge=0)

    def observe(self, key: jax.Array, state: State) -> jax.Array:
        """Return the observation, float32 ``[2]``; ``key`` is consumed."""
        return self.blur(self.get_obs(state), self.noise_sigma * jax.random.normal(key, (2,)))

    def blur(self, obs: jax.Array, noise: jax.Array) -> jax.Array:
        """Add noise to an observation, float32 ``[2]`` both, and clip it to its space."""
        return jnp.clip(obs + noise, *self.observation_space(None).bounds())
