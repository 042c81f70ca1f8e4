"""MineSweeper: clear a mined board, told only the number of mines around the last tile."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.popgym import bitboard
from ssmrl.envs.popgym.bitboard import Cells
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Discrete, MultiDiscrete


@struct.dataclass
class State(EnvState):
    """The board.

    ``mines`` and ``viewed`` bool ``[board_size, board_size]``: where mines lie and which tiles without a mine were
    viewed; ``over`` bool: whether the game is won or lost.
    """

    mines: jax.Array
    viewed: jax.Array
    over: jax.Array


@envs.register(
    "popgym/MineSweeper",
    variants={
        "Easy": {"board_size": 4, "num_mines": 2},
        "Medium": {"board_size": 6, "num_mines": 6},
        "Hard": {"board_size": 8, "num_mines": 10},
    },
)
@dataclasses.dataclass(frozen=True)
class MineSweeper(Environment):
    """View all tiles of a board but those with a mine.

    The observation is the number of mines in the 3x3 block around the last tile, that tile included. With ``n`` tiles
    without a mine, the first view of each is worth ``1/n``, viewing it again ``-0.5/(n - 2)``, and a mine
    ``-0.5 - 1/n``. The episode terminates at a mine or when all tiles without one are viewed, and is truncated after
    ``n`` steps. The observation does not tell which tile it is about: the agent needs its previous action. Raises
    ``ValueError`` for a board with no mine or with fewer than three tiles without one.
    """

    board_size: int = hp(4, "width and height of the board in tiles", ge=2)
    num_mines: int = hp(2, "number of mines", ge=1)

    requires: ClassVar[dict[str, str]] = {"num_mines <= board_size**2 - 3": "at least three tiles are without a mine"}

    def __post_init__(self) -> None:
        check(self)

    @property
    def num_clear(self) -> int:
        """Tiles without a mine."""
        return self.board_size**2 - self.num_mines

    @property
    def default_params(self) -> Any:
        """The time limit is the number of tiles without a mine: a perfect game."""
        return EnvParams(max_steps_in_episode=self.num_clear)

    def lay_mines(self, key: jax.Array) -> jax.Array:
        """Lay the mines uniformly on different tiles, bool ``[board_size, board_size]``; ``key`` is consumed."""

        def lay(free: Cells, uniform: jax.Array) -> tuple[Cells, None]:
            return free - free.draw(uniform), None

        free, _ = jax.lax.scan(lay, bitboard.full(self.board_size), jax.random.uniform(key, (self.num_mines,)))
        return ~free.to_array()

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``; the observation is 0, as if no mine were near."""
        mines = self.lay_mines(key)
        return jnp.int32(0), State(jnp.int32(0), mines, viewed=jnp.zeros_like(mines), over=jnp.bool_(False))

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        row, column = action
        exploded, repeated = state.mines[row, column], state.viewed[row, column]
        n = self.num_clear
        reward = jnp.where(exploded, -0.5 - 1 / n, jnp.where(repeated, -0.5 / (n - 2), 1 / n)).astype(jnp.float32)
        viewed = state.viewed.at[row, column].set(~exploded)
        over = exploded | jnp.all(viewed | state.mines)
        state = State(state.time + 1, state.mines, viewed, over)
        return self.count_mines(state.mines, row, column), state, reward, over, {}

    def count_mines(self, mines: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        """Return how many ``mines``, bool ``[board_size, board_size]``, lie in the 3x3 block around a tile, int32."""
        tiles = jnp.arange(self.board_size)
        near = (jnp.abs(tiles - row) <= 1)[:, None] & (jnp.abs(tiles - column) <= 1)[None, :]
        return jnp.sum(mines & near, dtype=jnp.int32)

    def is_truncated(self, state: State, params: Any) -> jax.Array:
        """See ``Environment``; a game that is won or lost on the last step only terminates."""
        return (state.time >= params.max_steps_in_episode) & ~state.over

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the board: tiles viewed show their count, mines are hidden from the agent."""
        canvas = drawing.Canvas()
        mines, viewed = np.asarray(state.mines), np.asarray(state.viewed)
        lost = bool(state.over) and not (viewed | mines).all()
        result = ("a mine went off" if lost else "cleared") if state.over else "mines are hidden"
        note = f"viewed: {viewed.sum()} of {self.num_clear}   {result}"
        drawing.title(canvas, "View every tile without a mine", note)
        tiles = np.where(viewed[..., None], drawing.WHITE, drawing.FAINT)
        left, top, side = drawing.board(canvas, tiles, line=drawing.GREY)
        padded = np.pad(mines, 1)
        for row, column in np.ndindex(mines.shape):
            x, y = left + (column + 0.5) * side, top + (row + 0.5) * side
            if mines[row, column]:
                canvas.circle(x, y, side / 4, drawing.RED if lost else drawing.GREY)
            elif viewed[row, column]:
                near = padded[row : row + 3, column : column + 3].sum()
                canvas.text(x, y, near, 0.55 * side, drawing.BLUE, "mm")
        return canvas.to_array()

    def get_state(self, state: State) -> jax.Array:
        """Return the Markov state, float32 ``[board_size**2]``: 0 for a tile not viewed, 1 a mine, 2 a tile viewed."""
        return (state.mines + 2 * state.viewed).astype(jnp.float32).ravel()

    def observation_space(self, params: Any) -> Discrete:
        """Number of mines around the last tile."""
        return Discrete(min(self.num_mines + 1, 10))

    def action_space(self, params: Any) -> MultiDiscrete:
        """Row and column of the tile to view."""
        return MultiDiscrete((self.board_size, self.board_size))
