"""One task after another: when tasks change, what is left of the earlier ones, and how forgetting is measured."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from ssmrl import continual, nn, spaces
from ssmrl.agents.continual import ContinualDreamer
from ssmrl.envs import Environment, EnvParams, EnvState
from ssmrl.envs.trials import Trials

TASKS, UPDATES, ACTIONS, LENGTH = 3, 6, 64, 3


@struct.dataclass
class Wanted(EnvParams):
    """``action`` int32, which is rewarded."""

    action: int = 7


@dataclasses.dataclass(frozen=True)
class Button(Environment):
    """Observe which of 64 buttons the task wants, and earn 1 for each step in which it is pressed."""

    same: bool = False

    @property
    def default_params(self):
        return Wanted(max_steps_in_episode=LENGTH)

    def observation_space(self, params):
        return spaces.Discrete(ACTIONS)

    def action_space(self, params):
        return spaces.Discrete(ACTIONS)

    def sample_task(self, key, params):
        return params if self.same else params.replace(action=jax.random.randint(key, (), 0, ACTIONS))

    def reset_env(self, key, params):
        return jnp.int32(params.action), EnvState(jnp.int32(0))

    def step_env(self, key, state, action, params):
        pressed = (action == params.action).astype(jnp.float32)
        return jnp.int32(params.action), EnvState(state.time + 1), pressed, jnp.bool_(False), {}


def make_agent(env=Button(), **options):
    small = {"num_envs": 4, "num_steps": 4, "batch_size": 4, "batch_length": 4, "replay_ratio": 2, "dream_every": 4}
    nets = {"hidden": (8,), "heads": (8,), "groups": 2, "classes": 3, "bins": 5, "inputs": ("z", "h"), "horizon": 2}
    rates = {"learning_rate": 1e-2, "actor_learning_rate": 1e-2, "critic_learning_rate": 1e-2, "warmup": 0.0}
    more = {"prefill": 0, "replay_size": 64, "tasks": TASKS, "total_updates": float(UPDATES), "anneal": "linear"}
    model = nn.make_model("gru", d_model=8, num_layers=1)
    settings = {**small, **nets, **rates, **more, **options}
    return ContinualDreamer(env=env, env_params=env.default_params, model=model, **settings)


@pytest.fixture(scope="module")
def runs():
    """Two seeds, and then two that pay nothing, and much, for drift."""
    init = jax.jit(make_agent().init)
    update = jax.jit(lambda weight, state: make_agent(drift_weight=weight).update(state))
    found = []
    for seed, options in ((0, {}), (1, {}), (0, {"drift_weight": 0.0}), (0, {"drift_weight": 100.0})):
        agent = make_agent(**options)
        states, metrics = [init(jax.random.key(seed))], []
        for _ in range(UPDATES):
            state, measured = update(agent.drift_weight, states[-1])
            states.append(state)
            metrics.append(jax.device_get(measured))
        found.append(SimpleNamespace(agent=agent, states=states, metrics=metrics))
    assert update._cache_size() == 1, "the program was compiled again"
    return found


def collected(state):
    """The buttons that the frames of the replay show, ``[blocks, ...]``."""
    ring = state.learner.replay
    return np.asarray(ring.frames.obs)[: int(ring.size)]


def wanted(agent):
    return np.asarray(agent.task_params.action)


# A sequence of tasks


def test_each_task_is_learned_for_an_equal_share_from_frames_of_its_own(runs):
    run = runs[0]
    assert [m["task"] for m in run.metrics] == [0, 0, 1, 1, 2, 2]
    assert [int(s.learner.replay.size) for s in run.states] == [0, 1, 2, 1, 2, 1, 2]
    for i, state in enumerate(run.states[1:]):
        assert np.unique(collected(state)) == wanted(run.agent)[i // 2]
    # a linear schedule of two updates: all of the rate, then half of it
    np.testing.assert_allclose([m["learning_rate"] for m in run.metrics], [1e-2, 5e-3] * 3, rtol=1e-5)


def test_all_runs_have_the_same_tasks_which_differ_and_end_with_the_environments_own(runs):
    first, second = ([np.unique(collected(s)) for s in run.states[1:]] for run in runs[:2])
    np.testing.assert_array_equal(first, second)
    tasks = wanted(runs[0].agent)
    assert len(np.unique(tasks)) == TASKS
    assert tasks[-1] == 7
    actions = [run.states[-1].learner.replay.frames.action for run in runs[:2]]
    assert (actions[0] != actions[1]).any()  # the runs themselves differ


def test_what_a_task_learns_with_begins_anew(runs):
    states = runs[0].states
    # gradient steps since the task began, two in each update
    assert [int(s.learner.steps) for s in states] == [0, 2, 4, 2, 4, 2, 4]
    counts = [int(s.learner.opt_state["world"][1].count) for s in states]
    assert counts == [0, 2, 4, 2, 4, 2, 4]
    assert all((s.stream.frame.obs == wanted(runs[0].agent)[i // 2]).all() for i, s in enumerate(states[1:]))


def test_shared_parts_are_learned_from_the_first_task_alone(runs):
    states = [s.learner for s in runs[0].states]
    moved = [
        max(
            np.abs(np.asarray(x) - np.asarray(y)).max()
            for x, y in zip(*(jax.tree.leaves(s.params["world"]["encoder"]) for s in pair), strict=True)
        )
        for pair in itertools.pairwise(states)
    ]
    assert min(moved[:2]) > 1e-3
    assert moved[2:] == [0, 0, 0, 0]


def test_each_network_has_embeddings_of_its_own(runs):
    embeddings = [v["hyper"]["embedding"] for v in runs[0].states[0].learner.source.values()]
    assert len(embeddings) == 3
    for one, other in itertools.combinations(embeddings, 2):
        assert not np.isclose(one, other).any()


def test_the_policy_is_for_the_environments_own_task_and_frames_are_collected_by_that_of_the_task_learned(runs):
    run = runs[0]
    for state in run.states[:5]:
        own, last = (run.agent._generate(state.learner, jnp.int32(k)) for k in (int(state.learner.task), TASKS - 1))
        for got, want in ((run.agent._acting(state), own), (run.agent.policy(state), last)):
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got.params, want)
        differ = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), own, last)
        assert (max(jax.tree.leaves(differ)) > 1e-3) == (state is not run.states[0])


# What depends on the task


def tree_like(params, value):
    return jax.tree.map(lambda x: jnp.full_like(x, value), params)


PARAMS = {
    "memory": {"kernel": jnp.ones((2, 3))},
    "head": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)},
}


def by_hand(source, start, task):
    """The parameters of the head, in plain numpy."""
    embedding, affine = (np.asarray(source["hyper"][k], np.float64) for k in ("embedding", "map"))
    f = np.tanh(embedding[task] @ affine[:-1] + affine[-1])
    f /= np.abs(f).sum()
    return {
        k: np.asarray(start["head"][k], np.float64) + sum(f[r] * np.asarray(w)[r] for r in range(len(f)))
        for k, w in source["weights"]["head"].items()
    }


def disturb(source, key, size=0.3):
    leaves, structure = jax.tree.flatten(source)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def test_a_hypernetwork_makes_parameters_from_an_embedding():
    source, start = continual.create(PARAMS, ("head",), TASKS, 4, jax.random.key(0))
    for k in range(TASKS):
        assert jax.tree.all(jax.tree.map(jnp.array_equal, continual.generate(source, start, jnp.int32(k)), PARAMS))
    source = disturb(source, jax.random.key(1))
    made = [continual.generate(source, start, jnp.int32(k)) for k in range(TASKS)]
    for k in range(TASKS):
        for name, x in by_hand(source, start, k).items():
            np.testing.assert_allclose(made[k]["head"][name], x, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(made[k]["memory"]["kernel"], source["shared"]["memory"]["kernel"])
    assert np.abs(made[0]["head"]["kernel"] - made[1]["head"]["kernel"]).max() > 1e-2


@pytest.mark.parametrize("features", [0, 4, 64])
def test_a_step_of_adam_moves_the_parameters_of_a_task_by_its_size(features):
    """Its first step, which follows the gradient's sign: whatever they are made of, and of how much."""
    source, start = continual.create(PARAMS, ("head",), TASKS, features, jax.random.key(0))

    def make(source):
        return continual.generate(source, start, jnp.int32(1))["head"]["kernel"]

    @jax.jit
    def moved(source):
        gradient = jax.grad(lambda s: make(s).sum())(source)
        return make(jax.tree.map(lambda x, g: x - 0.125 * jnp.sign(g), source, gradient))

    np.testing.assert_allclose(moved(source), PARAMS["head"]["kernel"] - 0.125, rtol=1e-5)


