"""A pendulum with a motor too weak to lift it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl.envs import scenes
from ssmrl.envs.control.physics import GRAVITY, Link, Scalars, rk4


@dataclasses.dataclass(frozen=True)
class Pendulum:
    """Swing a pendulum up and hold it there: rewarded within 8 degrees of upright.

    ``x``: angle (0 is upright) and velocity. The torque of 1 N m is a fifth of what would hold the pendulum level.
    """

    damping: float = 0.1
    time_step: float = 0.05

    size = 2
    usual = (0.7, 0.7, 3.0)
    num_actions = 1
    ball = Link.ball(distance=0.5, radius=0.05, mass=1.0)

    def reset(self, key: jax.Array, mixing: jax.Array) -> jax.Array:
        """Rest at any angle."""
        return jnp.stack([jax.random.uniform(key, minval=-math.pi, maxval=math.pi), jnp.float32(0)])

    def derivative(self, y: Scalars, action: jax.Array) -> Scalars:
        """Velocity and acceleration."""
        angle, velocity = y
        torque = self.ball.mass * self.ball.centre * GRAVITY * jnp.sin(angle) - self.damping * velocity + action[0]
        return velocity, torque / (self.ball.inertia + self.ball.mass * self.ball.centre**2)

    def dynamics(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """One control step."""
        return jnp.stack(rk4(lambda y: self.derivative(y, action), (x[0], x[1]), self.time_step / 2, 2))

    def observe(self, x: jax.Array) -> jax.Array:
        """Cosine and sine of the angle, velocity."""
        return jnp.stack([jnp.cos(x[0]), jnp.sin(x[0]), x[1]])

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """1 where it stands."""
        return jnp.where(jnp.cos(x[0]) >= math.cos(math.radians(8)), 1.0, 0.0)

    def draw(self, x: np.ndarray) -> np.ndarray:
        """The pendulum."""
        return scenes.pendulum(-x[0])
