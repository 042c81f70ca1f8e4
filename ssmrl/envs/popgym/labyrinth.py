"""Labyrinths: find the way through a maze that is seen one step around the agent."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import drawing
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.popgym import maze
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Discrete, MultiDiscrete

FREE, OBSTACLE, START, GOAL, HIDDEN = range(5)
MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))  # left, right, up, down
NO_ACTION = len(MOVES)


@struct.dataclass
class State(EnvState):
    """The maze and who is in it.

    ``grid`` int32 ``[maze_dims + 1, maze_dims + 1]``: what each square is; ``explored`` bool of the same shape: where
    the agent has been; ``position`` int32 ``[2]``: its row and column; ``last_action`` int32: 4 at the start.
    """

    grid: jax.Array
    explored: jax.Array
    position: jax.Array
    last_action: jax.Array


@dataclasses.dataclass(frozen=True)
class Labyrinth(Environment):
    """Walk in a random maze with walls; subclasses set the goal.

    The observation is the 3x3 block of squares around the agent, row by row, and its last action. The agent starts in
    the outer wall, and walls and the border stop it. The episode is truncated after ``episode_length - 1`` steps.
    Raises ``ValueError`` for dimensions that are odd or below 6.
    """

    maze_dims: int = hp(10, "width and height of the maze in blocks, even", ge=6)
    episode_length: int = hp(1024, "one more than the time limit in steps", ge=2)
    view: Literal["popgym", "centred"] = hp(
        "popgym", "what is seen at the border: popgym shifts the view by one at the top and left"
    )

    requires: ClassVar[dict[str, str]] = {"maze_dims % 2 == 0": "the maze is made of cells of 2x2 blocks"}
    action_names = ("left", "right", "up", "down")
    exit = OBSTACLE  # what the square opposite the start becomes

    def __post_init__(self) -> None:
        check(self)

    @property
    def default_params(self) -> Any:
        """The time limit is ``episode_length - 1``, as in the original."""
        return EnvParams(max_steps_in_episode=self.episode_length - 1)

    def draw_grid(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw a maze and where the agent enters it; ``key`` is consumed.

        Returns the grid, int32 ``[maze_dims + 1, maze_dims + 1]``, and the start, int32 ``[2]``.
        """
        key_walls, key_entrances = jax.random.split(key)
        walls = maze.hunt_and_kill(key_walls, self.maze_dims // 2)
        start, goal = maze.entrances(key_entrances, self.maze_dims // 2)
        grid = jnp.where(walls, jnp.int32(OBSTACLE), FREE)
        return grid.at[tuple(start)].set(START).at[tuple(goal)].set(self.exit), start

    def get_obs(self, state: State) -> jax.Array:
        """Return the observation, int32 ``[10]``: the squares in view and the last action."""
        first = jnp.maximum(state.position - 1, 0) if self.view == "popgym" else state.position - 1
        squares = first[:, None] + jnp.arange(3)[None, :]
        inside = (squares >= 0) & (squares <= jnp.minimum(state.position + 1, self.maze_dims)[:, None])
        rows, columns = jnp.clip(squares, 0, self.maze_dims)
        seen = inside[0][:, None] & inside[1][None, :]
        block = jnp.where(seen, state.grid[rows[:, None], columns[None, :]], OBSTACLE)
        return jnp.concatenate([block.ravel(), state.last_action[None]])

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``; the last action is 4, none."""
        grid, start = self.draw_grid(key)
        explored = jnp.zeros(grid.shape, bool).at[tuple(start)].set(True)
        state = State(jnp.int32(0), grid, explored, start, last_action=jnp.int32(NO_ACTION))
        return self.get_obs(state), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; ``key`` is not used."""
        target = jnp.clip(state.position + jnp.array(MOVES)[action], 0, self.maze_dims)
        position = jnp.where(state.grid[tuple(target)] == OBSTACLE, state.position, target)
        explored = state.explored.at[tuple(position)].set(True)
        stepped = State(state.time + 1, state.grid, explored, position, jnp.asarray(action, jnp.int32))
        reward, terminated = self.judge(state, stepped)
        return self.get_obs(stepped), stepped, reward, terminated, {}

    def judge(self, before: State, after: State) -> tuple[jax.Array, jax.Array]:
        """Return the reward of a step, float32, and whether it reached the goal of the task."""
        raise NotImplementedError(f"{self.name} must define judge(before, after) -> (reward, terminated)")

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the maze with the squares explored, the start (blue), the exit (green), the agent and what it sees."""
        canvas = drawing.Canvas()
        grid, explored = np.asarray(state.grid), np.asarray(state.explored)
        task = "Find the exit" if self.exit == GOAL else "Visit every square"
        note = f"visited (yellow): {explored.sum()} of {(grid != OBSTACLE).sum()}   frame: what is seen"
        drawing.title(canvas, task, note)
        squares = np.array([drawing.WHITE, drawing.INK, drawing.BLUE, drawing.GREEN])[grid]
        squares = np.where((explored & (grid == FREE))[..., None], (250, 230, 165), squares)
        left, top, side = drawing.board(canvas, squares, line=None)
        row, column = (int(i) for i in state.position)
        x, y = left + (column + 0.5) * side, top + (row + 0.5) * side
        canvas.circle(x, y, 0.38 * side, drawing.RED)
        canvas.box(x - 1.5 * side, y - 1.5 * side, 3 * side, 3 * side, outline=drawing.RED)
        return canvas.to_array()

    def get_state(self, state: State) -> jax.Array:
        """Return the Markov state, float32 ``[(maze_dims + 1)**2]``: the grid, 4 where the agent has not been."""
        return jnp.where(state.explored, state.grid, HIDDEN).astype(jnp.float32).ravel()

    def observation_space(self, params: Any) -> MultiDiscrete:
        """Nine squares (free, wall, start, goal; 4 never occurs) and the last action (left, right, up, down, none)."""
        return MultiDiscrete((5,) * 10)

    def action_space(self, params: Any) -> Discrete:
        """Left, right, up, down."""
        return Discrete(len(MOVES))


@envs.register(
    "popgym/LabyrinthExplore",
    variants={"Easy": {"maze_dims": 10}, "Medium": {"maze_dims": 14}, "Hard": {"maze_dims": 18}},
)
@dataclasses.dataclass(frozen=True)
class LabyrinthExplore(Labyrinth):
    """Visit every square of a random maze.

    Each new square is worth one over their number, each other step ``-1/episode_length``. The episode terminates when
    all squares have been visited.
    """

    def judge(self, before: State, after: State) -> tuple[jax.Array, jax.Array]:
        """Return the reward of a step, float32, and whether all squares have been visited."""
        is_new = ~before.explored[tuple(after.position)]
        reward = jnp.where(is_new, 1 / jnp.sum(after.grid == FREE), -1 / self.episode_length)
        return reward.astype(jnp.float32), jnp.all(after.explored | (after.grid == OBSTACLE))


@envs.register(
    "popgym/LabyrinthEscape",
    variants={"Easy": {"maze_dims": 10}, "Medium": {"maze_dims": 14}, "Hard": {"maze_dims": 18}},
)
@dataclasses.dataclass(frozen=True)
class LabyrinthEscape(Labyrinth):
    """Find the exit of a random maze.

    Each step costs ``1/episode_length``, and the exit, on the side opposite the start, is worth 1. The episode
    terminates there.
    """

    exit = GOAL

    def judge(self, before: State, after: State) -> tuple[jax.Array, jax.Array]:
        """Return the reward of a step, float32, and whether it led to the exit."""
        escaped = after.grid[tuple(after.position)] == GOAL
        return (escaped - 1 / self.episode_length).astype(jnp.float32), escaped
