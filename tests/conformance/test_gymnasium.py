"""Gymnasium, both ways: our policies in its vector environments, and our environments as its own."""

import functools
import itertools
import warnings
from types import SimpleNamespace
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import popgym.envs
import pytest
from flax import struct
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import ssmrl
import ssmrl.gymnasium
from ssmrl import spaces, vector
from ssmrl.agents import make_agent
from ssmrl.policy import Policy
from ssmrl.registry import UserError, envs

SAME_STEP, NEXT_STEP, DISABLED = "SameStep", "NextStep", "Disabled"
MODES = (SAME_STEP, NEXT_STEP, DISABLED)


# ---- the reset flag ----


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(SAME_STEP, [0, 1, 0, 1]), (NEXT_STEP, [0, 0, 1, 1]), (DISABLED, [0, 1, 0, 1])],
)
def test_reset_flag(mode, expected):
    ended_before, ended = np.array([[0, 0, 1, 1], [0, 1, 0, 1]], bool)
    np.testing.assert_array_equal(vector.reset_flag(mode, ended, ended_before), np.array(expected, bool))


class Answer(struct.PyTreeNode):
    """Stands in for a policy; its action is a function of what it is shown."""

    spaces: Any = struct.field(pytree_node=False)  # (observations, actions)
    answer: Any = struct.field(pytree_node=False)

    @property
    def network(self):
        return SimpleNamespace(observation_space=self.spaces[0], action_space=self.spaces[1])

    def initial_carry(self, batch):
        return jnp.zeros(batch, jnp.int32)

    def act(self, carry, obs, reset, *, reward, key, greedy):
        return self.answer(carry, obs, reset, reward), carry + 1

    run = Policy.run


class Toy(gymnasium.Env):
    """Episodes of ``length`` steps whose first observation is 2, the others 0 or 1 (the last action was right).

    A step earns 1 if its action was right: 1 at the first observation, plus 2 if the reward that the policy was told
    belongs to this episode.
    """

    observation_space, action_space = gymnasium.spaces.Discrete(3), gymnasium.spaces.Discrete(2)

    def __init__(self, length, truncates=False):
        self.length, self.truncates = length, truncates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return 2, {}

    def step(self, action):
        assert self.time < self.length, "a step after the end"
        right = action == (self.time == 0)
        self.time += 1
        ended = self.time == self.length
        return int(right), 1.0 * right, ended and not self.truncates, ended and self.truncates, {}


TOY = (spaces.Discrete(3), spaces.Discrete(2))


def reset_as_action(carry, obs, reset, reward):
    return reset.astype(jnp.int32)


@pytest.mark.parametrize("mode", MODES)
def test_the_flag_is_up_at_first_observations_and_nowhere_else(mode):
    lengths = (1, 1, 2, 3, 7)
    venv = SyncVectorEnv([functools.partial(Toy, n, n % 2 == 0) for n in lengths], autoreset_mode=mode)
    result = Answer(TOY, reset_as_action).run(venv, 20)
    # every step was right, each environment counts 4 times, and idle steps count nowhere
    assert result["return_mean"] == result["length_mean"] == np.mean(lengths)
    assert result["episodes"] == 20
    assert result["return_std"] == np.std(lengths)


@pytest.mark.parametrize("mode", MODES)
def test_a_flag_one_step_late_would_be_seen(mode, monkeypatch):
    def late(mode, ended, ended_before):
        return ended if mode == NEXT_STEP else ended_before

    monkeypatch.setattr(vector, "reset_flag", late)
    venv = SyncVectorEnv([functools.partial(Toy, 4)] * 2, autoreset_mode=mode)
    assert Answer(TOY, reset_as_action).run(venv, 10)["return_mean"] < 4


@pytest.mark.parametrize("mode", MODES)
def test_the_policy_is_told_what_its_last_action_earned(mode):
    def answer(carry, obs, reset, reward):  # right at first; then wrong where the reward is not the obs's
        consistent = jnp.where(obs == 2, reset, (reward == obs) & ~reset)
        return jnp.where(consistent, reset, ~reset).astype(jnp.int32)

    venv = SyncVectorEnv([functools.partial(Toy, n) for n in (1, 5)], autoreset_mode=mode)
    assert Answer(TOY, answer).run(venv, 6)["return_mean"] == 3


