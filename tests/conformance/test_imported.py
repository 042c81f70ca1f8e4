"""Environments of users' own, ``module:Name``: every protocol means the same, and everything runs on it."""

import json
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import envs, to_gymnasium
from ssmrl.cli import main
from ssmrl.envs import check_env
from ssmrl.envs.imported import Imported
from ssmrl.registry import ConfigError, UserError
from ssmrl.rollout import reset_batch, step_batch
from ssmrl.spaces import Box, Dict, Discrete, MultiDiscrete

# One task by many protocols: from 0 or 1 walk (action 1) to 3, the natural end, within 4 steps.
WALKS = '''
import dataclasses
import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces
from ssmrl import spaces as own_spaces
from ssmrl.envs import Environment, EnvParams, EnvState
from ssmrl.registry import hp

@struct.dataclass
class State(EnvState):
    place: jax.Array

@dataclasses.dataclass(frozen=True)
class Own(Environment):
    """Walk to the goal."""

    goal: int = hp(3, "where the walk ends", ge=2)

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=4)

    def reset_env(self, key, params):
        state = State(jnp.int32(0), jax.random.bernoulli(key).astype(jnp.int32))
        return state.place.astype(jnp.float32)[None], state

    def step_env(self, key, state, action, params):
        state = State(state.time + 1, state.place + action)
        return state.place.astype(jnp.float32)[None], state, state.place / 2, state.place >= self.goal, {}

    def observation_space(self, params):
        return own_spaces.Box(0.0, float(self.goal), (1,))

    def action_space(self, params):
        return own_spaces.Discrete(2)

@struct.dataclass
class Params:
    goal: int = 3
    max_steps_in_episode: int = 4

@struct.dataclass
class Plain:
    time: int
    place: float

class Old:
    """gymnax 0.x: one flag for both ends, python numbers, rewards that are integers."""

    def __init__(self, start: float = 0.0):
        self.start = start

    @property
    def default_params(self):
        return Params()

    def reset_env(self, key, params):
        state = Plain(time=0, place=self.start + jax.random.bernoulli(key))
        return jnp.array([state.place]), state

    def step_env(self, key, state, action, params):
        state = Plain(time=state.time + 1, place=state.place + action)
        done = (state.place >= params.goal) | (state.time >= params.max_steps_in_episode)
        return jnp.array([state.place]), state, state.place / 2, done, {}

    def observation_space(self, params):
        return spaces.Box(0.0, 3.0, (1,), jnp.float32)

    def action_space(self, params=None):
        return spaces.Discrete(2)

class Six(Old):
    def step_env(self, key, state, action, params):
        obs, state, reward, _, info = super().step_env(key, state, action, params)
        return obs, state, reward, state.place >= params.goal, state.time >= params.max_steps_in_episode, info

class NewParams(environment.EnvParams):
    pass

class New(environment.Environment):
    """gymnax 1.x."""

    @property
    def default_params(self):
        return environment.EnvParams(max_steps_in_episode=4)

    def reset_env(self, key, params):
        return Old().reset_env(key, Params())

    def step_env(self, key, state, action, params):
        obs, state, reward, _, info = Old().step_env(key, state, action, Params())
        return obs, state, reward, state.place >= 3, info

    def observation_space(self, params):
        return Old().observation_space(params)

    def action_space(self, params=None):
        return spaces.Discrete(2)

class Resetting:
    """Only reset and step, which starts a new episode but shows how the old one ended."""

    default_params = Params()
    observation_space, action_space = Old.observation_space, Old.action_space

    def reset(self, key, params):
        return Old().reset_env(key, params)

    def step(self, key, state, action, params):
        obs, state, reward, terminated, truncated, info = Six().step_env(key, state, action, params)
        done = terminated | truncated
        fresh = self.reset(key, params)
        shown, state = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, (obs, state))
        return shown, state, reward, terminated, truncated, {"final_observation": obs}

def pair(start: float = 0.0):
    return Old(start), Params(goal=3)
'''
OTHERS = '''
from walks import *

class Hiding(Resetting):
    def step(self, key, state, action, params):
        return *super().step(key, state, action, params)[:5], {}

class Four(Old):
    def step_env(self, key, state, action, params):
        return super().step_env(key, state, action, params)[:4]

class Unbounded(Old):
    """Nobody knows of a time limit."""

    @struct.dataclass
    class Params:
        goal: int = 3

    @property
    def default_params(self):
        return self.Params()

    def step_env(self, key, state, action, params):
        obs, state, reward, _, info = super().step_env(key, state, action, Params())
        return obs, state, reward, (state.place >= 3) | (state.time >= 4), info

class Dictionary(Old):
    def observation_space(self, params):
        return spaces.Dict({"place": spaces.Box(0.0, 3.0, (1,), jnp.float32), "even": spaces.Discrete(2)})

    def action_space(self, params):
        class MultiDiscrete:
            num_categories = jnp.array([2, 2])
        return MultiDiscrete()

    def reset_env(self, key, params):
        obs, state = super().reset_env(key, params)
        return {"place": obs, "even": obs[0].astype(int) % 2 == 0}, state

    def step_env(self, key, state, action, params):
        obs, *rest = super().step_env(key, state, action.prod(), params)
        return ({"place": obs, "even": obs[0].astype(int) % 2 == 0}, *rest)

class NoEnvironment:
    def step_env(self): ...
    def action_space(self): ...

class Limited(Old):
    """A parameter of its own that has the name of one which every environment takes."""

    def __init__(self, max_steps: int = 6):
        self.max_steps = max_steps
        self.start = 0

    @property
    def default_params(self):
        return Params(goal=99, max_steps_in_episode=self.max_steps)

fails = 3

def picky(start: float = 0.0):
    if start == 2:
        raise ValueError("start where you like, but not at 2")
    return Old(start)
'''
PROTOCOLS = ("Own", "Old", "Six", "New", "Resetting", "pair")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A folder with modules of a user's own, where the program is started."""
    folder = tmp_path_factory.mktemp("walks")
    for name, text in {"walks": WALKS, "others": OTHERS, "failing": "import nothing_of_that_name"}.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        yield folder
    for name in ("walks", "others"):
        sys.modules.pop(name, None)


