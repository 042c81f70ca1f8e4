"""Dreamer: what it collects, from which states it learns, and the loss of actor and critic by hand."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from ssmrl import envs, nn, spaces
from ssmrl.agents.dreamer import Dreamer, Learner
from ssmrl.envs import Environment, EnvParams, EnvState
from ssmrl.nn import observations
from ssmrl.nn.distributions import Categorical
from ssmrl.world_model import Latents, Predictions, WorldState
from ssmrl.world_policy import Dream


def cut(tree, *index):
    return jax.tree.map(lambda x: x[index], tree)


def assert_close(got, want, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, tolerance, tolerance)


# What is collected


@struct.dataclass
class Page(EnvState):
    episode: jax.Array
    action: jax.Array


@dataclasses.dataclass(frozen=True)
class Diary(Environment):
    """Observes the episode's number, the last action (from 1; 0 at the start) and the time.

    One episode in two terminates, after 1 to 4 steps by its number, and the clock ends the others after 5. The reward
    is the time and ten times the action, and 100 more at the termination.
    """

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=5)

    def observation_space(self, params):
        return spaces.MultiDiscrete((256, 4, 6))

    def action_space(self, params):
        return spaces.Discrete(3)

    def observe(self, state):
        return jnp.stack([state.episode, state.action + 1, state.time])

    def reset_env(self, key, params):
        state = Page(jnp.int32(0), jax.random.randint(key, (), 0, 256, jnp.int32), jnp.int32(-1))
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        state = Page(state.time + 1, state.episode, action)
        terminated = (state.episode % 2 == 0) & (state.time >= 1 + state.episode // 2 % 4)
        reward = (state.time + 10 * action).astype(jnp.float32) + 100 * terminated
        return self.observe(state), state, reward, terminated, {}


class Still(Dreamer):
    """Collects, and does not learn."""

    def _gradient_step(self, learner, *_):
        return learner, {}


N, T, C, UPDATES = 6, 5, 7, 10


@pytest.fixture(scope="module")
def collected():
    """States after each update, and all frames ``[UPDATES, T, N]`` and the states before them, as they came in."""
    memory = nn.make_model("gru", d_model=8)
    sizes = {"groups": 2, "classes": 3, "hidden": (8,), "heads": (8,), "bins": 5}
    agent = Still(Diary(), EnvParams(5), memory, num_envs=N, num_steps=T, replay_size=C * N * T + 1, batch_length=2 * T,
                  batch_size=3, replay_ratio=1, dream_every=T, **sizes)  # fmt: skip
    update, states = jax.jit(agent.update), [jax.jit(agent.init)(jax.random.key(0))]
    metrics = []
    for _ in range(UPDATES):
        state, measured = update(states[-1])
        states.append(state)
        metrics.append(measured)
    kept = [cut((s.learner.replay.frames, s.learner.replay.start), i % C) for i, s in enumerate(states[1:])]
    blocks, starts = jax.tree.map(lambda *x: np.stack(x), *kept)
    return SimpleNamespace(agent=agent, states=states, blocks=blocks, starts=starts, metrics=metrics)


def test_every_frame_is_what_happened(collected):
    """Actions led to the observation beside them, ends are there with their reward, and blocks join without a gap."""
    f = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), collected.blocks)
    episode, acted, time = np.moveaxis(f.obs.astype(int), -1, 0)
    action, reset, terminated = f.action.astype(int), f.reset, f.terminated
    assert reset[0].all()
    np.testing.assert_array_equal(reset, time == 0)
    np.testing.assert_array_equal(acted, np.where(reset, 0, action + 1), "the action did not lead there")
    assert not action[reset].any()
    ends = (episode % 2 == 0) & (time == 1 + episode // 2 % 4)
    np.testing.assert_array_equal(terminated, ends)
    np.testing.assert_array_equal(f.reward, np.where(reset, 0, time + 10 * action + 100 * ends))
    np.testing.assert_array_equal(reset[1:], (ends | (time == 5))[:-1], "the next frame does not start an episode")
    going = ~reset[1:]
    np.testing.assert_array_equal(time[1:][going], time[:-1][going] + 1)
    np.testing.assert_array_equal(episode[1:][going], episode[:-1][going])
    across = slice(T - 1, None, T)  # from one block to the next
    assert 0 < reset[1:][across].sum() < reset[1:][across].size
    assert ends.sum() > 10 < (time == 5).sum()
    assert set(np.unique(action[~reset])) == {0, 1, 2}


def test_the_ring_holds_the_newest_blocks_in_order(collected):
    ring = collected.states[-1].learner.replay
    assert ring.frames.obs.dtype == ring.frames.action.dtype == jnp.uint8
    assert (ring.capacity, int(ring.size), int(ring.head)) == (C, C, UPDATES % C)
    order = (int(ring.head) + np.arange(C)) % C
    for held, came in ((ring.frames, collected.blocks), (ring.start, collected.starts)):
        for a, b in zip(jax.tree.leaves(held), jax.tree.leaves(came), strict=True):
            np.testing.assert_array_equal(np.asarray(a)[order], b[-C:])


def test_returns_and_lengths_are_those_of_the_episodes_that_ended(collected):
    """Over all updates, against adding up; a terminal frame's reward counts, and its episode once."""
    f = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), collected.blocks)
    returns, lengths = [[] for _ in range(UPDATES)], [[] for _ in range(UPDATES)]
    next_reset = np.concatenate([f.reset[1:], np.asarray(collected.states[-1].stream.frame.reset)[None]])
    for env in range(N):
        total, length = 0.0, 0
        for t in range(UPDATES * T):
            total, length = (0.0, 0) if f.reset[t, env] else (total + f.reward[t, env], length + 1)
            if next_reset[t, env]:
                returns[t // T].append(total)
                lengths[t // T].append(length)
    for measured, own, steps in zip(collected.metrics, returns, lengths, strict=True):
        assert measured["episodes"] == len(own)
        np.testing.assert_allclose(measured["return_mean"], np.mean(own), rtol=1e-5)
        np.testing.assert_allclose(measured["length_mean"], np.mean(steps), rtol=1e-5)


def test_stored_states_are_those_of_a_model_that_saw_the_episode(collected):
    """From its start: what was before it, six frames ago at most, does not matter, however loud."""
    agent, params = collected.agent, collected.states[-1].params
    f = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), collected.blocks)
    stored = [*(cut(collected.starts, k) for k in range(UPDATES)), collected.states[-1].stream.carry.memory]
    windows = [cut(f, slice(T * k - 6, T * k)) for k in range(2, UPDATES + 1)]
    past = jax.tree.map(lambda *x: np.concatenate(x, 1), *windows)
    assert past.reset.any(0).all()
    loud = jax.tree.map(lambda x: 100 + jnp.zeros_like(x), agent.world_model.initial_state((past.reset.shape[1],)))

    @jax.jit
    def observe(past):
        world = agent.world_model
        return world.apply({"params": params["world"]}, loud, past, jax.random.key(9), "mode", method="observe")[0]

    assert_close(observe(past), jax.tree.map(lambda *x: np.concatenate(x), *stored[2:]))
    assert_close(stored[0], agent.world_model.initial_state((N,)))
    assert np.abs(stored[-1].memory[0] if isinstance(stored[-1].memory, tuple) else stored[-1].memory).max() > 0.01