def test_modes_that_share_the_metadata_of_a_class_are_told_apart():
    first = SyncVectorEnv([functools.partial(Toy, 3)] * 2, autoreset_mode=SAME_STEP)
    second = SyncVectorEnv([functools.partial(Toy, 3)] * 2, autoreset_mode=NEXT_STEP)
    assert first.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP, "gymnasium no longer does this"
    assert [vector.autoreset_mode(v) for v in (first, second)] == [SAME_STEP, NEXT_STEP]
    assert vector.autoreset_mode(gymnasium.wrappers.vector.RecordEpisodeStatistics(first)) == SAME_STEP
    assert Answer(TOY, reset_as_action).run(first, 4)["return_mean"] == 3


class Mute(gymnasium.vector.VectorEnv):
    """Says nothing about resets."""

    num_envs, metadata = 2, {}
    single_observation_space, single_action_space = Toy.observation_space, Toy.action_space


def test_an_unknown_mode_is_an_error_with_the_way_out():
    venv = Mute()
    with pytest.raises(UserError, match=r"does not say how it starts new episodes.* is none; set it to what holds"):
        Answer(TOY, reset_as_action).run(venv, 2)
    venv.metadata = {"autoreset_mode": "Later"}
    with pytest.raises(UserError, match=r"is Later; set it to what holds, gymnasium\.vector\.AutoresetMode\.SAME"):
        ssmrl.evaluate(Answer(TOY, reset_as_action), venv, 2)
    for said in (AutoresetMode.SAME_STEP, SAME_STEP):
        venv.metadata = {"autoreset_mode": said}
        assert vector.check(Answer(TOY, reset_as_action), venv) == SAME_STEP


# ---- observations and actions ----


class Checked(gymnasium.Env):
    """Shows random observations; earns 1 for the expected answer, in the space's own type."""

    def __init__(self, observation_space, action_space, expected):
        self.observation_space, self.action_space, self.expected = observation_space, action_space, expected

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:  # None would draw a seed from the clock
            self.observation_space.seed(seed)
        self.obs = self.observation_space.sample()
        self.time = 0
        return self.obs, {}

    def step(self, action):
        assert action in self.action_space, action
        reward = float(np.allclose(action, self.expected(self.obs)))
        self.obs = self.observation_space.sample()
        self.time += 1
        return self.obs, reward, self.time == 5, False, {}


def right_answers(there, own, expected, answer):
    """How many of 5 steps of a :class:`Checked` the answer gets right."""
    venv = SyncVectorEnv([lambda: Checked(*there, expected)] * 3, autoreset_mode=NEXT_STEP)
    return Answer(own, answer).run(venv, 6)["return_mean"]


def test_observations_are_flattened_as_in_training():
    g = gymnasium.spaces
    nested = g.Dict(b=g.Tuple((g.Discrete(3, start=-1), g.Box(-1, 1, (2, 2), np.float64))), a=g.MultiDiscrete([2, 3]))
    own = spaces.Dict(
        {"a": spaces.MultiDiscrete((2, 3)), "b": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2, 2))))}
    )
    weights = np.sin(np.arange(12)).astype(np.float32)

    def expected(obs):
        (first, second), (number, box) = obs["a"], obs["b"]
        flat = np.concatenate([np.eye(2)[first], np.eye(3)[second], np.eye(3)[number + 1], box.ravel()])
        return (flat @ weights)[None]

    answer = lambda carry, obs, reset, reward: (spaces.flatten(own, obs) @ weights)[:, None]  # noqa: E731
    actions = (g.Box(-9, 9, (1,), np.float64), spaces.Box(-9.0, 9.0, (1,)))
    assert right_answers((nested, actions[0]), (own, actions[1]), expected, answer) == 5


@pytest.mark.parametrize(
    ("there", "own", "answer", "expected"),
    [
        (gymnasium.spaces.Discrete(4, start=7), spaces.Discrete(4), jnp.full(3, 2, jnp.int32), 9),
        (gymnasium.spaces.MultiDiscrete([3, 5], start=[1, -4]), spaces.MultiDiscrete((3, 5)),
         jnp.array([[2, 1]] * 3), [3, -3]),
        (gymnasium.spaces.MultiBinary(2), spaces.MultiDiscrete((2, 2)), jnp.array([[1, 0]] * 3), [1, 0]),
        (gymnasium.spaces.Box(-0.1, 0.1, (2, 1), np.float64), spaces.Box(-0.1, 0.1, (2, 1)),
         jnp.full((3, 2, 1), 0.1), [[0.1], [0.1]]),  # float32's .1 is greater than float64's
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary", "Box"],
)  # fmt: skip
def test_actions_are_elements_of_the_space(there, own, answer, expected):
    shown = (gymnasium.spaces.Discrete(2), there), (spaces.Discrete(2), own)
    assert right_answers(*shown, lambda obs: np.array(expected), lambda *_: answer) == 5
    assert right_answers(*shown, lambda obs: np.array(expected) + 1, lambda *_: answer) == 0


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ((spaces.Discrete(4), TOY[1]), r"observations in Discrete\(n=4.*, but SyncVectorEnv.* has Discrete\(3\)"),
        ((TOY[0], spaces.MultiDiscrete((2,))), r"actions in MultiDiscrete\(nvec=\(2,\)\), but .* has Discrete\(2\)"),
        ((spaces.Box(0, 1, ()), TOY[1]), r"trained with observations in Box\(low=0"),
    ],
)  # fmt: skip
def test_other_spaces_are_refused(own, message):
    with pytest.raises(UserError, match=message):
        Answer(own, reset_as_action).run(SyncVectorEnv([functools.partial(Toy, 3)]), 2)


