"""Environments of several kinds in one batch: kind by kind equals one by one, and rows keep their kinds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from ssmrl import envs, frames
from ssmrl.envs.meta.control import ControlMixture
from ssmrl.envs.meta.mixture import pack, unpack
from ssmrl.registry import envs as registry
from ssmrl.rollout import reset_batch, step_batch

THREE = ("control/PendulumSwingup", "control/PointMassHard", "control/ReacherEasy")


@pytest.fixture(scope="module")
def mixture():
    return ControlMixture(THREE)


@pytest.fixture(scope="module")
def tasks(mixture):
    return jax.jit(lambda: mixture.sample_tasks(jax.random.split(jax.random.key(0), 8), mixture.default_params))()


def test_rows_have_their_kinds_and_tasks_of_their_own(mixture, tasks):
    np.testing.assert_array_equal(tasks.task, [0, 0, 0, 1, 1, 1, 2, 2])
    mixings = np.asarray(tasks.members[1].mixing)
    assert len(np.unique(mixings.reshape(8, 4), axis=0)) == 8
    few = jax.vmap(lambda k: mixture.sample_tasks(k[None], mixture.default_params).task[0])
    drawn = np.asarray(jax.jit(few)(jax.random.split(jax.random.key(1), 300)))
    assert np.bincount(drawn, minlength=3).min() > 70
    assert (mixture.observation_space(None).shape, mixture.action_space(None).shape) == ((6,), (2,))
    assert [m.scaled for m in mixture.members] == [True] * 3
    assert [m.scaled for m in ControlMixture(THREE, scaled=False).members] == [False] * 3


def test_kind_by_kind_is_one_by_one(mixture, tasks):
    keys = jax.random.split(jax.random.key(2), 8)
    actions = jax.random.uniform(jax.random.key(3), (8, 2), minval=-1.0)

    def both(reset, step):
        first = reset(keys, tasks)
        return first, step(keys, first[1], actions, tasks)

    batched = jax.jit(
        lambda: both(lambda k, p: mixture.reset_envs(k, p, 0), lambda k, s, a, p: mixture.step_envs(k, s, a, p, 0))
    )()
    single = jax.jit(lambda: both(jax.vmap(mixture.reset_env), jax.vmap(mixture.step_env)))()
    assert jax.tree.structure(batched) == jax.tree.structure(single)
    (_, _), (obs, states, rewards, terminated, _) = batched
    (_, _), (obs1, states1, rewards1, terminated1, _) = single
    for a, b in ((batched[0][0], single[0][0]), (obs, obs1), (rewards, rewards1)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    x, x1 = (np.asarray(s.words)[:, 1:].view(np.float32) for s in (states, states1))
    np.testing.assert_allclose(x, x1, atol=1e-5)
    np.testing.assert_array_equal(states.time, 1)
    np.testing.assert_array_equal(terminated, terminated1)

    # Each row is what its own environment makes of it.
    for row, id in ((0, THREE[0]), (4, THREE[1]), (7, THREE[2])):
        env = registry.create(id, scaled=True)[0]
        params = jax.tree.map(lambda x, row=row: x[row], tasks.members[THREE.index(id)])
        own, state = jax.jit(env.reset_env)(keys[row], params)
        np.testing.assert_allclose(batched[0][0][row], np.pad(own, (0, 6 - len(own))), atol=1e-6)
        own, _, reward, _, _ = jax.jit(env.step_env)(keys[row], state, actions[row, : env.task.num_actions], params)
        np.testing.assert_allclose(obs[row], np.pad(own, (0, 6 - len(own))), atol=1e-5)
        np.testing.assert_allclose(rewards[row], reward, atol=1e-6)
    picture = mixture.render(jax.tree.map(lambda x: np.asarray(x[4]), states), jax.tree.map(lambda x: x[4], tasks))
    assert picture.shape == (240, 320, 3)


def test_no_kind_is_stepped_for_rows_of_another(mixture, tasks):
    keys, actions = jax.random.split(jax.random.key(0), 8), jnp.zeros((8, 2))
    states = jax.eval_shape(lambda: mixture.reset_envs(keys, tasks, 0))[1]

    def flops(step):
        return jax.jit(step).lower(states).cost_analysis()["flops"]

    by_kind = flops(lambda s: mixture.step_envs(keys, s, actions, tasks, 0))
    one_by_one = flops(lambda s: jax.vmap(mixture.step_env)(keys, s, actions, tasks))
    assert by_kind < 0.4 * one_by_one


def test_rows_keep_their_kinds_across_trials():
    env, params = envs.make("meta/Control-Train", trial_episodes=2, max_steps=3, tasks=THREE)
    batch = jax.jit(lambda k: reset_batch(env, params, 6, k))(jax.random.key(0))
    kinds, projections, resets = [], [], []
    step = jax.jit(lambda b, k: step_batch(env, params, b, jnp.zeros((6, 2)), k)[0])
    for i in range(13):
        kinds.append(np.asarray(batch.env_state.task.task.task))
        projections.append(np.asarray(batch.env_state.task.observation)[:, 0, 0])
        resets.append(np.asarray(batch.reset))
        batch = step(batch, jax.random.key(i))
    np.testing.assert_array_equal(kinds, np.tile([0, 0, 1, 1, 2, 2], (13, 1)))
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(resets)[:, 0]), [0, 6, 12])
    changes = np.diff(projections, axis=0) != 0
    np.testing.assert_array_equal(np.flatnonzero(changes.all(1)), [5, 11])  # with the trial, in every row
    assert changes.sum() == 2 * 6
    assert env.observation_space(params).shape == (14,)  # and the two features of a trial


def test_recorded_rows_are_of_the_kinds_that_they_are_stepped_as():
    env, params = envs.make(
        "meta/Control-Train", trial_episodes=1, max_steps=3, tasks=THREE, project_observations=0, project_actions=0
    )

    @jax.jit
    def record(key):
        stream = frames.open_stream(env, params, 6, key)
        _, recorded, states = frames.record(env, params, stream, 6, key)  # a trial, and two frames of the next
        one = jax.vmap(jax.vmap(lambda state, action: env.step_env(key, state, action, params)[0]))
        before, action = jax.tree.map(lambda x: x[:-1], states), recorded.action[1:]
        return recorded, states.task.task, one(before, action)

    recorded, kinds, expected = record(jax.random.key(4))
    np.testing.assert_array_equal(kinds, np.tile([0, 0, 1, 1, 2, 2], (6, 1)))
    goes_on = ~np.asarray(recorded.reset[1:])
    assert goes_on.sum() == 4 * 6
    np.testing.assert_allclose(recorded.obs[1:][goes_on], expected[goes_on], atol=1e-5)


def test_training_and_held_out_tasks_are_disjoint_and_of_the_pool():
    ids = {e.name for e in registry.entries() if e.family == "control/"}
    train, held_out, pool = (registry.create(f"meta/Control{name}")[0].tasks for name in ("-Train", "-HeldOut", ""))
    assert set(pool) == ids
    assert (len(train), len(held_out)) == (6, 5)
    assert not {*train} & {*held_out}
    assert {*train, *held_out, "control/AcrobotSwingup"} == ids


def test_members_have_to_be_alike():
    with pytest.raises(ValueError, match="at least one"):
        ControlMixture(())
    with pytest.raises(ValueError, match=r"PositionOnlyPendulumEasy has actions in Box.low=-2"):
        ControlMixture(("popgym/PositionOnlyPendulumEasy",))
    with pytest.raises(ValueError, match="bsuite/MemoryLen/3 has actions in Discrete"):
        ControlMixture(("bsuite/MemoryLen/3",))
    with pytest.raises(ValueError, match="memory/RingRecall-8 has observations in"):
        ControlMixture(("memory/RingRecall-8",))


@struct.dataclass
class Mixed:
    key: jax.Array
    flag: jax.Array
    small: jax.Array
    parts: tuple[jax.Array, jax.Array]


def test_states_survive_packing():
    state = Mixed(
        jax.random.key(7),
        jnp.array([True, False]),
        jnp.array([-3, 100], jnp.int8),
        (jnp.array([[1.5, jnp.inf], [-0.0, jnp.nan]]), jnp.array(-5, jnp.int32)),
    )
    form = jax.eval_shape(lambda: state)
    words = pack(state, 12)
    assert (words.shape, words.dtype) == ((12,), jnp.uint32)
    back = unpack(words, form)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    np.testing.assert_array_equal(jax.random.key_data(back.key), jax.random.key_data(state.key))
    for a, b in zip(
        jax.tree.leaves(dataclasses.replace(back, key=0)), jax.tree.leaves(state.replace(key=0)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
        assert jnp.asarray(a).dtype == jnp.asarray(b).dtype
