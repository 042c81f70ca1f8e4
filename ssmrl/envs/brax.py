"""The robots of brax as ``brax/ant``, simulated by any of brax's backends.

``-P`` shows positions (and angles) only, ``-V`` velocities only: what is hidden must be remembered. They exist where
every entry of the observation is one or the other; the humanoids mix in inertias and forces. Every episode starts
from a fresh state (brax's own auto-reset repeats the first one) and the time limit truncates. Building one of these
environments takes 2 s, compiling one 5-20 s.

Source: Freeman et al. 2021, "Brax - A Differentiable Physics Engine for Large Scale Rigid Body Simulation".
"""

import contextlib
import dataclasses
import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.registry import UserError, envs, hp
from ssmrl.spaces import Box

# What each entry of an observation is: P for a position, V for a velocity. The free coordinates along which a robot
# may travel are not observed. The height comes first in the walkers, the reacher's last three are tip to target.
KINDS = {
    "ant": 13 * "P" + 14 * "V",
    "halfcheetah": 8 * "P" + 9 * "V",
    "hopper": 5 * "P" + 6 * "V",
    "inverted_double_pendulum": 5 * "P" + 3 * "V",
    "inverted_pendulum": 2 * "P" + 2 * "V",
    "pusher": 7 * "P" + 7 * "V" + 9 * "P",
    "reacher": 6 * "P" + 2 * "V" + 3 * "P",
    "walker2d": 8 * "P" + 9 * "V",
}


@struct.dataclass
class RobotState(EnvState):
    """The state of the physics, whose fields depend on the backend."""

    pipeline: Any


@envs.register(
    "brax/",
    field="id",
    variants=(
        "ant",
        "ant-P",
        "ant-V",
        "halfcheetah",
        "halfcheetah-P",
        "halfcheetah-V",
        "hopper",
        "hopper-P",
        "hopper-V",
        "humanoid",
        "humanoidstandup",
        "inverted_double_pendulum",
        "inverted_double_pendulum-P",
        "inverted_double_pendulum-V",
        "inverted_pendulum",
        "inverted_pendulum-P",
        "inverted_pendulum-V",
        "pusher",
        "pusher-P",
        "reacher",
        "reacher-P",
        "swimmer",
        "walker2d",
        "walker2d-P",
        "walker2d-V",
    ),
)
@dataclasses.dataclass(frozen=True)
class Brax(Environment):
    """A robot of brax: observations ``[n]`` of positions and velocities, actions ``[m]`` in ``[-1, 1]``.

    Raises ``ValueError`` for an unknown robot or backend and ``UserError`` for a robot that brax cannot step.
    """

    id: str = hp("ant", "brax's own name, with -P or -V where only positions or velocities are seen")
    backend: Literal["spring", "positional", "generalized", "mjx"] = hp(
        "spring", "physics engine: spring is the fastest, generalized and mjx the most faithful"
    )

    def __post_init__(self) -> None:
        _upstream(self._split[0], self.backend)  # its errors belong here, not inside somebody's jit

    @property
    def name(self) -> str:
        """The id."""
        return self.id

    @property
    def _split(self) -> tuple[str, str]:
        base, _, kind = self.id.rpartition("-")
        return (base, kind) if base in KINDS else (self.id, "")

    @property
    def _env(self) -> Any:
        return _upstream(self._split[0], self.backend)[0]

    def _under(self, params: Any) -> Any:
        """brax's environment, with the physics that the parameters ask for."""
        return self._env

    @functools.cached_property
    def _seen(self) -> np.ndarray:
        base, kind = self._split
        everything = np.arange(_upstream(base, self.backend)[1])
        return everything[[k == kind for k in KINDS[base]]] if kind else everything

    @property
    def default_params(self) -> EnvParams:
        """The customary time limit of 1000 steps."""
        return EnvParams(max_steps_in_episode=1000)

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, RobotState]:
        """Draw a start state near the robot's rest pose; ``key`` is consumed."""
        with _quiet():
            start = self._under(params).reset(key)
        return start.obs[self._seen], RobotState(jnp.int32(0), start.pipeline_state)

    def step_env(
        self, key: jax.Array, state: RobotState, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, RobotState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; the physics is deterministic, ``key`` is not used."""
        from brax.envs import State

        zero = jnp.float32(0)
        # brax's step reads the physics alone; it writes the metrics, in place, which are dropped here
        before = State(state.pipeline, obs=zero, reward=zero, done=zero)
        with _quiet():
            after = self._under(params).step(before, action)
        reward, terminated = jnp.asarray(after.reward, jnp.float32), jnp.asarray(after.done, bool)
        return after.obs[self._seen], RobotState(state.time + 1, after.pipeline_state), reward, terminated, {}

    def render(self, state: RobotState, params: EnvParams) -> np.ndarray:
        """Draw the robot, see ``brax_pictures``."""
        from ssmrl.envs.brax_pictures import draw

        return draw(self._split[0], self._env.sys, jax.device_get(state.pipeline))

    def to_html(self, states: Sequence[RobotState]) -> str:
        """Return brax's own page that shows ``states`` in three dimensions."""
        from ssmrl.envs.brax_pictures import page

        with _quiet():
            return page(self._env.sys.tree_replace({"opt.timestep": self._env.dt}), [s.pipeline for s in states])

    def observation_space(self, params: EnvParams) -> Box:
        """Float32 ``[n]``, unbounded."""
        return Box(-np.inf, np.inf, (len(self._seen),))

    def action_space(self, params: EnvParams) -> Box:
        """Float32 ``[m]`` in ``[-1, 1]``: a share of each motor's strength."""
        return Box(-1.0, 1.0, (self._env.action_size,))


@functools.cache
def _upstream(name: str, backend: str) -> tuple[Any, int]:
    """Build brax's environment, once; returns it and the length of its observation."""
    with _quiet(), contextlib.redirect_stdout(io.StringIO()):  # its import prints that an optional engine is missing
        import mujoco
        from brax import envs as brax_envs

    known = sorted(set(brax_envs._envs) - {"fast"})  # "fast" is brax's debugging stub
    if name not in known:
        raise ValueError(f"brax has no robot '{name}': it has {', '.join(known)}")
    if name == "swimmer":
        raise UserError(
            "brax/swimmer cannot run: brax computes its drag with jnp.clip(a_min=...), which jax 0.10 no longer has; "
            "gymnax/Swimmer-misc and the other robots of brax run"
        )
    warn = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)  # else brax's old models leave a MUJOCO_LOG.TXT behind
    try:
        with _quiet():
            with jax.ensure_compile_time_eval():
                env = brax_envs.get_environment(name, backend=backend)
            # brax's own observation_size runs a whole reset, operation by operation
            return env, jax.eval_shape(env.reset, jax.random.key(0)).obs.shape[-1]
    finally:
        mujoco.set_mju_user_warning(warn)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let brax use what our own code may not: rank promotion, and interfaces deprecated in its dependencies."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
