"""The ports and adapters of other people's environments, against the originals."""

import socket
import subprocess
import sys
import urllib.error

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bsuite.environments import discounting_chain, memory_chain, umbrella_chain

from ssmrl import envs
from ssmrl.envs import brax, gymnax
from ssmrl.registry import UserError
from ssmrl.registry import envs as registry
from ssmrl.spaces import Box, Dict, Discrete, Tuple

LENGTHS = (1, 5, 30, 100, 1500)  # the last two are beyond the time limits of gymnax's ports


def unroll(env, params, state, actions, key):
    """Step without auto-reset; returns obs ``[T, ...]``, reward, terminated and truncated ``[T]``."""

    def step(state, inputs):
        action, key = inputs
        obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
        return state, (obs, reward, terminated, env.is_truncated(state, params))

    keys = jax.random.split(key, len(actions))
    return jax.device_get(jax.jit(lambda s: jax.lax.scan(step, s, (jnp.asarray(actions), keys))[1])(state))


def replay(original, actions):
    """Step bsuite's environment until it ends; returns obs, reward and last for each action."""
    steps = [original._step(action) for action in actions]
    return (
        np.stack([t.observation[0] for t in steps]),
        np.array([t.reward for t in steps]),
        np.array([t.last() for t in steps]),
    )


def assert_same(ours, theirs):
    obs, reward, terminated, truncated = ours
    np.testing.assert_allclose(obs, theirs[0], atol=1e-7)
    np.testing.assert_allclose(reward, theirs[1], atol=1e-7)
    np.testing.assert_array_equal(terminated, theirs[2])
    assert terminated.tolist().index(True) == len(terminated) - 1
    assert not truncated.any()


