"""The boards, the control tasks and the labyrinths of POPGym, against the original and against the published numbers.

Boards and labyrinths are replayed exactly. Control tasks are replayed from the original's start state, with its noise,
under players whose motion float32 can follow. Under all players each state of the original is also advanced by one step
of ours, because upright poles magnify a rounding error by e every quarter of a second.
"""

import math
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl.envs import make
from ssmrl.envs.popgym import cart_pole, labyrinth, pendulum
from ssmrl.spaces import flat_size
from tests.conformance import popgym_replay
from tests.conformance.popgym_replay import Episode, check, compare, record, scripted


class Row(NamedTuple):
    flat: int  # size of the observation, one-hot
    length: int  # steps of a full-length episode
    random: float  # mean return of random play in the original ...
    se: float  # ... and its standard error


TABLE = {
    "popgym/BattleshipEasy": Row(2, 64, -0.462, 0.017),
    "popgym/BattleshipMedium": Row(2, 100, -0.421, 0.015),
    "popgym/BattleshipHard": Row(2, 144, -0.365, 0.015),
    "popgym/MineSweeperEasy": Row(3, 14, -0.210, 0.035),
    "popgym/MineSweeperMedium": Row(7, 30, -0.397, 0.015),
    "popgym/MineSweeperHard": Row(10, 54, -0.446, 0.008),
    "popgym/PositionOnlyCartPoleEasy": Row(2, 200, 0.109, 0.006),
    "popgym/PositionOnlyCartPoleMedium": Row(2, 400, 0.054, 0.003),
    "popgym/PositionOnlyCartPoleHard": Row(2, 600, 0.036, 0.002),
    "popgym/VelocityOnlyCartPoleEasy": Row(2, 200, 0.109, 0.006),
    "popgym/VelocityOnlyCartPoleMedium": Row(2, 400, 0.054, 0.003),
    "popgym/VelocityOnlyCartPoleHard": Row(2, 600, 0.036, 0.002),
    "popgym/NoisyPositionOnlyCartPoleEasy": Row(2, 200, 0.116, 0.006),
    "popgym/NoisyPositionOnlyCartPoleMedium": Row(2, 200, 0.116, 0.006),
    "popgym/NoisyPositionOnlyCartPoleHard": Row(2, 200, 0.116, 0.006),
    "popgym/PositionOnlyPendulumEasy": Row(2, 200, 0.235, 0.018),
    "popgym/PositionOnlyPendulumMedium": Row(2, 150, 0.237, 0.018),
    "popgym/PositionOnlyPendulumHard": Row(2, 100, 0.221, 0.019),
    "popgym/NoisyPositionOnlyPendulumEasy": Row(2, 200, 0.204, 0.020),
    "popgym/NoisyPositionOnlyPendulumMedium": Row(2, 200, 0.204, 0.020),
    "popgym/NoisyPositionOnlyPendulumHard": Row(2, 200, 0.204, 0.020),
    # 300 episodes each
    "popgym/LabyrinthExploreEasy": Row(50, 1023, -0.354, 0.011),
    "popgym/LabyrinthExploreMedium": Row(50, 1023, -0.618, 0.008),
    "popgym/LabyrinthExploreHard": Row(50, 1023, -0.743, 0.005),
    "popgym/LabyrinthEscapeEasy": Row(50, 1023, -0.450, 0.042),
    "popgym/LabyrinthEscapeMedium": Row(50, 1023, -0.838, 0.027),
    "popgym/LabyrinthEscapeHard": Row(50, 1023, -0.959, 0.013),
}


def original(id: str, **parameters: Any) -> Any:
    if "maze_dims" in parameters:
        parameters["maze_dims"] = (parameters["maze_dims"],) * 2
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # labyrinths warn of themselves
        return popgym_replay.original(id, **parameters)


# Players: what the original hides is theirs to read.


def random_player(game, rng):
    space = game.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(rng.integers(space.n))
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return rng.integers(space.nvec)
    return rng.uniform(space.low, space.high).astype(np.float32)


def choose(tiles, rng):
    return rng.permutation(np.argwhere(tiles))[0]


def battleship_oracle(game, rng):
    return choose((game.board == 1) & (game.guesses == 0), rng)


