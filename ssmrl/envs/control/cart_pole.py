"""A pole on a cart that a continuous force pushes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl.envs.control.physics import GRAVITY, Link, Scalars, near, rk4, small_control, solve2, stop
from ssmrl.envs.drawing import GREEN, GREY, INK, RED, WHITE, Canvas, title

RAIL = 1.8  # the cart meets soft stops this far from the middle


@dataclasses.dataclass(frozen=True)
class CartPole:
    """Keep a pole upright above the middle of the rail, from there or (``swing_up``) from below.

    ``x``: position of the cart, angle of the pole (0 is upright, positive to the right), their velocities. The reward
    is a product of four factors: upright, near the middle, weak force, slow pole.
    """

    swing_up: bool
    friction: float = 5e-4  # of the cart
    damping: float = 2e-6  # of the hinge
    time_step: float = 0.04

    size = 4
    usual = (1.0, 0.7, 0.7, 2.0, 5.0)
    num_actions = 1
    cart_mass = 1.0
    force = 10.0
    pole = Link.capsule(length=1.0, radius=0.045, mass=0.1)

    def reset(self, key: jax.Array, mixing: jax.Array) -> jax.Array:
        """Nearly at rest, near the middle."""
        key, key_speed = jax.random.split(key)
        speed = 0.01 * jax.random.normal(key_speed, (2,))
        if self.swing_up:
            place = jnp.array([0.0, math.pi]) + 0.01 * jax.random.normal(key, (2,))
        else:
            place = jnp.array([0.1, 0.034]) * jax.random.uniform(key, (2,), minval=-1.0)
        return jnp.concatenate([place, speed])

    def derivative(self, y: Scalars, action: jax.Array) -> Scalars:
        """Velocities and accelerations."""
        place, angle, speed, turn = y
        sin, cos, lever = jnp.sin(angle), jnp.cos(angle), self.pole.mass * self.pole.centre
        push = self.force * action[0] - self.friction * speed + stop(place, speed, RAIL, 200.0, 25.0)
        accelerations = solve2(
            jnp.full_like(cos, self.cart_mass + self.pole.mass),
            lever * cos,
            jnp.full_like(cos, self.pole.inertia + lever * self.pole.centre),
            push + lever * sin * turn**2,
            lever * GRAVITY * sin - self.damping * turn,
        )
        return speed, turn, *accelerations

    def dynamics(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """One control step."""
        return jnp.stack(rk4(lambda y: self.derivative(y, action), tuple(x), self.time_step / 2, 2))

    def observe(self, x: jax.Array) -> jax.Array:
        """Position, cosine and sine of the angle, velocities."""
        return jnp.stack([x[0], jnp.cos(x[1]), jnp.sin(x[1]), x[2], x[3]])

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """The product of the four factors."""
        upright = (1 + jnp.cos(x[1])) / 2
        centred = (1 + near(jnp.abs(x[0]), 0.0, 2.0)) / 2
        slow = (1 + near(jnp.abs(x[3]), 0.0, 5.0)) / 2
        return upright * centred * small_control(action) * slow

    def draw(self, x: np.ndarray) -> np.ndarray:
        """Rail, cart and pole."""
        canvas, scale, floor = Canvas(), 70, 150
        title(canvas, "Swing the pole up and keep it there" if self.swing_up else "Keep the pole upright")
        middle = 160 + scale * x[0]
        canvas.line([(160 - scale * (RAIL + 0.2), floor), (160 + scale * (RAIL + 0.2), floor)], GREY, 2)
        canvas.circle(160, floor, 4, GREEN)
        canvas.box(middle - 14, floor - 8, 28, 16, INK, radius=3)
        tip = middle + scale * np.sin(x[1]), floor - scale * np.cos(x[1])
        canvas.line([(middle, floor), tip], (190, 130, 70), 6)
        canvas.circle(middle, floor, 3, WHITE)
        canvas.circle(*tip, 4, RED)
        return canvas.to_array()
