"""What every registered agent promises, and that recurrent PPO learns from exactly what it did."""

import dataclasses
from types import SimpleNamespace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import checkpoint, envs, nn, registry, spaces
from ssmrl.agents import learned_of
from ssmrl.envs import Environment, EnvParams, EnvState
from ssmrl.nn.actor_critic import ActorCritic
from ssmrl.policy import Policy, RunningStats
from ssmrl.registry import hp
from ssmrl.returns import gae
from ssmrl.rollout import Outcome, Transition, reset_batch, unroll

AGENTS = [e.name for e in registry.agents.entries() if not e.alias]
MODELS = [e.name for e in registry.models.entries() if not e.alias]
INPUTS = [("obs",), ("obs", "action"), ("obs", "reward"), ("obs", "start"), ("obs", "action", "reward", "start")]
SMALL = {
    "ppo": {"num_envs": 4, "num_steps": 8, "epochs": 1, "num_minibatches": 1, "heads": (8,)},
    "s4wm": {
        "num_envs": 4,
        "num_steps": 8,
        "hidden": (8,),
        "groups": 2,
        "classes": 3,
        "bins": 5,
        "warmup": 0.0,
        "anneal": "none",
    },
}
SMALL["dreamer"] = {
    **SMALL["s4wm"],
    "heads": (8,),
    "prefill": 0,
    "replay_size": 256,
    "replay_ratio": 2,
    "batch_size": 4,
    "batch_length": 8,
    "dream_every": 4,
    "horizon": 3,
}
SMALL["planner"] = {**SMALL["dreamer"], "plan_horizon": 2, "plan_samples": 3, "plan_elites": 2, "plan_proposals": 1}
SMALL["continual_dreamer"] = {**SMALL["dreamer"], "tasks": 1}
TWICE = {"ppo": {"num_minibatches": 2, "epochs": 2}}


@dataclasses.dataclass(frozen=True)
class Noise(Environment):
    """Random observations; episodes terminate by chance and are truncated after 5 steps; rewards depend on actions."""

    acts: Literal["discrete", "multi", "box"] = hp("discrete", "action space")
    image: bool = hp(False, "observe images")

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=5)

    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (5, 5, 2) if self.image else (3,))

    def action_space(self, params):
        return {
            "discrete": spaces.Discrete(3),
            "multi": spaces.MultiDiscrete((2, 3)),
            "box": spaces.Box(-2.0, 2.0, (2,)),
        }[self.acts]

    def reset_env(self, key, params):
        return 2.0 + 3.0 * jax.random.normal(key, self.observation_space(params).shape), EnvState(jnp.int32(0))

    def step_env(self, key, state, action, params):
        obs = 2.0 + 3.0 * jax.random.normal(key, self.observation_space(params).shape)
        reward = jnp.sum(action) + obs.mean()
        return obs, state.replace(time=state.time + 1), reward, jax.random.bernoulli(key, 0.2), {}


@pytest.fixture(scope="module", autouse=True)
def noise():
    envs.register("test/Noise")(Noise)
    yield
    registry.envs._user.clear()


def make_agent(name, model="gru", noise=Noise(), **options):
    module = nn.make_model(model, d_model=8, num_layers=1, **({"d_state": 8} if model == "s5" else {}))
    agent = registry.agents.load(registry.agents.find(name))
    return agent(env=noise, env_params=noise.default_params, model=module, **{**SMALL[name], **options})


DREAMERS = ("planner", "continual_dreamer")  # subclasses of Dreamer with tests of their own: minutes of compilation


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[pytest.mark.slow] if n in DREAMERS else []) for n in AGENTS]
)
def trained(request):
    """Two updates (of PPO with two minibatches and two epochs): agent, compiled update, and the three states."""
    agent = make_agent(request.param, "s5", **TWICE.get(request.param, {}))
    init, update = jax.jit(agent.init), jax.jit(agent.update)
    states, metrics = [init(jax.random.key(0))], []
    for _ in range(2):
        state, measured = update(states[-1])
        states.append(state)
        metrics.append(measured)
    return SimpleNamespace(agent=agent, init=init, update=update, states=states, metrics=metrics)


