"""What POPGym draws and hides (fleets, mines, start states, noise, mazes) has the law that it has in the original."""

import math
import random
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mazelib import Maze
from mazelib.generate.HuntAndKill import HuntAndKill

from ssmrl.envs import make
from ssmrl.envs.popgym import bitboard, cart_pole, labyrinth, maze, pendulum
from tests.conformance import popgym_replay


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
    game = popgym_replay.original("popgym/Battleship", board_size=3, ship_sizes=list(ships))
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
    game, theirs = popgym_replay.original("popgym/BattleshipEasy"), []
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
