"""A finger of two links that flicks a spinner."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssmrl.envs import scenes
from ssmrl.envs.control.physics import Link, Point, Scalars, TwoLinks, push_off, segment, stop
from ssmrl.envs.drawing import BLUE, GREEN, INK, RED, Canvas, title

APART = 0.4  # from the finger's first joint to the spinner's axis, both at one height
UPPER, LOWER, FINGERTIP = 0.18, 0.16, 0.03  # lengths of the links, and the radius of the tip
HALF, THICK = 0.09, 0.05  # the spinner: half of its length without the round ends, and their radius
TIP = 0.13  # its tip's distance from its axis
JOINT = math.radians(110)  # how far the joints turn
STIFFNESS, DAMPING, GRIP = 4000.0, 30.0, 20.0  # of the contact; the last is along it
COG = 0.05  # torque (N m) that the spinner's friction takes, whatever the speed


def _paddle() -> float:
    """Moment of inertia of the spinner: two capsules side by side, about their middle."""
    capsule = Link.capsule(length=2 * HALF, radius=0.04)
    return 2 * (capsule.inertia + capsule.mass * 0.02**2)


@dataclasses.dataclass(frozen=True)
class Finger:
    """Flick a spinner with a finger of two links: ``target`` 0: spin it clockwise faster than 15 rad/s, or else turn
    its tip into a circle of radius ``target``.

    ``x``: angles of the finger's two joints (0: straight at the spinner) and of the spinner (0: its tip is up), their
    velocities, the angle of the target, and what touches the upper and the lower side of the fingertip (N). Seen from
    the side, without gravity. Unlike the suite's, the spinner is one capsule, which turns more easily (a tenth of the
    suite's damping), and only the tip of the finger touches it, as a damped spring.
    """

    target: float
    damping: float = 2.5  # of the finger's joints
    drag: float = 0.05  # of the spinner's axis
    time_step: float = 0.04

    size = 9
    num_actions = 2
    substeps = 8
    torques = (30.0, 15.0)
    links = TwoLinks.of(
        Link.capsule(0.17, 0.03),
        Link.capsule(0.16, 0.028).joined(Link.capsule(0.031, 0.03).moved(0.13)),
        length=UPPER,
    )
    spinner = _paddle()

    @property
    def usual(self) -> tuple[float, ...]:
        """Turning has a target to see."""
        alone = (1.5, 1.5, 0.1, 0.1, 5.0, 3.0, 3.0, 0.5, 0.5)
        return (*alone, 0.1, 0.1, 0.1) if self.target else alone

    def reset(self, key: jax.Array, mixing: jax.Array) -> jax.Array:
        """Rest at any angles at which nothing touches: the first such of eight."""
        key, key_target = jax.random.split(key)
        angles = jnp.array([[JOINT, JOINT, math.pi]]) * jax.random.uniform(key, (8, 3), minval=-1.0)
        free = self.contact(tuple(angles.T))[0] > 0
        target = jax.random.uniform(key_target, minval=-math.pi, maxval=math.pi)
        return jnp.concatenate([angles[jnp.argmax(free)], jnp.zeros(3), target[None], jnp.zeros(2)])

    def contact(self, angles: Scalars) -> tuple[jax.Array, Point, Point]:
        """Gap between fingertip and spinner, direction from the spinner to the tip, the tip's place from the axis."""
        one, two, turn = angles
        place = (
            UPPER * jnp.cos(one) + LOWER * jnp.cos(one + two) - APART,
            UPPER * jnp.sin(one) + LOWER * jnp.sin(one + two),
        )
        sin, cos = jnp.sin(turn), jnp.cos(turn)
        upright = cos * place[0] + sin * place[1], cos * place[1] - sin * place[0]  # where the spinner stands
        distance, (x, y) = segment(upright, (0.0, -HALF), (0.0, HALF))
        return distance - FINGERTIP - THICK, (cos * x - sin * y, sin * x + cos * y), place

    def forces(self, y: Scalars) -> tuple[tuple[jax.Array, jax.Array], jax.Array, Point]:
        """Torques of the contact on the joints and on the spinner, and what the fingertip's two sides feel (N)."""
        one, both, (speed, bend, spin) = y[0], y[0] + y[1], y[3:6]
        gap, normal, place = self.contact(y[:3])
        arm = -LOWER * jnp.sin(both), LOWER * jnp.cos(both)  # how the second joint moves the tip, then the first
        reach = arm[0] - UPPER * jnp.sin(one), arm[1] + UPPER * jnp.cos(one)
        lever = place[0] - FINGERTIP * normal[0], place[1] - FINGERTIP * normal[1]  # where they touch
        moves = [a * speed + b * bend for a, b in zip(reach, arm, strict=True)]
        slip = moves[0] + spin * lever[1], moves[1] - spin * lever[0]
        push = push_off(gap, normal[0] * slip[0] + normal[1] * slip[1], STIFFNESS, DAMPING)
        rub = jnp.clip(GRIP * (normal[0] * slip[1] - normal[1] * slip[0]), -push, push)
        force = push * normal[0] + rub * normal[1], push * normal[1] - rub * normal[0]  # on the finger
        joints = reach[0] * force[0] + reach[1] * force[1], arm[0] * force[0] + arm[1] * force[1]
        above = (normal[0] * arm[0] + normal[1] * arm[1]) / LOWER  # 1 where the spinner is below the tip
        return joints, lever[1] * force[0] - lever[0] * force[1], (push * (1 - above) / 2, push * (1 + above) / 2)

    def dynamics(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """One control step, of semi-implicit Euler steps; implicit in the dampings."""
        step = self.time_step / self.substeps
        pull = self.torques[0] * action[0], self.torques[1] * action[1]

        def advance(_: jax.Array, y: Scalars) -> Scalars:
            joints, twist, touch = self.forces(y)
            torque = tuple(pull[i] + joints[i] + stop(y[i], y[3 + i], JOINT, 150.0, 1.0) for i in range(2))
            speeds = y[3:5]
            turned = self.links.acceleration(y[1], speeds, torque, self.damping, step)
            speeds = tuple(v + step * a for v, a in zip(speeds, turned, strict=True))
            spin = (self.spinner * y[5] + step * twist) / (self.spinner + step * self.drag)
            spin -= jnp.clip(spin, -step * COG / self.spinner, step * COG / self.spinner)
            speeds = *speeds, spin
            return *(q + step * v for q, v in zip(y[:3], speeds, strict=True)), *speeds, *touch

        y = lax.fori_loop(0, self.substeps, advance, (*x[:6], x[7], x[8]))
        return jnp.stack([*y[:6], x[6], *y[6:]])

    def observe(self, x: jax.Array) -> jax.Array:
        """Angles of the joints, place of the spinner's tip, velocities, touch; then the target and how far it is."""
        tip = self.tip(x[2])
        seen = jnp.stack([x[0], x[1], *tip, x[3], x[4], x[5], jnp.log1p(x[7]), jnp.log1p(x[8])])
        if not self.target:
            return seen
        return jnp.concatenate([seen, jnp.stack([*self.tip(x[6]), self.miss(x)])])

    def tip(self, angle: jax.Array) -> Point:
        """Where the spinner's tip is at an angle, from its axis."""
        return -TIP * jnp.sin(angle), TIP * jnp.cos(angle)

    def miss(self, x: jax.Array) -> jax.Array:
        """Distance of the tip from the rim of the target, negative inside."""
        return 2 * TIP * jnp.abs(jnp.sin((x[6] - x[2]) / 2)) - self.target

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """1 while it spins, or while its tip is in the target."""
        return jnp.where(self.miss(x) <= 0 if self.target else x[5] <= -15, 1.0, 0.0)

    def draw(self, x: np.ndarray) -> np.ndarray:
        """Finger, spinner and target."""
        canvas, scale = Canvas(), 280
        title(canvas, "Turn the spinner's tip to the target" if self.target else "Spin the spinner clockwise")

        def at(a: float, b: float) -> tuple[float, float]:
            return 118 + scale * float(a), 135 - scale * float(b)

        if self.target:
            canvas.circle(*at(APART - TIP * np.sin(x[6]), TIP * np.cos(x[6])), scale * self.target, GREEN)
        way = np.array([-np.sin(x[2]), np.cos(x[2])])
        for share in np.linspace(-1, 1, 40):
            canvas.circle(*at(APART + way[0] * share * HALF, way[1] * share * HALF), THICK * scale, BLUE)
        canvas.circle(*at(APART + TIP * way[0], TIP * way[1]), 4, RED)
        canvas.circle(*at(APART, 0), 3, INK)
        elbow = UPPER * np.cos(x[0]), UPPER * np.sin(x[0])
        end = elbow[0] + LOWER * np.cos(x[0] + x[1]), elbow[1] + LOWER * np.sin(x[0] + x[1])
        scenes.chain(canvas, [at(0, 0), at(*elbow), at(*end)], 10)
        canvas.circle(*at(*end), scale * FINGERTIP, RED)
        return canvas.to_array()
