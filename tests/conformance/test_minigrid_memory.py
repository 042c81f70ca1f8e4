"""MiniGrid's Memory: rules and views against an independent account, what is best with and without memory."""

import numpy as np
import pytest

from tests.conformance.task_player import EPISODES, play, random_actions, rows, starts

RIGHT_DOWN_LEFT_UP = [(1, 0), (0, 1), (-1, 0), (0, -1)]  # x, y


class PlainMemory:
    """MiniGrid's account: a dictionary of things by (x, y), of which a view is cut out, turned and shadowed."""

    def __init__(self, size, state, end):
        self.size, self.x, self.y, self.facing = size, int(state.position[1]), int(state.position[0]), int(state.facing)
        names, h = ["key", "ball"], size // 2
        cue, upper = names[int(state.cue)], names[int(state.upper)]
        edge = {(x, y) for x in range(size) for y in range(size) if {x, y} & {0, size - 1}}
        room = {(x, h + s * 2) for x in range(1, 5) for s in (-1, 1)} | {(4, h - 1), (4, h + 1)}
        hallway = {(x, h + s) for x in range(5, end) for s in (-1, 1)}
        across = {(end, y) for y in range(size) if y != h} | {(end + 2, y) for y in range(size)}
        self.things = dict.fromkeys(edge | room | hallway | across, "wall")
        self.things |= {(1, h - 1): cue, (end + 1, h - 2): upper, (end + 1, h + 2): names[1 - names.index(upper)]}
        self.good, self.bad = (end + 1, h - 1), (end + 1, h + 1)
        if cue != upper:
            self.good, self.bad = self.bad, self.good
        self.time = 0

    def look(self):
        """Cut 7x7 out of the map, turn it until the agent looks up, and find what is in sight."""
        x0 = {0: self.x, 2: self.x - 6}.get(self.facing, self.x - 3)
        y0 = {1: self.y, 3: self.y - 6}.get(self.facing, self.y - 3)
        on_map = range(self.size)
        view = [
            [self.things.get((x, y), "empty") if x in on_map and y in on_map else "wall" for x in range(x0, x0 + 7)]
            for y in range(y0, y0 + 7)
        ]
        for _ in range(self.facing + 1):  # a quarter of a turn, counter-clockwise
            view = [list(row) for row in zip(*view, strict=True)][::-1]
        seen = [[False] * 7 for _ in range(7)]
        seen[6][3] = True
        for j in range(6, -1, -1):
            for columns, d in (([0, 1, 2, 3, 4, 5], 1), ([6, 5, 4, 3, 2, 1], -1)):
                for i in columns:
                    if seen[j][i] and view[j][i] != "wall":
                        seen[j][i + d] = True
                        if j > 0:
                            seen[j - 1][i] = seen[j - 1][i + d] = True
        view[6][3] = "empty"
        names = ["unseen", "empty", "wall", "key", "ball"]
        squares = [names.index(view[j][i]) if seen[j][i] else 0 for j in range(7) for i in range(7)]
        return [*squares, self.facing]

    def step(self, action):
        self.time += 1
        if action in (0, 1):
            self.facing = (self.facing + (1 if action == 1 else -1)) % 4
        dx, dy = RIGHT_DOWN_LEFT_UP[self.facing]
        if action == 2 and (self.x + dx, self.y + dy) not in self.things:
            self.x, self.y = self.x + dx, self.y + dy
        if (self.x, self.y) == self.good:
            return 1 - 0.9 * self.time / (5 * self.size**2), True
        return 0.0, (self.x, self.y) == self.bad


@pytest.mark.parametrize(
    ("id", "size"),
    [("memory/MiniGridMemory-S7", 7), ("memory/MiniGridMemory-S9-Visible", 9), ("memory/MiniGridMemory-S13Random", 13)],
)
def test_memory_follows_minigrids_rules(id, size):
    actions = random_actions(2 * EPISODES, 40, (2, 2, 8, 1, 1, 1, 1), seed=2)
    obs, states, rewards, ends = play(id, actions)
    hallways = range(4, size - 2) if "Random" in id else [size - 3]
    assert {*states.layout[:, 0].tolist()} == {*range(len(hallways))}
    for i, row in enumerate(actions):
        game = PlainMemory(size, rows(states, (i, 0)), hallways[states.layout[i, 0]])
        assert obs[i, 0].tolist() == game.look()
        for t, action in enumerate(row):
            reward, done = game.step(action)
            assert rewards[i, t] == pytest.approx(reward)
            assert ends[i, t] == done
            assert obs[i, t + 1].tolist() == game.look()
            if done:
                break
    assert ends.any()
    assert (rewards > 0).any()


@pytest.mark.parametrize("visible", [False, True])
def test_the_cue_is_in_view_at_the_start_only_from_beside_it(visible):
    state = starts("memory/MiniGridMemory-S9", visible=visible)
    np.testing.assert_array_equal(np.unique(state.position[:, 1]), [1] if visible else [1, 2, 3, 4, 5, 6])
    assert (state.position[:, 0] == 4).all()
    assert (state.facing == 0).all()
    obs, states, *_ = play("memory/MiniGridMemory-S9", np.zeros((EPISODES, 1)), visible=visible)
    beside = states.position[:, 0, 1] == 1
    assert beside.any()
    np.testing.assert_array_equal(obs[:, 0, 6 * 7 + 2], np.where(beside, 3 + states.cue[:, 0], obs[:, 0, 6 * 7 + 2]))
    np.testing.assert_array_equal((obs[:, 0, 42:49] >= 3).any(1), beside)


def test_the_best_of_memory_is_known():
    """Straight to the object that is like the cue; without memory it is the right one in half of the episodes."""
    size, end = 9, 6
    _, states, *_ = play("memory/MiniGridMemory-S9-Visible", np.zeros((EPISODES, end + 2)))
    same = states.cue[:, 0] == states.upper[:, 0]
    ways = np.full((EPISODES, end + 2), 2)
    best = 1 - 0.9 * (end + 2) / (5 * size**2)
    for turn, value in ((np.where(same, 0, 1), np.full(EPISODES, best)), (0, np.where(same, best, 0.0))):
        ways[:, end] = turn
        _, _, rewards, ends = play("memory/MiniGridMemory-S9-Visible", ways)
        np.testing.assert_allclose(rewards.sum(1), value, rtol=1e-6)
        np.testing.assert_array_equal(ends.sum(1), 1)
        assert ends[:, -1].all()
    assert np.mean(same) == pytest.approx(0.5, abs=0.25)