@pytest.mark.parametrize(
    ("id", "length", "bits", "steps"),
    [(f"bsuite/MemoryLen/{n}", n, 1, n + 1) for n in LENGTHS] + [(f"bsuite/MemorySize/{n}", 2, n, 3) for n in (1, 17)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_memory_chain_is_bsuite(id, length, bits, steps, seed):
    env, params = envs.make(id)
    obs, state = env.reset(jax.random.key(seed), params)
    original = memory_chain.MemoryChain(memory_length=length, num_bits=bits)
    original._reset()
    original._context, original._query = np.asarray(state.context), int(state.query)
    np.testing.assert_allclose(obs, original._get_observation()[0], atol=1e-7)
    actions = np.random.default_rng(seed).integers(0, 2, steps).astype(np.int32)
    assert_same(unroll(env, params, state, actions, jax.random.key(9)), replay(original, actions))


@pytest.mark.parametrize("seed", [0, 3])
def test_memory_chain_rewards_the_bit_that_was_asked_for(seed):
    env, params = envs.make("bsuite/MemorySize/10")
    obs, state = env.reset(jax.random.key(seed), params)
    for right, expected in ((True, 1.0), (False, -1.0)):
        bit = int(obs[2 + int(state.query)] > 0)
        answer = bit if right else 1 - bit
        _, reward, *_ = unroll(env, params, state, np.full(3, answer, np.int32), jax.random.key(0))
        np.testing.assert_array_equal(reward, [0, 0, expected])


class Draws:
    """Stands in for bsuite's random numbers: gives those that our environment drew."""

    def __init__(self, draws):
        self.draws = list(draws)

    def binomial(self, n, p, size=None):
        draw = np.asarray(self.draws.pop(0))
        assert draw.shape == (() if size is None else (size,))
        return draw


@pytest.mark.parametrize(
    ("id", "length", "distractors"),
    [(f"bsuite/UmbrellaLength/{n}", n, 20) for n in LENGTHS]
    + [(f"bsuite/UmbrellaDistract/{n}", 20, n) for n in (1, 7)],
)
def test_umbrella_chain_is_bsuite(id, length, distractors):
    env, params = envs.make(id)
    start, state = env.reset(jax.random.key(0), params)
    actions = np.random.default_rng(0).integers(0, 2, length).astype(np.int32)
    actions[:2] = [1 - state.has, state.has][:length]  # the first alone matters
    ours = unroll(env, params, state, actions, jax.random.key(1))
    draws = [state.need, state.has, start[3:]]
    for t in range(length):  # a random reward before each of the steps but the last, and new distractors after each
        draws += [(ours[1][t] + 1) / 2] * (t < length - 1) + [ours[0][t, 3:]]
    original = umbrella_chain.UmbrellaChain(length, distractors)
    original._rng = Draws(draws)
    np.testing.assert_allclose(start, original._reset().observation[0], atol=1e-7)
    assert_same(ours, replay(original, actions))
    assert original._rng.draws == []


def test_umbrella_noise_is_fair():
    env, params = envs.make("bsuite/UmbrellaDistract/50")
    obs, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(jax.random.key(0), 400), params)
    step = jax.vmap(env.step_env, (0, 0, None, None))
    after, _, reward, *_ = step(jax.random.split(jax.random.key(1), 400), state, 0, params)
    for draws in (obs[:, :2], obs[:, 3:], after[:, 3:], (reward + 1) / 2):
        assert set(np.unique(draws)) == {0.0, 1.0}
        assert abs(draws.mean() - 0.5) < 4 * 0.5 / np.sqrt(draws.size)
    assert np.abs(np.corrcoef(np.asarray(after[:, 3:]).T) - np.eye(50)).max() < 0.25  # they are drawn one by one


@pytest.mark.parametrize("seed", range(7))
def test_discounting_chain_is_bsuite(seed):
    env, params = envs.make(f"bsuite/DiscountingChain/{seed}")
    for first in range(5):
        start, state = env.reset(jax.random.key(0), params)
        original = discounting_chain.DiscountingChain(mapping_seed=seed)
        np.testing.assert_allclose(start, original._reset().observation[0], atol=1e-7)
        actions = np.random.default_rng(first).integers(0, 5, 100).astype(np.int32)
        actions[0] = first
        assert_same(unroll(env, params, state, actions, jax.random.key(1)), replay(original, actions))


def test_native_environments_do_not_import_the_foreign_suites():
    code = (
        "import sys; from ssmrl import envs\n"
        "for id in ('bsuite/MemoryLen/5', 'popgym/RepeatPreviousEasy'):\n"
        "    env, params = envs.make(id)\n"
        "print([name for name in ('gymnax', 'brax', 'mujoco', 'matplotlib', 'scipy.stats') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_gymnax_ids_are_those_of_gymnax():
    import gymnax as upstream

    ids = [e.name.removeprefix("gymnax/") for e in registry.entries() if e.name.startswith("gymnax/")]
    assert [id for id in ids if id[-2:] not in ("-P", "-V")] == upstream.registered_envs
    assert {id for id in ids if id[-2:] in ("-P", "-V")} == {f"{id}-{kind}" for id in gymnax.KINDS for kind in "PV"}


@pytest.mark.parametrize(
    ("id", "positions", "velocities"),
    [
        ("CartPole-v1", [0, 2], [1, 3]),
        ("Pendulum-v1", [0, 1], [2]),
        ("Acrobot-v1", [0, 1, 2, 3], [4, 5]),
        ("MountainCar-v0", [0], [1]),
        ("MountainCarContinuous-v0", [0], [1]),
    ],
)
def test_gymnax_masks_hide_the_rest(id, positions, velocities):
    key = jax.random.key(3)
    env, params = envs.make(f"gymnax/{id}")
    everything, _ = env.reset(key, params)
    low, high = env.observation_space(params).bounds()
    for kind, kept in (("P", positions), ("V", velocities)):
        masked, params = envs.make(f"gymnax/{id}-{kind}")
        np.testing.assert_array_equal(masked.reset(key, params)[0], everything[np.array(kept)])
        space = masked.observation_space(params)
        np.testing.assert_array_equal(np.stack(space.bounds()), np.stack([low[kept], high[kept]]))


@pytest.mark.parametrize("id", ["CartPole-v1", "FourRooms-misc", "BernoulliBandit-misc", "Pendulum-v1"])
def test_gymnax_transitions_are_gymnaxs(id):
    import gymnax as upstream

    original, params = upstream.make(id)
    env, _ = envs.make(f"gymnax/{id}")
    obs, state = env.reset(jax.random.key(0), params)
    expected, original_state = original.reset(jax.random.key(0), params)
    np.testing.assert_array_equal(obs, expected)
    for t in range(4):
        key, action = jax.random.key(t), original.action_space(params).sample(jax.random.key(t))
        obs, state, reward, terminated, truncated, _ = env.step(key, state, action, params)
        theirs = original.step(key, original_state, action, params)
        expected, original_state = theirs[:2]
        np.testing.assert_array_equal(obs, expected)
        np.testing.assert_array_equal([reward, terminated, truncated], theirs[2:5])
        assert obs.dtype == env.observation_space(params).dtype


def test_gymnax_spaces_become_ours():
    from gymnax.environments import spaces as upstream

    box = upstream.Box(jnp.array([-1.0, -3.4028235e38]), jnp.array([1.0, 3.4028235e38]), (2,))
    space = upstream.Dict(
        {"b": upstream.Tuple((upstream.Discrete(3), box)), "a": upstream.Box(0, 1, (2, 2), jnp.int32)}
    )
    converted = Box((-1.0, -np.inf), (1.0, np.inf), (2,))
    assert gymnax.from_gymnax_space(space) == Dict(
        {"a": Box(0, 1, (2, 2), jnp.int32), "b": Tuple((Discrete(3), converted))}
    )
    with pytest.raises(TypeError, match="unknown gymnax space"):
        gymnax.from_gymnax_space("box")


def test_gymnax_spaces_follow_the_parameters_also_while_tracing():
    env, params = envs.make("gymnax/Pendulum-v1")
    params = params.replace(max_torque=3.0)
    assert env.action_space(params) == Box(-3.0, 3.0, (1,))

    @jax.jit
    def sample(key):
        return env.action_space(params).sample(key)

    assert jnp.abs(sample(jax.random.key(0))).max() <= 3


def test_gymnax_physics_and_time_limit_are_parameters():
    env, params = envs.make("gymnax/CartPole-v1")
    _, state = env.reset(jax.random.key(0), params)
    heavy = params.replace(gravity=98.0)
    velocities = [env.step(jax.random.key(1), state, 0, p)[1].theta_dot for p in (params, heavy)]
    assert abs(velocities[0] - velocities[1]) > 1e-3
    for limit in (3, 700):  # below and above gymnax's own 500
        limited, params = envs.make("gymnax/CartPole-v1", max_steps=limit)
        truncated = [limited.is_truncated(state.replace(time=jnp.int32(t)), params) for t in (limit - 1, limit)]
        assert truncated == [False, True]


def test_gymnax_overwritten_by_a_fork_is_told_apart(monkeypatch):
    from gymnax.environments.environment import Environment

    monkeypatch.delattr(Environment, "is_truncated")
    gymnax._upstream.cache_clear()
    with pytest.raises(UserError, match=r"stable-gymnax overwrote it.*--force-reinstall 'gymnax>=1\.0\.1,<2'"):
        envs.make("gymnax/CartPole-v1")


def test_mnist_without_its_data_says_so(monkeypatch):
    from gymnax.utils import load_mnist

    def no_network(*_):
        assert socket.getdefaulttimeout() == 20  # or a dead network would hang
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(load_mnist, "_download", no_network)
    with pytest.raises(UserError, match=r"could not get its data: .*no route to host.*it needs the network once"):
        envs.make("gymnax/MNISTBandit-bsuite")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("id", ["bsuite/MemoryLen/5", "bsuite/UmbrellaLength/3"])
def test_ours_work_through_gymnax(id, monkeypatch):
    import gymnax as upstream
    from gymnax.wrappers import LogWrapper

    monkeypatch.setattr(upstream.registration, "_registry", dict(upstream.registration._registry))
    monkeypatch.setattr(upstream.registration, "registered_envs", [])
    upstream.register("ours", lambda **kwargs: envs.make(id, **kwargs)[0])
    env, params = upstream.make("ours")
    env = LogWrapper(env)
    obs, state = env.reset(jax.random.key(0), params)

    @jax.jit
    def run(state):
        def step(state, key):
            obs, state, *rest = env.step(key, state, 1, params)
            return state, (obs, *rest)

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 12))[1]

    observations, _, terminated, truncated, info = run(state)
    assert observations.shape == (12, *obs.shape)
    assert terminated.sum() == 12 // (6 if "Memory" in id else 3)
    assert not truncated.any()
    assert info["final_observation"].shape == observations.shape


