"""The tasks for world models: scripts keep to the rules, rules to an independent account, annotations to the truth."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import envs
from ssmrl.envs import drawing
from ssmrl.envs.memory import multi_doors_keys, rooms, tiles
from ssmrl.envs.memory.scripted import ScriptedEnvironment
from ssmrl.fields import ConfigError
from ssmrl.registry import envs as registry

EPISODES = 16
IDS = [
    e.name
    for e in registry.entries()
    if e.name.startswith("memory/") and issubclass(registry.load(e), ScriptedEnvironment)
]
ONE_TILE = {"memory/RingRecall": {}, "memory/CueRecall": {}, "memory/NoisyTile": {}}
GRIDS = {
    "memory/DistractingMemory": {},
    "memory/MultiDoorsKeys": {},
    "memory/TwoRooms": {"teleport": True, "context": 48, "observed": 7},
}
TASKS = ONE_TILE | GRIDS


@functools.cache
def played(id, episodes=EPISODES, seed=0):
    """Scripted episodes: the environment, then states, observations, actions, rewards, ends and annotations.

    Frames are ``[episodes, T + 1, ...]``, what steps bring ``[episodes, T]``.
    """
    env, params = envs.make(id, **TASKS.get(id, {}))

    def episode(key):
        key_start, key_script, key_steps = jax.random.split(key, 3)
        obs, state = env.reset_env(key_start, params)
        actions = env.script(key_script, state, params)

        def step(state, xs):
            obs, state, reward, terminated, _ = env.step_env(xs[0], state, xs[1], params)
            return state, ((state, obs, env.annotate(state, params)), (reward, terminated))

        keys = jax.random.split(key_steps, len(actions))
        _, (frames, outcomes) = jax.lax.scan(step, state, (keys, actions))
        first = (state, obs, env.annotate(state, params))
        frames = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, frames)
        return *frames, actions, *outcomes

    run = jax.jit(jax.vmap(episode))
    states, obs, notes, actions, rewards, ends = jax.device_get(run(jax.random.split(jax.random.key(seed), episodes)))
    return env, states, obs, notes, actions, rewards, ends


@pytest.mark.parametrize(
    ("id", "context", "query"),
    [
        ("memory/RingRecall-8", 32, 16),
        ("memory/RingRecall-64", 512, 128),
        ("memory/CueRecall-64", 65, 1),
        ("memory/DistractingMemory-8", 13, 5),
        ("memory/DistractingMemory-400", 601, 201),
        ("memory/MultiDoorsKeys-2", 9, 46),
        ("memory/MultiDoorsKeys-3", 15, 118),
        ("memory/TwoRooms", 64, 32),
        ("memory/TenRooms-Teleport", 320, 160),
        ("memory/NoisyTile", 48, 16),
    ],
)
def test_frames_to_observe_and_to_imagine(id, context, query):
    env, params = envs.make(id)
    assert (env.context, env.query) == (context, query)
    assert params.max_steps_in_episode == context + query - 1


@pytest.mark.parametrize("id", IDS)
def test_what_a_world_model_asks_for_is_there(id):
    env, params = envs.make(id)
    key = jax.random.key(0)
    obs, state = jax.eval_shape(lambda k: env.reset_env(k, params), key)
    actions = jax.eval_shape(env.script, key, state, params)
    assert (actions.shape, actions.dtype) == ((params.max_steps_in_episode,), jnp.int32)
    note = jax.eval_shape(env.annotate, state, params)
    assert (note.cells.shape, note.cells.dtype) == (obs.shape, jnp.int32) == ((env.num_tiles,), jnp.int32)
    assert all((e.shape, e.dtype) == (obs.shape, bool) for e in note.events.values())
    assert note.facts.keys() == env.fact_classes.keys()
    assert all((len(f.shape), f.dtype) == (1, jnp.int32) for f in note.facts.values())
    assert env.has_reward == ("DistractingMemory" in id)
    assert len(env.action_names) == env.num_actions
    assert len(set(env.kinds)) == len(env.kinds)


@pytest.mark.parametrize("id", TASKS)
def test_annotations_are_true(id):
    """Tiles with the same cell show the same thing, but for doors and keys, and facts are in range."""
    env, _, obs, notes, *_ = played(id)
    n = len(env.kinds)
    same = np.zeros((EPISODES, notes.cells.max() + 1, n), bool)
    episode, frame, tile = np.nonzero(notes.cells >= 0)
    same[episode, notes.cells[episode, frame, tile], obs[episode, frame, tile]] = True
    most = same.sum(-1).max()
    if id == "memory/MultiDoorsKeys":  # a door is locked or open, a key there or gone
        assert most == 2
        assert {*np.argwhere(same[:, : env.num_keys].any((0, 1)))[:, 0]} == {*range(6 + env.num_keys, n)}
    else:
        assert most == 1
    for name, values in notes.facts.items():
        assert values.min() >= 0
        assert values.max() < env.fact_classes[name]
    assert (obs == jax.vmap(jax.vmap(env.see))(played(id)[1])).all()


@pytest.mark.parametrize("id", GRIDS)
def test_what_is_to_recall_was_not_in_the_frame_before(id):
    env, states, _, notes, *_ = played(id)
    offsets = np.stack(np.divmod(np.arange(25), 5), 1) - 2
    shown = states.position[:, :, None] + offsets  # [episodes, frames, 25, 2]
    before = np.delete(shown, tiles.CENTRE, 2)[:, :-1]  # the agent hides a cell
    again = (shown[:, 1:, :, None] == before[:, :, None]).all(-1).any(-1)
    assert not (again & (notes.cells[:, 1:] >= 0)).any()
    scored = (notes.cells[:, env.context :] >= 0).sum((1, 2))
    assert scored.min() > 0
    if id == "memory/TwoRooms":  # a wall is of its room: the frame before showed no other part of it either
        walls = (notes.cells >= 0) & (notes.cells < 2)
        for room in range(2):
            is_wall = (env.layout.places == 1 + room)[tuple(np.moveaxis(shown, -1, 0))]
            assert not ((walls & (notes.cells == room)).any(-1)[:, 1:] & is_wall.any(-1)[:, :-1]).any()
    seen = [{*notes.cells[e, : env.context].ravel()} for e in range(EPISODES)]
    known = [np.isin(c[c >= 0], [*s]).mean() for c, s in zip(notes.cells[:, env.context :], seen, strict=True)]
    assert np.mean(known) > 0.8


@pytest.mark.parametrize("id", ["memory/RingRecall", "memory/MultiDoorsKeys", "memory/NoisyTile"])
def test_a_picture_shows_the_tiles(id):
    env, states, obs, *_ = played(id)
    drawn = dataclasses.replace(env, pixels=True)
    table = tiles.pictures(env.kinds)
    assert len(np.unique(table.reshape(len(table), -1), axis=0)) == len(table)  # all kinds can be told apart
    state = jax.tree.map(lambda x: x[0, -1], states)
    picture = np.asarray(drawn.observe(state))
    assert (picture.shape, picture.dtype) == ((40, 40, 3), np.uint8)
    columns = {25: np.arange(5), 1: np.zeros(5, int), 2: np.array([0, 0, 1, 1, 1])}[env.num_tiles]
    for row in range(5):
        for column in range(5):
            tile = obs[0, -1][columns[column] + (5 * row if env.num_tiles == 25 else 0)]
            np.testing.assert_array_equal(picture[8 * row :, 8 * column :][:8, :8], table[tile])
    assert drawn.observation_space(None).shape == (40, 40, 3)


def test_the_layout_is_drawn_with_a_frame_around_the_view():
    env, states, *_ = played("memory/TwoRooms")
    far = [states.position[0].argmin(0)[1], states.position[0].argmax(0)[1]]  # frames at the left and at the right
    middles = []
    for t in far:
        picture = env.render(jax.tree.map(lambda x, t=t: x[0, t], states), None)
        assert (picture.shape, picture.dtype) == ((240, 320, 3), np.uint8)
        where = np.argwhere((picture[44:] == np.array(drawing.INK)).all(-1))
        middles.append((where.min(0) + where.max(0))[1] / 2)
    columns = [states.position[0, t, 1] for t in far]
    side = 2 * 8  # pixels of a tile, twice as large
    assert np.diff(middles) == pytest.approx(side * np.diff(columns), abs=3)
    assert middles[0] == pytest.approx(160 + side * (columns[0] + 0.5 - 16 / 2), abs=3)


def test_the_ring_is_walked_by_a_sticky_random_walk():
    _, states, obs, notes, actions, *_ = played("memory/RingRecall", 64)
    assert (obs[..., 0] == np.take_along_axis(states.ring[:, 0], states.position, 1)).all()
    steps = np.array([0, 1, -1])[actions]
    np.testing.assert_array_equal(states.position[:, 1:], np.cumsum(steps, 1) % 8)
    assert (notes.cells[:, 1:][actions == 0] == -1).all()
    assert (notes.cells[:, 1:, 0][actions != 0] == states.position[:, 1:][actions != 0]).all()
    assert np.mean(steps == 0) == pytest.approx(0.05, abs=0.025)
    pairs = (steps[:, 1:] != 0) & (steps[:, :-1] != 0)
    assert np.mean((steps[:, 1:] == steps[:, :-1])[pairs]) == pytest.approx(0.8, abs=0.06)


def test_the_cue_comes_back_when_asked_for():
    env, states, obs, notes, *_ = played("memory/CueRecall")
    obs, cue = obs[..., 0], states.cue[:, 0]
    assert (obs[:, 0] == cue).all()
    assert (obs[:, -1] == cue).all()
    assert (obs[:, 1:-1] >= env.colors).all()  # distractors
    assert {*cue} <= {*range(env.colors)}
    assert len({*cue}) > 2
    assert {*obs[:, 1:-1].ravel()} == {*range(env.colors, 2 * env.colors)}
    assert [(n >= 0).tolist() for n in notes.cells[0, :, 0]] == [True, *16 * [False], True]
    state = jax.tree.map(lambda x: x[0, 0], states)
    _, again, *_ = env.step_env(None, state, jnp.int32(1), None)
    assert int(env.see(again)[0]) == cue[0]
    assert int(env.annotate(again, None).cells[0]) == -1  # as in the frame before


def test_the_hall_pays_for_the_arm_of_the_cues_colour():
    env, states, obs, notes, actions, rewards, ends = played("memory/DistractingMemory", 4096)
    moved = (states.position[:, 1:] != states.position[:, :-1]).any(-1)
    assert moved.all()  # no scripted step leads into a wall
    assert ends[:, -1].all()
    assert not ends[:, :-1].any()
    assert not rewards[:, :-1].any()
    cue = obs[:, 0, 10]  # two tiles left of the agent at the start
    entered = np.where(actions[:, -1] == tiles.UP, obs[:, -2, tiles.ABOVE], obs[:, -2, tiles.CENTRE + tiles.VIEW])
    np.testing.assert_array_equal(rewards[:, -1], cue == entered)
    assert rewards[:, -1].mean() == pytest.approx(0.5, abs=0.02)
    assert np.mean(actions[:, -1] == tiles.UP) == pytest.approx(0.5, abs=0.02)
    both = obs[:, -2][:, [tiles.ABOVE, tiles.CENTRE + tiles.VIEW]]
    assert (both[:, 0] != both[:, 1]).all()
    assert (both == cue[:, None]).any(1).all()
    place = env.width - 1  # of the cue, after the cells of the hall
    assert ((notes.cells == place).any((0, 2))).tolist() == [True, *17 * [False]]
    assert np.mean(states.distractors[:, 0] > 0) == pytest.approx(0.5, abs=0.02)
    assert [int(np.sum(a == tiles.RIGHT)) for a in actions[:2]] == [12, 12]


class Corridor:
    """Keys and doors by a plain account of the rules, from what an episode starts with."""

    def __init__(self, keys, doors, spacing):
        self.key_at = {(3, spacing * i): int(color) for i, color in enumerate(keys)}  # rows 0 to 2 can be walked
        self.door_at = {(-1, spacing * i): int(color) for i, color in enumerate(doors)}
        self.open, self.hand, self.n = set(), None, len(keys)
        self.row, self.column, self.facing, self.width = 0, 0, "right", spacing * (len(keys) - 1) + 1

    def act(self, name):
        """Reward and, for a door that was tried, whether it is open now."""
        steps = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
        if name in steps:
            row, column = self.row + steps[name][0], self.column + steps[name][1]
            if 0 <= row < 3 and 0 <= column < self.width:
                self.row, self.column = row, column
            self.facing = name
        elif name == "pick" and self.hand is None:
            if (self.row + 1, self.column) in self.key_at:
                self.hand = self.key_at.pop((self.row + 1, self.column))
        elif name == "toggle" and (self.row - 1, self.column) in self.door_at:
            color = self.door_at[self.row - 1, self.column]
            if color not in self.open and color == self.hand:
                self.open.add(color)
                self.hand = None
                return 1 / self.n, True
            return 0, color in self.open
        return 0, None

    def tile(self, row, column):
        """What is to be seen at a place."""
        if (row, column) == (self.row, self.column):
            return self.facing, 0
        if (row, column) in self.key_at:
            return "key", self.key_at[row, column]
        if (row, column) in self.door_at:
            color = self.door_at[row, column]
            return ("open" if color in self.open else "locked"), color
        is_niche = row == 3 and 0 <= column < self.width and (row, column) in self.niches
        return ("floor", 0) if is_niche or (0 <= row < 3 and 0 <= column < self.width) else ("wall", tiles.GREY)

    def view(self):
        """The 5x5 tiles around the agent."""
        return [self.tile(self.row + r, self.column + c) for r in range(-2, 3) for c in range(-2, 3)]


def account(env, states, e):
    corridor = Corridor(states.key_colors[e, 0], states.door_colors[e, 0], env.spacing)
    corridor.niches = {*corridor.key_at}
    return corridor


def test_doors_and_keys_follow_the_rules_under_the_script():
    env, states, obs, notes, actions, rewards, _ = played("memory/MultiDoorsKeys")
    for e in range(4):
        corridor = account(env, states, e)
        for t, action in enumerate(actions[e]):
            reward, is_open = corridor.act(env.action_names[action])
            assert rewards[e, t] == pytest.approx(reward)
            assert [env.kinds[kind] for kind in obs[e, t + 1]] == corridor.view()
            held = 0 if corridor.hand is None else 1 + corridor.hand
            assert notes.facts["held"][e, t + 1] == held
            assert notes.events["door"][e, t + 1].sum() == (is_open is not None)
            if is_open is not None:
                (tried,) = obs[e, t + 1][notes.events["door"][e, t + 1]]
                assert env.kinds[tried][0] == ("open" if is_open else "locked")
                things = [k for k in obs[e, t + 1] if env.kinds[k][0] in ("key", "locked", "open")]
                assert things == [tried]  # from here nothing else is in view
        assert corridor.open == {0, 1, 2}


@pytest.mark.parametrize("colors", [0, 5])
def test_doors_and_keys_follow_the_rules_under_random_actions(colors):
    env, params = envs.make("memory/MultiDoorsKeys", colors=colors)
    actions = jax.random.choice(jax.random.key(5), jnp.array([0, 1, 1, 2, 2, 3, 4, 4, 5, 5]), (16, 400))

    def episode(key, actions):
        _, start = env.reset_env(key, params)

        def step(state, action):
            obs, state, reward, _, _ = env.step_env(key, state, action, params)
            return state, (obs, reward)

        return start, jax.lax.scan(step, start, actions)[1]

    keys = jax.random.split(jax.random.key(6), len(actions))
    starts, (obs, rewards) = jax.device_get(jax.jit(jax.vmap(episode))(keys, actions))
    assert (np.sort(starts.key_colors) == np.sort(starts.door_colors)).all()
    assert {*starts.key_colors.ravel().tolist()} == {*range(colors or 3)}
    states = jax.tree.map(lambda x: x[:, None], starts)
    total = 0
    for e in range(len(actions)):
        corridor = account(env, states, e)
        for t, action in enumerate(actions[e].tolist()):
            assert rewards[e, t] == pytest.approx(corridor.act(env.action_names[action])[0])
            if t % 5 == 0:
                assert [env.kinds[kind] for kind in obs[e, t]] == corridor.view()
        total += len(corridor.open)
    assert total > 5  # the keys were used


@pytest.mark.parametrize("num_keys", [1, 2, 3])
def test_the_script_of_keys_always_comes_to_its_end(num_keys):
    env = multi_doors_keys.MultiDoorsKeys(num_keys=num_keys)
    _, state = env.reset_env(jax.random.key(0), None)
    keys = jax.random.split(jax.random.key(1), 2048)
    actions = np.asarray(jax.jit(jax.vmap(lambda k: env.script(k, state, None)))(keys))
    toggles = actions == multi_doors_keys.TOGGLE
    assert (toggles.sum(1) == 2 * num_keys**2).all()
    assert not toggles[:, : env.context].any()
    last = actions.shape[1] - 1 - toggles[:, ::-1].argmax(1)
    assert last.max() == actions.shape[1] - 1  # the limit is as short as can be
    column = np.cumsum((actions == tiles.RIGHT).astype(int) - (actions == tiles.LEFT), 1)
    rounds = column[toggles].reshape(len(keys), num_keys, 2, num_keys) // 3
    assert (np.sort(rounds, -1) == np.arange(num_keys)).all()  # every door twice in each round


def test_ways_through_rooms_are_shortest():
    plan = rooms.layout(2, 5, 5)
    assert len(plan.position) == 10 * 25 + 2 * 13  # 8 + 5 walls with doors
    assert [plan.room[c].tolist() for c in plan.inside] == [[i] * 25 for i in range(10)]
    cell_of = {tuple(p): i for i, p in enumerate(plan.position.tolist())}
    goals = np.random.default_rng(0).choice(len(plan.position), 20)
    for goal in goals:
        distance, ring = {int(goal): 0}, [int(goal)]  # breadth first
        while ring:
            around = [(i, cell_of.get(tuple(plan.position[i] + m))) for i in ring for m in tiles.MOVES]
            ring = []
            for i, j in around:
                if j is not None and j not in distance:
                    distance[j] = distance[i] + 1
                    ring.append(j)
        for start in distance.keys() - {int(goal)}:
            after = cell_of[tuple(plan.position[start] + tiles.MOVES[plan.next_hop[start, goal]])]
            assert distance[after] == distance[start] - 1


def test_rooms_are_toured_and_left_by_a_jump_into_the_past():
    env, states, _, notes, actions, *_ = played("memory/TwoRooms")
    landing = env.tour
    assert (env.context, landing) == (48, 40)
    pose = np.concatenate([states.position, states.facing[..., None]], -1)
    jump = states.jump[:, 0]
    np.testing.assert_array_equal(pose[:, landing], pose[np.arange(EPISODES), jump])
    assert jump.min() < 10
    assert 30 < jump.max() < landing
    stride = np.abs(np.diff(states.position, axis=1)).sum(-1)
    assert np.delete(stride, landing - 1, 1).max() == 1
    assert stride[:, landing - 1].max() > 1
    bumps = np.delete(stride, landing - 1, 1) == 0
    assert bumps.mean() < 0.05
    target = states.position[:, :-1] + tiles.MOVES[actions]  # a move goes where it says unless a wall is there
    went = (states.position[:, 1:] == target).all(-1)
    walls = env.layout.places[tuple(np.moveaxis(target, -1, 0))] <= 2
    np.testing.assert_array_equal(np.delete(went, landing - 1, 1), np.delete(~walls, landing - 1, 1))
    assert np.mean([len({*notes.facts["room"][e].ravel()}) for e in range(EPISODES)]) > 1.8
    assert ((states.objects > 0).sum(-1) == 4).all()
    room = env.layout.room
    assert ((states.objects[:, 0] > 0) @ np.eye(2)[room] == 2).all()
    assert {*states.walls.ravel()} == {*range(6)}


def test_noise_is_fresh_and_the_constant_constant():
    _, _, obs, notes, *_ = played("memory/NoisyTile", 128)
    noise, constant = obs[..., 0], obs[..., 1]
    assert (constant == constant[:, :1]).all()
    assert np.bincount(noise.ravel()) / noise.size == pytest.approx(0.25, abs=0.02)
    assert np.mean(noise[:, 1:] == noise[:, :-1]) == pytest.approx(0.25, abs=0.02)
    assert np.mean(noise == constant) == pytest.approx(0.25, abs=0.02)
    assert (notes.events["noise"][:, 1:] == [True, False]).all()
    assert (notes.events["constant"][:, 1:] == [False, True]).all()
    assert not any(events[:, 0].any() for events in notes.events.values())


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"observed=9, context=10: some frames must come before the jump"):
        envs.make("memory/TwoRooms-Teleport", context=10, observed=9)
    with pytest.raises(ConfigError, match=r"observed=3: without a jump .*: use teleport=true or observed=0"):
        envs.make("memory/TwoRooms", observed=3)
    with pytest.raises(ConfigError, match="colors=10: expected integer >= 2 and <= 9"):
        envs.make("memory/RingRecall", colors=10)
    with pytest.raises(ConfigError, match="spacing=2: expected integer >= 3"):
        multi_doors_keys.MultiDoorsKeys(spacing=2)
    with pytest.raises(ConfigError, match=r"colors=2.*no two keys have one colour"):
        envs.make("memory/MultiDoorsKeys-3", colors=2)
