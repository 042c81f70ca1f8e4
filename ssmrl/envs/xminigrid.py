"""XLand-MiniGrid as ``xminigrid/MiniGrid-MemoryS16``: goals and rules in grids; ``pip install 'ssmrl[xminigrid]'``.

Source: Nikulin et al. 2024, "XLand-MiniGrid: Scalable Meta-Reinforcement Learning Environments in JAX".
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl.envs.base import EnvParams
from ssmrl.envs.foreign import Foreign, ForeignState, fitted, require
from ssmrl.registry import envs, hp
from ssmrl.spaces import Box, Discrete


@envs.register(
    "xminigrid/",
    field="id",
    variants=(
        "XLand-MiniGrid-R1-9x9",
        "XLand-MiniGrid-R1-11x11",
        "XLand-MiniGrid-R1-13x13",
        "XLand-MiniGrid-R1-15x15",
        "XLand-MiniGrid-R1-17x17",
        "XLand-MiniGrid-R2-9x9",
        "XLand-MiniGrid-R2-11x11",
        "XLand-MiniGrid-R2-13x13",
        "XLand-MiniGrid-R2-15x15",
        "XLand-MiniGrid-R2-17x17",
        "XLand-MiniGrid-R4-9x9",
        "XLand-MiniGrid-R4-11x11",
        "XLand-MiniGrid-R4-13x13",
        "XLand-MiniGrid-R4-15x15",
        "XLand-MiniGrid-R4-17x17",
        "XLand-MiniGrid-R6-13x13",
        "XLand-MiniGrid-R6-17x17",
        "XLand-MiniGrid-R6-19x19",
        "XLand-MiniGrid-R9-16x16",
        "XLand-MiniGrid-R9-19x19",
        "XLand-MiniGrid-R9-25x25",
        "MiniGrid-BlockedUnlockPickUp",
        "MiniGrid-DoorKey-5x5",
        "MiniGrid-DoorKey-6x6",
        "MiniGrid-DoorKey-8x8",
        "MiniGrid-DoorKey-16x16",
        "MiniGrid-Empty-5x5",
        "MiniGrid-Empty-6x6",
        "MiniGrid-Empty-8x8",
        "MiniGrid-Empty-16x16",
        "MiniGrid-EmptyRandom-5x5",
        "MiniGrid-EmptyRandom-6x6",
        "MiniGrid-EmptyRandom-8x8",
        "MiniGrid-EmptyRandom-16x16",
        "MiniGrid-FourRooms",
        "MiniGrid-LockedRoom",
        "MiniGrid-MemoryS8",
        "MiniGrid-MemoryS16",
        "MiniGrid-MemoryS32",
        "MiniGrid-MemoryS64",
        "MiniGrid-MemoryS128",
        "MiniGrid-Playground",
        "MiniGrid-Unlock",
        "MiniGrid-UnlockPickUp",
    ),
)
@dataclasses.dataclass(frozen=True)
class XMiniGrid(Foreign):
    """A grid world seen from the agent: ``[v, v, 25]``, one-hot tile (13) and colour (12) of each cell in view.

    The XLand tasks have the one ruleset that their grids come with. Reaching the goal ends an episode and pays
    ``1 - 0.9 t / T`` with the time limit ``T``, as in the original. Raises ``UserError`` if xminigrid is not installed.
    """

    id: str = hp("MiniGrid-MemoryS16", "xminigrid's own id")
    view_size: int = hp(0, "cells of the agent's view in each direction, an odd number (0: the grid's own)", ge=0)

    requires = {"view_size % 2 == 1 or view_size == 0": "the agent stands in the middle of its view"}  # noqa: RUF012

    @property
    def _env(self) -> Any:
        return _upstream(self.id)[0]

    @property
    def default_params(self) -> EnvParams:
        """The time limit of the grid."""
        return EnvParams(max_steps_in_episode=_upstream(self.id)[1].max_steps)

    def _rules(self, params: EnvParams) -> Any:
        rules = _upstream(self.id)[1].replace(max_steps=params.max_steps_in_episode)
        return rules.replace(view_size=self.view_size) if self.view_size else rules

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, ForeignState]:
        """Lay out a grid; ``key`` is consumed."""
        with jax.numpy_rank_promotion("allow"):
            start = self._env.reset(self._rules(params), key)
        return _one_hot(start.observation), ForeignState.start(start)

    def step_env(
        self, key: jax.Array, state: ForeignState, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, ForeignState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        with jax.numpy_rank_promotion("allow"):
            step = self._env.step(self._rules(params), state.inner, action)
        return _one_hot(step.observation), state.after(step), step.reward.astype(jnp.float32), step.discount == 0, {}

    def render(self, state: ForeignState, params: EnvParams) -> np.ndarray:
        """Draw the whole grid, with what the agent may see in a lighter shade."""
        return fitted(self._env.render(self._rules(params), state.inner))

    def observation_space(self, params: EnvParams) -> Box:
        """Float32 ``[v, v, 25]`` of zeros and ones."""
        from xminigrid.core.constants import NUM_COLORS, NUM_TILES

        view = self._rules(self.default_params).view_size
        return Box(0.0, 1.0, (view, view, NUM_TILES + NUM_COLORS))

    def action_space(self, params: EnvParams) -> Discrete:
        """Forward, turn right, turn left, pick up, put down, toggle."""
        return Discrete(self._env.num_actions(self._rules(self.default_params)))


def _one_hot(cells: jax.Array) -> jax.Array:
    from xminigrid.core.constants import NUM_COLORS, NUM_TILES

    return jnp.concatenate([jax.nn.one_hot(cells[..., 0], NUM_TILES), jax.nn.one_hot(cells[..., 1], NUM_COLORS)], -1)


@functools.cache
def _upstream(id: str) -> tuple[Any, Any]:
    """Build xminigrid's environment and its parameters, once."""
    package = require("xminigrid", f"xminigrid/{id}", "pip install 'ssmrl[xminigrid]'")
    with jax.ensure_compile_time_eval():
        return package.make(id)