def test_bounds_count_for_actions_only():
    def fits(own, there):
        env = functools.partial(Checked, *there, lambda obs: 0)
        vector.check(Answer(own, None), SyncVectorEnv([env]))

    g, half = gymnasium.spaces.Box, spaces.Box(-0.5, 0.5, (1,))
    fits((half, half), (g(-9, 9, (1,)), g(-0.5, 0.5, (1,))))
    with pytest.raises(UserError, match="trained with actions in Box"):
        fits((half, half), (g(-9, 9, (1,)), g(-1, 1, (1,))))


def test_one_environment_is_no_vector_environment():
    with pytest.raises(UserError, match=r"is no gymnasium\.vector\.VectorEnv: .*SyncVectorEnv\(\[lambda: env\]\)"):
        ssmrl.evaluate(Answer(TOY, reset_as_action), Toy(3), 2)


# ---- trained policies in other people's environments ----


def trained(env, updates, **settings):
    """A policy after a few updates of a small recurrent network."""
    small = {"agent.num_envs": 16, "agent.num_steps": 32, "agent.heads": (16,), "agent.learning_rate": 4e-3,
             "model": "gru", "model.d_model": 16}  # fmt: skip
    agent = make_agent(ssmrl.resolve([], {"env": env} | small | {k.replace("__", "."): v for k, v in settings.items()}))
    run = jax.jit(lambda key: jax.lax.fori_loop(0, updates, lambda _, s: agent.update(s)[0], agent.init(key)).params)
    # unoptimised: it compiles twice as fast, and runs for less than a second
    params = run.lower(jax.random.key(0)).compile({"xla_backend_optimization_level": "0"})(jax.random.key(0))
    return agent.policy(SimpleNamespace(params=params, obs_stats=None))


@pytest.fixture(scope="module")
def recall():
    """Nearly solves RepeatPreviousEasy."""
    id = "popgym/RepeatPreviousEasy"
    policy = trained(id, 50, agent__gamma=0.0, agent__gae_lambda=0.0, agent__reward_scale=30.0)
    score = ssmrl.evaluate(policy, id, 256)
    assert 0.7 < score["return_mean"] < 0.99, "not what the tests compare with"
    return policy, score


@pytest.fixture(scope="module")
def balance():
    """Balances a pole for a while."""
    policy = trained("gymnax/CartPole-v1", 30, model="none")
    score = ssmrl.evaluate(policy, "gymnax/CartPole-v1", 4096)
    assert 30 < score["return_mean"] < 300
    return policy, score


def assert_same_score(result, expected, episodes):
    assert result["episodes"] == episodes
    error = np.hypot(result["return_se"], expected["return_se"])
    assert abs(result["return_mean"] - expected["return_mean"]) < 2 * error


@pytest.mark.parametrize("mode", MODES)
def test_the_original_popgym_gives_the_same_score(recall, mode):
    policy, score = recall
    venv = SyncVectorEnv([popgym.envs.RepeatPreviousEasy] * 16, autoreset_mode=mode)
    result = ssmrl.evaluate(policy, venv, 192, seed=1)
    assert_same_score(result, score, 192)
    assert result["length_mean"] == score["length_mean"] == 51
    assert result == policy.run(venv, 192, seed=1)


def test_a_score_does_not_survive_a_wrong_flag(recall, monkeypatch):
    """The control: a memory that always forgets costs more than the test above allows."""
    policy, score = recall
    monkeypatch.setattr(vector, "reset_flag", lambda mode, ended, ended_before: np.ones_like(ended))
    venv = SyncVectorEnv([popgym.envs.RepeatPreviousEasy] * 16, autoreset_mode=SAME_STEP)
    assert policy.run(venv, 32)["return_mean"] < score["return_mean"] - 0.3