def test_drift_is_the_mean_squared_distance_of_what_is_made_for_earlier_tasks():
    before, start = continual.create(PARAMS, ("head",), TASKS, 4, jax.random.key(0))
    before = disturb(before, jax.random.key(1))
    now = disturb(before, jax.random.key(2), 0.1)
    for task in range(TASKS):
        assert continual.drift(before, before, jnp.int32(task)) == 0
        distances = []
        for k in range(task):
            one, other = by_hand(now, start, k), by_hand(before, start, k)
            distances.append(sum(((one[name] - other[name]) ** 2).sum() for name in one))
        want = np.mean(distances) if task else 0.0
        np.testing.assert_allclose(continual.drift(now, before, jnp.int32(task)), want, rtol=1e-4)
        assert (want > 0) == (task > 0)


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_holding_on_to_what_was_made_keeps_the_earlier_task_while_a_new_one_is_learned(weight):
    source, start = continual.create(PARAMS, ("head",), 2, 8, jax.random.key(0))
    goals = tree_like(start, 1.5), tree_like(start, -1.5)

    def error(source, task):
        made = {"head": continual.generate(source, start, jnp.int32(task))["head"]}
        return sum(((x - y) ** 2).sum() for x, y in zip(*map(jax.tree.leaves, (made, goals[task])), strict=True))

    @functools.partial(jax.jit, static_argnums=(2,))
    def descend(source, before, task):
        def loss(s):
            return error(s, task) + weight * continual.drift(s, before, jnp.int32(task))

        def step(_, s):
            return jax.tree.map(lambda x, g: x - 0.02 * g, s, jax.grad(loss)(s))

        return jax.lax.fori_loop(0, 2000, step, source)

    source = descend(source, source, 0)
    assert error(source, 0) < 1e-2
    after = descend(source, source, 1)
    assert error(after, 1) < 0.1
    assert (error(after, 0) < 0.1) if weight else (error(after, 0) > 1)


