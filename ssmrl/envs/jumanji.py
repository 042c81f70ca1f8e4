"""The environments of Jumanji as ``jumanji/Snake-v1``: packing, routing, puzzles; ``pip install 'ssmrl[jumanji]'``.

Observations, however they are composed, become one vector. Several agents are one: it acts for all of them, and earns
the sum of their rewards. Whether the clock terminates or truncates an episode is for each environment to say, by its
discount; most let it terminate. ``Sokoban-v0`` needs the network once, to get its levels.

Source: Bonnet et al. 2024, "Jumanji: a Diverse Suite of Scalable Reinforcement Learning Environments in JAX".
"""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl.envs.base import EnvParams
from ssmrl.envs.foreign import Foreign, ForeignState, require
from ssmrl.registry import UserError, envs, hp
from ssmrl.spaces import Box, Discrete, MultiDiscrete, Space

_NEVER = 2**31 - 1  # the limit of what has none
_DPI = 40  # of pictures, which are 10 inches wide
_GRAPHS = ("GraphColoring-v1", "MMST-v0")  # whose viewers read entry by entry: numpy is twenty times as fast


@envs.register(
    "jumanji/",
    field="id",
    variants=(
        "BinPack-v2",
        "CVRP-v1",
        "Cleaner-v0",
        "Connector-v3",
        "FlatPack-v0",
        "Game2048-v1",
        "GraphColoring-v1",
        "JobShop-v0",
        "Knapsack-v1",
        "LevelBasedForaging-v0",
        "MMST-v0",
        "Maze-v0",
        "Minesweeper-v0",
        "MultiCVRP-v0",
        "PacMan-v1",
        "RobotWarehouse-v0",
        "RubiksCube-partly-scrambled-v0",
        "RubiksCube-v0",
        "SearchAndRescue-v0",
        "SlidingTilePuzzle-v0",
        "Snake-v1",
        "Sokoban-v0",
        "Sudoku-v0",
        "Sudoku-very-easy-v0",
        "TSP-v1",
        "Tetris-v0",
    ),
)
@dataclasses.dataclass(frozen=True)
class Jumanji(Foreign):
    """An environment of Jumanji: observations ``[n]``, where what is bounded is scaled to ``[0, 1]``.

    Raises ``UserError`` if jumanji is not installed or cannot get its data.
    """

    id: str = hp("Snake-v1", "jumanji's own id")

    @property
    def _env(self) -> Any:
        return _upstream(self.id)

    @property
    def default_params(self) -> EnvParams:
        """Its own time limit, where it has one."""
        return EnvParams(max_steps_in_episode=int(getattr(self._env, "time_limit", None) or _NEVER))

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, ForeignState]:
        """Draw a start state; ``key`` is consumed."""
        with _lenient():
            inner, start = self._env.reset(key)
            obs = self._observe(start.observation)
        return obs, ForeignState.start(inner)

    def step_env(
        self, key: jax.Array, state: ForeignState, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, ForeignState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used, the state has its own."""
        spec = self._env.action_spec
        if jnp.issubdtype(spec.dtype, jnp.integer):
            action = action + _bounds(spec)[0].astype(np.int32).reshape(action.shape)
        with _lenient():
            inner, step = self._env.step(state.inner, action.reshape(spec.shape).astype(spec.dtype))
            obs = self._observe(step.observation)
        terminated = step.last() & jnp.all(step.discount == 0)
        after = state.after(inner, step.last() & ~terminated)
        return obs, after, jnp.sum(step.reward).astype(jnp.float32), terminated, {}

    def is_truncated(self, state: ForeignState, params: EnvParams) -> jax.Array:
        """Whether the environment cut the episode off, or the clock has run out."""
        return state.truncated | (state.time >= params.max_steps_in_episode)

    def render(self, state: ForeignState, params: EnvParams) -> np.ndarray:
        """Draw what jumanji's own viewer shows, uint8 ``[400, 400, 3]``."""
        import matplotlib
        from matplotlib import pyplot
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        inner = state.inner if self.id in _GRAPHS else jax.tree.map(jnp.asarray, state.inner)
        backend = matplotlib.get_backend()
        with _lenient(), matplotlib.rc_context({"figure.dpi": _DPI}):
            pyplot.switch_backend("agg")  # the viewers would open a window
            try:
                self._env.render(inner)
                figure = pyplot.gcf()
                if self.id == "MMST-v0":  # what it draws is no longer found by matplotlib's automatic limits
                    figure.axes[0].set(xlim=(0, 1), ylim=(0, 1))
                canvas = FigureCanvasAgg(figure)
                canvas.draw()
                picture = np.array(canvas.buffer_rgba())[..., :3]
                pyplot.close(figure)
            finally:
                pyplot.switch_backend(backend)
        return picture

    def _observe(self, obs: Any) -> jax.Array:
        numbers = []
        for path, spec in _parts(self._env.observation_spec):
            low, high = _bounds(spec)
            start, size = (
                (low, np.maximum(high - low, 1e-6)) if np.isfinite(high - low).all() else (0 * low, 1 + 0 * low)
            )
            numbers.append((jnp.asarray(functools.reduce(getattr, path, obs), jnp.float32).reshape(-1) - start) / size)
        return jnp.concatenate(numbers)

    def observation_space(self, params: EnvParams) -> Box:
        """Float32 ``[n]``, in ``[0, 1]`` if everything is bounded."""
        bounds = [_bounds(spec) for _, spec in _parts(self._env.observation_spec)]
        bounded = all(np.isfinite(high - low).all() for low, high in bounds)
        return Box(*((0.0, 1.0) if bounded else (-np.inf, np.inf)), (sum(low.size for low, _ in bounds),))

    def action_space(self, params: EnvParams) -> Space:
        """One integer, several, or real numbers ``[m]``, in the order of jumanji's arrays."""
        spec = self._env.action_spec
        low, high = _bounds(spec)
        if not jnp.issubdtype(spec.dtype, jnp.integer):
            return Box(low, high, low.shape)
        sizes = (high - low + 1).astype(int)
        return MultiDiscrete(tuple(sizes)) if spec.shape else Discrete(int(sizes[0]))


def _parts(spec: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays of a nested spec, after the attributes that lead to them."""
    if hasattr(spec, "dtype"):
        yield path, spec
        return
    for name in spec._specs:
        yield from _parts(spec[name], (*path, name))


def _bounds(spec: Any) -> tuple[np.ndarray, np.ndarray]:
    ends = getattr(spec, "minimum", -np.inf), getattr(spec, "maximum", np.inf)
    low, high = (np.broadcast_to(np.asarray(end, np.float32), spec.shape).ravel() for end in ends)
    return low, high


@functools.cache
def _upstream(id: str) -> Any:
    """Build jumanji's environment, once."""
    with _lenient():
        package = require("jumanji", f"jumanji/{id}", "pip install 'ssmrl[jumanji]'")
        try:
            with jax.ensure_compile_time_eval():
                return package.make(id)
        except OSError as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"jumanji/{id} could not get its data: {reason}; it needs the network once") from error


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        yield
