"""Robots of brax with a goal or a body of their own in each trial.

``meta/Brax-HalfCheetahVel`` is to run at a velocity, ``meta/Brax-AntDir`` in a direction, that only the reward tells.
``meta/Brax-hopper`` and its like run ahead as fast as they can; there, masses and gravity differ from trial to trial,
which the other two have as options. An episode has 200 steps, a trial two episodes.

Sources: Finn et al. 2017, "Model-Agnostic Meta-Learning"; Rakelly et al. 2019, "PEARL".
"""

import copy
import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from ssmrl.envs.base import EnvParams
from ssmrl.envs.brax import Brax, RobotState
from ssmrl.registry import check, envs, hp


@struct.dataclass
class RobotParams(EnvParams):
    """The task: ``goal`` is a velocity (m/s) or a direction (rad), ``gravity`` a factor; float32 all.

    ``masses`` ``[links]`` are factors too.
    """

    goal: Any = 0.0
    gravity: Any = 1.0
    masses: Any = 1.0


@dataclasses.dataclass(frozen=True)
class Robot(Brax):
    """A robot that runs ahead, in a world of its own; subclasses have goals.

    Raises ``ValueError`` if ``masses`` are to differ where brax does not look at them.
    """

    id: str = "halfcheetah"
    backend: Literal["spring", "positional", "generalized", "mjx"] = hp(
        "spring", "physics engine: spring is the fastest, generalized and mjx the most faithful"
    )
    masses: float = hp(0.0, "each link's mass is drawn up to so much more, or as many times less", ge=0.0)
    gravity: float = hp(0.0, "gravity is drawn up to so much more, or as many times less", ge=0.0)

    def __post_init__(self) -> None:
        check(self)
        super().__post_init__()
        if self.masses and self._of_links and self._env.sys.spring_mass_scale == 1:
            raise ValueError(
                f"masses={self.masses}: brax gives every link of {self.id} the mass 1 where backend={self.backend}; "
                "use backend=generalized or mjx, or masses=0"
            )

    @property
    def _of_links(self) -> bool:
        """Whether the backend moves links on springs, of masses that are powers of the robot's own."""
        return self.backend in ("spring", "positional")

    @property
    def default_params(self) -> RobotParams:
        """200 steps in the robot's own world; the goal is 1."""
        factors = jnp.ones(self._env.sys.num_links())
        return RobotParams(200, jnp.float32(1), jnp.float32(1), factors)

    def draw_goal(self, key: jax.Array) -> jax.Array:
        """Draw a goal, float32; ``key`` is consumed."""
        del key
        return jnp.float32(1)

    def progress(self, velocity: jax.Array, goal: jax.Array) -> jax.Array:
        """What a ``velocity`` ``[2]`` (m/s) is worth."""
        del goal
        return velocity[0]

    def sample_task(self, key: jax.Array, params: RobotParams) -> RobotParams:
        """Draw a goal, masses and gravity; ``key`` is consumed."""
        key_goal, key_gravity, key_masses = jax.random.split(key, 3)

        def factors(key: jax.Array, shape: tuple[int, ...], more: float) -> jax.Array:
            return jnp.exp(math.log1p(more) * jax.random.uniform(key, shape, minval=-1.0))

        return dataclasses.replace(
            params,
            goal=self.draw_goal(key_goal),
            gravity=factors(key_gravity, (), self.gravity),
            masses=factors(key_masses, params.masses.shape, self.masses),
        )

    def step_env(
        self, key: jax.Array, state: RobotState, action: jax.Array, params: Any
    ) -> tuple[jax.Array, RobotState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; the reward is brax's, with :meth:`progress` in place of the velocity ahead."""
        obs, after, reward, terminated, info = super().step_env(key, state, action, params)
        velocity = (after.pipeline.x.pos[0, :2] - state.pipeline.x.pos[0, :2]) / self._env.dt
        return obs, after, reward - velocity[0] + self.progress(velocity, params.goal), terminated, info

    def _under(self, params: Any) -> Any:
        env, system, factors = copy.copy(self._env), self._env.sys, params.masses
        inertia = system.link.inertia

        def effective(scale: jax.Array) -> jax.Array:
            """Factors of what brax raises to the power of ``1 - scale``."""
            return factors ** (1 / jnp.where(scale < 1, 1 - scale, 1)) if self._of_links else factors

        changes = {
            "gravity": system.gravity * params.gravity,
            "link.inertia.mass": inertia.mass * effective(system.spring_mass_scale),
            "link.inertia.i": inertia.i * effective(system.spring_inertia_scale)[:, None, None],
        }
        if self.backend == "mjx":  # which has the bodies as MuJoCo has them, the world first
            bodies = jnp.concatenate([jnp.ones(1), factors])
            changes = {
                "opt.gravity": system.opt.gravity * params.gravity,
                "body_mass": system.body_mass * bodies,
                "body_inertia": system.body_inertia * bodies[:, None],
            }
        env.sys = system.tree_replace(changes)
        return env


@envs.register("meta/Brax-HalfCheetahVel", defaults={"trial_episodes": 2})
@dataclasses.dataclass(frozen=True)
class HalfCheetahVel(Robot):
    """Run at a velocity between 0 and 3 m/s: rewarded by how little it is missed, less brax's price of control."""

    def draw_goal(self, key: jax.Array) -> jax.Array:
        """Uniform between 0 and 3 m/s; ``key`` is consumed."""
        return jax.random.uniform(key, maxval=3.0)

    def progress(self, velocity: jax.Array, goal: jax.Array) -> jax.Array:
        """Minus the distance from the goal."""
        return -jnp.abs(velocity[0] - goal)


@envs.register("meta/Brax-AntDir", defaults={"trial_episodes": 2})
@dataclasses.dataclass(frozen=True)
class AntDir(Robot):
    """Run in one of all directions: rewarded by the velocity there, less brax's price of control."""

    id: str = "ant"

    def draw_goal(self, key: jax.Array) -> jax.Array:
        """Any angle; ``key`` is consumed."""
        return jax.random.uniform(key, minval=-math.pi, maxval=math.pi)

    def progress(self, velocity: jax.Array, goal: jax.Array) -> jax.Array:
        """The velocity towards the goal."""
        return velocity[0] * jnp.cos(goal) + velocity[1] * jnp.sin(goal)


@envs.register(
    "meta/Brax-",
    field="id",
    variants=("ant", "halfcheetah", "hopper", "walker2d"),
    defaults={"trial_episodes": 2},
)
@dataclasses.dataclass(frozen=True)
class Changed(Robot):
    """Run ahead with a body and a gravity that differ from trial to trial."""

    id: str = hp("hopper", "brax's own name")
    backend: Literal["spring", "positional", "generalized", "mjx"] = hp(
        "generalized", "physics engine: spring is the fastest, generalized and mjx the most faithful"
    )
    masses: float = hp(0.5, "each link's mass is drawn up to so much more, or as many times less", ge=0.0)
    gravity: float = hp(0.5, "gravity is drawn up to so much more, or as many times less", ge=0.0)