def test_in_training_drift_begins_at_zero_and_less_of_it_is_left_where_it_costs_more(runs):
    _, _, free, held = runs
    for run in runs:
        assert [m["drift"] for m in run.metrics[:2]] == [0, 0]
        assert min(m["drift"] for m in run.metrics[2:]) > 0
    assert held.metrics[3]["drift"] < 0.9 * free.metrics[3]["drift"]  # after four steps of Adam


def test_heads_of_their_own_do_not_touch_those_of_other_tasks():
    source, start = continual.create(PARAMS, ("head",), TASKS, 0, jax.random.key(0))
    source = disturb(source, jax.random.key(1))
    for k in range(TASKS):
        made = continual.generate(source, start, jnp.int32(k))
        want = np.asarray(PARAMS["head"]["kernel"]) + source["weights"]["head"]["kernel"][k]
        np.testing.assert_allclose(made["head"]["kernel"], want, rtol=1e-6)
    gradient = jax.grad(lambda s: continual.generate(s, start, jnp.int32(1))["head"]["kernel"].sum())(source)
    np.testing.assert_array_equal(gradient["weights"]["head"]["kernel"].sum((1, 2)), [0, 6, 0])
    assert continual.drift(source, disturb(source, jax.random.key(2)), jnp.int32(2)) == 0


# Measuring


def test_forgetting_is_what_an_earlier_task_was_worth_less_what_it_is_worth(runs):
    agent, state = runs[0].agent.replace(actor_unimix=0.0), runs[0].states[-1]
    tasks = wanted(agent)
    learner = state.learner
    # an actor that presses the second task's button, whatever the task
    bias = 50.0 * jax.nn.one_hot(tasks[1], ACTIONS)
    actor = tree_like(learner.start["actor"], 0.0)
    actor["actor"]["layers_1"]["bias"] = bias
    none = tree_like(learner.source["actor"]["weights"], 0.0)
    learner = learner.replace(
        start={**learner.start, "actor": actor},
        source={**learner.source, "actor": {**learner.source["actor"], "weights": none}},
    )
    evaluate = jax.jit(agent.evaluate, static_argnames="episodes")

    def found(task, late):
        new = learner.replace(task=jnp.int32(task), late=jnp.asarray(late, jnp.float32))
        return {k: float(v) for k, v in evaluate(state.replace(learner=new), jax.random.key(3), episodes=5).items()}

    returns = {"return/task_0": 0.0, "return/task_1": LENGTH, "return/task_2": 0.0}
    # late in its learning, the first task brought 8 in 4 episodes, the second one 12 in 6
    assert found(2, [[8, 12, 0], [4, 6, 0]]) == returns | {"return_mean": 1.0, "forgetting": (2 - 0 + 2 - 3) / 2}
    assert found(1, [[8, 0, 0], [4, 0, 0]]) == returns | {"return_mean": 1.0, "forgetting": 2.0}
    assert found(0, [[0, 0, 0], [0, 0, 0]]) == returns | {"return_mean": 1.0, "forgetting": 0.0}


def test_what_a_task_is_worth_is_taken_from_the_last_of_its_updates(runs):
    run = runs[0]
    late = np.asarray(run.states[-1].learner.late)
    for task in range(TASKS):
        last = run.metrics[2 * task + 1]
        assert late[1, task] == last["episodes"] > 0
        np.testing.assert_allclose(late[0, task], last["return_mean"] * last["episodes"], rtol=1e-5)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Button(same=True), "tasks that differ: Button has but one"),
        (Trials(Button(), 2, 0), "plain episodes: got trials of"),
    ],
)
def test_environments_without_a_sequence_are_refused(env, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make_agent(env).init, jax.random.key(0))
