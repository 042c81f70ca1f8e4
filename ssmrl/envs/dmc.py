"""The DeepMind Control Suite as ``dmc/CartpoleSwingup``, in MuJoCo Playground's JAX port; ``pip install 'ssmrl[dmc]'``.

Every episode starts from a fresh state and is cut off after 1000 steps, as in the original; an end before that means
that the simulation broke down. Building one of these environments takes seconds, compiling one 10-60 s. Physics runs
as MJX's ``jax`` implementation everywhere.

Sources: Tassa et al. 2018, "DeepMind Control Suite"; Zakka et al. 2025, "MuJoCo Playground".
"""

import contextlib
import dataclasses
import functools
import io
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl.envs.base import EnvParams
from ssmrl.envs.foreign import Foreign, ForeignState, require
from ssmrl.registry import envs, hp
from ssmrl.spaces import Box


@envs.register(
    "dmc/",
    field="id",
    variants=(
        "AcrobotSwingup",
        "AcrobotSwingupSparse",
        "BallInCup",
        "CartpoleBalance",
        "CartpoleBalanceSparse",
        "CartpoleSwingup",
        "CartpoleSwingupSparse",
        "CheetahRun",
        "FingerSpin",
        "FingerTurnEasy",
        "FingerTurnHard",
        "FishSwim",
        "HopperHop",
        "HopperStand",
        "HumanoidRun",
        "HumanoidStand",
        "HumanoidWalk",
        "PendulumSwingup",
        "PointMass",
        "ReacherEasy",
        "ReacherHard",
        "SwimmerSwimmer6",
        "WalkerRun",
        "WalkerStand",
        "WalkerWalk",
    ),
)
@dataclasses.dataclass(frozen=True)
class DMC(Foreign):
    """A task of the DeepMind Control Suite: observations ``[n]``, actions ``[m]``, rewards from 0 to 1.

    Raises ``UserError`` if playground is not installed.
    """

    id: str = hp("CartpoleSwingup", "playground's own id")

    @property
    def _env(self) -> Any:
        return _upstream(self.id)

    @property
    def default_params(self) -> EnvParams:
        """The customary time limit of 1000 steps."""
        return EnvParams(max_steps_in_episode=1000)

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, ForeignState]:
        """Draw a start state; ``key`` is consumed."""
        with _quiet():
            start = self._env.reset(key)
        return start.obs.astype(jnp.float32), ForeignState.start(start)

    def step_env(
        self, key: jax.Array, state: ForeignState, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, ForeignState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; the physics is deterministic, ``key`` is not used."""
        # playground writes into these two in place
        before = state.inner.replace(info=dict(state.inner.info), metrics=dict(state.inner.metrics))
        with _quiet():
            after = self._env.step(before, action)
        terminated = jnp.asarray(after.done, bool)
        reward = jnp.where(terminated, 0, after.reward).astype(jnp.float32)  # of a state that is not a number
        return after.obs.astype(jnp.float32), state.after(after), reward, terminated, {}

    def render(self, state: ForeignState, params: EnvParams) -> np.ndarray:
        """Draw the robot as one of its own cameras sees it; see ``mujoco_pictures``."""
        from ssmrl.envs.mujoco_pictures import draw

        model, data = self._env.mj_model, state.inner.data
        names = [model.cam(i).name for i in range(model.ncam)]
        camera = next((names.index(name) for name in ("side", "fixed_top") if name in names), 0)
        return draw(model, self.id, camera, qpos=data.qpos, mocap_pos=data.mocap_pos, mocap_quat=data.mocap_quat)

    def observation_space(self, params: EnvParams) -> Box:
        """Float32 ``[n]``, unbounded."""
        return Box(-np.inf, np.inf, (_size(self.id),))

    def action_space(self, params: EnvParams) -> Box:
        """Float32 ``[m]``, in the range of each actuator."""
        low, high = self._env.mj_model.actuator_ctrlrange.T
        return Box(low, high, low.shape)


@functools.cache
def _upstream(id: str) -> Any:
    """Build playground's environment, once."""
    with _quiet():
        suite = require("mujoco_playground", f"dmc/{id}", "pip install 'ssmrl[dmc]'").dm_control_suite
        import mujoco

        warn = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)  # else some models leave a MUJOCO_LOG.TXT behind
        try:
            with jax.ensure_compile_time_eval():
                return suite.load(id, config_overrides={"impl": "jax"})
        finally:
            mujoco.set_mju_user_warning(warn)


@functools.cache
def _size(id: str) -> int:
    with _quiet():
        return int(jax.eval_shape(_upstream(id).reset, jax.random.key(0)).obs.shape[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Allow what playground and mjx do, and keep what they print to themselves."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        yield