def battleship_misser(game, rng):
    """Never hit a ship: the worst return."""
    return choose(game.board == 0, rng)


def battleship_dawdler(game, rng):
    """Spare the fleet until it can only just be sunk: the last step both terminates and truncates."""
    left = game.max_episode_length - game.num_steps
    return battleship_oracle(game, rng) if left <= game.needed_hits - game.hits else battleship_misser(game, rng)


def battleship_repeater(game, rng):
    """Shoot at what was hit before, now and then at something new."""
    known = (game.board == 1) & (game.guesses == 1)
    return choose(known, rng) if known.any() and rng.random() < 0.8 else battleship_oracle(game, rng)


def battleship_sweeper(game, rng):
    return np.array(divmod(game.num_steps, game.board_size))


def minesweeper_oracle(game, rng):
    return choose(game.hidden_grid == 0, rng)


def minesweeper_repeater(game, rng):
    """View one tile for ever: truncated."""
    viewed = game.hidden_grid == 2
    return choose(viewed, rng) if viewed.any() else minesweeper_oracle(game, rng)


def minesweeper_suicide(game, rng):
    """Hit a mine on the last step, when the clock runs out too."""
    last = game.timestep == game.max_episode_length - 1
    return choose(game.hidden_grid == 1, rng) if last else minesweeper_oracle(game, rng)


def minesweeper_slip(game, rng):
    """Waste the last step on a tile that has been viewed: neither won nor lost."""
    last = game.timestep == game.max_episode_length - 1
    return choose(game.hidden_grid == 2, rng) if last else minesweeper_oracle(game, rng)


def balance(game, rng, target=0.0):
    x, x_dot, theta, theta_dot = game.state
    return int(0.3 * np.clip(x - target, -0.5, 0.5) + 0.4 * x_dot + 6 * theta + theta_dot > 0)


def leave_the_track(game, rng):
    """Keep the pole up and run into the border."""
    return balance(game, rng, target=10.0)


def push_right(game, rng):
    return 1


def swing_up(game, rng):
    """Pump energy, then hold the pendulum upright."""
    theta, theta_dot = game.state
    theta = (theta + np.pi) % (2 * np.pi) - np.pi
    if abs(theta) < 0.4:
        torque = -10 * theta - 2 * theta_dot
    else:
        torque = np.sign(theta_dot) * (20 - 10 * (1 + np.cos(theta)) - theta_dot**2 / 3 + 1)
    return np.array([np.clip(torque, -2, 2)], np.float32)


def overdo(game, rng):
    """A torque far beyond the bound, to one side: full speed."""
    return np.array([7.5], np.float32)


def let_go(game, rng):
    return np.zeros(1, np.float32)


def route(game, wanted):
    """Shortest moves from the agent to a wanted square, empty if there is no way."""
    start = tuple(int(i) for i in game.position)
    routes, queue = {start: []}, deque([start])
    while queue:
        square = queue.popleft()
        if wanted(square):
            return routes[square]
        for action, (down, right) in enumerate(labyrinth.MOVES):
            there = square[0] + down, square[1] + right
            inside = all(0 <= i < len(game.maze.grid) for i in there)
            if inside and game.maze.grid[there] != 1 and there not in routes:
                routes[there] = [*routes[square], action]
                queue.append(there)
    return []


def labyrinth_oracle(game, rng):
    """Go the shortest way to the exit or, where there is none, to the nearest new square."""
    if game.curr_step == 0 or not game.plan:
        wanted = {tuple(square) for square in np.argwhere(game.maze.grid == 3)}
        wanted = wanted or {tuple(square) for square in np.argwhere((game.maze.grid == 0) & (game.explored == 0))}
        game.plan = route(game, wanted.__contains__)
    return game.plan.pop(0) if game.plan else random_player(game, rng)  # an unfinished maze may have no way


