"""MiniGrid in JAX, as ``navix/MemoryS7``: the environments of navix 4 (Python 3.12); ``pip install 'navix>=4'``.

navix brings a nightly build of a large package with it, and takes 10 s to import: hence it is no extra of ssmrl.

Source: Pignatelli et al. 2024, "NAVIX: Scaling MiniGrid Environments with JAX".
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl.envs.base import EnvParams
from ssmrl.envs.foreign import Foreign, ForeignState, fitted, require
from ssmrl.registry import envs, hp
from ssmrl.spaces import Box, Discrete

_TAGS, _COLOURS, _STATES = 11, 6, 4  # of a cell: kind of thing, its colour, door state or agent's direction


@envs.register(
    "navix/",
    field="id",
    variants=(
        "BlockedUnlockPickup",
        "DistShift1",
        "DistShift2",
        "DoorKey-16x16",
        "DoorKey-5x5",
        "DoorKey-6x6",
        "DoorKey-8x8",
        "DoorKey-Random-16x16",
        "DoorKey-Random-5x5",
        "DoorKey-Random-6x6",
        "DoorKey-Random-8x8",
        "Dynamic-Obstacles-16x16",
        "Dynamic-Obstacles-5x5-Random",
        "Dynamic-Obstacles-5x5",
        "Dynamic-Obstacles-6x6-Random",
        "Dynamic-Obstacles-6x6",
        "Dynamic-Obstacles-8x8",
        "Empty-16x16",
        "Empty-5x5",
        "Empty-6x6",
        "Empty-8x8",
        "Empty-Random-16x16",
        "Empty-Random-5x5",
        "Empty-Random-6x6",
        "Empty-Random-8x8",
        "Fetch-5x5-N2",
        "Fetch-6x6-N2",
        "Fetch-8x8-N3",
        "FourRooms-11x11",
        "FourRooms-13x13",
        "FourRooms-15x15",
        "FourRooms-17x17",
        "FourRooms-7x7",
        "FourRooms-9x9",
        "FourRooms",
        "GoToDoor-5x5",
        "GoToDoor-6x6",
        "GoToDoor-8x8",
        "GoToObject-6x6-N2",
        "GoToObject-8x8-N2",
        "KeyCorridorS3R1",
        "KeyCorridorS3R2",
        "KeyCorridorS3R3",
        "KeyCorridorS4R3",
        "KeyCorridorS5R3",
        "KeyCorridorS6R3",
        "LavaCrossingS11N5",
        "LavaCrossingS9N1",
        "LavaCrossingS9N2",
        "LavaCrossingS9N3",
        "LavaGapS5",
        "LavaGapS6",
        "LavaGapS7",
        "LockedRoom",
        "MemoryS11",
        "MemoryS13",
        "MemoryS13Random",
        "MemoryS17Random",
        "MemoryS7",
        "MemoryS9",
        "MultiRoom-N2-S4",
        "MultiRoom-N4-S5",
        "MultiRoom-N6",
        "ObstructedMaze-1Dl",
        "ObstructedMaze-1Dlh",
        "ObstructedMaze-1Dlhb",
        "ObstructedMaze-1Q",
        "ObstructedMaze-2Dl",
        "ObstructedMaze-2Dlh",
        "ObstructedMaze-2Dlhb",
        "ObstructedMaze-2Q",
        "ObstructedMaze-Full",
        "Playground",
        "PutNear-6x6-N2",
        "PutNear-8x8-N3",
        "RedBlueDoors-6x6",
        "RedBlueDoors-8x8",
        "SimpleCrossingS11N5",
        "SimpleCrossingS9N1",
        "SimpleCrossingS9N2",
        "SimpleCrossingS9N3",
        "Unlock",
        "UnlockPickup",
    ),
)
@dataclasses.dataclass(frozen=True)
class Navix(Foreign):
    """A grid world: ``[h, w, 21]``, one-hot tag (11), colour (6, none: zeros) and state (4) of each cell in view.

    Rewards are navix's own. Raises ``UserError`` if navix is not installed.
    """

    id: str = hp("MemoryS7", "navix's own id, without Navix- and -v0")
    view: Literal["first_person", "full"] = hp("first_person", "the 7 x 7 cells before the agent, or the whole grid")

    @property
    def _env(self) -> Any:
        return _upstream(self.id, self.view)

    @property
    def default_params(self) -> EnvParams:
        """The time limit of the grid."""
        return EnvParams(max_steps_in_episode=self._env.max_steps)

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, ForeignState]:
        """Lay out a grid; ``key`` is consumed."""
        with jax.numpy_rank_promotion("allow"):
            start = self._env.reset(key)
        return _one_hot(start.observation), ForeignState.start(start)

    def step_env(
        self, key: jax.Array, state: ForeignState, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, ForeignState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used, the grid has its own."""
        with jax.numpy_rank_promotion("allow"):
            step = self._env.step(state.inner, action)
        return _one_hot(step.observation), state.after(step), step.reward.astype(jnp.float32), step.is_termination(), {}

    def render(self, state: ForeignState, params: EnvParams) -> np.ndarray:
        """Draw the whole grid."""
        from navix.observations import rgb

        with jax.numpy_rank_promotion("allow"):
            return fitted(np.asarray(rgb(jax.tree.map(jnp.asarray, state.inner.state))))

    def observation_space(self, params: EnvParams) -> Box:
        """Float32 ``[h, w, 21]`` of zeros and ones."""
        return Box(0.0, 1.0, (*self._env.observation_space.shape[:2], _TAGS + _COLOURS + _STATES))

    def action_space(self, params: EnvParams) -> Discrete:
        """Turn left, turn right, forward, pick up, drop, toggle, done."""
        return Discrete(len(self._env.action_set))


def _one_hot(cells: jax.Array) -> jax.Array:
    sizes = enumerate((_TAGS, _COLOURS, _STATES))
    return jnp.concatenate([jax.nn.one_hot(cells[..., i], n) for i, n in sizes], -1)


@functools.cache
def _upstream(id: str, view: str) -> Any:
    """Build navix's environment, once."""
    package = require("navix", f"navix/{id}", "pip install 'navix>=4' (Python 3.12 or newer)")
    seen = "symbolic_first_person" if view == "first_person" else "symbolic"
    with jax.ensure_compile_time_eval():
        return package.make(
            f"Navix-{id}-v0", observation_fn=getattr(package.observations, seen), disable_autoreset=True
        )