def play(env, params, actions, num_envs=8):
    """Steps of a batch with auto-reset, ``[T, B]``: the start, final observations, rewards and flags."""

    def step(batch, inputs):
        batch, outcome = step_batch(env, params, batch, jnp.broadcast_to(inputs[0], num_envs), inputs[1])
        return batch, (outcome.final_obs, outcome.reward, outcome.terminated, outcome.truncated, batch.obs)

    start = reset_batch(env, params, num_envs, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(actions))
    return start.obs, *jax.jit(lambda b: jax.lax.scan(step, b, (jnp.asarray(actions), keys))[1])(start)


ACTIONS = np.array([1, 1, 1, 0, 0, 0, 0, 1])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_the_same_environment(name):
    env, params = envs.make(f"walks:{name}")
    assert check_env(env, eager=False) == []
    assert (env.observation_space(params), env.action_space(params)) == (Box(0.0, 3.0, (1,)), Discrete(2))
    start, final, reward, terminated, truncated, shown = play(env, params, ACTIONS)
    place, time = np.asarray(start)[:, 0], np.zeros(8)
    assert set(place) == {0, 1}
    for t, action in enumerate(ACTIONS):
        place, time = place + action, time + 1
        np.testing.assert_array_equal(final[t, :, 0], place)  # before any reset
        np.testing.assert_allclose(reward[t], place / 2)
        np.testing.assert_array_equal(terminated[t], place >= 3)
        np.testing.assert_array_equal(truncated[t], time >= 4)
        done = (place >= 3) | (time >= 4)
        np.testing.assert_array_equal(np.asarray(shown[t, :, 0])[~done], place[~done])
        place, time = np.asarray(shown[t, :, 0]), np.where(done, 0, time)
        assert set(place[done]) <= {0, 1}
    assert np.any(terminated)
    assert np.any(truncated)


def test_one_flag_for_both_ends_is_the_clocks_in_the_last_step():
    env, params = envs.make("walks:Old", start=-1.0)
    start, *_, terminated, truncated, _ = play(env, params, [1, 1, 1, 1])
    late = np.asarray(start)[:, 0] == -1
    assert 0 < late.sum() < 8
    assert terminated[2].tolist() == (~late).tolist()
    assert (terminated[3].any(), truncated[3].tolist()) == (False, late.tolist())  # at the goal in the last step
    env, params = envs.make("others:Unbounded")
    *_, terminated, truncated, _ = play(env, params, [0, 0, 0, 0])
    assert terminated[3].all()
    assert not truncated.any()


