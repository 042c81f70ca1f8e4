"""Craftax as ``craftax/Symbolic``, the game of survival and dungeons; ``pip install 'ssmrl[craftax]'``.

``craftax/ClassicSymbolic`` is Crafter alone. Episodes end when the player dies (or wins); the clock cuts them off. The
classic takes half a minute to compile on a CPU, the full game two minutes.

Source: Matthews et al. 2024, "Craftax: A Lightning-Fast Benchmark for Open-Ended Reinforcement Learning".
"""

import contextlib
import dataclasses
import functools
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl.envs.base import EnvParams
from ssmrl.envs.foreign import Foreign, ForeignState, fitted, require, to_space
from ssmrl.registry import envs, hp
from ssmrl.spaces import Space

_NEVER = 2**31 - 1  # the game's own clock, which does not say that it ended an episode


@envs.register("craftax/", field="id", variants=("Symbolic", "ClassicSymbolic"))
@dataclasses.dataclass(frozen=True)
class Craftax(Foreign):
    """A world to survive in, seen as symbols ``[n]``: the map around the player, then the inventory.

    Raises ``UserError`` if craftax is not installed.
    """

    id: str = hp("Symbolic", "which game: Symbolic or ClassicSymbolic")

    @property
    def _env(self) -> Any:
        return _upstream(self.id)

    @property
    def default_params(self) -> EnvParams:
        """craftax's own time limit: 100,000 steps, 10,000 in the classic."""
        return EnvParams(max_steps_in_episode=self._env.default_params.max_timesteps)

    @property
    def _rules(self) -> Any:
        return self._env.default_params.replace(max_timesteps=_NEVER)

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, ForeignState]:
        """Make a world; ``key`` is consumed."""
        with jax.numpy_rank_promotion("allow"):
            obs, inner = self._env.reset_env(key, self._rules)
        return obs.astype(jnp.float32), ForeignState.start(inner)

    def step_env(
        self, key: jax.Array, state: ForeignState, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, ForeignState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        with jax.numpy_rank_promotion("allow"):
            obs, inner, reward, done, _ = self._env.step_env(key, state.inner, action, self._rules)
        return (
            obs.astype(jnp.float32),
            state.after(inner),
            jnp.asarray(reward, jnp.float32),
            jnp.asarray(done, bool),
            {},
        )

    def render(self, state: ForeignState, params: EnvParams) -> np.ndarray:
        """Draw the player's surroundings as people see them, with craftax's own textures."""
        with jax.numpy_rank_promotion("allow"):
            return fitted(np.asarray(_renderer(self.id)(state.inner)).astype(np.uint8))

    def observation_space(self, params: EnvParams) -> Space:
        """Float32 ``[n]`` in ``[0, 1]``."""
        return to_space(self._env.observation_space(self._rules))

    def action_space(self, params: EnvParams) -> Space:
        """The 43 actions of the game, 17 in the classic."""
        return to_space(self._env.action_space(self._rules))


@functools.cache
def _upstream(id: str) -> Any:
    """Build craftax's environment, once."""
    package = require("craftax.craftax_env", f"craftax/{id}", "pip install 'ssmrl[craftax]'")
    name = {"Symbolic": "Craftax-Symbolic-v1", "ClassicSymbolic": "Craftax-Classic-Symbolic-v1"}[id]
    with jax.ensure_compile_time_eval():
        return package.make_craftax_env_from_name(name, auto_reset=False)


@functools.cache
def _renderer(id: str) -> Any:
    """Load craftax's textures; the first time of all it takes a minute to make them, and keeps them beside its code."""
    game = "craftax" if id == "Symbolic" else "craftax_classic"
    renderer = require(f"craftax.{game}.renderer", f"craftax/{id}", "pip install 'ssmrl[craftax]'")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return jax.jit(renderer.make_craftax_pixel_renderer(16))
    except OSError as error:
        raise NotImplementedError(f"craftax/{id} has no picture: craftax cannot keep its textures: {error}") from error
