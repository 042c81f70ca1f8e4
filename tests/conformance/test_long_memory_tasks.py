"""Tasks of long memory that agents play: rules against independent accounts, what is best with and without memory."""

import dataclasses
import itertools

import numpy as np
import pytest

from ssmrl import envs
from ssmrl.fields import ConfigError
from tests.conformance.task_player import EPISODES, play, random_actions, rows, starts

# T-mazes


class PlainTMaze:
    """Ni et al.'s account: squares that exist, a time limit, a penalty for being late."""

    def __init__(self, corridor, oracle, goal):
        self.corridor, self.oracle, self.goal = corridor, oracle, goal
        self.squares = {(x, 0) for x in range(oracle + corridor + 1)} | {(oracle + corridor, y) for y in (-1, 1)}
        self.position, self.time, self.told = (oracle, 0), 0, False

    def look(self):
        x, y = self.position
        if x == 0:
            told, self.told = self.told, True
            return [0, 0 if told else self.goal]
        return [0, 0] if x < self.oracle + self.corridor else [1, y]

    def step(self, action):
        dx, dy = [(1, 0), (0, 1), (-1, 0), (0, -1)][action]
        to = (self.position[0] + dx, self.position[1] + dy)
        self.position = to if to in self.squares else self.position
        self.time += 1
        done = self.time == self.corridor + 2 * self.oracle + 1
        if done:
            return float(self.position[1] == self.goal), done
        return -1 / self.corridor * (self.position[0] < self.time - self.oracle), done


@pytest.mark.parametrize(("id", "oracle"), [("memory/TMazePassive", 0), ("memory/TMazeActive", 1)])
@pytest.mark.parametrize(("length", "min_length"), [(1, 0), (5, 0), (6, 2)])
def test_t_mazes_follow_the_papers_rules(id, oracle, length, min_length):
    steps = length + 2 * oracle + 1
    actions = random_actions(EPISODES, steps, (4, 1, 1, 1))
    obs, states, rewards, ends = play(id, actions, length=length, min_length=min_length)
    assert len({*states.length[:, 0]}) == (1 if min_length == 0 else length - min_length + 1)
    for i, row in enumerate(actions):
        maze = PlainTMaze(int(states.length[i, 0]), oracle, int(states.goal[i, 0]))
        assert obs[i, 0].tolist() == maze.look()
        for t, action in enumerate(row):
            reward, done = maze.step(action)
            assert rewards[i, t] == pytest.approx(reward)
            assert ends[i, t] == done
            assert obs[i, t + 1].tolist() == maze.look()
            if done:
                break
        assert done


def _best_ways(states, oracle, steps):
    """Actions of who knows the goal: to the oracle, to the junction, into its arm."""
    way = np.zeros((len(states.goal), steps), int)
    way[:, :oracle] = 2
    way[np.arange(len(way)), states.length[:, 0] + 2 * oracle] = np.where(states.goal[:, 0] == 1, 1, 3)
    return way


@pytest.mark.parametrize(("id", "oracle"), [("memory/TMazePassive", 0), ("memory/TMazeActive", 1)])
def test_the_best_way_through_a_t_maze_earns_one(id, oracle):
    fields, steps = {"length": 6, "min_length": 2}, 6 + 2 * oracle + 1
    _, states, *_ = play(id, np.zeros((EPISODES, steps)), **fields)
    way = _best_ways(states, oracle, steps)
    for actions, best in ((way, 1.0), (np.where(way == 1, 3, np.where(way == 3, 1, way)), 0.0)):
        _, _, rewards, ends = play(id, actions, **fields)
        before = np.cumsum(ends, axis=1) - ends == 0
        np.testing.assert_allclose((rewards * before).sum(1), best)


@pytest.mark.parametrize(("oracle", "best"), [(0, 0.5), (1, 0.5)])
def test_without_memory_a_t_maze_is_worth_half(oracle, best):
    """All memoryless policies in a corridor of 2: an action for each of the six observations."""

    def worth(policy, goal):
        maze = PlainTMaze(2, oracle, goal)
        total, done = 0.0, False
        while not done:
            reward, done = maze.step(policy[tuple(maze.look())])
            total += reward
        return total

    seen = [(0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1)]
    policies = (dict(zip(seen, p, strict=True)) for p in itertools.product(range(4), repeat=len(seen)))
    assert max(np.mean([worth(p, goal) for goal in (-1, 1)]) for p in policies) == pytest.approx(best)


def test_lengths_are_drawn_log_uniformly():
    lengths = starts("memory/TMazePassive-100", min_length=3).length
    assert (lengths.min(), lengths.max() <= 100, lengths.dtype) == (3, True, np.int32)
    for low, high in ((3, 9), (10, 30), (31, 100)):
        share = np.log((high + 1) / low) / np.log(101 / 3)
        assert np.mean((lengths >= low) & (lengths <= high)) == pytest.approx(share, abs=0.04)
    goals = starts("memory/TMazePassive-100").goal
    assert set(goals) == {-1, 1}
    assert np.mean(goals == 1) == pytest.approx(0.5, abs=0.05)