def wall_pusher(game, rng):
    """Walk into the border at the entrance, then follow corridors and keep running into their ends."""
    return int(game.curr_step // 7 * 3 % 4) if game.curr_step > 20 else int(game.curr_step % 4)


# What the original drew, and how ours is made to draw the same.


def dump_noisy(game):
    """The start state and the noise of all observations: the generator of the episode, asked once more."""
    rng, _ = gymnasium.utils.seeding.np_random(game.np_random_seed)
    rng.uniform(size=len(game.state))
    noise = rng.normal(0, game.noise_sigma, (game.max_episode_length + 1, 2))
    return np.float32(game.state), np.float32(noise)


def script_noisy(hidden):
    physics, noise = hidden
    return {
        "draw_physics": lambda self, key: physics,
        "observe": lambda self, key, state: self.blur(self.get_obs(state), noise[state.time]),
    }


class Proof(NamedTuple):
    players: dict[str, Callable]
    dump: Callable
    script: Callable
    restore: Callable | None = None  # from get_state and the time to our state, for one step
    chaotic: tuple[str, ...] = ()  # players whose episodes are compared step by step only


def restore_cart_pole(physics, time):
    return cart_pole.State(time, physics)


def restore_pendulum(observed, time):
    cos, sin, theta_dot = observed
    return pendulum.State(time, jnp.arctan2(sin, cos), theta_dot)


CART_POLE = {"oracle": balance, "random": random_player, "stubborn": push_right, "leaver": leave_the_track}
PENDULUM = {"oracle": swing_up, "random": random_player, "overdoer": overdo, "idler": let_go}
LABYRINTH = {"oracle": labyrinth_oracle, "random": random_player, "pusher": wall_pusher}
PHYSICS = (lambda game: np.float32(game.state), lambda physics: {"draw_physics": lambda self, key: physics})
GRID = (
    lambda game: (np.int32(game.maze.grid), np.int32(game.position)),
    lambda hidden: {"draw_grid": lambda self, key: hidden},
)
PROOFS = {
    "Battleship": Proof(
        {
            "oracle": battleship_oracle,
            "random": random_player,
            "misser": battleship_misser,
            "dawdler": battleship_dawdler,
            "repeater": battleship_repeater,
            "sweeper": battleship_sweeper,
        },
        dump=lambda game: game.board == 1,
        script=lambda ships: {"place_ships": lambda self, key: ships},
    ),
    "MineSweeper": Proof(
        {
            "oracle": minesweeper_oracle,
            "random": random_player,
            "repeater": minesweeper_repeater,
            "suicide": minesweeper_suicide,
            "slip": minesweeper_slip,
        },
        dump=lambda game: game.hidden_grid == 1,
        script=lambda mines: {"lay_mines": lambda self, key: mines},
    ),
    "PositionOnlyCartPole": Proof(CART_POLE, *PHYSICS, restore_cart_pole, ("oracle", "leaver")),
    "VelocityOnlyCartPole": Proof(CART_POLE, *PHYSICS, restore_cart_pole, ("oracle", "leaver")),
    "NoisyPositionOnlyCartPole": Proof(CART_POLE, dump_noisy, script_noisy, restore_cart_pole, ("oracle", "leaver")),
    "PositionOnlyPendulum": Proof(PENDULUM, *PHYSICS, restore_pendulum, ("oracle", "random", "idler")),
    "NoisyPositionOnlyPendulum": Proof(
        PENDULUM, dump_noisy, script_noisy, restore_pendulum, ("oracle", "random", "idler")
    ),
    "LabyrinthExplore": Proof(LABYRINTH, *GRID),
    "LabyrinthEscape": Proof(LABYRINTH, *GRID),
}


def family(id: str) -> str:
    name = id.removeprefix("popgym/")
    return next(f for f in PROOFS if name.startswith(f))


CASES = [
    *((id, {}) for id in TABLE),
    ("popgym/Battleship", {}),
    ("popgym/Battleship", {"board_size": 5, "ship_sizes": (5, 1, 2)}),
    ("popgym/MineSweeper", {}),
    ("popgym/PositionOnlyCartPole", {"max_episode_length": 9}),
    ("popgym/NoisyPositionOnlyPendulum", {"max_episode_length": 20, "noise_sigma": 0.7}),
    ("popgym/LabyrinthExplore", {"maze_dims": 6, "episode_length": 100}),
    ("popgym/LabyrinthEscape", {"maze_dims": 8, "episode_length": 50}),
]
CASE_IDS = [id.removeprefix("popgym/") + str(parameters or "") for id, parameters in CASES]


@pytest.mark.parametrize(("id", "parameters"), CASES, ids=CASE_IDS)
def test_replays_the_original(id, parameters):
    (env, params), proof = make(id, **parameters), PROOFS[family(id)]
    players = {name: player for name, player in proof.players.items() if name not in proof.chaotic}
    game = original(id, **parameters)
    atol = 1e-4 if proof.restore else 0.0
    episodes = check(env, params, game, players=players, dump=proof.dump, script=proof.script, atol=atol)
    for name, ends in ENDS.get(family(id), {}).items():
        assert {(bool(e.terminated[-1]), bool(e.truncated[-1])) for e in episodes[name]} == {ends}, name
    if family(id) in ("Battleship", "MineSweeper"):
        np.testing.assert_allclose([e.rewards.sum(dtype=np.float64) for e in episodes["oracle"]], 1, atol=1e-5)


ENDS = {  # (terminated, truncated) at the end of all episodes of a player
    "Battleship": {"oracle": (True, False), "misser": (False, True), "dawdler": (True, True)},
    "MineSweeper": {
        "oracle": (True, False),
        "repeater": (False, True),
        "suicide": (True, False),
        "slip": (False, True),
    },
}


@pytest.mark.parametrize("id", [id for id, proof in PROOFS.items() if proof.restore])
def test_every_step_follows_the_original(id):
    """From each state of the original, whatever the player, one step of ours leads to the next."""
    for level in ("Easy", "Medium", "Hard"):
        (env, params), proof, game = make(f"popgym/{id}{level}"), PROOFS[id], original(f"popgym/{id}{level}")
        theirs = [record(game, player, proof.dump, seed) for player in proof.players.values() for seed in range(2)]
        for mine, other in zip(step_each(env, params, proof, theirs), theirs, strict=True):
            compare(mine, other, atol=2e-5)


def step_each(env: Any, params: Any, proof: Proof, episodes: list[Episode]) -> list[Episode]:
    """Episodes in which each step starts from the state that the original was in, and the first state is its own."""
    length = max(len(e.rewards) for e in episodes)

    def advance(hidden, states, actions):
        game = scripted(env, **proof.script(hidden))

        def step(before, action, time):
            state = proof.restore(before, time)
            obs, state, reward, terminated, _ = game.step_env(jax.random.key(0), state, action, params)
            return obs, reward, terminated, game.is_truncated(state, params), game.get_state(state)

        return jax.vmap(step)(states, actions, jnp.arange(length))

    def pad(x):
        return np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1))

    hidden = jax.tree.map(lambda *leaves: np.stack(leaves), *(e.dump for e in episodes))
    states = np.stack([pad(e.states[:-1]) for e in episodes])
    actions = np.stack([pad(e.actions) for e in episodes])
    actions = actions.astype(np.float32 if actions.dtype.kind == "f" else np.int32)
    outcomes = jax.device_get(jax.jit(jax.vmap(advance))(hidden, states, actions))
    ours = []
    for i, e in enumerate(episodes):
        obs, rewards, terminated, truncated, after = (x[i][: len(e.rewards)] for x in outcomes)
        obs, after = (np.concatenate([first[:1], rest]) for first, rest in ((e.observations, obs), (e.states, after)))
        ours.append(Episode(e.dump, e.actions, obs, rewards, terminated, truncated, after))
    return ours