def test_brax_masks_name_every_entry():
    key = jax.random.key(0)
    for name, kinds in brax.KINDS.items():
        env, size = brax._upstream(name, "spring")
        assert len(kinds) == size, name
        if name == "reacher":  # the velocity of its tip is no coordinate
            continue
        with jax.numpy_rank_promotion("allow"):
            shapes = jax.eval_shape(env.reset, key).pipeline_state
            still, observe = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), jax.jit(env._get_obs)
            before, moving, moved = (
                np.asarray(observe(state))
                for state in (
                    still,
                    still.replace(qd=np.ones_like(still.qd)),
                    still.replace(q=np.ones_like(still.q), x=still.x.replace(pos=np.ones_like(still.x.pos))),
                )
            )
        assert "".join(np.where(moving != before, "V", "P")) == kinds, name
        assert "".join(np.where(moved != before, "P", "V")) == kinds, name


def test_brax_masks_hide_the_rest():
    for kind, kept in (("P", [*range(6), 8, 9, 10]), ("V", [6, 7])):
        masked = brax.Brax(f"reacher-{kind}")
        obs, _ = jax.eval_shape(masked.reset_env, jax.random.key(0), masked.default_params)
        assert masked.observation_space(masked.default_params) == Box(-np.inf, np.inf, obs.shape)
        assert masked._seen.tolist() == kept