def test_two_updates(trained):
    states, metrics = trained.states, trained.metrics
    assert trained.update._cache_size() == 1, "the second update was compiled again"
    for measured in metrics:
        assert {"loss", "grad_norm"} <= measured.keys()
        assert not hasattr(trained.agent, "policy") or {"return_mean", "length_mean", "episodes"} <= measured.keys()
        assert all(v.shape == () and np.isfinite(v) for v in measured.values()), measured
    assert [int(s.updates) for s in states] == [0, 1, 2]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), states[0].params, states[2].params)
    assert all(jax.tree.leaves(moved)), f"parameters that do not learn: {moved}"


def test_parameters_that_are_lost_show_in_the_loss_or_its_gradient(trained):
    """Whichever they are: that is how a run notices that it diverged."""
    for part in trained.states[2].params:

        def lose(path, x, part=part):
            keys = {getattr(k, "key", getattr(k, "name", None)) for k in path}
            return x * jnp.nan if {"params", part} <= keys else x

        _, measured = trained.update(jax.tree_util.tree_map_with_path(lose, trained.states[2]))
        assert not np.isfinite(measured["loss"] + measured["grad_norm"]), part


def test_another_run_can_start_with_all_that_acting_needs(trained, tmp_path):
    first, last = (jax.tree.map(lambda x: x[None], trained.states[i]) for i in (0, 2))
    parts = learned_of(trained.agent)
    if not parts:  # cannot, and init_from says so
        return
    started = checkpoint.restore_parts(checkpoint.save(tmp_path, last, env_steps=1), first, parts)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), started.params, last.params)
    assert all(jax.tree.leaves(same)), same
    if hasattr(trained.agent, "policy"):
        policies = [jax.tree.leaves(trained.agent.policy(state)) for state in (started, last)]
        assert all(np.array_equal(a, b) for a, b in zip(*policies, strict=True))
    assert int(started.updates[0]) == 0


def test_the_state_is_strongly_typed_and_keeps_its_types(trained):
    states = trained.states
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), s) for s in states]
    assert kinds[0] == kinds[1] == kinds[2]
    for path, leaf in jax.tree_util.tree_leaves_with_path(states[0]):
        assert isinstance(leaf, jax.Array), path
        assert not getattr(leaf, "weak_type", False), path
        assert leaf.dtype.itemsize <= 8, path


def test_same_key_same_result(trained):
    once, again = (trained.states[1], trained.metrics[0]), trained.update(trained.init(jax.random.key(0)))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), once, again))
    other, _ = trained.update(trained.init(jax.random.key(1)))
    theirs, ours = (s.env.obs if hasattr(s, "env") else s.stream.frame.obs for s in (other, once[0]))
    assert not (theirs == ours).any()


def test_a_population_is_its_members_alone(trained):
    """Over seeds and learning rates at once; the first member is the run of the fixture, the last does not learn."""
    agent, states, metrics = trained.agent, trained.states, trained.metrics
    names = [f.name for f in dataclasses.fields(agent) if f.name.endswith("learning_rate")]
    rates = {name: getattr(agent, name) * jnp.array([1.0, 1.0, 0.0]) for name in names}
    keys = jax.vmap(jax.random.key)(jnp.array([0, 1, 0]))

    @jax.jit
    @jax.vmap
    def two_updates(key, rates):
        member = agent.replace(**rates)
        start = member.init(key)
        return start.params, *jax.lax.scan(lambda s, _: member.update(s), start, length=2)

    started, population, measured = two_updates(keys, rates)
    first, second, still = (jax.tree.map(lambda x, i=i: x[i], population) for i in range(3))
    for ours, alone in zip(jax.tree.leaves(first.params), jax.tree.leaves(states[2].params), strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(measured["loss"][0], [m["loss"] for m in metrics], rtol=1e-3, atol=1e-5)
    assert not np.allclose(measured["loss"][0], measured["loss"][1])
    assert not jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b), first.params, second.params))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a[2] == b).all()), started, still.params))


