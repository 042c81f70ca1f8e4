"""Cart pole with half of its state hidden: gymnasium's CartPole, observed in positions or in velocities."""

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
from ssmrl.spaces import Box, Discrete

GRAVITY, MASS_CART, MASS_POLE, HALF_LENGTH, FORCE, TIME_STEP = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02  # SI units
X_LIMIT, THETA_LIMIT = 2.4, math.radians(12)  # beyond these (m, rad) the pole has fallen


@struct.dataclass
class State(EnvState):
    """``physics`` float32 ``[4]``: cart position (m) and velocity, pole angle (rad, 0 is upright) and velocity."""

    physics: jax.Array


@dataclasses.dataclass(frozen=True)
class CartPole(Environment):
    """Balance a pole on a cart; subclasses say what is observed.

    Every step is worth ``1/T``, the last one included, where ``T`` is ``max_episode_length``. The episode terminates
    when the cart is more than 2.4 m from the middle or the pole more than 12 degrees from upright, and is truncated
    after ``T`` steps; it may be both. Source: ``gymnasium.envs.classic_control.CartPoleEnv``, with Euler steps.
    """

    max_episode_length: int = hp(200, "time limit in steps", ge=1)

    action_names = ("left", "right")

    def __post_init__(self) -> None:
        check(self)

    @property
    def default_params(self) -> Any:
        """The time limit is ``max_episode_length``."""
        return EnvParams(max_steps_in_episode=self.max_episode_length)

    def get_obs(self, state: State) -> jax.Array:
        """Return the observation before any noise, float32 ``[2]``: cart position and pole angle."""
        return state.physics[jnp.array([0, 2])]

    def observe(self, key: jax.Array, state: State) -> jax.Array:
        """Return the observation, float32 ``[2]``; ``key`` is consumed."""
        return self.get_obs(state)

    def draw_physics(self, key: jax.Array) -> jax.Array:
        """Draw a start state, float32 ``[4]``, uniformly within 0.05 of rest; ``key`` is consumed."""
        return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``."""
        key_physics, key_obs = jax.random.split(key)
        state = State(jnp.int32(0), self.draw_physics(key_physics))
        return self.observe(key_obs, state), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        physics = _euler(state.physics, jnp.where(action == 1, FORCE, -FORCE))
        fallen = (jnp.abs(physics[0]) > X_LIMIT) | (jnp.abs(physics[2]) > THETA_LIMIT)
        state = State(state.time + 1, physics)
        return self.observe(key, state), state, jnp.float32(1 / self.max_episode_length), fallen, {}

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw cart and pole."""
        x, _, theta, _ = np.asarray(state.physics)
        return scenes.cart_pole(x, theta, X_LIMIT, THETA_LIMIT)

    def get_state(self, state: State) -> jax.Array:
        """Return the Markov state ``physics``, float32 ``[4]``."""
        return state.physics

    def observation_space(self, params: Any) -> Box:
        """Cart position (m) and pole angle (rad), to twice their limits."""
        high = (2 * X_LIMIT, 2 * THETA_LIMIT)
        return Box(tuple(-x for x in high), high, (2,))

    def action_space(self, params: Any) -> Discrete:
        """Push to the left (0) or to the right (1)."""
        return Discrete(2)


@envs.register(
    "popgym/PositionOnlyCartPole",
    variants={
        "Easy": {"max_episode_length": 200},
        "Medium": {"max_episode_length": 400},
        "Hard": {"max_episode_length": 600},
    },
    aliases=("popgym/StatelessCartPole",),
)
@dataclasses.dataclass(frozen=True)
class PositionOnlyCartPole(CartPole):
    """Balance a pole on a cart, observing positions and no velocities."""


@envs.register(
    "popgym/VelocityOnlyCartPole",
    variants={
        "Easy": {"max_episode_length": 200},
        "Medium": {"max_episode_length": 400},
        "Hard": {"max_episode_length": 600},
    },
)
@dataclasses.dataclass(frozen=True)
class VelocityOnlyCartPole(CartPole):
    """Balance a pole on a cart, observing velocities and no positions.

    The first observation of an episode is of the positions, as in the original.
    """

    def get_obs(self, state: State) -> jax.Array:
        """Return the observation, float32 ``[2]``: cart and pole velocity, but their positions at the start."""
        return jnp.where(state.time == 0, super().get_obs(state), state.physics[jnp.array([1, 3])])

    def observation_space(self, params: Any) -> Box:
        """Cart velocity (m/s) and pole velocity (rad/s)."""
        return Box(-math.inf, math.inf, (2,))


@envs.register(
    "popgym/NoisyPositionOnlyCartPole",
    variants={"Easy": {"noise_sigma": 0.1}, "Medium": {"noise_sigma": 0.2}, "Hard": {"noise_sigma": 0.3}},
    aliases=("popgym/NoisyStatelessCartPole",),
)
@dataclasses.dataclass(frozen=True)
class NoisyPositionOnlyCartPole(CartPole):
    """Balance a pole on a cart, observing positions with Gaussian noise, clipped to the observation space."""

    noise_sigma: float = hp(0.1, "standard deviation of the noise (m and rad)", ge=0)

    def observe(self, key: jax.Array, state: State) -> jax.Array:
        """Return the observation, float32 ``[2]``; ``key`` is consumed."""
        return self.blur(self.get_obs(state), self.noise_sigma * jax.random.normal(key, (2,)))

    def blur(self, obs: jax.Array, noise: jax.Array) -> jax.Array:
        """Add noise to an observation, float32 ``[2]`` both, and clip it to its space."""
        return jnp.clip(obs + noise, *self.observation_space(None).bounds())


def _euler(physics: jax.Array, force: jax.Array) -> jax.Array:
    """Advance cart and pole by one explicit Euler step."""
    _, x_dot, theta, theta_dot = physics
    sin, cos = jnp.sin(theta), jnp.cos(theta)
    mass, pole_moment = MASS_CART + MASS_POLE, MASS_POLE * HALF_LENGTH
    push = (force + pole_moment * theta_dot**2 * sin) / mass
    theta_acc = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4 / 3 - MASS_POLE * cos**2 / mass))
    x_acc = push - pole_moment * theta_acc * cos / mass
    return physics + TIME_STEP * jnp.stack([x_dot, x_acc, theta_dot, theta_acc])