def test_settings_with_which_nothing_is_learned_are_refused(collected):
    agent, trials = collected.agent, envs.make("meta/Bandit")[0]
    for options, message in (
        ({"env": trials, "env_params": trials.default_params}, "use agent.read_reward=true"),
        ({"inputs": ("x",), "model": nn.make_model("none", d_model=8)}, "add z or h"),
        (
            {"total_updates": 2.0},
            f"after {C * T * N} steps: got {2 * T * N} steps in all; use total_steps={2 * C * T * N}",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            agent.replace(**options).init(jax.random.key(0))


# The loss of actor and critic, around a world that can be computed by hand


class Toy(Dreamer):
    """Its network is :class:`Line`."""

    @property
    def network(self):
        return Line()


OPTIONS = {"gamma": 0.9, "return_lambda": 0.8, "horizon": 3, "entropy_coef": 0.1, "slow_weight": 0.5}


class Line:
    """A world on a line, in the place of ``WorldActorCritic``: ``x' = x + push[a]``, reward ``x'``, linear heads."""

    PUSH = jnp.array([-1.0, 0.5, 2.0])

    def apply(self, variables, *args, method):
        return getattr(self, method)(variables["params"], *args)

    def act(self, params, inputs):
        return Categorical(inputs @ params["actor"])

    def value_logits(self, params, inputs):
        return inputs @ params["critic"]

    def value(self, params, inputs):
        return observations.two_hot_mean(self.value_logits(params, inputs))

    def dream(self, params, state, h, horizon, key):
        x, inputs, raws, rewards = state.z[:, 0], [], [], []
        for k in jax.random.split(key, horizon):
            inputs.append(jnp.stack([x, jnp.ones_like(x)], -1))
            dist = self.act(params, inputs[-1])
            raws.append(dist.sample(k))
            x = x + params["world"]["push"] * (dist.flatten(raws[-1]) @ self.PUSH)
            rewards.append(x)
        inputs.append(jnp.stack([x, jnp.ones_like(x)], -1))
        half = jnp.arctanh(jnp.stack(rewards) / np.float32(BINS[3]))
        going_on = jnp.broadcast_to(params["world"]["going_on"][:horizon, None], half.shape)
        never = jnp.full_like(half, -30.0)
        reward = jnp.stack([never, -half, never, half, never], -1)  # of bins 1 and 3 of five, with the mean x
        return Dream(jnp.stack(inputs), jnp.stack(raws), Predictions((), reward, jnp.log(going_on / (1 - going_on))))


@jax.jit
def differentiate(agent, learner, x, terminated):
    """The loss and its gradients by the behaviour, all parameters and the slow critic."""
    states = WorldState(jnp.zeros((1, len(x))), x[None, :, None])
    seen = Latents(jnp.zeros((1, len(x), 1)), states.z, None, None, states)
    behaviour = {k: learner.params[k] for k in ("actor", "critic")}

    def loss(behaviour, params, slow):
        own = learner.replace(params=params, slow_critic=slow)
        return agent._behaviour_loss(behaviour, own, seen, terminated[None], jax.random.key(3))

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(behaviour, learner.params, learner.slow_critic)


def behave(learner, terminated=(False, False), x=(0.3, -0.8), **options):
    """Loss, gradients (of the behaviour, and of everything else), returns and metrics, from states ``x``."""
    agent = Toy(None, None, None, num_steps=1, dream_every=1, **{**OPTIONS, "return_rate": 0.0, **options})
    out, grads = differentiate(agent, learner, jnp.asarray(x, jnp.float32), jnp.asarray(terminated))
    loss, (returns, metrics) = out
    return SimpleNamespace(loss=loss, gradient=grads[0], others=grads[1:], returns=returns, metrics=metrics)


@pytest.fixture
def learner():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    world = {"push": jnp.float32(1.0), "going_on": jnp.array([0.9, 0.5, 0.7])}
    likely = jnp.array([[0.0] * 5, [-16.0, -4.0, 0.0, -4.0, -16.0]])  # values of some units, so that rewards matter
    params = {"world": world, "actor": draw(2, 3), "critic": 0.3 * draw(2, 5) + likely}
    slow, returns = 0.3 * draw(2, 5) + likely, jnp.array([-2.0, 3.0])
    return Learner(params, slow, {}, returns, horizon=jnp.float32(3), replay=None, steps=jnp.int32(7))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


BINS = np.array([-np.expm1(10), -np.expm1(5), 0, np.expm1(5), np.expm1(10)])  # evenly spaced in symlog


def two_hot(target):
    """Shares of scalars ``[...]`` in the two of five bins that they lie between."""
    return np.stack([np.interp(target, BINS, bin) for bin in np.eye(5)], -1)


@pytest.mark.parametrize("trusted", [3, 2])
def test_the_loss_by_hand(learner, trusted):
    """Three steps, of which some are trusted, from two states, of which one is an episode's last: in plain Python."""
    x, H = [0.3, -0.8], 3
    ours = behave(learner.replace(horizon=jnp.float32(trusted)), [False, True], return_rate=0.25)
    params, going_on = jax.device_get(learner.params), [0.9, 0.5, 0.7]
    dream = Line().dream(learner.params, WorldState((), jnp.array(x)[:, None]), None, H, jax.random.key(3))
    actions, inputs = np.asarray(dream.raw_action), np.asarray(dream.inputs)
    assert len(np.unique(actions)) > 1
    mean = lambda logits: (softmax(logits) * BINS).sum(-1)  # noqa: E731
    targets, weights = np.zeros((H, 2)), np.zeros((H, 2))
    for n in range(2):
        position, rewards = x[n], []
        for t in range(H):
            assert inputs[t, n, 0] == pytest.approx(position, abs=1e-5)
            position += [-1.0, 0.5, 2.0][actions[t, n]]
            rewards.append(position)
        value = mean(inputs[:, n] @ params["critic"])
        follows = value[H]
        for t in reversed(range(H)):
            after = value[t + 1] if t == trusted - 1 else 0.2 * value[t + 1] + 0.8 * follows
            follows = rewards[t] + 0.9 * going_on[t] * after
            targets[t, n] = follows
        weight = 0.0 if n == 1 else 1.0
        for t in range(H):
            weights[t, n] = weight if t < trusted else 0.0
            weight *= 0.9 * going_on[t]
    low = -2 + 0.25 * (np.percentile(targets, 5) + 2)
    high = 3 + 0.25 * (np.percentile(targets, 95) - 3)
    np.testing.assert_allclose(ours.returns, [low, high], rtol=1e-4)
    scale = max(1.0, high - low)
    assert scale > 1.1
    logits = inputs[:H] @ params["actor"]
    log_p = np.log(softmax(logits))
    values = mean(inputs[:H] @ params["critic"])
    chosen = np.take_along_axis(log_p, actions[..., None], -1)[..., 0]
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    actor = -(weights * ((targets - values) / scale * chosen + 0.1 * entropy)).mean()
    critic_log_p = np.log(softmax(inputs[:H] @ params["critic"]))
    slow = mean(inputs[:H] @ np.asarray(learner.slow_critic))
    critic = -(weights * ((two_hot(targets) + 0.5 * two_hot(slow)) * critic_log_p).sum(-1)).mean()
    for name, expected in {
        "imagined_return": targets.mean(),
        "actor_loss": actor,
        "critic_loss": critic,
        "entropy": entropy.mean(),
        "value_mean": mean(inputs @ params["critic"]).mean(),
        "return_spread": high - low,
    }.items():
        np.testing.assert_allclose(ours.metrics[name], expected, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(ours.loss, actor + critic, rtol=1e-4)
    # of the critic's log-likelihood, by hand: inputs x (what is predicted - what should be)
    wanted = two_hot(targets) + 0.5 * two_hot(slow)
    pull = weights[..., None] * (wanted.sum(-1, keepdims=True) * np.exp(critic_log_p) - wanted) / weights.size
    expected = np.einsum("tni,tnk->ik", inputs[:H], pull)
    np.testing.assert_allclose(ours.gradient["critic"], expected, rtol=1e-3, atol=1e-6)
    assert jnp.abs(ours.gradient["actor"]).max() > 1e-3
    over = behave(learner, [True, True])
    assert not any(jnp.any(g) for g in jax.tree.leaves(over.gradient)), "learns from what comes after the end"


def test_each_learns_from_its_own_loss(learner):
    base = behave(learner)
    assert not any(jnp.any(g) for g in jax.tree.leaves(base.others)), "the model and the slow critic are given"
    for options in ({"entropy_coef": 50.0}, {"actor_gradient": "dynamics"}):
        other = behave(learner, **options).gradient
        assert_close(other["critic"], base.gradient["critic"])
        assert not np.allclose(other["actor"], base.gradient["actor"], rtol=1e-2)
    other = behave(learner, slow_weight=0.0).gradient
    assert_close(other["actor"], base.gradient["actor"])
    assert not np.allclose(other["critic"], base.gradient["critic"], rtol=1e-2)


def test_returns_are_divided_by_their_spread_unless_it_is_small(learner):
    def gradient(low, high):
        return behave(learner.replace(returns=jnp.array([low, high])), entropy_coef=0.0).gradient["actor"]

    one = gradient(4.0, 5.0)
    assert_close(one, gradient(4.0, 4.1))
    assert_close(one, 4 * gradient(-1.0, 3.0))
    first = behave(learner.replace(steps=jnp.int32(0)))
    assert first.metrics["return_spread"] > 1.0, "the first returns are its beginning, not 0"


def test_both_gradients_of_the_actor_agree_where_both_are_exact(learner):
    """One step of a linear world: the expected reward's gradient is known, and both are estimates of it."""
    many, options = 100_000, {"horizon": 1, "entropy_coef": 0.0, "return_floor": 1e3, "gamma": 0.0}
    learner = learner.replace(params={**learner.params, "critic": jnp.zeros((2, 5))})
    probs = softmax(np.array([0.5, 1.0]) @ np.asarray(learner.params["actor"]))
    push = np.array([-1.0, 0.5, 2.0])
    exact = np.outer([0.5, 1.0], probs * (push - probs @ push))  # ascends the reward
    for kind in ("reinforce", "dynamics"):
        got = behave(learner, [False] * many, [0.5] * many, actor_gradient=kind, **options).gradient["actor"]
        np.testing.assert_allclose(-1e3 * np.asarray(got), exact, atol=0.02, err_msg=kind)
    assert np.abs(exact).max() > 0.1


@pytest.fixture(scope="module")
def trust(collected):
    """How far imagination is trusted, by its error and the stored states; what was observed and imagined for that."""
    state, spied = collected.states[-1], {}
    like = cut(state.learner.replay.frames, 0)
    like = like.replace(obs=like.obs.astype(jnp.int32), action=like.action.astype(jnp.int32))

    class Spy(type(collected.agent.world_model)):
        def observe(self, *args, **options):
            spied["observed"] = args[:2], super().observe(*args, **options)
            return spied["observed"][1]

        def imagine(self, *args, **options):
            spied["imagined"] = args[:2]
            return super().imagine(*args, **options)

    class Watched(Still):
        @property
        def world_model(self):
            return Spy(**{k: v for k, v in vars(super().world_model).items() if k in Spy.__dataclass_fields__})

    agent = collected.agent.replace(held_out=2, horizon=6, batch_length=3 * T, batch_size=16)
    agent = Watched(**{f.name: getattr(agent, f.name) for f in dataclasses.fields(agent)})

    @functools.partial(jax.jit, static_argnames="state_init")
    def measure(error=1e9, state_init="stored"):
        own = agent.replace(horizon_error=error, state_init=state_init)
        return *own._trusted_horizon(state.learner, like, None, jax.random.key(3)), spied

    return measure


def test_imagination_is_trusted_until_its_error_or_the_last_known_frame(trust):
    """What follows a new start is not held against the model."""
    horizon, _, spied = trust()
    batch = spied["observed"][0][1]
    known = (np.cumsum(batch.reset[T : T + 6], 0) == 0).any(-1)
    known = int(np.cumprod(known).sum())
    assert 1 < known < 6
    assert horizon == known
    assert 1 <= trust(0.0)[0] <= known
    assert trust(-1.0)[0] == 0


@pytest.mark.parametrize("state_init", ["stored", "zero", "burn_in"])
def test_trust_is_measured_after_what_the_model_makes_of_held_out_frames_now(collected, trust, state_init):
    """Held-out environments are the first ones. The states after their blocks are stored, and no others."""
    before = collected.states[-1].learner.replay
    _, ring, spied = trust(state_init=state_init)
    ((start, batch), (_, seen)), (state, actions) = spied["observed"], spied["imagined"]
    assert_close(state, cut(seen.states, 0), 0)
    np.testing.assert_array_equal(actions, batch.action[T : T + 6])
    assert any(x.any() for x in jax.tree.leaves(start)) == (state_init == "stored")

    now, then, made = (
        np.concatenate([x.reshape(*x.shape[:2], -1) for x in jax.tree.leaves(s)], -1)
        for s in (ring.start, before.start, seen.states)
    )
    changed = (now != then).any(-1)
    assert changed[:, :2].mean() > 0.5
    assert not changed[:, 2:].any()
    assert (now[changed][:, None] == made.reshape(-1, made.shape[-1])).all(-1).any(1).all()
    assert_close((ring.frames, ring.priority), (before.frames, before.priority), 0)


def test_held_out_frames_are_not_counted_as_replayed(collected):
    agent = collected.agent.replace(replay_ratio=4, batch_size=2)
    assert [agent.replace(held_out=n).gradient_steps for n in (0, 2, 4)] == [6, 4, 2]


@pytest.mark.parametrize("anneal", ["none", "linear", "cosine"])
def test_the_learning_rate_stays_where_nobody_said_for_how_long_it_is(collected, anneal):
    agent = collected.agent.replace(anneal=anneal)
    assert agent.total_updates == 0
    assert [float(agent.rate(2.0, jnp.int32(500), jnp.int32(n))) for n in (0, 1, 100)] == [2, 2, 2]