@pytest.mark.parametrize(
    ("model", "noise", "options"),
    [
        (
            "gru",
            Noise(acts="multi"),
            {"posterior": "rssm", "inputs": ("z", "x"), "state_init": "burn_in", "batch_length": 16, "dream_every": 8},
        ),
        (
            "s5",
            Noise(acts="box"),
            {"actor_gradient": "dynamics", "normalize_obs": True, "priority": 0.5, "state_init": "zero", "heads": ()},
        ),
    ],
    ids=["multi-rssm-burn-in", "box-dynamics-priority"],
)
def test_dreamers_options_fit_together(model, noise, options):
    """Traced, not run: the state keeps its shapes and types, and there is a loss for every part."""
    agent = make_agent("dreamer", model, noise, **options)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    after, metrics = jax.eval_shape(agent.update, state)
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), s) for s in (state, after)]
    assert kinds[0] == kinds[1]
    assert {"loss", "actor_loss", "critic_loss"} <= metrics.keys()
    assert (state.obs_stats is not None) == ("normalize_obs" in options)


def ratio_errors(network, noise, key, shift=0):
    """Largest deviation of the probability ratio from 1 in two rollouts, the second one going on from the first.

    ``shift`` moves the reset flags by so many steps, as a wrong convention would.
    """
    policy = Policy(None, None, 0.5, network)
    key, key_reset = jax.random.split(key)
    batch, carry = reset_batch(noise, noise.default_params, 4, key_reset), policy.initial_carry(4)
    inputs = jax.tree.map(lambda x: x[None], (batch.obs, batch.reset, carry.action, batch.reward))
    shapes = jax.eval_shape(network.init, key, carry.memory, *inputs)["params"]
    policy = policy.replace(params=jax.tree.map(lambda p: 0.4 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), shapes))

    def rollout(state, key):
        carry, batch, t = unroll(noise, noise.default_params, policy, *state, 8, key)
        reset = jnp.roll(t.reset, shift, axis=0)
        _, dist, value = policy.sequence(state[0].memory, t.obs, reset, t.prev_action, t.prev_reward)
        ratio = jnp.exp(dist.log_prob(t.raw_action) - t.log_prob)
        return (carry, batch), (jnp.abs(ratio - 1).max(), (jnp.abs(value - t.value) / (1 + jnp.abs(value))).max())

    return jnp.stack(jax.lax.scan(rollout, (carry, batch), jax.random.split(key, 2))[1])


def network_of(model, inputs=INPUTS[-1], noise=Noise(), shared=True):
    memory = nn.make_model(model, d_model=8, num_layers=1, **({"d_state": 8} if model == "s5" else {}))
    space = noise.observation_space(None), noise.action_space(None)
    return ActorCritic(*space, memory, inputs, (), (8,), "tanh", shared)


# Every combination for the reference models; what a model makes of its inputs does not depend on which they are.
PAIRS = [
    (model, inputs)
    for model in MODELS
    for inputs in (INPUTS if model in ("s5", "gru", "lstm", "none") else (INPUTS[0], INPUTS[-1]))
]


@pytest.mark.parametrize(("model", "inputs"), PAIRS, ids=[f"{m}-{'+'.join(i)}" for m, i in PAIRS])
def test_the_parallel_pass_repeats_the_rollout(model, inputs):
    errors = jax.jit(lambda key: ratio_errors(network_of(model, inputs), Noise(), key))(jax.random.key(1))
    assert (errors < 1e-5).all(), errors


