"""What Key-to-Door and Visual Match share: three phases, of which the one in the middle is long and full of apples.

A board is an int32 array of places, with a margin of two around the 7x11 squares where the agent may be: 0 outside,
1 wall, 2 floor, then the 22 places of apples, then the places of a task. What is in a place depends on the state.

Source: Hung et al. 2019, "Optimizing agent behavior over long time scales by transporting value", and the changes of
Ni et al. 2023, "When Do Transformers Shine in RL? Decoupling Memory from Credit Assignment".
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.memory import tiles
from ssmrl.registry import check
from ssmrl.spaces import Discrete, MultiDiscrete

EXPLORE, REWARD = 15, 15  # frames
OUTSIDE, WALL, FLOOR, APPLES = range(4)  # places
PLACES_OF_APPLES, NUM_APPLES = 22, 10
THINGS = APPLES + PLACES_OF_APPLES  # the first place of a task
RESPAWN = 21  # steps from picking an apple until it is there again
APPLE = len(tiles.BASE)  # a kind of tile; those of a task follow
MARGIN = tiles.VIEW // 2
HALL = """
###########
#a a a a a#
# a a a a #
#a a a a a#
# a a a a #
#a a   a a#
###########
"""
HALL_START = (MARGIN + 5, MARGIN + 5)  # row and column


def board(drawing: str, **first: int) -> np.ndarray:
    """Read a board of places, int32 ``[11, 15]``: ``#`` is a wall, letters are places, counted from ``first`` on."""
    squares = np.array([list(f"{row:11}") for row in drawing.split("\n")[1:-1]])
    places = np.where(squares == "#", WALL, FLOOR)
    for letter, place in first.items():
        here = squares == letter
        places[here] = place + np.arange(here.sum())
    return np.pad(places, MARGIN).astype(np.int32)


@struct.dataclass
class State(EnvState):
    """``position`` int32 ``[2]``: row and column; ``facing`` int32: of the last move; ``apples`` int32 ``[22]``: in how
    many steps there will be one, -1 never.
    """

    position: jax.Array
    facing: jax.Array
    apples: jax.Array


