"""The boards, the control tasks and the labyrinths of POPGym, against the original and against the published numbers.

Boards and labyrinths are replayed exactly. Control tasks are replayed from the original's start state, with its noise,
under players whose motion float32 can follow. Under all players each state of the original is also advanced by one step
of ours, because upright poles magnify a rounding error by e every quarter of a second.
"""

import math
import random
import warnings
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mazelib import Maze
from mazelib.generate.HuntAndKill import HuntAndKill

from ssmrl.envs import make
from ssmrl.envs.popgym import bitboard, cart_pole, labyrinth, maze, pendulum
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


# The hidden draws: same laws as the original's.


def score(observed, expected):
    """Standard score of the chi-square statistic of counts: below 5 unless they are not as expected."""
    observed, expected = np.asarray(observed, np.float64), np.asarray(expected, np.float64)
    rare = expected < 5
    if rare.any():  # are counted together
        observed, expected = (np.append(x[~rare], x[rare].sum()) for x in (observed, expected))
    degrees = observed.size - 1
    return (((observed - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


def two_sample_score(ours, theirs):
    """The same for two samples of hashable outcomes; rare outcomes are taken together."""
    a, b = Counter(ours), Counter(theirs)
    share = len(theirs) / (len(ours) + len(theirs))
    rare = [x for x in a | b if (a[x] + b[x]) * min(share, 1 - share) < 8]
    rows = [(a[x], b[x]) for x in a | b if x not in set(rare)]
    rows += [(sum(a[x] for x in rare), sum(b[x] for x in rare))] if rare else []
    counts = np.array(rows, np.float64)
    expected = counts.sum(axis=1, keepdims=True) * np.array([[1 - share, share]])
    degrees = len(rows) - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


def draw(number, seed, function):
    return np.asarray(jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(seed), number)))


def law_of_fleets(size, ships):
    """Probability of each board, by its bytes: each ship uniform over where it fits, given the ships before it."""
    law = {np.zeros((size, size), bool).tobytes(): 1.0}
    for length in ships:
        places = []
        for row in range(size):
            for column in range(size - length + 1):
                place = np.zeros((size, size), bool)
                place[row, column : column + length] = True
                places += [place, place.T]
        following = Counter()
        for board, probability in law.items():
            taken = np.frombuffer(board, bool).reshape(size, size)
            fitting = [place for place in places if not (place & taken).any()]
            for place in fitting:
                following[(place | taken).tobytes()] += probability / len(fitting)
        law = following
    return law


@pytest.mark.parametrize("ships", [(2, 2), (3, 2, 1), (1, 3)])
def test_fleets_have_their_exact_law(ships):
    law = law_of_fleets(3, ships)
    env, _ = make("popgym/Battleship", board_size=3, ship_sizes=ships)
    game = original("popgym/Battleship", board_size=3, ship_sizes=list(ships))
    theirs = []
    for seed in range(2_000):
        game.reset(seed=seed)
        theirs.append((game.board == 1).tobytes())
    ours = [board.tobytes() for board in draw(20_000, 0, env.place_ships)]
    for sample in (ours, theirs):
        counts = Counter(sample)
        assert counts.keys() <= law.keys()
        assert score([counts[b] for b in law], [len(sample) * p for p in law.values()]) < 5


def test_fleets_lie_where_the_originals_do():
    env, _ = make("popgym/BattleshipEasy")
    game, theirs = original("popgym/BattleshipEasy"), []
    for seed in range(2_000):
        game.reset(seed=seed)
        theirs.append(game.board == 1)
    ours, theirs = draw(20_000, 1, env.place_ships), np.stack(theirs)
    assert (ours.sum(axis=(1, 2)) == 12).all()
    p = ours.mean(axis=0)
    assert (np.abs(theirs.mean(axis=0) - p) < 5 * np.sqrt(p * (1 - p) * (1 / 20_000 + 1 / 2_000))).all()

    def shape(boards):
        """Ship tiles next to one another, horizontally and vertically."""
        across, down = boards[:, :, 1:] & boards[:, :, :-1], boards[:, 1:] & boards[:, :-1]
        return list(zip(across.sum(axis=(1, 2)), down.sum(axis=(1, 2)), strict=True))

    assert two_sample_score(shape(ours), shape(theirs)) < 5


def test_all_minefields_are_equally_likely():
    env, _ = make("popgym/MineSweeperEasy")
    counts = Counter(mines.tobytes() for mines in draw(24_000, 2, env.lay_mines))
    assert len(counts) == math.comb(16, 2)
    assert score(list(counts.values()), [24_000 / len(counts)] * len(counts)) < 5


def test_mines_of_a_large_field():
    env, _ = make("popgym/MineSweeperHard")
    fields = draw(20_000, 3, env.lay_mines).reshape(-1, 64)
    assert (fields.sum(axis=1) == 10).all()
    mean, se = 10 / 64, math.sqrt(10 / 64 * 54 / 64 / 20_000)
    assert (np.abs(fields.mean(axis=0) - mean) < 5 * se).all()
    both = 10 / 64 * 9 / 63
    together = fields.T.astype(np.float32) @ fields / 20_000
    assert (np.abs(together - both)[~np.eye(64, dtype=bool)] < 6 * math.sqrt(both / 20_000)).all()


@pytest.mark.parametrize("id", ["PositionOnlyCartPole", "NoisyPositionOnlyCartPole", "PositionOnlyPendulum"])
def test_start_states_are_uniform(id):
    env, _ = make(f"popgym/{id}Easy")
    if "Pendulum" in id:
        states = draw(20_000, 4, lambda key: jnp.stack(env.draw_physics(key)))
        width = np.array([np.pi, 1.0])
    else:
        states, width = draw(20_000, 4, env.draw_physics), np.full(4, 0.05)
    assert (np.abs(states) <= width.astype(np.float32)).all()
    bins = np.minimum(((states / width + 1) / 2 * 16).astype(int), 15)
    for column in bins.T:
        assert score(np.bincount(column, minlength=16), [20_000 / 16] * 16) < 5
    assert score(np.bincount(bins[:, 0] * 16 + bins[:, 1], minlength=256), [20_000 / 256] * 256) < 5


@pytest.mark.parametrize("level", ["Easy", "Hard"])
@pytest.mark.parametrize("id", ["NoisyPositionOnlyCartPole", "NoisyPositionOnlyPendulum"])
def test_noise_is_normal_and_clipped(id, level):
    env, params = make(f"popgym/{id}{level}")
    # Both start states and later ones, with one entry near its bound.
    state = cart_pole.State(jnp.int32(3), jnp.float32([0.1, 0, 0.2, 0]))
    if "Pendulum" in id:
        state = pendulum.State(jnp.int32(0), jnp.float32(0.4), jnp.float32(0.0))
    clean = np.asarray(env.get_obs(state), np.float64)
    obs = draw(40_000, 5, lambda key: env.observe(key, state)).astype(np.float64)
    low, high = env.observation_space(params).bounds()
    assert (obs >= low).all()
    assert (obs <= high).all()
    edges = np.linspace(-2.5, 2.5, 21)
    for i in range(2):
        normal = np.diff([(1 + math.erf(x / math.sqrt(2))) / 2 for x in (-np.inf, *edges, np.inf)])
        top = np.searchsorted(edges, (high[i] - clean[i]) / env.noise_sigma)  # bins from here on are clipped to `high`
        bottom = np.searchsorted(edges, (low[i] - clean[i]) / env.noise_sigma)
        which = np.clip(np.searchsorted(edges, (obs[:, i] - clean[i]) / env.noise_sigma), bottom, top)
        expected = np.append(normal[:top], normal[top:].sum())
        expected[bottom], expected[:bottom] = expected[: bottom + 1].sum(), 0
        observed = np.bincount(which, minlength=len(expected))
        assert score(observed[bottom:], 40_000 * expected[bottom:]) < 5
    free = ((obs > low) & (obs < high)).all(axis=1)
    assert abs(np.corrcoef(obs[free].T)[0, 1]) < 5 / math.sqrt(free.sum())


# Mazes: the law of mazelib's.


def mazelib_walls(size, number, seed, num_hunts=None):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  mazelib draws from the global generators
    generator = HuntAndKill(size, size)
    if num_hunts is not None:
        hunt = generator._hunt_random
        generator._hunt_random = lambda grid, count: (-1, -1) if count >= num_hunts else hunt(grid, count)
    return np.stack([generator.generate() == 1 for _ in range(number)])


def our_walls(size, number, seed, num_hunts=None):
    return draw(number, seed, lambda key: maze.hunt_and_kill(key, size, num_hunts))


def law_of_mazes(size):
    """Probability of each maze, by its bytes, when hunts never run out."""
    cells = [(row, column) for row in range(size) for column in range(size)]
    sides = {a: [b for b in cells if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1] for a in cells}
    law = {(frozenset(), cell): 1 / len(cells) for cell in cells}  # of the passages and where the walk is
    for _ in cells[1:]:
        following = Counter()
        for (passages, here), probability in law.items():
            visited = {here}.union(*passages)
            open_ends = [cell for cell in visited if not visited.issuperset(sides[cell])]
            walkers = [here] if here in open_ends else open_ends
            for walker in walkers:
                steps = [cell for cell in sides[walker] if cell not in visited]
                for step in steps:
                    following[passages | {(walker, step)}, step] += probability / len(walkers) / len(steps)
        law = following
    mazes = Counter()
    for (passages, _), probability in law.items():
        walls = np.ones((2 * size + 1, 2 * size + 1), bool)
        for a, b in passages:
            for square in ((2 * a[0], 2 * a[1]), (2 * b[0], 2 * b[1]), (a[0] + b[0], a[1] + b[1])):
                walls[square[0] + 1, square[1] + 1] = False
        mazes[walls.tobytes()] += probability
    return mazes


def test_small_mazes_have_their_exact_law():
    law = law_of_mazes(3)
    assert sum(law.values()) == pytest.approx(1)
    for walls in (our_walls(3, 60_000, 0), mazelib_walls(3, 2_000, 0)):
        counts, unfinished = Counter(m.tobytes() for m in walls), (num_free(walls) < 17).sum()
        assert unfinished < 1e-3 * len(walls)
        assert sum(counts[maze] for maze in law) == len(walls) - unfinished
        assert score([counts[maze] for maze in law], [len(walls) * p for p in law.values()]) < 5


@pytest.mark.parametrize("num_hunts", [0, 1, 10])
def test_unfinished_mazes_have_the_law_of_mazelibs(num_hunts):
    """The whole distribution over mazes of 3x3 cells, of which few hunts leave many unfinished."""
    ours, theirs = our_walls(3, 20_000, 0, num_hunts), mazelib_walls(3, 2_000, 0, num_hunts)
    assert two_sample_score([m.tobytes() for m in ours], [m.tobytes() for m in theirs]) < 5
    assert (num_free(ours) < 17).mean() > 1e-2


@pytest.mark.parametrize(("size", "number"), [(5, 600), (7, 300), (9, 200)])
def test_mazes_look_like_mazelibs(size, number):
    ours, theirs = our_walls(size, 4_000, 1), mazelib_walls(size, number, 1)
    for statistic in (num_dead_ends, num_corridors):
        assert two_sample_score(statistic(ours).tolist(), statistic(theirs).tolist()) < 5, statistic
    # Passages per cell, by its place: corners, sides and the middle differ.
    passages = cell_degrees(ours).mean(axis=0) - cell_degrees(theirs).mean(axis=0)
    se = cell_degrees(ours).std(axis=0) * math.sqrt(1 / number + 1 / 4_000)
    assert (np.abs(passages) < 5 * se).all()


def cell_degrees(walls):
    """Open sides of each cell ``[N, size, size]``."""
    free = ~walls
    cells = free[:, 1:-1:2, 1:-1:2]
    sides = (free[:, :-2:2, 1:-1:2], free[:, 2::2, 1:-1:2], free[:, 1:-1:2, :-2:2], free[:, 1:-1:2, 2::2])
    return cells * sum(side.astype(int) for side in sides)


def num_free(walls):
    return (~walls).sum(axis=(1, 2))


def num_dead_ends(walls):
    return (cell_degrees(walls) == 1).sum(axis=(1, 2))


def num_corridors(walls):
    """Cells passed straight, from left to right."""
    free = ~walls
    return (free[:, 1:-1:2, :-2:2] & free[:, 1:-1:2, 2::2]).sum(axis=(1, 2)) // 2


@pytest.mark.parametrize(("size", "num_hunts"), [(9, None), (9, 40), (13, None)])
def test_mazes_are_trees(size, num_hunts):
    """All free squares are connected, without loops, within a closed outer wall."""
    number = 200
    walls = our_walls(size, number, 2, num_hunts)
    free = ~walls
    assert walls[:, [0, -1]].all()
    assert walls[:, :, [0, -1]].all()
    assert walls[:, 2::2, 2::2].all()
    cells = free[:, 1::2, 1::2].sum(axis=(1, 2))
    assert (num_free(walls) == 2 * cells - 1).all()  # a tree, if connected
    assert (cells == size**2).mean() > 0.98 if num_hunts is None else (cells < size**2).any()
    reached = np.zeros_like(free)
    reached.reshape(number, -1)[np.arange(number), free.reshape(number, -1).argmax(axis=1)] = True
    while True:
        grown = reached.copy()
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown[:, :, 1:] |= reached[:, :, :-1]
        grown[:, :, :-1] |= reached[:, :, 1:]
        grown &= free
        if (grown == reached).all():
            break
        reached = grown
    assert (reached == free).all()


def test_entrances_are_opposite_and_uniform():
    pairs = draw(20_000, 3, lambda key: jnp.concatenate(maze.entrances(key, 3)))
    counts = Counter(map(tuple, pairs.tolist()))
    odd = (1, 3, 5)
    sides = [((0, a), (6, b)) for a in odd for b in odd] + [((a, 0), (b, 6)) for a in odd for b in odd]
    every = {pair for s, g in sides for pair in ((*s, *g), (*g, *s))}
    assert counts.keys() == every
    assert score(list(counts.values()), [20_000 / len(every)] * len(every)) < 5
    lib, theirs = Maze(), []
    lib.generator = HuntAndKill(3, 3)
    lib.generate()
    for _ in range(2_000):
        lib.generate_entrances()
        theirs.append((*lib.start, *lib.end))
    assert two_sample_score(list(map(tuple, pairs.tolist())), theirs) < 5


@pytest.mark.parametrize("id", ["popgym/LabyrinthExplore", "popgym/LabyrinthEscape"])
def test_mazes_have_their_entrances(id):
    env, _ = make(id, maze_dims=8)
    grids, starts = jax.jit(jax.vmap(env.draw_grid))(jax.random.split(jax.random.key(0), 200))
    for grid, start in zip(np.asarray(grids), np.asarray(starts), strict=True):
        assert np.argwhere(grid == labyrinth.START).tolist() == [start.tolist()]
        edge = np.concatenate([grid[0], grid[-1], grid[1:-1, 0], grid[1:-1, -1]])
        goals = np.argwhere(grid == labyrinth.GOAL)
        assert len(goals) == ("Escape" in id)
        assert (edge == labyrinth.OBSTACLE).sum() == len(edge) - 1 - len(goals)
        assert all(abs(goal - start).max() == 8 for goal in goals)


def test_the_centred_view_differs_at_the_top_and_left_alone():
    (popgym, _), (centred, _) = (make("popgym/LabyrinthEscapeEasy", view=view) for view in ("popgym", "centred"))
    grid = jnp.where(jax.random.bernoulli(jax.random.key(4), 0.5, (11, 11)), jnp.int32(labyrinth.OBSTACLE), 0)
    rows, columns = (i.ravel() for i in jnp.indices(grid.shape))

    def view(env):
        def at(row, column):
            state = labyrinth.State(jnp.int32(0), grid, grid == 0, jnp.stack([row, column]), jnp.int32(4))
            return env.get_obs(state)

        return np.asarray(jax.jit(jax.vmap(at))(rows, columns))

    around = np.pad(grid, 1, constant_values=labyrinth.OBSTACLE)
    expected = [around[r : r + 3, c : c + 3].ravel() for r, c in zip(rows, columns, strict=True)]
    np.testing.assert_array_equal(view(centred)[:, :9], expected)
    shifted = np.asarray((rows == 0) | (columns == 0))
    np.testing.assert_array_equal(view(popgym)[~shifted], view(centred)[~shifted])
    assert (view(popgym)[shifted] != view(centred)[shifted]).any(axis=1).mean() > 0.8


# Sets of cells.


@pytest.mark.parametrize("size", [3, 8, 12])
def test_cells_move_within_the_board(size):
    board = np.random.default_rng(0).random((size, size)) < 0.5
    cells = bitboard.constant(board)
    assert cells.count() == board.sum()
    np.testing.assert_array_equal(cells.to_array(), board)
    for down in (-2, -1, 0, 1, 2):
        for right in (-2, -1, 0, 1, 2):
            expected = np.zeros_like(board)
            for row, column in np.argwhere(board):
                if 0 <= row + down < size and 0 <= column + right < size:
                    expected[row + down, column + right] = True
            np.testing.assert_array_equal(cells.move(down, right).to_array(), expected)


def test_draws_from_a_set_are_uniform_and_from_none_empty():
    cells = bitboard.full(12).move(3, 5) - bitboard.full(12).move(8, 0)
    counts = draw(20_000, 7, lambda key: cells.draw(jax.random.uniform(key)).to_array()).sum(axis=0)
    members = np.asarray(cells.to_array())
    assert members.sum() == 5 * 7
    assert counts[~members].sum() == 0
    assert score(counts[members], [20_000 / 35] * 35) < 5
    assert not bitboard.empty(12).draw(jnp.float32(0.0)).any()
    highest = bitboard.full(12).draw(jnp.float32(1 - 2**-24)).to_array()
    assert highest[11, 11]


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
