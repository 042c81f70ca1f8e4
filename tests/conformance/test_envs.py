"""The contract of environments: every registered one is checked, the checker is checked, auto-reset is checked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from ssmrl import envs
from ssmrl.envs import Environment, EnvParams, EnvState, check_env
from ssmrl.registry import envs as registry
from ssmrl.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple

SKIPPED = {
    "gymnax/MNISTBandit-bsuite": "downloads its data",
    "brax/swimmer": "brax cannot step it",
}
BRAX = ("brax/inverted_pendulum", "brax/reacher-P")  # each costs 10 s to compile
META = (
    *("meta/Bandit-k5-n10", "meta/TabularMDP-n10", "meta/DarkRoom", "meta/DarkKeyToDoor", "meta/PointRobot"),
    *("meta/CartPole-Proj", "meta/Control-HeldOut"),
)
MEMORY = (  # the others differ in their sizes alone
    *("memory/RingRecall-8", "memory/CueRecall-16", "memory/DistractingMemory-8", "memory/MultiDoorsKeys-2"),
    *("memory/TwoRooms", "memory/TwoRooms-Teleport", "memory/NoisyTile"),
    *("memory/TMazePassive-10", "memory/TMazeActive-10", "memory/MiniGridMemory-S7"),
    *("memory/KeyToDoor-60", "memory/VisualMatch-60"),
)
ADAPTERS = ("craftax/", "dmc/", "jumanji/", "navix/", "xminigrid/")  # test_adapters.py, where they are installed
SAME_START = "warning: 8 keys gave the same start"
# What is known to be odd: the beginning of each finding, and the reason for it.
ODD = {
    "bsuite/DiscountingChain/0": {SAME_START: "bsuite's chain has one start"},
    "gymnax/Asterix-MinAtar": {SAME_START: "MinAtar's player starts in the middle of an empty field"},
    "gymnax/DeepSea-bsuite": {SAME_START: "the diver starts in one corner"},
    "gymnax/DiscountingChain-bsuite": {SAME_START: "bsuite's chain has one start"},
    "gymnax/FourRooms-misc": {SAME_START: "its parameters fix start and goal"},
    "gymnax/FrozenLake-misc": {SAME_START: "there is one start on the map"},
    "gymnax/GaussianBandit-misc": {
        "obs leaves its space in 2 of 4": "rewards are normal, time is from -1; both spaces from 0"
    },
    "gymnax/MemoryChain-bsuite": {"obs leaves its space in 2 of 3": "the cue is -1 or 1, its space is [0, 2]"},
    "gymnax/MetaMaze-misc": {"obs leaves its space in 1 of 15": "the last reward is 10, its space is [0, 1]"},
    "gymnax/Pong-misc": {SAME_START: "the ball starts in the middle"},
    "gymnax/Seaquest-MinAtar": {SAME_START: "MinAtar's submarine starts in an empty sea"},
    "gymnax/SpaceInvaders-MinAtar": {SAME_START: "MinAtar's aliens start in formation"},
    "gymnax/UmbrellaChain-bsuite": {"obs leaves its space in 1 of 3": "1 - t / L is -1e-8 at the end"},
}


def _ids():
    for entry in registry.entries():
        name = entry.name if entry.suffix is None else f"{entry.name}/{entry.fields[entry.suffix].default}"
        chosen = name in (*BRAX, *MEMORY, *META) or not name.startswith(("brax/", "memory/", "meta/", *ADAPTERS))
        if chosen and name not in SKIPPED:
            yield name


@functools.cache  # aliases make equal environments
def _findings(env, eager):
    return check_env(env, eager=eager)


@functools.cache
def _first_of_its_class(cls):
    return next(e.name for e in registry.entries() if (e.module, e.cls) == cls)


# Other people's environments, behind the adapter of those that are checked here, which take longest to compile.
LONG = {"brax/reacher-P", "gymnax/Asterix-MinAtar", "gymnax/Freeway-MinAtar", "gymnax/Seaquest-MinAtar"}


def _slow(id):
    """Of games that are replayed against the originals at every difficulty, one is enough here."""
    difficult = id.startswith("popgym/") and id.endswith(("Medium", "Hard"))
    return [pytest.mark.slow] if difficult or id in LONG else []


@pytest.mark.parametrize("id", [pytest.param(id, marks=_slow(id)) for id in _ids()])
def test_contract(id):
    env, _ = envs.make(id)
    entry = registry.find(id)
    # without jit, one difficulty stands for all of a family
    native = not entry.module.endswith(("gymnax", "brax"))
    found = _findings(env, native and _first_of_its_class((entry.module, entry.cls)) in (entry.name, entry.family))
    known = ODD.get(id, {})
    assert [text for text in found if not text.startswith(tuple(known))] == []
    assert [start for start in known if not any(text.startswith(start) for text in found)] == []


def test_nothing_is_skipped_or_odd_that_is_not_registered():
    names = {entry.name for entry in registry.entries()}
    assert {*SKIPPED, *BRAX, *MEMORY, *LONG} <= names
    assert {id if id in names else id.rpartition("/")[0] for id in ODD} <= names


@struct.dataclass
class State(EnvState):
    place: jax.Array


@dataclasses.dataclass(frozen=True)
class Corridor(Environment):
    """Start at 0 or 1, walk right to ``length``; actions 0 (stay) and 1 (walk); each step costs 1."""

    length: int = 3

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=5)

    def reset_env(self, key, params):
        state = State(jnp.int32(0), jax.random.randint(key, (), 0, 2, jnp.int32))
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        state = State(state.time + 1, jnp.minimum(state.place + action, self.length))
        return self.observe(state), state, jnp.float32(-1), state.place == self.length, {}

    def observe(self, state):
        return state.place[None].astype(jnp.float32)

    def observation_space(self, params):
        return Box(0, self.length, (1,))

    def action_space(self, params):
        return Discrete(2)


def test_the_sound_corridor_has_no_findings():
    assert check_env(Corridor()) == []
    assert check_env(Corridor(), strict=True, steps=1, key=jax.random.key(1)) == []


def test_step_ends_and_restarts_episodes():
    env, params = Corridor(), EnvParams(max_steps_in_episode=5)
    key = jax.random.key(7)
    fresh_obs, fresh_state = env.reset_env(jax.random.split(key)[1], params)

    def step(time, place, action):
        return env.step(key, State(jnp.int32(time), jnp.int32(place)), jnp.int32(action), params)

    obs, state, reward, terminated, truncated, info = step(time=1, place=1, action=1)  # inside an episode
    assert (obs, state.time, state.place, reward, terminated, truncated) == (2, 2, 2, -1, False, False)
    assert info["final_observation"] == 2

    obs, state, _, terminated, truncated, info = step(time=1, place=2, action=1)  # the natural end
    assert (terminated, truncated, info["final_observation"]) == (True, False, 3)
    assert (obs, state) == (fresh_obs, fresh_state)

    obs, state, _, terminated, truncated, info = step(time=4, place=1, action=0)  # the clock
    assert (terminated, truncated, info["final_observation"]) == (False, True, 1)
    assert (obs, state) == (fresh_obs, fresh_state)

    *_, terminated, truncated, info = step(time=4, place=2, action=1)  # both
    assert (terminated, truncated) == (True, True)
    assert (info["terminated"], info["truncated"]) == (True, True)


def test_auto_reset_draws_fresh_starts():
    env, params = Corridor(), EnvParams(max_steps_in_episode=1)
    _, state = env.reset(jax.random.key(0), params)
    starts = [int(env.step(jax.random.key(i), state, 0, params)[1].place) for i in range(16)]
    assert set(starts) == {0, 1}


def test_an_equal_environment_is_not_compiled_again():
    key = jax.random.key(0)
    _, state = Corridor(7).reset(key)
    Corridor(7).step(key, state, jnp.int32(0))
    before = Environment.step._cache_size()
    _, state, *_ = Corridor(7).step(key, state, jnp.int32(1))
    Corridor(7).step(key, state, jnp.int32(1))
    assert Environment.step._cache_size() == before
    Corridor(8).step(key, state, jnp.int32(1))
    assert Environment.step._cache_size() == before + 1


def test_structured_spaces_are_checked_too():
    space = Dict({"card": MultiDiscrete((4, 2)), "rest": Tuple((Discrete(2), Box(-1, 1, ())))})

    class Table(Corridor):
        def observe(self, state):
            place = state.place
            return {"card": jnp.stack([place, place % 2]), "rest": (place % 2, jnp.float32(place) / 3)}

        def observation_space(self, params):
            return space

    assert check_env(Table(), eager=False) == []
    space = Dict({"card": MultiDiscrete((3, 2)), "rest": Tuple((Discrete(2), Box(-1, 1, ())))})
    assert check_env(Table(), eager=False) == [
        "obs['card'] leaves its space in 1 of 2 entries, as [0]: seen 0..3, declared 0..2: declare what it reaches"
    ]
    space = Dict({"card": MultiDiscrete((4, 2)), "rest": Tuple((Box(-1, 1, ()), Discrete(2)))})
    found = "\n".join(check_env(Table(), eager=False))
    assert "obs['rest'][0] is int32[] but observation_space declares float32[]" in found
    space = Dict({"cards": Discrete(2)})
    assert "obs is not a dict of ['cards']" in "\n".join(check_env(Table(), eager=False))
    space = Tuple((Discrete(2),))
    assert "obs is not a tuple of 1" in "\n".join(check_env(Table(), eager=False))


def stepping(**changes):
    """A corridor whose step_env returns something else in the named places."""

    class Changed(Corridor):
        def step_env(self, key, state, action, params):
            obs, state, reward, terminated, info = super().step_env(key, state, action, params)
            values = {"obs": obs, "state": state, "reward": reward, "terminated": terminated, "info": info}
            return tuple({**values, **{k: f(values) for k, f in changes.items()}}.values())

    return Changed()


def changed(**methods):
    """A corridor with other methods."""
    return type("Changed", (Corridor,), methods)()


@dataclasses.dataclass(frozen=True)
class Listed(Corridor):
    names: list = dataclasses.field(default_factory=lambda: ["left", "right"])


class Plain(Corridor):
    __hash__, __eq__ = object.__hash__, object.__eq__


class Unfinished(Environment):
    pass


def _impure(values):
    return jnp.float32(np.random.default_rng().uniform())


def _callback(values):
    return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), jnp.float32), values["obs"][0])


UNSOUND = {
    "unfinished": (Unfinished(), ["reset_env is missing: define it", "step_env is", "action_space is"]),
    "alien": (object(), ["is_truncated is missing: inherit it", "default_params is missing", "step is missing"]),
    "unhashable": (Listed(), ["not hashable, so that jit cannot take it", "frozen dataclass"]),
    "compared by identity": (Plain(), ["a copy of it is not equal to it", "frozen dataclass"]),
    "obs shape": (
        stepping(obs=lambda v: jnp.zeros(2)),
        ["obs is float32[1] after a reset and float32[2] after a step"],
    ),
    "state dtype": (
        stepping(state=lambda v: v["state"].replace(place=v["state"].place.astype(jnp.float32))),
        ["state.place is int32[] after a reset and float32[] after a step: give both one shape and dtype"],
    ),
    "state structure": (
        stepping(state=lambda v: EnvState(v["state"].time)),
        ["state is PyTreeDef", "return the same structure"],
    ),
    "weak state": (
        changed(reset_env=lambda self, key, params: (jnp.zeros(1), State(0, jax.random.randint(key, (), 0, 2)))),
        ["state.time is weakly typed after a reset and a step, which compiles twice: use jnp.asarray(x, jnp.int32)"],
    ),
    "obs against its space": (
        changed(observation_space=lambda self, params: Box(0, 3, (1,), jnp.int32)),
        ["obs is float32[1] but observation_space declares int32[1]: change one of them"],
    ),
    "obs out of range": (
        changed(observation_space=lambda self, params: Box(0, 2, (1,))),
        ["obs leaves its space in 1 of 1 entries, as [0]: seen 0.0..3.0, declared 0.0..2.0"],
    ),
    "obs not finite": (stepping(obs=lambda v: v["obs"] / (v["state"].place[None] - 2)), ["obs is not always finite"]),
    "reward dtype": (stepping(reward=lambda v: jnp.int32(1)), ["the reward is int32[], not a float32 scalar"]),
    "reward shape": (stepping(reward=lambda v: jnp.zeros(1)), ["the reward is float32[1], not a float32 scalar"]),
    "reward not finite": (stepping(reward=lambda v: jnp.log(v["obs"][0])), ["the reward is not always finite"]),
    "terminated dtype": (stepping(terminated=lambda v: jnp.float32(0)), ["terminated is float32[], not a bool scalar"]),
    "truncated dtype": (
        changed(is_truncated=lambda self, state, params: (state.time >= 5).astype(jnp.int32)),
        ["what is_truncated returns is int32[], not a bool scalar"],
    ),
    "time stands still": (
        stepping(state=lambda v: v["state"].replace(time=jnp.int32(0)), terminated=lambda v: jnp.bool_(False)),
        ["state.time does not count", "no episode ended in 12 steps but the limit is 5"],
    ),
    "time of another type": (
        changed(
            reset_env=lambda self, key, params: (jnp.zeros(1), State(jnp.float32(0), jax.random.randint(key, (), 0, 2)))
        ),
        ["state.time is float32[], not a int32 scalar"],
    ),
    "four values": (
        changed(step_env=lambda self, key, state, action, params: (jnp.zeros(1), state, jnp.float32(0), {})),
        ["step_env returns 4 values, not the 5 of gymnax 1.x: (obs, state, reward, terminated, info)"],
    ),
    "branches on values": (
        stepping(reward=lambda v: jnp.float32(1) if v["terminated"] else jnp.float32(0)),
        ["step_env raises TracerBoolConversionError", "branch and index with jnp.where, lax.cond and lax.scan"],
    ),
    "no vmap": (stepping(reward=_callback), ["step inside jit(vmap(lax.scan)) raises"]),
    "key ignored": (
        changed(reset_env=lambda self, key, params: (jnp.zeros(1), State(jnp.int32(0), jnp.int32(0)))),
        [SAME_START + ": does reset_env use its key?"],
    ),
    "jit changes it": (stepping(reward=_impure), ["step_env gives something else under jit"]),
    "reset under jit": (
        changed(
            reset_env=lambda self, key, params: (
                _impure(0)[None],
                State(jnp.int32(0), jax.random.randint(key, (), 0, 2)),
            )
        ),
        ["reset_env gives something else under jit"],
    ),
    "final observation": (
        changed(
            step=lambda self, *args: (
                *(values := Corridor.step(self, *args))[:5],
                {**values[5], "final_observation": values[0] + 1},
            )
        ),
        ["info['final_observation'] differs from obs inside an episode"],
    ),
    "no final observation": (
        changed(step=lambda self, *args: (*Corridor.step(self, *args)[:5], {})),
        ["step's info has no 'final_observation' like obs"],
    ),
}


@pytest.mark.parametrize("fault", UNSOUND)
def test_the_checker_finds(fault):
    env, messages = UNSOUND[fault]
    text = "\n".join(check_env(env, eager="jit" in fault))
    for message in messages:
        assert message in text


def test_the_checker_reports_everything_at_once_and_raises_when_strict():
    env = stepping(reward=lambda v: jnp.int32(1), terminated=lambda v: jnp.float32(0), obs=lambda v: v["obs"] + 1)
    found = check_env(env, eager=False)
    assert len(found) == 3
    with pytest.raises(ValueError, match="violates the environment contract") as error:
        check_env(env, eager=False, strict=True)
    assert all(text in str(error.value) for text in found)
    assert check_env(UNSOUND["key ignored"][0], eager=False, strict=True) != []  # a warning, hence no error


def test_the_checker_takes_environments_of_gymnax():
    import gymnax

    env, params = gymnax.make("MountainCar-v0")
    found = check_env(env, params, eager=False, steps=20)
    subjects = [text.split(" ")[0] for text in found]
    assert subjects == ["a", "observation_space", "action_space", "state.time", "state.velocity"]