# three phases

LETTERS = {"#": "wall", " ": "floor", "a": "apple"}
BOARDS = {
    "hall": ["###########", "#a a a a a#", "# a a a a #", "#a a a a a#", "# a a a a #", "#a a + a a#", "###########"],
    "memory/KeyToDoor": [
        ["  #######  ", "  #kkkkk#  ", "  #kkkkk#  ", "  ##   ##  ", "  #+++++#  ", "  #+++++#  ", "  #######  "],
        ["           ", "   ##d##   ", "   #   #   ", "   # + #   ", "   #   #   ", "   #####   ", "           "],
    ],
    "memory/VisualMatch": [
        ["           ", "    ppp    ", "    p+p    ", "    ppp    ", "           ", "           ", "           "],
        ["###########", "# b  c  e #", "#         #", "#         #", "####   ####", "   # + #   ", "   #####   "],
    ],
}
KINDS = ["wall", "floor", "up", "right", "down", "left", "apple"]
THINGS = {"memory/KeyToDoor": ["key", "door", "ring"], "memory/VisualMatch": ["b", "c", "e"]}


def squares(board, letters):
    return [(r, c) for r, row in enumerate(board) for c, x in enumerate(row) if x in letters]


class PlainPhases:
    """The games as pycolab plays them: chapters with a board of characters and a frame counter each."""

    def __init__(self, id, distractor, state):
        self.id, self.frames, self.state = id, [15, distractor, 15], state
        explore, reward = BOARDS[id]
        self.boards = [explore, BOARDS["hall"], reward]
        places = squares(BOARDS["hall"], "a")
        self.apples = {s for s, wait in zip(places, state.apples.tolist(), strict=True) if wait == 0}
        self.picked = {}  # square -> frame
        self.has_key, self.door_open, self.ring, self.gone = False, False, False, False
        self.chapter, self.frame, self.facing = 0, 0, "up"
        self.position = tuple(int(x) - 2 for x in state.position)

    def at(self, square):
        """What one sees there."""
        r, c = square
        if not (0 <= r < 7 and 0 <= c < 11):
            return "floor"
        letter = self.boards[self.chapter][r][c]
        if letter == "a":
            return "apple" if square in self.apples else "floor"
        if letter == "k":
            here = squares(self.boards[0], "k").index(square) == int(self.state.key)
            return "key" if here and not self.has_key else "floor"
        if letter == "p":
            here = squares(self.boards[0], "p").index(square) == int(self.state.place)
            return "bce"[int(self.state.color)] if here else "wall"
        if letter == "d":
            return "door"
        if letter in "bce":
            return "floor" if self.gone else letter
        if self.chapter == 0 and square == (0, 5) and self.ring:
            return "ring"
        return "wall" if letter == "#" else "floor"

    def look(self):
        r, c = self.position
        seen = [self.at((r + i, c + j)) for i in range(-2, 3) for j in range(-2, 3)]
        seen[12] = self.facing
        names = KINDS + THINGS[self.id]
        return [names.index(x) for x in seen]

    def step(self, action):
        self.facing = ["up", "right", "down", "left"][action]
        r, c = (x + d for x, d in zip(self.position, [(-1, 0), (0, 1), (1, 0), (0, -1)][action], strict=True))
        what, reward = self.at((r, c)), 0.0
        shut = what in ("wall", "ring") or (what == "door" and not self.has_key)
        shut |= self.chapter == 0 and what in ("b", "c", "e")
        if 0 <= r < 7 and 0 <= c < 11 and not shut:
            self.position = (r, c)
        self.frame += 1
        what, self.ring = self.at(self.position), False
        if what == "apple":
            reward += 1
            self.apples.remove(self.position)
            self.picked[self.position] = self.frame
        for square, frame in [*self.picked.items()]:
            if self.frame > frame + 20:
                self.apples.add(square)
                del self.picked[square]
        if what == "key":
            self.has_key = self.ring = True
        if what == "door" and not self.door_open:
            self.door_open = True
            reward += 5
        if what in ("b", "c", "e"):
            reward += 5 * (what == "bce"[int(self.state.color)])
            self.gone = True
        if self.frame == self.frames[self.chapter] and self.chapter < 2:
            self.chapter, self.frame, self.facing = self.chapter + 1, 0, "up"
            self.position = squares(self.boards[self.chapter], "+")[0]
        return reward, self.chapter == 2 and self.frame == 15


@pytest.mark.parametrize("id", THINGS)
def test_phases_follow_the_games(id):
    """Two halves of random walks: over the whole episode, and with a straight way to what earns in the last phase."""
    distractor = 40
    actions = random_actions(2 * EPISODES, 30 + distractor, (3, 2, 2, 2), seed=1)
    actions[EPISODES:, -15:-11] = 0
    obs, states, rewards, ends = play(id, actions, distractor=distractor)
    for i, row in enumerate(actions):
        game = PlainPhases(id, distractor, rows(states, (i, 0)))
        assert obs[i, 0].tolist() == game.look()
        for t, action in enumerate(row):
            assert (rewards[i, t], ends[i, t]) == game.step(action)
            assert obs[i, t + 1].tolist() == game.look()
    assert rewards.max() == 5
    assert (rewards == 1).sum() > EPISODES
    assert (states.apples[:, -1] == 0).sum() > 10 * EPISODES / 2


