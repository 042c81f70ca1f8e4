"""A point that two motors push about in a square."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl.envs.control.physics import near, small_control
from ssmrl.envs.drawing import GREEN, INK, RED, WHITE, Canvas, title

WALL = 0.29  # half of the square's side


@dataclasses.dataclass(frozen=True)
class PointMass:
    """Push a point to the middle of a square; ``mixed`` motors pull in two directions that have to be found out.

    ``x``: position, velocity, the two directions in which the motors pull. Rewarded for being at most 1.5 cm from the
    middle (0.1 at 3 cm), and a little for weak actions.
    """

    mixed: bool
    friction: float = 1.0
    time_step: float = 0.05

    size = 8
    usual = (0.2, 0.2, 0.05, 0.05)
    num_actions = 2
    mass = 0.3
    force = 0.1
    target = 0.015

    def reset(self, key: jax.Array, mixing: jax.Array) -> jax.Array:
        """Rest anywhere; ``mixing`` holds the motors' directions in its columns, or zeros: then they are drawn."""
        key_place, key_mixing = jax.random.split(key)
        place = jax.random.uniform(key_place, (2,), minval=-WALL, maxval=WALL)
        directions = jnp.eye(2)
        if self.mixed:
            directions = jnp.where((mixing != 0).any(), mixing, draw_mixing(key_mixing))
        return jnp.concatenate([place, jnp.zeros(2), directions.ravel()])

    def dynamics(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """One control step, exact between the walls, which take up all of the speed across them."""
        rate, step = self.friction / self.mass, self.time_step
        kept = math.exp(-rate * step)
        mean = (1 - kept) / rate  # seconds of coasting
        axes = []
        for i in range(2):
            steady = self.force / self.friction * (x[4 + 2 * i] * action[0] + x[5 + 2 * i] * action[1])
            place = x[i] + steady * step + (x[2 + i] - steady) * mean
            speed = steady + (x[2 + i] - steady) * kept
            axes.append((jnp.clip(place, -WALL, WALL), jnp.where(jnp.abs(place) > WALL, 0, speed)))
        places, speeds = zip(*axes, strict=True)
        return jnp.concatenate([jnp.stack([*places, *speeds]), x[4:]])

    def observe(self, x: jax.Array) -> jax.Array:
        """Position and velocity."""
        return x[:4]

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """Near the middle, times a factor for weak actions."""
        return near(jnp.hypot(x[0], x[1]), self.target, self.target) * small_control(action)

    def draw(self, x: np.ndarray) -> np.ndarray:
        """The square, the target, the point, and where the motors pull."""
        canvas, scale = Canvas(), 320
        title(canvas, "Push the point to the middle")
        canvas.box(160 - scale * 0.3, 138 - scale * 0.3, scale * 0.6, scale * 0.6, WHITE, INK, 2)
        canvas.circle(160, 138, scale * self.target, GREEN)
        at = 160 + scale * float(x[0]), 138 - scale * float(x[1])
        for column in range(2):
            canvas.line([at, (at[0] + 22 * float(x[4 + column]), at[1] - 22 * float(x[6 + column]))], INK, 2)
        canvas.circle(*at, 6, RED)
        return canvas.to_array()


def draw_mixing(key: jax.Array) -> jax.Array:
    """Draw the directions of two motors, unit columns of a float32 ``[2, 2]``, whose cosine is at most 0.9."""
    apart = math.acos(0.9)
    first, between, side = jax.random.uniform(key, (3,))
    between = jnp.sign(side - 0.5) * (apart + between * (math.pi - 2 * apart))
    angles = 2 * math.pi * first + jnp.stack([jnp.float32(0), between])
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])