def test_brax_transitions_are_braxs():
    original, _ = brax._upstream("inverted_pendulum", "spring")
    env, params = envs.make("brax/inverted_pendulum")
    obs, state = env.reset(jax.random.key(0), params)
    with brax._quiet():
        theirs = jax.jit(original.reset)(jax.random.key(0))
        np.testing.assert_array_equal(obs, theirs.obs)
        step = jax.jit(original.step)
    terminated = False
    while not terminated:
        with brax._quiet():
            theirs = step(theirs, jnp.ones(1))
        obs, state, reward, terminated, truncated, info = env.step(jax.random.key(1), state, jnp.ones(1), params)
        np.testing.assert_allclose(info["final_observation"], theirs.obs, atol=1e-5)
        assert (reward, terminated, truncated) == (theirs.reward, theirs.done, False)
    assert state.time == 0
    np.testing.assert_allclose(obs, 0, atol=0.011)  # a start, and not the one before


@pytest.mark.parametrize("backend", ["spring", "positional", "generalized", "mjx"])
def test_brax_backends_keep_the_contract(backend):
    env, params = envs.make("brax/reacher", backend=backend)
    key, action = jax.random.key(0), env.action_space(params).sample(jax.random.key(0))
    obs, state = jax.eval_shape(env.reset_env, key, params)
    after, next_state, *_ = jax.eval_shape(env.step_env, key, state, action, params)
    assert (after, next_state) == (obs, state)
    assert obs.shape == env.observation_space(params).shape == (11,)


def test_brax_time_limit_truncates():
    env, params = envs.make("brax/inverted_pendulum")
    state = brax.RobotState(jnp.int32(999), None)
    assert [env.is_truncated(s, params) for s in (state, state.replace(time=jnp.int32(1000)))] == [False, True]


def test_brax_swimmer_says_why_it_cannot_run():
    with pytest.raises(UserError, match=r"jnp\.clip\(a_min=\.\.\.\), which jax 0\.10 no longer has"):
        envs.make("brax/swimmer")
    from brax.envs import swimmer

    with brax._quiet():  # when this no longer raises, brax has been mended and the refusal can go
        robot = swimmer.Swimmer()
        start = jax.eval_shape(robot.reset, jax.random.key(0))
        with pytest.raises(TypeError, match="a_min"):
            jax.eval_shape(robot.step, start, jnp.zeros(robot.action_size))


def test_brax_refuses_what_it_does_not_have():
    with pytest.raises(ValueError, match="brax has no robot 'horse': it has ant, "):
        brax.Brax("horse")
    with pytest.raises(ValueError, match="spring"):
        envs.make("brax/ant", backend="bullet")


def test_brax_is_silent(tmp_path):
    code = "from ssmrl import envs; env, params = envs.make('brax/halfcheetah')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
