"""A ball on a string below a cup."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssmrl.envs.control.physics import GRAVITY, Link, Point, Scalars, push_off, segment
from ssmrl.envs.drawing import BLUE, GREY, RED, Canvas, title

# The right half of the cup's outline, relative to the middle of its opening; the left half is its mirror image.
PROFILE = ((0.0, -0.1), (0.025, -0.1), (0.05, -0.075), (0.05, 0.0))
WALL, BALL = 0.008, 0.025  # radii
STRING, KNOT = 0.3, -0.108  # length, and height at which it is tied to the cup
DROP = 0.4  # the ball's position counts from this far below where the cup's does
STIFFNESS, DAMPING = 1000.0, 6.0  # of contacts and of the string


@dataclasses.dataclass(frozen=True)
class BallInCup:
    """Swing a ball on a string up into the cup: rewarded while it is inside.

    ``x``: displacements ``(x, z)`` of cup and ball, then their velocities. Springs hold the cup. Contacts and the
    string are damped springs, without friction; there is no floor.
    """

    damping: float = 3.0
    stiffness: float = 20.0
    time_step: float = 0.04

    size = 8
    usual = (0.1, 0.1, 0.2, 0.2, 0.6, 0.6, 1.0, 1.0)
    num_actions = 2
    substeps = 10
    force = 5.0
    ball_mass = Link.ball(0.0, BALL).mass
    cup_mass = Link.capsule(0.05, WALL).mass + 2 * sum(
        Link.capsule(math.dist(a, b), WALL).mass for a, b in itertools.pairwise(PROFILE[1:])
    )

    def reset(self, key: jax.Array, mixing: jax.Array) -> jax.Array:
        """At rest; the ball within reach of the string, at most 45 degrees to a side."""
        angle, length = jax.random.uniform(key, (2,))
        angle, length = math.pi / 2 * (angle - 0.5), 0.08 + 0.21 * length
        ball = jnp.stack([length * jnp.sin(angle), KNOT + DROP - length * jnp.cos(angle)])
        return jnp.concatenate([jnp.zeros(2), ball, jnp.zeros(4)])

    def forces(self, y: Scalars) -> Point:
        """What string and contacts do to the ball; the cup feels the opposite."""
        cup_x, cup_z, ball_x, ball_z, *speeds = y
        side = jnp.where(ball_x < cup_x, -1.0, 1.0)  # the ball is too small to touch both halves' walls at once
        place = side * (ball_x - cup_x), ball_z - cup_z - DROP
        speed = side * (speeds[2] - speeds[0]), speeds[3] - speeds[1]
        length = jnp.hypot(place[0], place[1] - KNOT) + 1e-9
        along = place[0] / length, (place[1] - KNOT) / length
        pull = push_off(STRING - length, -(along[0] * speed[0] + along[1] * speed[1]), STIFFNESS, DAMPING)
        force = -pull * along[0], -pull * along[1]
        for start, end in itertools.pairwise(PROFILE):
            distance, normal = segment(place, start, end)
            apart = normal[0] * speed[0] + normal[1] * speed[1]
            push = push_off(distance - BALL - WALL, apart, STIFFNESS, DAMPING)
            force = force[0] + push * normal[0], force[1] + push * normal[1]
        return side * force[0], force[1]

    def dynamics(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """One control step, of semi-implicit Euler steps; implicit in the cup's damping."""
        step = self.time_step / self.substeps

        def advance(_: jax.Array, y: Scalars) -> Scalars:
            on_ball = self.forces(y)
            places, speeds = y[:4], []
            for i in range(2):
                weight = GRAVITY * i
                on_cup = self.force * action[i] - self.stiffness * y[i] - on_ball[i]
                speeds.append((y[4 + i] + step * (on_cup / self.cup_mass - weight)) / self.drag(step))
            speeds += [y[6 + i] + step * (on_ball[i] / self.ball_mass - GRAVITY * i) for i in range(2)]
            return *(q + step * v for q, v in zip(places, speeds, strict=True)), *speeds

        return jnp.stack(lax.fori_loop(0, self.substeps, advance, tuple(x)))

    def drag(self, step: float) -> float:
        """What the cup's damping divides its speed by."""
        return 1 + step * self.damping / self.cup_mass

    def observe(self, x: jax.Array) -> jax.Array:
        """All of it."""
        return x

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """1 while the ball's centre is within 2.5 cm of the middle of the cup in either direction."""
        off = jnp.abs(x[2] - x[0]), jnp.abs(x[3] - x[1] - DROP + 0.05)
        return jnp.where((off[0] < 0.025) & (off[1] < 0.025), 1.0, 0.0)

    def draw(self, x: np.ndarray) -> np.ndarray:
        """Cup, string and ball."""
        canvas, scale = Canvas(), 280
        title(canvas, "Catch the ball in the cup")

        def at(a: float, b: float) -> tuple[float, float]:
            return 160 + scale * float(a), 110 - scale * float(b)

        ball = x[2], x[3] - DROP
        canvas.line([at(x[0], x[1] + KNOT), at(*ball)], GREY, 1)
        canvas.circle(*at(*ball), scale * BALL, RED)
        outline = [(-a, b) for a, b in reversed(PROFILE)] + list(PROFILE)
        canvas.line([at(x[0] + a, x[1] + b) for a, b in outline], BLUE, 2 * scale * WALL)
        return canvas.to_array()
