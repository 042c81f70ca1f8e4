"""Battleship: sink a hidden fleet, told only whether the last shot hit."""

import dataclasses
from typing import Any

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
    """The sea.

    ``ships`` and ``guessed`` bool ``[board_size, board_size]``: where ships lie and where shots fell; ``hits`` int32:
    number of hits so far; ``last_hit`` int32: the last observation.
    """

    ships: jax.Array
    guessed: jax.Array
    hits: jax.Array
    last_hit: jax.Array


@envs.register(
    "popgym/Battleship",
    variants={"Easy": {"board_size": 8}, "Medium": {"board_size": 10}, "Hard": {"board_size": 12}},
)
@dataclasses.dataclass(frozen=True)
class Battleship(Environment):
    """Shoot at the tiles of a board where a fleet lies hidden.

    The observation is whether the last shot hit a tile of a ship that had not been hit before. With ``n`` ship tiles on
    ``b * b`` tiles, a hit is worth ``1/n`` and anything else ``-1/(b * b - n)``. The episode terminates when the whole
    fleet is hit and is truncated after ``b * b`` steps. The observation does not tell where the shot fell: the agent
    needs its previous action. Raises ``ValueError`` for a fleet that might not fit on the board.
    """

    board_size: int = hp(10, "width and height of the board in tiles", ge=2)
    ship_sizes: tuple[int, ...] = hp(
        (2, 3, 3, 4), "lengths of the ships in tiles, in the order of their placement", ge=1
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "ship_sizes", tuple(self.ship_sizes))
        check(self)
        b = self.board_size
        if not 0 < sum(self.ship_sizes) < b * b:
            raise ValueError(
                f"there must be a ship and some water: ship_sizes={self.ship_sizes} on {b}x{b} tiles; change either"
            )
        for i, size in enumerate(self.ship_sizes):
            # So many placements of this ship overlap nowhere: with fewer tiles taken, one of them is free.
            if sum(self.ship_sizes[:i]) >= (b // size) * (b + b % size):
                raise ValueError(
                    f"ships must fit wherever the earlier ones lie: ship {i + 1} of {self.ship_sizes} might not on "
                    f"{b}x{b} tiles; use a larger board_size, or longer ships first"
                )

    @property
    def num_ship_tiles(self) -> int:
        """Hits that sink the fleet."""
        return sum(self.ship_sizes)

    @property
    def default_params(self) -> Any:
        """The time limit is the number of tiles."""
        return EnvParams(max_steps_in_episode=self.board_size**2)

    def place_ships(self, key: jax.Array) -> jax.Array:
        """Place the ships in order, each uniformly over where it fits; ``key`` is consumed.

        Returns bool ``[board_size, board_size]``. This is the law of drawing a start, an axis and a direction until the
        ship fits, as the original does.
        """
        sizes = jnp.array(self.ship_sizes, jnp.int32)

        def place(water: Cells, draws: tuple[jax.Array, jax.Array]) -> tuple[Cells, None]:
            return water - _draw_ship(water, *draws, max(self.ship_sizes)), None

        uniforms = jax.random.uniform(key, (len(self.ship_sizes), 2))
        water, _ = jax.lax.scan(place, bitboard.full(self.board_size), (sizes, uniforms))
        return ~water.to_array()

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``; the observation is 0, as if nothing had been hit."""
        ships = self.place_ships(key)
        zero = jnp.int32(0)
        return zero, State(time=zero, ships=ships, guessed=jnp.zeros_like(ships), hits=zero, last_hit=zero)

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        row, column = action
        hit = state.ships[row, column] & ~state.guessed[row, column]
        reward = jnp.where(hit, 1 / self.num_ship_tiles, -1 / (self.board_size**2 - self.num_ship_tiles))
        obs, hits = hit.astype(jnp.int32), state.hits + hit
        guessed = state.guessed.at[row, column].set(True)
        state = State(state.time + 1, state.ships, guessed, hits, last_hit=obs)
        return obs, state, reward.astype(jnp.float32), hits == self.num_ship_tiles, {}

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the sea: shots that hit are red crosses, others white dots, and hidden parts of ships are pale."""
        canvas = drawing.Canvas()
        ships, guessed = np.asarray(state.ships), np.asarray(state.guessed)
        last = "-" if int(state.time) == 0 else ("a hit" if int(state.last_hit) else "no hit")
        note = f"last shot: {last}   hits: {int(state.hits)} of {self.num_ship_tiles}   pale: ships, hidden"
        drawing.title(canvas, "Sink the fleet", note)
        tiles = np.where(ships[..., None], (145, 165, 185), drawing.WATER)
        tiles = np.where((ships & guessed)[..., None], (90, 95, 105), tiles)
        left, top, side = drawing.board(canvas, tiles)
        for row, column in np.argwhere(guessed):
            x, y, r = left + (column + 0.5) * side, top + (row + 0.5) * side, side / 4
            if ships[row, column]:
                canvas.line([(x - r, y - r), (x + r, y + r)], drawing.RED, 2.5)
                canvas.line([(x - r, y + r), (x + r, y - r)], drawing.RED, 2.5)
            else:
                canvas.circle(x, y, r / 1.5, drawing.WHITE)
        return canvas.to_array()

    def get_state(self, state: State) -> jax.Array:
        """Return the Markov state, float32 ``[2 * board_size**2 + 1]``: ships, guesses, last observation."""
        parts = [state.ships.ravel(), state.guessed.ravel(), state.last_hit[None]]
        return jnp.concatenate(parts).astype(jnp.float32)

    def observation_space(self, params: Any) -> Discrete:
        """Whether the last shot hit."""
        return Discrete(2)

    def action_space(self, params: Any) -> MultiDiscrete:
        """Row and column to shoot at."""
        return MultiDiscrete((self.board_size, self.board_size))


def _draw_ship(water: Cells, size: jax.Array, uniforms: jax.Array, max_size: int) -> Cells:
    """Draw a ship of ``size`` tiles, at most ``max_size``, uniformly over where it fits, from two uniform numbers."""

    def require(starts: tuple[Cells, Cells], length: jax.Array) -> tuple[tuple[Cells, Cells], None]:
        across, down = starts
        across_too, down_too = water & across.move(0, -1), water & down.move(-1, 0)
        return (across_too.where(length <= size, across), down_too.where(length <= size, down)), None

    def extend(ship: Cells, length: jax.Array) -> tuple[Cells, None]:
        longer = ship | ship.move(0, 1).where(is_across, ship.move(1, 0))
        return longer.where(length <= size, ship), None

    # Loops keep the compiler from fusing it all, and repeating it for each word of the result.
    lengths = jnp.arange(2, max_size + 1)
    (across, down), _ = jax.lax.scan(require, (water, water), lengths)
    num_across = across.count()
    is_across = (uniforms[0] * (num_across + down.count())).astype(jnp.int32) < num_across
    ship, _ = jax.lax.scan(extend, across.where(is_across, down).draw(uniforms[1]), lengths)
    return ship
