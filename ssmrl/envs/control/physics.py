"""What the tasks of control share: integration, two links in a plane, soft limits, shaped rewards.

Everything works on scalars and tuples of scalars: under ``vmap`` these are vectors over the environments, which
compile to straight-line code. SI units and radians throughout.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

GRAVITY = 9.81
Scalars = tuple[jax.Array, ...]
Point = tuple[jax.Array, jax.Array]


def rk4(derivative: Callable[[Scalars], Scalars], y: Scalars, step: float, substeps: int) -> Scalars:
    """Integrate ``y' = derivative(y)`` by ``substeps`` Runge-Kutta steps of fourth order, each ``step`` seconds."""

    def advance(_: jax.Array, y: Scalars) -> Scalars:
        def ahead(slope: Scalars, share: float) -> Scalars:
            return tuple(a + share * step * b for a, b in zip(y, slope, strict=True))

        k1 = derivative(y)
        k2 = derivative(ahead(k1, 0.5))
        k3 = derivative(ahead(k2, 0.5))
        k4 = derivative(ahead(k3, 1.0))
        return tuple(a + step / 6 * (b + 2 * (c + d) + e) for a, b, c, d, e in zip(y, k1, k2, k3, k4, strict=True))

    return lax.fori_loop(0, substeps, advance, y)


def solve2(a: jax.Array, b: jax.Array, c: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Solve ``[[a, b], [b, c]] z = (x, y)`` for ``z``."""
    scale = 1 / (a * c - b * b)
    return (c * x - b * y) * scale, (a * y - b * x) * scale


class TwoLinks(NamedTuple):
    """Two rigid links in a plane: ``q1`` is the angle of the first, ``q2`` that of the second relative to it.

    Lagrange's equations ``M(q) q'' + h(q, q') = torque - damping q'`` with ``M = [[first + second + 2 coupling cos q2,
    second + coupling cos q2], [., second]]`` and ``h`` the Coriolis forces.
    """

    first: float  # moment of the first link, and of the second one's mass at its end, about the first joint
    second: float  # moment of the second link about its own joint
    coupling: float  # mass of the second link times its centre's distance times the first link's length

    @classmethod
    def of(cls, one: "Link", two: "Link", length: float) -> "TwoLinks":
        """Join ``two`` to ``one`` at the distance ``length`` from the first joint."""
        first = one.inertia + one.mass * one.centre**2 + two.mass * length**2
        return cls(first, two.inertia + two.mass * two.centre**2, two.mass * two.centre * length)

    def acceleration(
        self, q2: jax.Array, v: Scalars, torque: Scalars, damping: float, step: float = 0.0
    ) -> tuple[jax.Array, jax.Array]:
        """Angular accelerations; with ``step``, those of an Euler step that is implicit in the damping."""
        cos, sin = self.coupling * jnp.cos(q2), self.coupling * jnp.sin(q2)
        implicit = step * damping
        return solve2(
            self.first + self.second + 2 * cos + implicit,
            self.second + cos,
            jnp.full_like(cos, self.second + implicit),
            torque[0] - damping * v[0] + sin * v[1] * (2 * v[0] + v[1]),
            torque[1] - damping * v[1] - sin * v[0] ** 2,
        )


class Link(NamedTuple):
    """A rigid body: mass, distance of its centre of mass from its joint, moment of inertia about that centre."""

    mass: float
    centre: float
    inertia: float

    @classmethod
    def capsule(cls, length: float, radius: float, mass: float | None = None) -> "Link":
        """A cylinder of ``length`` that begins at the joint, with half a ball at each end; water unless ``mass``."""
        middle, ends = math.pi * radius**2 * length, 4 / 3 * math.pi * radius**3
        density = 1000.0 if mass is None else mass / (middle + ends)
        moment = middle * (length**2 / 12 + radius**2 / 4)
        moment += ends * (0.4 * radius**2 + length**2 / 4 + 3 / 8 * length * radius)
        return cls(density * (middle + ends), length / 2, density * moment)

    @classmethod
    def ball(cls, distance: float, radius: float, mass: float | None = None) -> "Link":
        """A ball at a distance from the joint; of water unless ``mass`` is given."""
        mass = 1000.0 * 4 / 3 * math.pi * radius**3 if mass is None else mass
        return cls(mass, distance, 0.4 * mass * radius**2)

    def moved(self, distance: float) -> "Link":
        """The same body, ``distance`` farther from the joint."""
        return self._replace(centre=self.centre + distance)

    def joined(self, other: "Link") -> "Link":
        """Both bodies as one."""
        mass = self.mass + other.mass
        centre = (self.mass * self.centre + other.mass * other.centre) / mass
        inertia = sum(b.inertia + b.mass * (b.centre - centre) ** 2 for b in (self, other))
        return Link(mass, centre, inertia)


def push_off(gap: jax.Array, speed: jax.Array, stiffness: float, damping: float) -> jax.Array:
    """Force of a damped spring on what touches, where ``gap`` is negative; ``speed`` is that of the gap.

    It pushes and never holds.
    """
    return jnp.where(gap < 0, jnp.maximum(-stiffness * gap - damping * speed, 0), 0)


def stop(q: jax.Array, v: jax.Array, limit: float, stiffness: float, damping: float) -> jax.Array:
    """Force of soft stops at ``-limit`` and ``limit``."""
    return push_off(q + limit, v, stiffness, damping) - push_off(limit - q, -v, stiffness, damping)


def segment(point: Point, start: tuple[float, float], end: tuple[float, float]) -> tuple[jax.Array, Point]:
    """Distance of a point from the segment between ``start`` and ``end``, and the unit vector from there to it."""
    way = end[0] - start[0], end[1] - start[1]
    away = point[0] - start[0], point[1] - start[1]
    share = jnp.clip((away[0] * way[0] + away[1] * way[1]) / (way[0] ** 2 + way[1] ** 2), 0, 1)
    away = away[0] - share * way[0], away[1] - share * way[1]
    distance = jnp.hypot(*away) + 1e-9
    return distance, (away[0] / distance, away[1] / distance)


def near(distance: jax.Array, bound: float, margin: float) -> jax.Array:
    """1 within ``bound``, then a Gaussian that has fallen to 0.1 at ``margin`` beyond; ``distance`` is not negative."""
    beyond = jnp.maximum(distance - bound, 0) / margin
    return jnp.exp(math.log(0.1) * beyond**2)


def small_control(action: jax.Array) -> jax.Array:
    """The factor in ``[0.8, 1]`` by which the suite rewards weak actions ``[m]``."""
    return (4 + jnp.mean(1 - jnp.minimum(action**2, 1))) / 5