def _walk(start, goal, first):
    """Moves between two squares in the open: along rows or along columns first."""
    (r, c), (r2, c2) = start, goal
    vertical, horizontal = [0 if r2 < r else 2] * abs(r2 - r), [3 if c2 < c else 1] * abs(c2 - c)
    return vertical + horizontal if first == "rows" else horizontal + vertical


def test_the_key_opens_the_door():
    """Who picks up the key earns 5 at the door, once; who does not is stopped by it."""
    distractor = 3
    _, states, *_ = play("memory/KeyToDoor", np.zeros((EPISODES, 33)), distractor=distractor)
    ways = np.full((EPISODES, 33), 2)
    keys = squares(BOARDS["memory/KeyToDoor"][0], "k")
    for i in range(EPISODES):
        start, key = tuple(states.position[i, 0] - 2), keys[int(states.key[i, 0])]
        ways[i, 18:23] = 0, 0, 2, 0, 0
        if i % 2 == 0:
            way = _walk(start, (3, 5), "columns") + _walk((3, 5), key, "rows")
            ways[i, : len(way)] = way
    _, after, rewards, _ = play("memory/KeyToDoor", ways, distractor=distractor)
    np.testing.assert_array_equal(rewards.sum(1), np.where(np.arange(EPISODES) % 2 == 0, 5, 0))
    assert (rewards[::2, 19] == 5).all()
    np.testing.assert_array_equal(after.opened[:, -1], np.arange(EPISODES) % 2 == 0)


def test_one_door_has_the_colour():
    """Each door earns 5 in a third of the episodes, whatever the agent has seen, and the first one alone."""
    ways = np.full((3 * EPISODES, 33), 2)
    to_doors = [_walk((5, 5), (3, 5), "rows") + _walk((3, 5), (1, c), "columns") for c in (2, 5, 8)]
    for i in range(len(ways)):
        way = to_doors[i // EPISODES]
        ways[i, 18 : 18 + len(way)] = way
    ways[:EPISODES, 18 + len(to_doors[0]) :] = [1] * 6 + [2] * 2  # on to the other doors
    obs, states, rewards, _ = play("memory/VisualMatch", ways, distractor=3)
    color, door = states.color[:, 0], np.repeat(np.arange(3), EPISODES)
    np.testing.assert_array_equal(rewards.sum(1), 5.0 * (color == door))
    assert (np.bincount(color) > EPISODES // 2).all()
    shown = (obs[:, :15, :, None] == np.arange(7, 10)).any(2)
    np.testing.assert_array_equal(shown, np.broadcast_to(np.eye(3, dtype=bool)[color][:, None], shown.shape))
    assert not (obs[:, 15:18] >= 7).any()


def test_what_is_random_in_the_phases():
    keys, colors = starts("memory/KeyToDoor"), starts("memory/VisualMatch")
    for drawn, num in ((keys.key, 10), (colors.color, 3), (colors.place, 8)):
        assert np.bincount(drawn, minlength=num) == pytest.approx(np.full(num, 2000 / num), abs=6 * (2000 / num) ** 0.5)
    where, counts = np.unique(keys.position, axis=0, return_counts=True)
    assert [tuple(x - 2) for x in where] == squares(BOARDS["memory/KeyToDoor"][0], "+")
    assert counts.min() > 120
    assert ((keys.apples == 0).sum(1) == 10).all()
    assert ((keys.apples == 0) | (keys.apples == -1)).all()
    assert (keys.apples == 0).mean(0) == pytest.approx(np.full(22, 10 / 22), abs=0.06)


# all of them


@pytest.mark.parametrize(
    ("id", "fields", "limit"),
    [
        ("memory/TMazePassive-500", {"length": 500}, 502),
        ("memory/TMazeActive-1000", {"length": 1000}, 1004),
        ("memory/KeyToDoor-120", {"distractor": 120}, 151),
        ("memory/VisualMatch-1000", {"distractor": 1000}, 1031),
        ("memory/MiniGridMemory-S17Random", {"size": 17, "random_length": True}, 1445),
        ("memory/MiniGridMemory-S11-Visible", {"size": 11, "visible": True}, 605),
    ],
)
def test_names_set_lengths(id, fields, limit):
    env, params = envs.make(id)
    assert dataclasses.asdict(env) == dataclasses.asdict(env) | fields
    assert params.max_steps_in_episode == limit
    assert len(env.action_names) == env.num_actions


def test_refusals():
    with pytest.raises(ConfigError, match="lengths are drawn from min_length to length"):
        envs.make("memory/TMazePassive-10", min_length=11)
    with pytest.raises(ConfigError, match="the hallway is in the middle"):
        envs.make("memory/MiniGridMemory", size=8)