@pytest.mark.parametrize("mode", MODES)
def test_cart_pole_of_gymnasium_gives_the_same_score(balance, mode):
    policy, score = balance
    venv = gymnasium.make_vec("CartPole-v1", 16, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    assert_same_score(policy.run(venv, 512), score, 512)


def test_gymnasiums_own_vectorised_cart_pole(balance):
    policy, score = balance
    venv = gymnasium.make_vec("CartPole-v1", 32, vectorization_mode="vector_entry_point")
    assert_same_score(policy.run(venv, 96), score, 96)


def test_in_other_processes(balance):
    policy, _ = balance
    make = [functools.partial(gymnasium.make, "CartPole-v1")] * 2
    venv = AsyncVectorEnv(make, context="spawn", autoreset_mode=SAME_STEP)
    try:
        result = policy.run(venv, 4, seed=3)
    finally:
        venv.close()
    assert result == policy.run(SyncVectorEnv(make, autoreset_mode=SAME_STEP), 4, seed=3)


@pytest.mark.parametrize("mode", MODES)
def test_our_own_environments_through_gymnasium(recall, mode):
    policy, score = recall
    venv = ssmrl.to_gymnasium("popgym/RepeatPreviousEasy", 16, mode)
    assert_same_score(policy.run(venv, 64), score, 64)


# ---- our environments as gymnasium's ----


@pytest.mark.parametrize("id", ["popgym/AutoencodeEasy", "popgym/BattleshipEasy", "popgym/PositionOnlyPendulumEasy"])
def test_gymnasiums_checker(id):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space")  # advice; the original's bounds
        env = gymnasium.make(f"ssmrl/{id.replace('/', '.')}")
        check_env(env.unwrapped)
    assert type(env.unwrapped) is ssmrl.gymnasium.Env
    original = getattr(popgym.envs, id.removeprefix("popgym/"))()
    assert str(spaces.from_gymnasium(env.observation_space)) == str(spaces.from_gymnasium(original.observation_space))


def test_every_id_is_registered():
    for entry in envs.entries():
        spec = gymnasium.spec(f"ssmrl/{entry.name.replace('/', '.')}")
        assert envs.find(spec.kwargs["env"])
    env = gymnasium.make("ssmrl.gymnasium:ssmrl/bsuite.MemoryLen", memory_length=3, disable_env_checker=True)
    env.reset(seed=0)
    flags = [env.step(0)[2] for _ in range(4)]
    assert flags == [False, False, False, True]
    with pytest.raises(ResetNeeded):
        env.step(0)


def cart_pole(mode):
    return gymnasium.make_vec("ssmrl/gymnax.CartPole-v1", 6, autoreset_mode=mode)


def play(venv, steps, seed=0):
    """Push every pole to the right, and record ``(obs, reward, terminated, truncated, infos)`` of each step."""
    obs, _ = venv.reset(seed=seed)
    history = [(obs, None, np.zeros(venv.num_envs, bool), None, {})]
    for _ in range(steps):
        obs, reward, terminated, truncated, infos = venv.step(np.ones(venv.num_envs, np.int64))
        if venv.metadata["autoreset_mode"] is AutoresetMode.DISABLED and terminated.any():
            infos = {"final": obs}
            obs, _ = venv.reset(options={"reset_mask": terminated})
        history.append((obs, reward, terminated, truncated, infos))
    return history


def fallen(obs):
    return (np.abs(obs[..., 2]) > 0.2095) | (np.abs(obs[..., 0]) > 2.4)


def fresh(obs):
    return (np.abs(obs) <= 0.05).all(-1)


def moved(before, after):
    """Whether ``after`` follows ``before`` by one step of the physics: position by velocity."""
    return np.isclose(after[..., 0], before[..., 0] + 0.02 * before[..., 1], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_episodes_end_and_start_as_the_mode_says(mode):
    history, ends = play(cart_pole(mode), 40), 0
    for before, step in itertools.pairwise(history):
        obs, reward, terminated, truncated, infos = step
        assert not truncated.any()
        idle = before[2] if mode == NEXT_STEP else np.zeros(6, bool)
        np.testing.assert_array_equal(reward, ~idle)
        if terminated.any() and mode == SAME_STEP:
            np.testing.assert_array_equal(infos["_final_obs"], terminated)
            np.testing.assert_array_equal(infos["_final_info"], terminated)
            assert all((x is None) == (not t) for x, t in zip(infos["final_obs"], terminated, strict=True))
            shows_final = np.stack([x if t else o for x, t, o in zip(infos["final_obs"], terminated, obs, strict=True)])
        elif terminated.any() and mode == DISABLED:
            shows_final = infos["final"]
        else:
            assert infos == {}
            shows_final = obs
        np.testing.assert_array_equal(fallen(shows_final) & ~idle, terminated)
        np.testing.assert_array_equal(moved(before[0], shows_final), ~idle)
        started = idle if mode == NEXT_STEP else terminated
        assert fresh(obs[started]).all()
        ends += terminated.sum()
    assert 15 < ends <= 30  # a pole falls after nine or ten pushes


def test_without_auto_reset_an_end_must_be_answered():
    venv = cart_pole(DISABLED)
    with pytest.raises(ResetNeeded, match="step without reset: call reset"):
        venv.step(np.ones(6, int))
    with pytest.raises(ResetNeeded, match="reset_mask before the first reset"):
        venv.reset(options={"reset_mask": np.ones(6, bool)})
    obs, _ = venv.reset(seed=0)
    ended = np.zeros(6, bool)
    while not ended.any():
        before = obs
        obs, _, ended, _, _ = venv.step(np.ones(6, int))
    with pytest.raises(ResetNeeded, match=rf"of environments \[{np.flatnonzero(ended)[0]}"):
        venv.step(np.ones(6, int))
    shown, _ = venv.reset(options={"reset_mask": ended})
    assert fresh(shown[ended]).all()
    np.testing.assert_array_equal(shown[~ended], obs[~ended])
    after = venv.step(np.ones(6, int))[0]
    assert moved(shown, after).all()
    assert moved(before, obs).all()


def test_seeds():
    def observations(venv, **kwargs):
        return np.stack([step[0] for step in play(venv, 12, **kwargs)])

    venv = cart_pole(SAME_STEP)
    first = observations(venv, seed=3)
    later = observations(venv, seed=None)
    assert (first[0] != later[0]).any()
    np.testing.assert_array_equal(observations(cart_pole(SAME_STEP), seed=3), first)
    np.testing.assert_array_equal(observations(venv, seed=3), first)
    np.testing.assert_array_equal(observations(venv, seed=None), later)
    assert (observations(venv, seed=4)[0] != first[0]).all()
    assert len(np.unique(first[0], axis=0)) == 6


def test_what_comes_out_is_numpy_and_the_callers_own():
    venv = ssmrl.to_gymnasium("popgym/AutoencodeEasy", 3)
    obs, _ = venv.reset(seed=0)
    assert obs in venv.observation_space
    out = venv.step(venv.action_space.sample())
    assert out[0] in venv.observation_space
    for x, dtype in zip(
        [*jax.tree.leaves(out[0]), *out[1:4]], ["int64", "int64", "float64", "bool", "bool"], strict=True
    ):
        assert type(x) is np.ndarray
        assert (x.dtype, x.shape) == (np.dtype(dtype), (3,))
        x[:] = 0  # writable


def test_what_to_gymnasium_takes():
    env, _ = ssmrl.make_env("bsuite/MemoryLen/7")
    assert ssmrl.to_gymnasium(env).num_envs == 1
    with pytest.raises(TypeError, match="is made already: give its id to set memory_length"):
        ssmrl.to_gymnasium_single(env, memory_length=4)
    with pytest.raises(UserError, match=r"unknown env 'popgym/RepeatPrevEasy': did you mean popgym/RepeatPreviousEasy"):
        ssmrl.to_gymnasium("popgym/RepeatPrevEasy")
    with pytest.raises(ValueError, match="num_envs=0; use 1 or more"):
        ssmrl.to_gymnasium(env, 0)
    with pytest.raises(ValueError, match="'Later' is not a valid AutoresetMode"):
        ssmrl.to_gymnasium(env, 1, "Later")


@pytest.mark.parametrize("id", ["ssmrl/popgym.RepeatPreviousEasy", "ssmrl/popgym.BattleshipEasy"])
def test_stable_baselines_learns_on_one(id):
    sb3 = pytest.importorskip("stable_baselines3")
    venv = pytest.importorskip("stable_baselines3.common.env_util").make_vec_env(id, n_envs=2)
    model = sb3.PPO("MlpPolicy", venv, n_steps=64, batch_size=32, n_epochs=1, device="cpu", seed=0)
    model.learn(512)
    assert model.num_timesteps == 512
    assert len(model.ep_info_buffer) > 0
