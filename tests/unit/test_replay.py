"""The ring against a plain Python one, over random histories of writing, drawing and refreshing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import replay, spaces
from ssmrl.frames import Frames

C, T, N, BLOCKS, COUNT = 5, 3, 2, 2, 6
SPACES = spaces.MultiDiscrete((256, 3)), spaces.Discrete(4)


def frame_like(n=N):
    """A frame of every environment, as the ring is made for."""
    no = jnp.zeros(n, bool)
    return Frames(jnp.zeros((n, 2), jnp.int32), jnp.zeros(n, jnp.int32), jnp.zeros(n), no, no)


def empty(capacity=C, length=T, n=N, kinds=SPACES):
    state = {"memory": jnp.zeros((n, 2)), "z": jnp.zeros(n)}
    return replay.create(frame_like(n), state, capacity, length, kinds)


def block(number):
    """The frames of update ``number``: counters of time and environment in every array, and the states before them."""
    time, env = np.meshgrid(T * number + np.arange(T), np.arange(N), indexing="ij")
    stamp = np.float32(100 * time + env)
    obs = np.stack([time % 256, env], -1).astype(np.int32)
    frames = Frames(obs, np.int32(time % 4), stamp, time % 5 == 0, time % 7 == 0)
    start = {"memory": np.stack([stamp[0], -stamp[0]], -1), "z": stamp[0]}
    return jax.device_put((frames, start))


class PlainRing:
    """Blocks in a list, the newest last, each with the states before it and its priorities."""

    def __init__(self):
        self.blocks = []

    def add(self, number):
        start = [float(100 * T * number + env) for env in range(N)]
        self.blocks = [*self.blocks, {"number": number, "start": start, "priority": [np.inf] * N}][-C:]

    def by_number(self, number):
        return next((b for b in self.blocks if b["number"] == number), None)


@pytest.fixture(scope="module")
def functions():
    """Compiled ``add``, ``sample(ring, exponent, key)`` and ``refresh``."""
    sample = jax.jit(lambda ring, like, exponent, key: replay.sample(ring, like, BLOCKS, COUNT, exponent, key))
    return jax.jit(replay.add), functools.partial(sample, like=block(0)[0]), jax.jit(replay.refresh)


def check_sequence(batch, i, plain):
    """Sequence ``i`` is ``BLOCKS`` blocks of one environment that are still held; returns their numbers and it."""
    stamps, env = batch.reward[:, i], int(batch.obs[0, i, 1])
    first = int(stamps[0]) // 100
    assert first % T == 0
    np.testing.assert_array_equal(stamps, 100 * (first + np.arange(BLOCKS * T)) + env, "not contiguous in time")
    expected = [block(first // T + k)[0] for k in range(BLOCKS)]
    for name in ("obs", "action", "reward", "reset", "terminated"):
        whole = np.concatenate([np.asarray(getattr(b, name))[:, env] for b in expected])
        np.testing.assert_array_equal(getattr(batch, name)[:, i], whole, name)
    numbers = [first // T + k for k in range(BLOCKS)]
    assert all(plain.by_number(n) for n in numbers), "a block that was never written, or is gone"
    return numbers, env


@pytest.mark.parametrize("seed", range(3))
def test_random_histories(functions, seed):
    """More blocks than the ring holds; what is drawn is there, whole, with the states and in the types it had."""
    add, sample, refresh = functions
    ring, plain, rng, written = empty(), PlainRing(), np.random.default_rng(seed), 0
    types = jax.tree.map(lambda x: x.dtype, block(0)[0])
    drawn_everything = False
    for step in range(60):
        if written < BLOCKS or rng.random() < 0.4:
            ring = add(ring, *block(written))
            plain.add(written)
            written += 1
            continue
        exponent = float(rng.choice([0.0, 0.7]))
        batch, start, place = jax.device_get(sample(ring, exponent=exponent, key=jax.random.key(1000 * seed + step)))
        assert jax.tree.map(lambda x: x.dtype, batch) == types
        drawn = [check_sequence(batch, i, plain) for i in range(COUNT)]
        for i, (numbers, env) in enumerate(drawn):
            assert start["z"][i] == start["memory"][i, 0] == plain.by_number(numbers[0])["start"][env]
        drawn_everything |= written > C and len({tuple(n) for n, _ in drawn}) == C - BLOCKS + 1
        if rng.random() < 0.5:
            # one sequence once: which of two would win is nobody's business
            chosen = [i for i in range(COUNT) if drawn.index(drawn[i]) == i]
            chosen = (chosen * COUNT)[:COUNT]
            place, ends = jax.tree.map(lambda x, c=chosen: x[..., c], place), np.zeros((BLOCKS, COUNT), np.float32)
            priority = np.zeros(COUNT, np.float32)
            for j, i in enumerate(chosen):
                numbers, env = drawn[i]
                ends[:, j] = [10_000 * step + 100 * n + env for n in numbers]
                priority[j] = 1 + numbers[0] % 7 + env
                plain.by_number(numbers[0])["priority"][env] = float(priority[j])
                for k, number in enumerate(numbers):
                    if following := plain.by_number(number + 1):
                        following["start"][env] = float(ends[k, j])
            states = {"memory": np.stack([ends, -ends], -1), "z": ends}
            ring = refresh(ring, place, states, priority)
        assert (ring.start["memory"][..., 1] == -ring.start["memory"][..., 0]).all()
        assert int(ring.size) == len(plain.blocks) == min(written, C)
        for b in plain.blocks:
            at = b["number"] % C
            np.testing.assert_array_equal(ring.start["z"][at], b["start"])
            np.testing.assert_array_equal(ring.priority[at], b["priority"])
    assert written > 3 * C
    assert drawn_everything


def test_the_ends_of_some_blocks_only(functions):
    """After a burn-in there is no state for the first block: the ends are those of the last ones."""
    add, _, refresh = functions
    ring = empty()
    for number in range(4):
        ring = add(ring, *block(number))
    place = replay.Place(jnp.array([[0], [1]]), jnp.array([1]))
    after = refresh(ring, place, {"memory": jnp.full((1, 1, 2), 7.0), "z": jnp.full((1, 1), 7.0)}, jnp.array([2.0]))
    expected = np.array(ring.start["z"])
    expected[2, 1] = 7
    np.testing.assert_array_equal(after.start["z"], expected)
    newest = replay.Place(jnp.array([[2], [3]]), jnp.array([1]))
    states = {"memory": jnp.full((2, 1, 2), 8.0), "z": jnp.full((2, 1), 8.0)}
    after = refresh(ring, newest, states, jnp.array([2.0]))
    expected = np.array(ring.start["z"])
    expected[3, 1] = 8  # that after the newest block belongs to one which is not written yet
    np.testing.assert_array_equal(after.start["z"], expected)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 0.5])
def test_sequences_are_drawn_as_often_as_their_priorities_say(functions, exponent):
    """A full ring whose head is in the middle; chi-square over all sequences at 5 standard deviations."""
    ring = empty()
    for number in range(C + 2):
        ring = functions[0](ring, *block(number))
    priority = np.random.default_rng(0).uniform(0.2, 4.0, (C, N)).astype(np.float32)
    priority[3, 1], priority[(C + 1) % C] = np.inf, np.inf  # not measured, as the newest block cannot be
    ring = ring.replace(priority=jnp.asarray(priority))
    draws = 20_000
    sample = jax.jit(lambda ring, key: replay.sample(ring, block(0)[0], BLOCKS, draws, exponent, key)[2])
    place = jax.device_get(sample(ring, jax.random.key(1)))
    np.testing.assert_array_equal(place.blocks[1], (place.blocks[0] + 1) % C)
    counts = np.zeros((C, N))
    np.add.at(counts, (place.blocks[0], place.env), 1)
    allowed = [number % C for number in range(2, C + 2 - BLOCKS + 1)]  # the newest has none after it
    assert counts.sum() == counts[allowed].sum()
    weight = np.where(np.isinf(priority), priority[np.isfinite(priority)].max(), priority)[allowed] ** exponent
    expected = draws * weight / weight.sum()
    surprise, freedom = ((counts[allowed] - expected) ** 2 / expected).sum(), expected.size - 1
    assert surprise < freedom + 5 * (2 * freedom) ** 0.5


def test_rounding_never_draws_across_the_write_head(monkeypatch):
    """Sums of many priorities are rounded, and what has no mass may seem to have some: draw just there."""
    capacity, n, head, blocks = 400, 16, 154, 5
    priority = np.asarray(jax.random.uniform(jax.random.key(0), (capacity, n)))
    ring = empty(capacity, 1, n).replace(priority=jnp.asarray(priority), head=jnp.int32(head), size=jnp.int32(capacity))
    allowed = (np.arange(capacity) - head) % capacity <= capacity - blocks
    seam = priority[:head][allowed[:head]].sum() / priority[allowed].sum()
    near = (seam * (1 + np.arange(-2000, 2000) * 2.0**-25)).astype(np.float32)
    u = np.concatenate([near, np.float32([0, 1 - 2**-23])])
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.asarray(u))
    place = jax.jit(lambda: replay.sample(ring, frame_like(n), blocks, len(u), 1.0, jax.random.key(0))[2])()
    ages = (np.asarray(place.blocks) - head) % capacity
    assert (np.diff(ages, axis=0) == 1).all()
    assert (ages[0, -2], ages[0, -1]) == (0, capacity - blocks)


def test_small_integers_are_bytes_and_nothing_else_is_touched():
    ring = empty()
    assert ring.frames.obs.dtype == ring.frames.action.dtype == jnp.uint8
    assert ring.frames.reward.dtype == jnp.float32
    assert (ring.frames.obs.shape, ring.frames.reset.shape) == ((C, T, N, 2), (C, T, N))
    wide = empty(kinds=(spaces.MultiDiscrete((257, 3)), spaces.Discrete(300)))
    assert wide.frames.obs.dtype == wide.frames.action.dtype == jnp.int32
    real = empty(kinds=(spaces.Box(0.0, 1.0, (2,)), spaces.Box(-1.0, 1.0, ())))
    assert real.frames.obs.dtype == jnp.int32, "what the frame itself has"


def test_only_the_asked_for_environments_are_drawn():
    ring, like = empty(n=4), frame_like(4)
    frames, start = jax.device_get(block(0))
    wide = (
        jax.tree.map(lambda x: np.concatenate([x, x], 1), frames),
        jax.tree.map(lambda x: np.tile(x, 2).reshape(4, *x.shape[1:]), start),
    )
    for _ in range(3):
        ring = jax.jit(replay.add)(ring, *wide)
    for envs, expected in ((slice(2, None), {2, 3}), (slice(1), {0}), (slice(None), {0, 1, 2, 3})):
        place = replay.sample(ring, like, 1, 64, 0.0, jax.random.key(0), envs)[2]
        assert set(np.asarray(place.env).tolist()) == expected


def test_a_place_drawn_twice_keeps_the_last_of_both():
    ring = empty()
    for number in range(3):
        ring = replay.add(ring, *block(number))
    place = replay.Place(jnp.array([[0, 0, 1]]), jnp.array([1, 1, 0]))
    states = {"memory": jnp.arange(6.0).reshape(1, 3, 2), "z": jnp.array([[7.0, 8.0, 9.0]])}
    found = replay.refresh(ring, place, states, jnp.array([2.0, 3.0, 4.0]))
    assert found.start["z"][1].tolist() == [ring.start["z"][1, 0], 8.0]
    assert found.start["memory"][1, 1].tolist() == [2.0, 3.0]
    assert found.start["z"][2].tolist() == [9.0, ring.start["z"][2, 1]]
    assert (found.priority[0, 1], found.priority[1, 0]) == (3.0, 4.0)