@dataclasses.dataclass(frozen=True)
class Phases(Environment):
    """Explore for 15 steps, collect apples for ``distractor`` steps, earn ``final_reward`` in 15 steps.

    10 apples are in 10 of 22 places of the hall, and are there again 21 steps after they were picked. The observation
    are the 5x5 tiles around the agent, through walls; the agent does not turn. An episode has ``30 + distractor`` steps
    and terminates after the last.

    The boards, the rewards and the order of what happens in a step are those of the original games, of which Ni et al.
    gave apples a reward of 1 and the end one of 5. Ours are: the kinds of tiles, instead of their colours in RGB; the
    agent's tile, which shows its last move and hides what it stands on; the order of the actions.
    """

    distractor: int
    apple_reward: float
    final_reward: float

    boards: ClassVar[np.ndarray]  # int32 [3, 11, 15]
    reward_start: ClassVar[tuple[int, int]]
    things: ClassVar[tuple[tiles.Tile, ...]]  # kinds of tiles that the task adds
    task: ClassVar[str]
    action_names = tiles.DIRECTIONS

    def __post_init__(self) -> None:
        check(self)

    @property
    def default_params(self) -> EnvParams:
        """A clock that never ends an episode."""
        return EnvParams(max_steps_in_episode=EXPLORE + self.distractor + REWARD + 1)

    @property
    def kinds(self) -> tuple[tiles.Tile, ...]:
        """Wall, floor, the agent's four facings, the apple, then the things of the task."""
        return (*tiles.BASE, ("ball", 2), *self.things)

    def begin(self, key: jax.Array) -> State:
        """Draw a start state; ``key`` is consumed."""
        raise NotImplementedError(f"{self.name} must define begin(key) -> state")

    def visit(self, state: State, place: jax.Array) -> tuple[State, jax.Array]:
        """What it means to be in a place; returns the state and whether the final reward is earned, bool."""
        raise NotImplementedError(f"{self.name} must define visit(state, place) -> (state, earned)")

    def blocks(self, state: State, place: jax.Array) -> jax.Array:
        """Whether a place of the task stops the agent, bool."""
        raise NotImplementedError(f"{self.name} must define blocks(state, place) -> bool")

    def contents(self, state: State) -> jax.Array:
        """Kinds of tiles in the places of the task, int32."""
        raise NotImplementedError(f"{self.name} must define contents(state) -> kinds")

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, Any]:
        """See ``Environment``."""
        state = self.begin(key)
        return self.see(state), state

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        places = jnp.asarray(self.boards)[self._phase(state.time)]
        target = state.position + jnp.asarray(tiles.MOVES)[action]
        there = places[target[0], target[1]]
        blocked = (there < FLOOR) | ((there >= THINGS) & self.blocks(state, there))
        position = jnp.where(blocked, state.position, target)
        here = places[position[0], position[1]]
        picked = (here == APPLES + jnp.arange(PLACES_OF_APPLES)) & (state.apples == 0)
        apples = jnp.where(picked, RESPAWN, jnp.where(state.apples > 0, state.apples - 1, state.apples))

        time, facing = state.time + 1, jnp.asarray(action, jnp.int32)
        state, earned = self.visit(
            dataclasses.replace(state, time=time, position=position, facing=facing, apples=apples), here
        )
        starts = (time == EXPLORE, HALL_START), (time == EXPLORE + self.distractor, self.reward_start)
        for begins, start in starts:
            position = jnp.where(begins, jnp.array(start, jnp.int32), position)
            facing = jnp.where(begins, tiles.UP, facing).astype(jnp.int32)
        state = dataclasses.replace(state, position=position, facing=facing)
        reward = self.apple_reward * picked.sum() + self.final_reward * earned
        terminated = time == EXPLORE + self.distractor + REWARD
        return self.see(state), state, reward.astype(jnp.float32), terminated, {}

    def see(self, state: Any) -> jax.Array:
        """The tiles around the agent, int32 ``[25]``."""
        places = jnp.asarray(self.boards)[self._phase(state.time)]
        shown = self._contents(state)[tiles.view(places, state.position)]
        return shown.at[tiles.CENTRE].set(tiles.AGENT + state.facing)

    def _phase(self, time: jax.Array) -> jax.Array:
        return (time >= EXPLORE).astype(jnp.int32) + (time >= EXPLORE + self.distractor)

    def _contents(self, state: Any) -> jax.Array:
        known = jnp.array([tiles.FLOOR, tiles.WALL, tiles.FLOOR], jnp.int32)  # outside looks like floor
        return jnp.concatenate([known, jnp.where(state.apples == 0, APPLE, tiles.FLOOR), self.contents(state)])

    def render(self, state: Any, params: EnvParams) -> np.ndarray:
        """Draw the board of the phase, with a frame around what the agent sees."""
        end = np.cumsum([EXPLORE, self.distractor, REWARD])
        phase = int(np.searchsorted(end[:2], int(state.time), side="right"))
        note = f"{('explore', 'apples', 'reward')[phase]}: step {int(state.time)} of {end[2]}"
        canvas = tiles.draw(self.task, note, self.kinds, self.boards[phase], self._contents(state), state)
        return canvas.to_array()

    def observation_space(self, params: EnvParams) -> MultiDiscrete:
        """The kinds of 25 tiles, row by row."""
        return MultiDiscrete((len(self.kinds),) * tiles.VIEW**2)

    def action_space(self, params: EnvParams) -> Discrete:
        """Up, right, down, left."""
        return Discrete(len(tiles.DIRECTIONS))


def draw_apples(key: jax.Array) -> jax.Array:
    """Put the apples into random places; ``key`` is consumed. Returns a state's ``apples``."""
    return jnp.where(jax.random.permutation(key, PLACES_OF_APPLES) < NUM_APPLES, 0, -1).astype(jnp.int32)