def test_parameters_reach_constructor_parameters_and_wrapper():
    env, params = envs.make("walks:Old", start=2.0, goal=5, max_steps=7)
    assert (params.goal, params.max_steps_in_episode) == (5, 7)
    start = jax.vmap(env.reset_env, (0, None))(jax.random.split(jax.random.key(0), 8), params)[0]
    assert set(np.asarray(start)[:, 0]) == {2, 3}
    assert envs.make("walks:Own", goal=4)[0].goal == 4
    assert envs.make("walks:Old", start=2.0)[0] == envs.make("walks:Old", start=2.0)[0] != envs.make("walks:Old")[0]
    assert envs.make("walks:pair")[1].goal == 3
    assert envs.make("others:Limited")[1].max_steps_in_episode == 6
    env, params = envs.make("others:Limited", max_steps=9, flat_actions=True)
    assert (type(env), params.max_steps_in_episode) == (Imported, 9)  # its own limit; and its actions are flat
    with pytest.raises(TypeError, match="env 'walks:Old' has no parameter 'gaol': did you mean 'goal'"):
        envs.make("walks:Old", gaol=1)
    with pytest.raises(ConfigError, match="env 'others:picky': start where you like, but not at 2"):
        envs.make("others:picky", start=2.0)


def test_gymnaxs_own_classes_are_their_adapter():
    ours, theirs = (
        play(*envs.make(name), np.arange(60) // 3 % 2)
        for name in ("gymnax.environments.classic_control.cartpole:CartPole", "gymnax/CartPole-v1")
    )
    assert np.any(ours[3])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_gymnasium_and_evaluation_take_the_name():
    venv = to_gymnasium("walks:Old", num_envs=3)
    obs, _ = venv.reset(seed=0)
    assert (obs.shape, venv.single_action_space.n) == ((3, 1), 2)
    assert sum(venv.step(np.zeros(3, int))[3].all() for _ in range(4)) == 1


def test_spaces_are_converted():
    env, params = envs.make("others:Dictionary")
    assert check_env(env, eager=False) == []
    assert env.observation_space(params) == Dict({"even": Discrete(2), "place": Box(0.0, 3.0, (1,))})
    assert env.action_space(params) == MultiDiscrete((2, 2))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "others:NoEnvironment",
            UserError,
            "NoEnvironment, which is no environment: it has no reset_env, obs.*space, def",
        ),
        ("others:fails", UserError, "others:fails is a int: name a class"),
        (
            "failing:nothing_of_that_name",
            UserError,
            "importing failing raises ModuleNotFoundError: No module named 'noth",
        ),
        ("others:Four", ValueError, r"others:Four: a step returns 4 values: return \(obs, state, reward, term"),
        ("others:Hiding", ValueError, "others:Hiding: step may have reset by itself, .* define reset_env and step_env"),
    ],
)
def test_what_is_no_environment(name, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(lambda key: play(*envs.make(name), [0, 1]), jax.random.key(0))


SMALL = ["agent.num_envs=4", "agent.num_steps=8", "model.d_model=8", "log.every=1", "eval.episodes=4", "wandb=off"]


def test_a_run_in_an_environment_of_ones_own(folder, capsys):
    train = ["train", "env=walks:Old", "env.start=1", "total_steps=64", "run.dir=run", *SMALL, "--json"]
    assert main([*train, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["observation_space"].startswith("Box(low=0.0, high=3.0, shape=(1,)")
    assert not (folder / "run").exists()
    assert main(train) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "done"
    assert main(["resume", "run", "total_steps=96", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["env_steps"] == 96
    assert main(["eval", "run", "--episodes=8", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert 1 <= scored["length_mean"] <= 4
    assert main(["export", "run", "policy", "--json"]) == 0
    capsys.readouterr()
    assert main(["eval", "policy", "--episodes=8", "--env=walks:Own", "--json"]) == 0
    assert 2 <= json.loads(capsys.readouterr().out)["length_mean"] <= 4
    assert main(["list", "envs", "walks:Old", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)[0]
    assert (listed["name"], listed["parameters"]["goal"]["default"]) == ("walks:Old", 3)


def test_the_program_refuses_before_anything_is_written(folder, capsys):
    assert main(["train", "env=walks:Odl", "env.start=1", "run.dir=none", *SMALL]) == 2
    assert "walks.py has no 'Odl'; did you mean 'Old'?" in capsys.readouterr().err
    assert main(["train", "env=others:NoEnvironment", "run.dir=none", *SMALL]) == 2
    assert "it has no reset_env" in capsys.readouterr().err
    assert main(["train", "env=others:Four", "run.dir=none", *SMALL]) == 2
    assert "a step returns 4 values" in capsys.readouterr().err
    assert not (folder / "none").exists()
