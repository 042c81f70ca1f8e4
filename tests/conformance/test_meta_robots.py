"""Robots with goals and bodies of their own: rewards by brax's own, and physics that feels masses and gravity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import envs
from ssmrl.envs.meta.brax import AntDir, Changed, HalfCheetahVel
from ssmrl.registry import envs as registry
from ssmrl.rollout import reset_batch, step_batch


@pytest.fixture(scope="module")
def pole():
    """A robot that compiles fast in place of the cheetah: its task, a state, and its and brax's own step from there."""
    env = HalfCheetahVel(id="inverted_pendulum", masses=0.5, gravity=0.5)
    own = registry.create("brax/inverted_pendulum")[0]
    state = jax.jit(env.reset_env)(jax.random.key(0), env.default_params)[1]
    step = jax.jit(lambda params: env.step_env(jax.random.key(0), state, jnp.full(1, 0.5), params))
    plain = jax.jit(lambda: own.step_env(jax.random.key(0), state, jnp.full(1, 0.5), own.default_params))()
    return env, state, step, plain


def test_goals_change_the_reward_alone(pole):
    env, state, step, (obs, after, reward, _, _) = pole
    velocity = float(after.pipeline.x.pos[0, 0] - state.pipeline.x.pos[0, 0]) / 0.02
    assert abs(velocity) > 0.05
    for goal in (0.0, 1.0, 2.5):
        its_obs, its_after, its_reward, _, _ = step(env.default_params.replace(goal=jnp.float32(goal)))
        np.testing.assert_allclose(its_obs, obs, atol=1e-5)
        np.testing.assert_allclose(its_after.pipeline.x.pos, after.pipeline.x.pos, atol=1e-5)
        assert float(its_reward) == pytest.approx(float(reward) - velocity - abs(velocity - goal), abs=1e-4)


def test_masses_and_gravity_are_felt(pole):
    env, params = pole[0], pole[0].default_params

    @jax.jit
    def play(params):
        def step(state, _):
            obs, state, *_ = env.step_env(jax.random.key(0), state, jnp.full(1, 0.5), params)
            return state, obs

        return jax.lax.scan(step, env.reset_env(jax.random.key(0), params)[1], None, 10)[1]

    own = play(params)
    np.testing.assert_allclose(own[0], pole[3][0], atol=1e-5)
    falls = [float(play(params.replace(gravity=jnp.float32(g)))[-1, 1]) for g in (0.0, 2.0)]
    assert falls[1] < float(own[-1, 1]) < falls[0] - 0.01  # the pole leans to the left
    pushed = [float(play(params.replace(masses=params.masses * m))[0, 2]) - 0.00805 for m in (1.0, 1.5, 2.0)]
    assert pushed[0] == pytest.approx(1.5 * pushed[1], rel=0.05)  # the same push for more mass
    assert pushed[0] == pytest.approx(2 * pushed[2], rel=0.05)
    np.testing.assert_array_equal(play(params), own)  # and nothing is left behind


def test_masses_that_brax_ignores_are_refused():
    with pytest.raises(ValueError, match=r"masses=0.5: brax gives every link of ant the mass 1 where backend=spring"):
        AntDir(masses=0.5)


def test_laws_of_tasks():
    env = HalfCheetahVel(masses=0.5, gravity=1.0)
    keys = jax.random.split(jax.random.key(0), 1000)
    tasks = jax.jit(jax.vmap(env.sample_task, in_axes=(0, None)))(keys, env.default_params)
    assert np.histogram(tasks.goal, 3, (0, 3))[0].min() > 280
    for factors, more in ((tasks.masses, 0.5), (tasks.gravity, 1.0)):
        assert factors.min() == pytest.approx(1 / (1 + more), rel=0.01)
        assert factors.max() == pytest.approx(1 + more, rel=0.01)
        assert np.abs(np.log(factors).mean(0)).max() < 0.05
    assert len(np.unique(np.asarray(tasks.masses[0]))) == 7  # each link has its own
    same = dataclasses.replace(env, masses=0.0, gravity=0.0)
    as_it_is = jax.jit(jax.vmap(same.sample_task, in_axes=(0, None)))(keys, env.default_params)
    np.testing.assert_array_equal(as_it_is.masses, 1)
    np.testing.assert_array_equal(as_it_is.gravity, 1)


def test_directions():
    env = AntDir()
    velocity = jnp.array([3.0, 4.0])
    assert float(env.progress(velocity, jnp.float32(np.arctan2(4, 3)))) == pytest.approx(5, abs=1e-5)
    assert float(env.progress(velocity, jnp.float32(np.pi / 2))) == pytest.approx(4, abs=1e-5)
    goals = jax.jit(jax.vmap(env.draw_goal))(jax.random.split(jax.random.key(0), 1000))
    assert np.histogram(goals, 4, (-np.pi, np.pi))[0].min() > 200


def test_robots_are_registered_with_what_differs():
    assert [registry.create(f"meta/Brax-{id}")[0].id for id in ("hopper", "AntDir", "HalfCheetahVel")] == [
        *("hopper", "ant", "halfcheetah")
    ]
    hopper = registry.create("meta/Brax-hopper")[0]
    assert hopper == Changed("hopper", "generalized", 0.5, 0.5)
    assert float(hopper.progress(jnp.array([2.0, 1.0]), jnp.float32(1))) == 2
    env, params = envs.make("meta/Brax-HalfCheetahVel")
    assert (env.episodes, params.max_steps_in_episode) == (2, 200)


def test_the_suite_in_a_batch():
    pytest.importorskip("mujoco_playground")
    env, params = envs.make("meta/DMC", tasks=("dmc/CartpoleBalance", "dmc/PendulumSwingup"), max_steps=4)
    batch = jax.jit(lambda k: reset_batch(env, params, 4, k))(jax.random.key(0))
    step = jax.jit(lambda b, k: step_batch(env, params, b, jnp.full((4, 2), 0.3), k))
    for i in range(6):
        batch, outcome = step(batch, jax.random.key(i))
        assert np.isfinite(batch.obs).all()
        assert (np.asarray(outcome.terminated) == (i == 3)).all()
    members, own = env.env.env.env.members, batch.env_state.env_state
    np.testing.assert_array_equal(batch.env_state.task.task.task, [0, 0, 1, 1])
    assert [m.id for m in members] == ["CartpoleBalance", "PendulumSwingup"]
    np.testing.assert_array_equal(own.time, 2)
    train, held_out = (registry.find(f"meta/DMC-{name}").kwargs["tasks"] for name in ("Train", "HeldOut"))
    assert not {*train} & {*held_out}
