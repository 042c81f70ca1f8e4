"""Two links in a plane: the acrobot, driven at the elbow alone, and an arm that reaches for targets."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssmrl.envs import scenes
from ssmrl.envs.control.physics import GRAVITY, Link, Scalars, TwoLinks, near, rk4, stop
from ssmrl.envs.drawing import GREEN, Canvas, title


@dataclasses.dataclass(frozen=True)
class Acrobot:
    """Swing up two links by a motor between them: the tip is to be at the top.

    ``x``: angle of the first link (0 is upright) and of the second relative to it, their velocities. The reward falls
    off with the distance of the tip from the highest point.
    """

    damping: float = 0.05
    time_step: float = 0.04

    size = 4
    usual = (0.7, 0.7, 0.7, 0.7, 3.0, 6.0)
    num_actions = 1
    torque = 2.0
    upper = Link.capsule(length=1.0, radius=0.05, mass=1.0)
    lower = Link.capsule(length=1.0, radius=0.049, mass=1.0)
    links = TwoLinks.of(upper, lower, length=1.0)

    def reset(self, key: jax.Array, mixing: jax.Array) -> jax.Array:
        """Rest at any two angles."""
        angles = jax.random.uniform(key, (2,), minval=-math.pi, maxval=math.pi)
        return jnp.concatenate([angles, jnp.zeros(2)])

    def derivative(self, y: Scalars, action: jax.Array) -> Scalars:
        """Velocities and accelerations."""
        first, second, *speeds = y
        fall = GRAVITY * self.lower.mass * self.lower.centre * jnp.sin(first + second)
        weight = GRAVITY * (self.upper.mass * self.upper.centre + self.lower.mass)
        torque = fall + weight * jnp.sin(first), fall + self.torque * action[0]
        return *speeds, *self.links.acceleration(second, tuple(speeds), torque, self.damping)

    def dynamics(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """One control step."""
        return jnp.stack(rk4(lambda y: self.derivative(y, action), tuple(x), self.time_step / 2, 2))

    def observe(self, x: jax.Array) -> jax.Array:
        """Sines and cosines of the directions of both links, velocities."""
        angles = jnp.stack([x[0], x[0] + x[1]])
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles), x[2:]])

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """1 within 0.2 m of the top, 0.1 at 1 m from there."""
        to_top = jnp.sin(x[0]) + jnp.sin(x[0] + x[1]), 2 - jnp.cos(x[0]) - jnp.cos(x[0] + x[1])
        return near(jnp.hypot(*to_top), 0.2, 1.0)

    def draw(self, x: np.ndarray) -> np.ndarray:
        """Both links and the target."""
        canvas, pivot, scale = Canvas(), np.array([160.0, 140.0]), 48
        title(canvas, "Swing the tip up to the green spot")
        canvas.circle(160, pivot[1] - 2 * scale, 0.2 * scale, GREEN)
        elbow = pivot + scale * np.array([np.sin(x[0]), -np.cos(x[0])])
        tip = elbow + scale * np.array([np.sin(x[0] + x[1]), -np.cos(x[0] + x[1])])
        scenes.chain(canvas, [tuple(pivot), tuple(elbow), tuple(tip)], 8)
        return canvas.to_array()


@dataclasses.dataclass(frozen=True)
class Reacher:
    """Bring the tip of an arm to a target of radius ``target``, seen from above.

    ``x``: angles of shoulder and wrist, their velocities, position of the target. Rewarded while tip and target touch.
    """

    target: float
    damping: float = 0.01
    time_step: float = 0.04

    size = 6
    usual = (4.0, 2.0, 0.15, 0.15, 2.5, 2.5)
    num_actions = 2
    substeps = 8
    torque = 0.05
    wrist = math.radians(160)  # how far it turns
    lengths = (0.12, 0.12)
    tip = 0.01  # radius
    links = TwoLinks.of(
        Link.capsule(length=0.12, radius=0.01), Link.capsule(0.1, 0.01).joined(Link.ball(0.12, tip)), length=0.12
    )

    def reset(self, key: jax.Array, mixing: jax.Array) -> jax.Array:
        """Rest at any angles; the target is 5 to 20 cm from the shoulder."""
        key_arm, key_target = jax.random.split(key)
        arm = jnp.array([math.pi, self.wrist]) * jax.random.uniform(key_arm, (2,), minval=-1.0)
        angle, distance = jax.random.uniform(key_target, (2,))
        angle, distance = 2 * math.pi * angle, 0.05 + 0.15 * distance
        return jnp.concatenate([arm, jnp.zeros(2), distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)])])

    def dynamics(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """One control step, of semi-implicit Euler steps; implicit in the damping, which is stiff."""
        step = self.time_step / self.substeps

        def advance(_: jax.Array, y: Scalars) -> Scalars:
            bend = stop(y[1], y[3], self.wrist, 1.0, 0.01)
            torque = self.torque * action[0], self.torque * action[1] + bend
            turned = self.links.acceleration(y[1], y[2:], torque, self.damping, step)
            speeds = tuple(v + step * a for v, a in zip(y[2:], turned, strict=True))
            return *(q + step * v for q, v in zip(y[:2], speeds, strict=True)), *speeds

        return jnp.concatenate([jnp.stack(lax.fori_loop(0, self.substeps, advance, tuple(x[:4]))), x[4:]])

    def to_target(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The way from the tip to the target."""
        one, two = self.lengths
        reach = one * jnp.cos(x[0]) + two * jnp.cos(x[0] + x[1]), one * jnp.sin(x[0]) + two * jnp.sin(x[0] + x[1])
        return x[4] - reach[0], x[5] - reach[1]

    def observe(self, x: jax.Array) -> jax.Array:
        """Angles, way from the tip to the target, velocities."""
        return jnp.stack([x[0], x[1], *self.to_target(x), x[2], x[3]])

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """1 while they touch."""
        return jnp.where(jnp.hypot(*self.to_target(x)) <= self.target + self.tip, 1.0, 0.0)

    def draw(self, x: np.ndarray) -> np.ndarray:
        """The arm and the target."""
        canvas, scale = Canvas(), 360
        title(canvas, "Reach the target")

        def at(a: float, b: float) -> tuple[float, float]:
            return 160 + scale * float(a), 135 - scale * float(b)

        canvas.circle(*at(x[4], x[5]), self.target * scale, GREEN)
        elbow = 0.12 * np.cos(x[0]), 0.12 * np.sin(x[0])
        tip = elbow[0] + 0.12 * np.cos(x[0] + x[1]), elbow[1] + 0.12 * np.sin(x[0] + x[1])
        scenes.chain(canvas, [at(0, 0), at(*elbow), at(*tip)], 7)
        return canvas.to_array()
