"""Environments by name: ids, errors, parameters, the wrapper, and classes that users register."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmrl.envs
from ssmrl import envs
from ssmrl.envs import Environment, EnvParams, EnvState
from ssmrl.envs.wrappers import FlatActions, TimeLimit
from ssmrl.registry import UnknownNameError, hp
from ssmrl.registry import envs as registry
from ssmrl.spaces import Box, Discrete, MultiDiscrete


@dataclasses.dataclass(frozen=True)
class Keypad(Environment):
    """Press the right one of ``rows`` x ``columns`` keys."""

    rows: int = hp(2, "rows of keys", ge=1)
    columns: int = hp(3, "columns of keys", ge=1)

    def reset_env(self, key, params):
        return jnp.zeros(2), EnvState(jnp.int32(0))

    def step_env(self, key, state, action, params):
        right = jnp.all(action == jnp.array([1, 2]))
        return action.astype(jnp.float32), EnvState(state.time + 1), right.astype(jnp.float32), right, {}

    def observation_space(self, params):
        return Box(0, 9, (2,))

    def action_space(self, params):
        return MultiDiscrete((self.rows, self.columns))


@pytest.fixture
def keypad(monkeypatch):
    """The keypad as users register it; forgotten after the test."""
    for table in ("_user", "_user_classes"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    return envs.register("my/Keypad", variants={"Wide": {"columns": 5}})(Keypad)


def test_ids_ignore_case():
    written = [envs.make(id)[0] for id in ("bsuite/MemoryLen/7", "BSUITE/memorylen/7", "Bsuite/MEMORYLEN/7")]
    assert written[0] == written[1] == written[2]
    assert envs.make("POPGYM/repeatpreviouseasy")[0] == envs.make("popgym/RepeatPreviousEasy")[0]


def test_parameters_override_what_the_id_says():
    assert envs.make("bsuite/MemoryLen/7", num_bits=4)[0].num_bits == 4
    assert envs.make("bsuite/MemoryLen/7")[0].memory_length == 7
    assert envs.make("bsuite/UmbrellaDistract/3")[0].n_distractor == 3
    assert envs.make("bsuite/UmbrellaDistract/3")[0].chain_length == 20


@pytest.mark.parametrize(
    ("id", "hint"),
    [
        ("popgym/RepeatPrevEasy", "popgym/RepeatPreviousEasy"),
        ("bsuite/MemoryLenght/30", "bsuite/MemoryLen/30"),
        ("gymnax/CartPole", "gymnax/CartPole-v1"),
        ("brax/ants", "brax/ant"),
    ],
)
def test_unknown_ids_get_suggestions(id, hint):
    with pytest.raises(UnknownNameError, match=f"unknown env '{id}': did you mean .*{hint}.*ssmrl list envs"):
        envs.make(id)


@pytest.mark.parametrize("id", ["bsuite/MemoryLen", "bsuite/MemoryLen/", "bsuite/MemoryLen/long"])
def test_ids_of_a_field_need_its_value(id):
    with pytest.raises(UnknownNameError, match="bsuite/MemoryLen/30"):
        envs.make(id)


def test_unknown_parameters_get_suggestions():
    with pytest.raises(TypeError, match=r"'bsuite/MemoryLen/5' has no parameter 'num_bit': did you mean 'num_bits'\?"):
        envs.make("bsuite/MemoryLen/5", num_bit=3)
    with pytest.raises(TypeError, match=r"it takes: .*memory_length"):
        envs.make("bsuite/MemoryLen/5", zzz=3)


@pytest.mark.parametrize(
    ("id", "parameters", "message"),
    [
        ("bsuite/MemoryLen/0", {}, "memory_length=0"),
        ("bsuite/MemoryLen/5", {"num_bits": "many"}, "num_bits=many"),
        ("bsuite/UmbrellaLength/5", {"max_steps": -1}, "max_steps=-1"),
        ("brax/ant", {"backend": "bullet"}, "backend=bullet"),
    ],
)
def test_values_are_checked(id, parameters, message):
    with pytest.raises(ValueError, match=message):
        envs.make(id, **parameters)


def test_users_register_their_own(keypad):
    assert keypad is Keypad
    env, params = envs.make("my/keypad", rows=4)
    assert env == Keypad(rows=4)
    assert params == EnvParams()
    assert envs.make("MY/KEYPADwide")[0] == Keypad(columns=5)
    assert registry.find("my/Keypad").doc == "Press the right one of ``rows`` x ``columns`` keys."
    with pytest.raises(UnknownNameError, match="did you mean my/Keypad"):
        envs.make("my/Keypads")
    with pytest.raises(TypeError, match="has no parameter 'row': did you mean 'rows'"):
        envs.make("my/Keypad", row=1)
    with pytest.raises(ValueError, match="rows=0"):
        envs.make("my/Keypad", rows=0)
    limited, _ = envs.make("my/Keypad", max_steps=3)
    assert limited == TimeLimit(Keypad(), max_steps=3)


def test_registered_classes_are_forgotten_between_tests():
    with pytest.raises(UnknownNameError):
        envs.make("my/Keypad")


def test_a_wrapper_is_there_only_where_asked_for(keypad):
    assert envs.make("my/Keypad")[0] == Keypad()
    assert envs.make("my/Keypad", flat_actions=True)[0] == FlatActions(Keypad())


def test_flat_actions_count_row_major(keypad):
    env, params = envs.make("my/Keypad", flat_actions=True)
    assert env.action_space(params) == Discrete(6)
    assert env.num_actions == 6
    assert (env.name, env.observation_space(params)) == ("Keypad", Box(0, 9, (2,)))
    key, state = jax.random.key(0), EnvState(jnp.int32(0))
    pressed = [env.step_env(key, state, jnp.int32(action), params)[0].tolist() for action in range(6)]
    assert pressed == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    batch = jax.vmap(env.step_env, (None, None, 0, None))(key, state, jnp.arange(6), params)
    assert batch[0].tolist() == pressed
    assert batch[2].tolist() == [0, 0, 0, 0, 0, 1]


def test_flat_actions_leave_single_actions_alone():
    env, params = envs.make("bsuite/MemoryLen/5", flat_actions=True)
    assert env.action_space(params) == Discrete(2)
    obs, state = env.reset(jax.random.key(0), params)
    assert env.step(jax.random.key(0), state, jnp.int32(1), params)[0].shape == obs.shape


def test_num_actions_needs_discrete_actions():
    with pytest.raises(TypeError, match=r"Keypad has no discrete actions: its action space is MultiDiscrete"):
        _ = Keypad().num_actions


@pytest.mark.parametrize(("limit", "expected"), [(2, [0, 1, 0, 1, 0, 1]), (4, [0, 0, 0, 1, 0, 0]), (0, [0] * 6)])
def test_max_steps_truncates(limit, expected):
    env, params = envs.make("bsuite/UmbrellaLength/50", max_steps=limit)
    obs, state = env.reset(jax.random.key(0), params)
    truncations = []
    for _ in expected:
        obs, state, _, terminated, truncated, info = env.step(jax.random.key(1), state, jnp.int32(0), params)
        truncations.append(int(truncated))
        assert not terminated
        assert (state.time == 0) == truncated
        assert np.array_equal(obs, info["final_observation"]) != truncated
    assert truncations == expected


def test_max_steps_may_exceed_the_environments_own_limit(keypad):
    env, params = envs.make("my/Keypad", max_steps=5_000)  # a Keypad has 1000
    truncated = [bool(env.is_truncated(EnvState(jnp.int32(t)), params)) for t in (1_000, 4_999, 5_000)]
    assert truncated == [False, False, True]
    for limit in (10, 9_000):  # of the limit given here and one in the parameters, the tighter holds
        other = params.replace(max_steps_in_episode=limit)
        truncated = [bool(env.is_truncated(EnvState(jnp.int32(t)), other)) for t in (9, 10, 4_999, 5_000)]
        assert truncated == [False, limit == 10, limit == 10, True]


def test_the_package_refuses_a_second_name():
    spec = importlib.util.spec_from_file_location("envs", Path(ssmrl.envs.__file__))
    with pytest.raises(ImportError, match=r"import ssmrl\.envs, not envs"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