def test_a_pole_that_falls_when_the_clock_runs_out_does_both():
    game = original("popgym/PositionOnlyCartPole", max_episode_length=9)
    env, params = make("popgym/PositionOnlyCartPole", max_episode_length=9)
    proof = PROOFS["PositionOnlyCartPole"]
    episodes = check(env, params, game, players={"": push_right}, dump=proof.dump, script=proof.script, atol=1e-5)[""]
    ends = {(bool(e.terminated[-1]), bool(e.truncated[-1])) for e in episodes}
    assert (True, True) in ends
    assert ends - {(True, True)}


@pytest.mark.parametrize("id", TABLE)
def test_spaces_and_length_are_the_originals(id):
    env, params = make(id)
    row, game = TABLE[id], original(id)
    assert flat_size(env.observation_space(params)) == row.flat == gymnasium.spaces.flatdim(game.observation_space)
    assert params.max_steps_in_episode == row.length == game.max_episode_length - ("Labyrinth" in id)
    for ours, theirs in (
        (env.observation_space(params), game.observation_space),
        (env.action_space(params), game.action_space),
    ):
        match theirs:
            case gymnasium.spaces.Discrete(n=n):
                assert ours.n == n
            case gymnasium.spaces.MultiDiscrete(nvec=nvec):
                assert ours.nvec == tuple(nvec)
            case gymnasium.spaces.Box(low=low, high=high):
                np.testing.assert_array_equal(ours.bounds(), (low, high))