def test_a_shifted_reset_would_be_noticed():
    errors = jax.jit(lambda key: ratio_errors(network_of("gru"), Noise(), key, shift=1))(jax.random.key(1))
    assert (errors > 1e-3).all(), errors


@pytest.mark.parametrize(
    ("model", "noise", "options"),
    [
        ("gru", Noise(acts="box"), {"shared": False, "normalize_obs": True, "normalize_value": True}),
        ("s5", Noise(acts="multi", image=True), {"truncation": "terminate", "anneal": "cosine"}),
    ],
    ids=["box-apart-normalised", "multi-image"],
)
def test_the_first_ratio_of_every_update_is_one(model, noise, options):
    agent = make_agent("ppo", model, noise, learning_rate=1e-2, **options)
    update, state = jax.jit(agent.update), jax.jit(agent.init)(jax.random.key(0))
    for _ in range(3):
        state, metrics = update(state)
        assert metrics["ratio_error"] < 1e-5
        assert np.isfinite(metrics["loss"])
    assert update._cache_size() == 1


def blank_state(agent):
    """A state of zeros, without the cost of initialising one."""
    shapes = jax.eval_shape(agent.init, jax.random.key(0)).replace(key=None)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def crafted(T, values, rewards, terminated, truncated, final_value):
    """A rollout of one environment, as the agent would have made it."""
    column = lambda x, dtype=jnp.float32: jnp.asarray(x, dtype)[:, None]  # noqa: E731
    zeros = jnp.zeros((T, 1))
    outcome = Outcome(
        column(rewards), column(terminated, bool), column(truncated, bool), (), zeros, jnp.zeros((T, 1), jnp.int32)
    )
    return Transition(
        obs=zeros,
        reset=jnp.zeros((T, 1), bool),
        prev_action=jnp.zeros((T, 1), jnp.int32),
        prev_reward=zeros,
        raw_action=jnp.zeros((T, 1), jnp.int32),
        log_prob=zeros,
        value=column(values),
        final_value=column(final_value),
        outcome=outcome,
    )


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [
        # lambda 1: discounted rewards up to the end, plus .9^n of what was there. Steps 0-2: the clock, final value 7;
        # steps 3-4: terminated; step 5: both; step 6: the rollout ends, value 4 follows
        ("bootstrap", [1 + 0.9 + 0.81 + 0.729 * 7, 1 + 0.9 + 0.81 * 7, 1 + 0.9 * 7, 1.9, 1, 1, 1 + 0.9 * 4]),
        ("terminate", [2.71, 1.9, 1, 1.9, 1, 1, 1 + 0.9 * 4]),
    ],
)
def test_targets_at_a_time_limit(truncation, expected):
    agent = make_agent("ppo", gamma=0.9, gae_lambda=1.0, truncation=truncation)
    terminated, truncated = [0, 0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 1, 0]
    rollout = crafted(7, [0.5, -1, 2, 0, 3, 1, 9], [1] * 7, terminated, truncated, [0, 0, 7, 0, 0, 0, 0])
    state = blank_state(agent)
    batch, _ = jax.jit(lambda: agent._advantages(state, rollout, jnp.array([4.0])))()
    np.testing.assert_allclose(batch.target[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(batch.advantage, batch.target - rollout.value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("truncation", "limit"), [("bootstrap", 10.0), ("terminate", (4.0951 + 3.439 + 2.71 + 1.9 + 1) / 5)]
)
def test_an_endless_stream_of_rewards_is_worth_one_over_one_minus_gamma(truncation, limit):
    """Reward 1 for ever, the clock strikes every 5 steps: fitted value iteration with the agent's own targets."""
    agent = make_agent("ppo", gamma=0.9, gae_lambda=1.0, truncation=truncation)
    state = blank_state(agent)

    def fit(_, value):
        values = jnp.full(5, value)
        rollout = crafted(5, values, [1] * 5, [0] * 5, [0, 0, 0, 0, 1], values * jnp.array([0, 0, 0, 0, 1]))
        return agent._advantages(state, rollout, values[:1])[0].target.mean()

    value = jax.jit(lambda: jax.lax.fori_loop(0, 150, fit, jnp.float32(0)))()
    np.testing.assert_allclose(value, limit, rtol=1e-3)


def test_value_units_cancel():
    """Values learnt in units of the running deviation give the same advantages, up to that unit."""
    agent = make_agent("ppo")
    state = blank_state(agent)
    stats = RunningStats(jnp.float32(5), jnp.float32(4), jnp.float32(100))
    ends = [0, 0, 1, 0], [0, 1, 0, 0]

    @jax.jit
    def batch(state, values, final, last):
        return agent._advantages(state, crafted(4, values, [1, 2, 3, 4], *ends, final), last)[0]

    raw = batch(state, jnp.array([7, 9, 3, 5]), jnp.array([0, 11, 0, 0]), jnp.array([15.0]))
    units = state.replace(value_stats=stats)
    unit = batch(units, jnp.array([1, 2, -1, 0]), jnp.array([0, 3, 0, 0]), jnp.array([5.0]))
    np.testing.assert_allclose(unit.advantage * 2, raw.advantage, rtol=1e-4)
    np.testing.assert_allclose(unit.target * 2 + 5, raw.target, rtol=1e-4)


def test_gae_by_hand():
    """Two steps, lambda .5: delta_0 + .9 * .5 * delta_1."""
    one = lambda *x: jnp.array(x)[:, None]  # noqa: E731
    none = jnp.zeros((2, 1), bool)
    advantage = gae(one(1.0, 2.0), one(3.0, 4.0), one(4.0, 5.0), none, none, 0.9, 0.5)
    np.testing.assert_allclose(advantage[:, 0], [1 + 3.6 - 3 + 0.45 * 2.5, 2 + 4.5 - 4], rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    agent = make_agent("ppo", max_grad_norm=0.5)
    clip = agent._adam()
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    _, state = clip.update(gradient, clip.init(gradient))
    clipped = jax.tree.map(lambda m: m / 0.1, state[1].mu)  # Adam's first moment after one step
    np.testing.assert_allclose(clipped["a"], [0.3, 0], rtol=1e-5)
    np.testing.assert_allclose(clipped["b"], [0.4], rtol=1e-5)


@pytest.mark.parametrize(("anneal", "halfway", "end"), [("none", 1.0, 1.0), ("linear", 0.6, 0.2), ("cosine", 0.6, 0.2)])
def test_learning_rate_schedules(anneal, halfway, end):
    agent = make_agent("ppo", learning_rate=2.0, anneal=anneal, anneal_to=0.2).replace(total_updates=10.0)
    rates = [float(agent._learning_rate(jnp.int32(n))) for n in (0, 5, 10, 11)]
    np.testing.assert_allclose(rates, [2.0, 2 * halfway, 2 * end, 2 * end], rtol=1e-5)


def test_state_space_parameters_have_their_own_step_size_and_no_decay():
    agent = make_agent("ppo", "s5", learning_rate=0.5, ssm_learning_rate_scale=0.0, weight_decay=0.1)
    ones = jax.tree.map(jnp.ones_like, blank_state(agent).params)

    @jax.jit
    def move(gradient):
        return agent._apply_gradient(ones, agent._adam().init(ones), gradient, jnp.int32(0))[0]

    for path, leaf in jax.tree_util.tree_leaves_with_path(move(jax.tree.map(jnp.zeros_like, ones))):
        np.testing.assert_allclose(leaf, 0.95 if path[-1].key == "kernel" else 1.0, err_msg=str(path))
    pushed = jax.tree_util.tree_leaves_with_path(move(ones))
    still = {path[-1].key for path, leaf in pushed if (leaf == 1).all()}
    assert still == set(agent.model.layer.ssm_parameters) - {"h_init"}  # which is not learnt here
