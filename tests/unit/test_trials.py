"""Trials: one task, many episodes, one memory; and the projections that make tasks."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from ssmrl import envs, spaces
from ssmrl.agents.ppo import PPO
from ssmrl.envs import Environment, EnvState, check_env
from ssmrl.envs.base import EnvParams
from ssmrl.envs.projection import Projection, orthonormal
from ssmrl.envs.trials import Trials
from ssmrl.evaluation import evaluate
from ssmrl.fields import ConfigError
from ssmrl.nn import make_model
from ssmrl.recording import Recorder
from ssmrl.rollout import reset_batch, returns_by_episode, step_batch

B = 6


@struct.dataclass
class SafeState(EnvState):
    start: jax.Array


@struct.dataclass
class SafeParams(EnvParams):
    max_steps_in_episode: int = 3
    secret: jax.Array = struct.field(default_factory=lambda: jnp.int32(0))


@dataclasses.dataclass(frozen=True)
class Safe(Environment):
    """A safe with a secret digit, which opens on it; each episode starts at a random angle, and has 3 tries."""

    @property
    def default_params(self):
        return SafeParams()

    def sample_task(self, key, params):
        return params.replace(secret=jax.random.randint(key, (), 0, 1000))

    def reset_env(self, key, params):
        start = jax.random.uniform(key, (2,))
        return start, SafeState(jnp.int32(0), start)

    def step_env(self, key, state, action, params):
        opened = action == params.secret % 4
        state = state.replace(time=state.time + 1)
        return state.start + 1, state, jnp.where(opened, 10.0, 1.0), opened, {}

    def observation_space(self, params):
        return spaces.Box(0, 2, (2,))

    def action_space(self, params):
        return spaces.Discrete(4)


def play(env, actions, key=0, num_envs=B):
    """Play ``actions`` ``[T]``: batches before each step, and outcomes, [T, B, ...]."""
    params = env.default_params
    start = reset_batch(env, params, num_envs, jax.random.key(key))

    def step(batch, inputs):
        action, key = inputs
        after, outcome = step_batch(env, params, batch, jnp.full(num_envs, action), key)
        return after, (batch, outcome)

    keys = jax.random.split(jax.random.key(key + 1), len(actions))
    return jax.jit(lambda: jax.lax.scan(step, start, (jnp.asarray(actions, jnp.int32), keys))[1])()


@pytest.fixture(scope="module")
def played():
    return jax.tree.map(np.asarray, play(Trials(Safe(), episodes=3, steps=0), [1] * 60))


def test_a_trial_keeps_its_task_and_the_next_has_another(played):
    batch, outcome = played
    over = outcome.terminated
    secret = batch.env_state.task.secret
    changed = secret[1:] != secret[:-1]
    assert over.sum() > 3 * B
    assert not changed[~over[:-1]].any()
    assert changed[over[:-1]].all()  # of 1000 secrets; by this key no two in a row are equal
    assert len(np.unique(secret[0])) == B


def test_memory_is_reset_with_the_trial_and_not_with_its_episodes(played):
    batch, outcome = played
    assert (batch.reset[1:] == outcome.terminated[:-1]).all()
    assert batch.reset[0].all()
    assert not outcome.truncated.any()
    starts = batch.obs[..., 2].astype(bool)
    assert (starts == (batch.env_state.env_state.time == 0)).all()
    assert starts.sum() > 2.5 * batch.reset.sum()


def test_episodes_of_a_trial_start_afresh_and_are_counted(played):
    batch, outcome = played
    starts = batch.obs[..., 2].astype(bool)
    angles = batch.obs[..., :2][starts]
    assert len(np.unique(angles, axis=0)) == len(angles)
    assert np.allclose(batch.obs[..., 3], batch.env_state.episode / 3)
    assert set(batch.env_state.episode[starts]) == {0, 1, 2}
    lucky = (batch.env_state.task.secret % 4) == 1
    assert (outcome.trial.ended == (lucky | (batch.env_state.env_state.time == 2))).all()
    assert (outcome.trial.episode_return[outcome.trial.ended & lucky] == 10).all()
    assert (outcome.trial.episode_return[outcome.trial.ended & ~lucky] == 3).all()
    assert set(outcome.episode_return[outcome.terminated]) == {30, 9}
    assert set(outcome.episode_length[outcome.terminated]) == {3, 9}


def test_a_trial_of_steps_ends_on_time():
    batch, outcome = play(Trials(Safe(), episodes=0, steps=7), [1] * 21)
    ends = np.zeros((21, B), bool)
    ends[6::7] = True
    assert (np.asarray(outcome.terminated) == ends).all()
    assert (np.asarray(outcome.trial.ended)[6::7]).all()
    assert np.allclose(batch.obs[..., 3], (np.arange(21) % 7 / 7)[:, None])
    both, _ = play(Trials(Safe(), episodes=1, steps=2), [1] * 8)
    assert int(both.env_state.time.max()) == 1


def test_rewards_of_the_warm_up_are_seen_and_do_not_count():
    batch, outcome = play(Trials(Safe(), episodes=3, steps=0, warmup=2), [1] * 30)
    counted = np.asarray(outcome.trial.episode) >= 2
    assert (np.asarray(outcome.reward) == np.where(counted, outcome.trial.reward, 0)).all()
    assert not counted.all()
    seen = np.where(outcome.terminated[:-1], 0, outcome.trial.reward[:-1])
    assert (np.asarray(batch.obs)[1:, :, 4] == seen).all()
    assert set(np.asarray(outcome.episode_return)[np.asarray(outcome.terminated)]) == {10, 3}


def test_the_longest_trial():
    env, params = Safe(), SafeParams()
    assert [Trials(env, *n).longest_episode(params) for n in ((5, 0), (0, 7), (5, 7), (2, 7))] == [15, 7, 7, 6]
    params = EnvState(jnp.int32(0))  # without a limit
    assert [Trials(env, *n).longest_episode(params) for n in ((5, 0), (0, 7), (5, 7))] == [None, 7, 7]
    assert (
        envs.make("gymnax/Pendulum-v1", project_actions=3, max_steps=9, trial_episodes=4)[0].longest_episode(
            Projection(env=envs.make("gymnax/Pendulum-v1")[0], observations=0, actions=3).default_params
        )
        == 36
    )


def test_trials_and_projections_keep_the_contract():
    trials = Trials(Safe(), episodes=2, steps=0, warmup=1)
    assert check_env(trials, steps=20) == []
    reach = Projection(envs.make("gymnax/Pendulum-v1")[0], 4, 2)
    assert check_env(Trials(reach, episodes=0, steps=9), steps=20) == []
    assert reach.action_space(reach.default_params) == spaces.Box(-1.0, 1.0, (2,))


def test_a_projection_is_the_same_throughout_a_trial():
    env, params = envs.make(
        "gymnax/Pendulum-v1", project_observations=5, project_actions=3, trial_episodes=2, max_steps=4
    )
    batch = jax.jit(lambda key: reset_batch(env, params, B, key))(jax.random.key(0))
    step = jax.jit(lambda batch, key: step_batch(env, params, batch, jnp.full((B, 3), 0.5), key))
    seen = [batch.env_state.task]
    for i in range(9):
        batch, outcome = step(batch, jax.random.key(i))
        seen.append(batch.env_state.task)
        assert bool(outcome.terminated.all()) == (i == 7)
    first, last, new = seen[0], seen[7], seen[8]
    assert (first.observation == last.observation).all()
    assert not np.isclose(first.observation, new.observation).any()
    gram = jnp.einsum("boi,boj->bij", first.observation, first.observation)
    assert np.allclose(gram, np.eye(3), atol=1e-5)
    assert np.allclose(jnp.einsum("bia,bja->bij", first.action, first.action), 1, atol=1e-5)
    assert len(np.unique(np.asarray(first.observation)[:, 0, 0])) == B


def test_what_projected_actions_do_is_what_the_projection_says():
    inner, params = envs.make("gymnax/Pendulum-v1")
    env = Projection(inner, 0, 2)

    @jax.jit
    def both(action):
        task = env.sample_task(jax.random.key(3), env.default_params)
        _, state = inner.reset_env(jax.random.key(0), params)
        torque = 2 * jnp.clip(task.action @ action, -1, 1)  # a pendulum's is within 2
        steps = (
            inner.step_env(jax.random.key(1), state, torque, params),
            env.step_env(jax.random.key(1), state, action, task),
        )
        return [(obs, reward) for obs, _, reward, _, _ in steps]

    (expected, reward), (found, same) = both(jnp.array([0.3, -0.6]))
    assert np.allclose(expected, found, atol=1e-6)
    assert np.allclose(reward, same, atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (3, 5), (4, 4), (0, 0)])
def test_orthonormal(rows, columns):
    m = orthonormal(jax.random.key(0), rows, columns)
    assert m.shape == (rows, columns)
    gram = m.T @ m if rows >= columns else m @ m.T
    assert np.allclose(gram, np.eye(min(rows, columns)), atol=1e-5)


def test_orthonormal_is_uniform():
    q = np.asarray(jax.vmap(lambda k: orthonormal(k, 2, 2))(jax.random.split(jax.random.key(0), 4000)))
    angle = np.arctan2(q[:, 1, 0], q[:, 0, 0])
    counts = np.histogram(angle, 8, (-np.pi, np.pi))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 24.3  # chi-square, 7 degrees, p = .001
    assert abs((np.linalg.det(q) > 0).mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("gymnax/Breakout-MinAtar", {"trial_episodes": 2}, "trials have flat observations"),
        (
            "gymnax/CartPole-v1",
            {"project_actions": 2, "trial_episodes": 1},
            "project_actions=2: CartPole-v1 has actions in Discrete",
        ),
        ("popgym/RepeatFirstEasy", {"project_observations": 2, "trial_episodes": 1}, "has observations in Discrete"),
        ("gymnax/CartPole-v1", {"trial_warmup": 2}, "only a trial has a warm-up"),
        ("gymnax/CartPole-v1", {"trial_warmup": 2, "trial_episodes": 2}, "an episode has to count"),
        (
            "gymnax/Pendulum-v1",
            {"trial_warmup": 3, "trial_steps": 300},
            "may take 3 episodes of 200 steps; use trial_steps=800",
        ),
        ("gymnax/Pendulum-v1", {"project_observations": 6}, "projections are drawn with a trial.*use trial_episodes=1"),
        ("meta/CartPole-Proj", {"trial_episodes": 0}, "projections are drawn with a trial"),
        (
            "meta/Control-Train",
            {"trial_episodes": 0, "project_observations": 0, "project_actions": 0},
            "which of the tasks it is is drawn with a trial.*use trial_episodes=1",
        ),
    ],
)
def test_what_cannot_be_is_refused(id, options, message):
    with pytest.raises(ConfigError, match=message):
        envs.make(id, **options)


def test_a_family_without_trials_plays_its_default_task():
    env, params = envs.make("meta/DarkRoom", trial_episodes=0)
    assert not isinstance(env, Trials)
    assert params.goal.shape == (2,)
    assert isinstance(envs.make("gymnax/Pendulum-v1", trial_warmup=3, trial_steps=601)[0], Trials)


def test_episodes_that_did_not_end_are_not_blamed_for_a_failure(tmp_path):
    bad, good = np.array([np.nan]), np.array([1.0])
    metrics = {"loss": bad, "grad_norm": good, "return_mean": bad, "length_mean": bad, "episode_return/5": bad}
    recorder = SimpleNamespace(dir=tmp_path, updates=3, agent=SimpleNamespace(steps_per_update=100))
    assert "not a number in loss (seed 0) in update 4" in str(Recorder.failure(recorder, metrics, 0))


def test_returns_by_episode():
    _, outcome = play(Trials(Safe(), episodes=30, steps=0), [1] * 100)
    found = returns_by_episode(outcome.trial, 30)
    assert list(found) == [f"episode_return/{n}" for n in (1, 2, 3, 5, 10, 20, 30)]
    trial = jax.tree.map(np.asarray, outcome.trial)
    third = trial.episode_return[trial.ended & (trial.episode == 2)]
    assert np.isclose(found["episode_return/3"], third.mean())


def test_evaluation_tells_returns_by_episode():
    env = Trials(Safe(), episodes=3, steps=0)
    agent = PPO(env, env.default_params, make_model("none", d_model=4), num_envs=4, heads=(4,))
    policy = agent.policy(jax.jit(agent.init)(jax.random.key(0)))
    found = evaluate(policy, env, episodes=40)
    assert [k for k in found if k.startswith("episode_return/")] == [f"episode_return/{n}" for n in (1, 2, 3)]
    assert np.isclose(sum(found[f"episode_return/{n}"] for n in (1, 2, 3)), found["return_mean"], rtol=1e-5)
    assert 3 <= found["episode_return/2"] <= 12


def test_ppo_logs_returns_by_episode():
    env = Trials(Safe(), episodes=4, steps=0)
    model = make_model("gru", d_model=8)
    agent = PPO(env, env.default_params, model, num_envs=4, num_steps=14, epochs=1, num_minibatches=1, heads=(8,))
    _, metrics = jax.jit(lambda key: agent.update(agent.init(key)))(jax.random.key(0))
    assert 3 <= metrics["episode_return/4"] <= 10
    assert np.isclose(metrics["ratio_error"], 0, atol=1e-5)