@pytest.mark.parametrize("id", TABLE)
def test_random_play_scores_as_in_the_original(id):
    (env, params), row, batch = make(id), TABLE[id], 256
    space = env.action_space(params)

    def episode(key):
        def step(carry, key):
            state, alive = carry
            key_action, key_step = jax.random.split(key)
            _, state, reward, terminated, _ = env.step_env(key_step, state, space.sample(key_action), params)
            truncated = env.is_truncated(state, params)
            return (state, alive & ~terminated & ~truncated), (reward * alive, alive)

        key_reset, key_steps = jax.random.split(key)
        _, state = env.reset_env(key_reset, params)
        keys = jax.random.split(key_steps, row.length + 1)
        _, (rewards, alive) = jax.lax.scan(step, (state, jnp.bool_(True)), keys)
        return jnp.sum(rewards), jnp.sum(alive)

    returns, lengths = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), batch))
    se = math.hypot(row.se, float(returns.std()) / math.sqrt(batch))
    assert abs(float(returns.mean()) - row.random) < 4 * se
    assert lengths.max() <= row.length
    if "Pendulum" in id:
        assert lengths.min() == row.length


@pytest.mark.parametrize(
    ("id", "parameters", "message"),
    [
        (
            "popgym/Battleship",
            {"board_size": 6},
            r"ship 4 of \(2, 3, 3, 4\) might not on 6x6 tiles; use a larger board",
        ),
        ("popgym/Battleship", {"board_size": 3, "ship_sizes": (4,)}, "ship 1 of .* might not on 3x3 tiles"),
        ("popgym/Battleship", {"board_size": 2, "ship_sizes": (1, 1, 1, 1)}, "there must be a ship and some water"),
        ("popgym/Battleship", {"ship_sizes": ()}, "there must be a ship and some water"),
        ("popgym/Battleship", {"ship_sizes": (0, 2)}, "ship_sizes"),
        ("popgym/MineSweeper", {"num_mines": 14}, "at least three tiles are without a mine"),
        ("popgym/MineSweeper", {"num_mines": 0}, "num_mines"),
        ("popgym/PositionOnlyPendulum", {"max_episode_length": 0}, "max_episode_length"),
        ("popgym/NoisyPositionOnlyCartPole", {"noise_sigma": -0.1}, "noise_sigma"),
        ("popgym/LabyrinthExplore", {"maze_dims": 9}, "maze_dims=9.*2x2 blocks"),
        ("popgym/LabyrinthExplore", {"maze_dims": 4}, "maze_dims"),
        ("popgym/LabyrinthEscape", {"view": "tilted"}, "view"),
    ],
)
def test_impossible_parameters(id, parameters, message):
    with pytest.raises(ValueError, match=message):
        make(id, **parameters)
    cls = type(make(id)[0])
    with pytest.raises(ValueError, match=message):
        cls(**parameters)


def test_a_fleet_given_as_a_list_is_hashable():
    assert make("popgym/Battleship", ship_sizes=[2, 3])[0] == make("popgym/Battleship", ship_sizes=(2, 3))[0]


@pytest.mark.parametrize(
    ("older", "name"),
    [
        ("StatelessCartPoleEasy", "PositionOnlyCartPoleEasy"),
        ("NoisyStatelessCartPoleHard", "NoisyPositionOnlyCartPoleHard"),
        ("StatelessPendulumMedium", "PositionOnlyPendulumMedium"),
        ("NoisyStatelessPendulum", "NoisyPositionOnlyPendulum"),
        ("VelocityOnlyCartpoleHard", "VelocityOnlyCartPoleHard"),
        ("MinesweeperEasy", "MineSweeperEasy"),
    ],
)
def test_older_names(older, name):
    assert make(f"popgym/{older}")[0] == make(f"popgym/{name}")[0]
