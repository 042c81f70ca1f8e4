"""The actor and the critic of a world model: what they read in acting, in learning and in dreams, and how they act."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import nn, spaces
from ssmrl.frames import Frames
from ssmrl.nn.base import flat_carry
from ssmrl.nn.distributions import make_distribution, num_parameters
from ssmrl.policy import Policy
from ssmrl.world_model import WorldModel, WorldState
from ssmrl.world_policy import WorldActorCritic

T, B, H, D, Z = 7, 9, 4, 8, 6  # frames, rows: a reset at each frame alone, none, at all
OBS = spaces.Box(-10.0, 10.0, (3,))
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "multi": spaces.MultiDiscrete((2, 3)),
    "box": spaces.Box(-2.0, (1.0, 4.0), (2,)),
}
KINDS = {  # backbone, actions, inputs
    "gru-zh": ("gru", "multi", ("z", "h")),
    "s5-xzh": ("s5", "box", ("x", "z", "h")),
}


def make_network(backbone, actions="discrete", inputs=("z", "h"), **options):
    sizes = {"d_state": 8, "memories": 2} if backbone == "s5" else {}
    memory = nn.make_model(backbone, d_model=D, **sizes)
    world = WorldModel(OBS, ACTIONS[actions], memory, groups=2, classes=3, hidden=(8,), bins=5)
    return WorldActorCritic(world, inputs, (8,), bins=5, **options)


def parameters(network):
    """Of which none is zero, without the cost of an initialisation."""
    inputs = (
        jnp.zeros((1, 1, 3)),
        jnp.zeros((1, 1), bool),
        spaces.zeros(network.action_space, (1, 1)),
        jnp.zeros((1, 1)),
    )
    init = lambda: network.init(jax.random.key(0), network.initialize_carry((1,)), *inputs)["params"]  # noqa: E731
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype(p.dtype), jax.eval_shape(init))


def random_frames(actions, length=T, batch=B):
    rng = np.random.default_rng(1)
    action = [[ACTIONS[actions].sample(jax.random.key(batch * t + b)) for b in range(batch)] for t in range(length)]
    reset = np.eye(length, batch, dtype=bool)
    reset[:, -1] = True
    obs = rng.normal(size=(length, batch, 3)).astype(np.float32)
    return Frames(jnp.asarray(obs), jnp.asarray(action), jnp.zeros((length, batch)), jnp.asarray(reset), reset & False)


def sure(actor):
    """Parameters of an actor that hardly ever takes another action than the most likely one."""
    last = actor["layers_1"]
    return {**actor, "layers_1": {"kernel": 100 * last["kernel"], "bias": 0 * last["bias"]}}


def numbers(memory):
    """Every number of a carry ``[N, ...]`` as a row: the real parts of a leaf, and then the imaginary ones."""
    parts = []
    for leaf in jax.tree.leaves(jax.device_get(memory)):
        flat = leaf.reshape(leaf.shape[0], -1)
        parts += [flat.real, flat.imag] if np.iscomplexobj(flat) else [flat]
    return np.concatenate(parts, -1).astype(np.float32)


def assert_close(got, want, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, tolerance, tolerance)


@pytest.fixture(scope="module", params=KINDS)
def acting(request):
    """Acting step by step by hand, frames, and the carry after each."""
    backbone, actions, inputs = KINDS[request.param]
    network = make_network(backbone, actions, inputs)
    params, frames = parameters(network), random_frames(actions)
    policy = Policy(params, None, jnp.float32(1), network)
    step = jax.jit(lambda *x: policy.sequence(*x))
    carry, carries, outputs = network.initialize_carry((B,)), [], []
    for t in range(T):
        f = jax.tree.map(lambda x, t=t: x[t : t + 1], frames)
        carry, *output = step(carry, f.obs, f.reset, f.action, f.reward)
        carries.append(carry)
        outputs.append(output)
    outputs = jax.tree.map(lambda *x: jnp.concatenate(x), *outputs)
    return SimpleNamespace(network=network, policy=policy, frames=frames, carries=carries, outputs=outputs)


def test_acting_step_by_step_is_reading_the_sequence(acting):
    """With resets in the middle; and what the actor reads is latent, memory output and carry *of that frame*."""
    network, f = acting.network, acting.frames
    carry, dist, value = jax.jit(acting.policy.sequence)(
        network.initialize_carry((B,)), f.obs, f.reset, f.action, f.reward
    )
    assert_close((carry, dist, value), (acting.carries[-1], *acting.outputs))

    def observe(params):
        world, zero = network.world, network.initialize_carry((B,))
        return world.apply({"params": params["world"]}, zero, f, jax.random.key(0), "mode", 1, method="observe")

    _, seen = jax.jit(observe)(acting.policy.params)
    own = {"z": seen.z, "h": seen.h, "x": np.stack([numbers(c.memory) for c in acting.carries])}
    inputs = jnp.concatenate([own[k] for k in network.inputs], -1)
    apply = jax.jit(
        lambda x: tuple(network.apply({"params": acting.policy.params}, x, method=m) for m in ("act", "value"))
    )
    assert_close(apply(inputs), (dist, value))
    assert np.ptp(np.asarray(value)) > 0.01
    late = jnp.concatenate([jnp.roll(own[k], 1, 0) for k in network.inputs], -1)
    assert not np.allclose(apply(late)[1], value, atol=1e-3), "it could as well read the frame before"


def test_a_dream_reads_and_does_what_the_model_says(acting):
    """Against observing, all at once, the latents and actions of the dream; actions are those that the actor chose."""
    network, params = acting.network, acting.policy.params
    discrete = not isinstance(network.action_space, spaces.Box)
    if discrete:
        params = {**params, "actor": sure(params["actor"])}
    state = acting.carries[-1]

    @jax.jit
    def run(params, state, key):
        apply = lambda *x, **k: network.apply({"params": params}, *x, **k)  # noqa: E731
        h = jnp.sin(jnp.arange(B * D, dtype=jnp.float32)).reshape(B, D)
        dream = apply(state, h, H, key, method="dream")
        dist = apply(dream.inputs[:-1], method="act")
        action = dist.to_env(dream.raw_action)
        sizes = {"z": Z, "h": D, "x": dream.inputs.shape[-1] - Z - ("h" in network.inputs) * D}
        edges = np.cumsum([sizes[k] for k in network.inputs])[:-1]
        read = dict(zip(network.inputs, jnp.split(dream.inputs, edges, -1), strict=True))
        frames = Frames(None, action, jnp.zeros((H, B)), jnp.zeros((H, B), bool), jnp.zeros((H, B), bool))
        world = lambda *x, **k: network.world.apply({"params": params["world"]}, *x, **k)  # noqa: E731
        _, seen = world(state, frames, read["z"][1:], 1, method="observe_latents")
        return h, read, dream, dist, seen, world(seen.features, method="predict")

    h, read, dream, dist, seen, predicted = run(params, state, jax.random.key(5))
    np.testing.assert_array_equal(read["z"][0], state.z)
    if "h" in read:
        np.testing.assert_array_equal(read["h"][0], h)
        assert_close(read["h"][1:], seen.h)
    if "x" in read:
        np.testing.assert_allclose(read["x"][0], numbers(state.memory), 1e-6, 1e-6)
        for t in range(H):
            memory = jax.tree.map(lambda x, t=t: x[t], seen.states.memory)
            np.testing.assert_allclose(read["x"][t + 1], numbers(memory), 2e-5, 2e-5)
    assert dream.predictions.obs == ()
    assert_close(dream.predictions.reward, predicted.reward)
    assert_close(dream.predictions.going_on, predicted.going_on)
    assert np.ptp(np.asarray(predicted.going_on)) > 0.01
    if discrete:
        assert (np.asarray(dist.mode()) == dream.raw_action).mean() > 0.95, "not the action chosen at that state"
        assert len(np.unique(dream.raw_action)) > 1
    else:
        z = (dream.raw_action - dist.mean) * np.exp(-dist.log_std)
        assert abs(float(z.mean())) < 5 / z.size**0.5
        assert 0.6 < float(z.std()) < 1.4


def test_dreamt_latents_are_drawn_from_the_prior_without_unimix():
    network = make_network("s5")
    params, many = parameters(network), 4000
    state = WorldState(network.world.memory.initialize_carry((1,)), jnp.eye(Z)[:1] + jnp.eye(Z)[3:4])

    @jax.jit
    def run(key):
        apply = lambda *x, **k: network.apply({"params": params}, *x, **k)  # noqa: E731
        states = jax.tree.map(lambda x: jnp.repeat(x, many, 0), state)
        dream = apply(states, jnp.ones((many, D)), 1, key, method="dream")
        world = lambda *x, **k: network.world.apply({"params": params["world"]}, *x, **k)  # noqa: E731
        prior = world(state, jnp.eye(3)[:1], method="step")[2]
        return dream.inputs[1, :, :Z], dream.raw_action[0] == 0, prior

    z, first_action, prior = jax.device_get(run(jax.random.key(0)))
    prior = prior.reshape(2, 3)
    probs = np.exp(prior) / np.exp(prior).sum(-1, keepdims=True)
    z = z[first_action]
    assert set(np.unique(z)) <= {0.0, 1.0}
    np.testing.assert_allclose(z.mean(0), probs.ravel(), atol=5 * 0.5 / len(z) ** 0.5)


@pytest.mark.parametrize("actions", ACTIONS)
def test_a_flat_action_is_the_environments_with_the_gradient_of_its_probabilities(actions):
    """What imagination feeds to the model: in value, what acting feeds to it."""
    space = ACTIONS[actions]
    n, box = num_parameters(space), actions == "box"
    x, log_std = jax.random.normal(jax.random.key(0), (5, n)), jnp.full((5, n), -1.0)
    direction = np.sin(np.arange(n) + np.float32(1)).reshape(1, n)

    def flat(x):
        dist = make_distribution(space, x, log_std if box else None)
        raw = dist.sample(jax.random.key(1))
        return dist.flatten(raw), spaces.flatten(space, dist.to_env(raw))

    vector, expected = jax.jit(flat)(x)
    np.testing.assert_allclose(vector, expected, rtol=1e-6, atol=1e-6)
    got = jax.jit(jax.grad(lambda x: (flat(x)[0] * direction).sum()))(x)
    if box:  # x + noise is squashed: low + (high - low) (tanh + 1) / 2
        low, high = (bound.reshape(1, n) for bound in space.bounds())
        unit = 2 * (np.asarray(vector) - low) / (high - low) - 1
        np.testing.assert_allclose(got, direction * (1 - unit**2) * (high - low) / 2, rtol=1e-3, atol=1e-5)
        return
    want, edge = np.zeros((5, n)), 0
    for size in [space.n] if actions == "discrete" else space.nvec:
        part = slice(edge, edge + size)
        p = np.exp(x[:, part]) / np.exp(x[:, part]).sum(-1, keepdims=True)
        w = np.asarray(direction)[:, part]
        want[:, part] = p * (w - (p * w).sum(-1, keepdims=True))  # the softmax's Jacobian
        edge += size
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_no_action_is_out_of_the_question():
    """However sure the actor is: unimix for discrete actions, a least deviation for continuous ones."""

    def act(network):
        params = parameters(network)
        params["actor"] = sure(params["actor"])
        return jax.jit(lambda x: network.apply({"params": params}, x, method="act"))(jnp.ones((2, Z + D)))

    probs = jax.nn.softmax(act(make_network("gru", unimix=0.03)).logits)
    np.testing.assert_allclose(probs.min(-1), 0.01, rtol=1e-3)
    np.testing.assert_allclose(probs.max(-1), 0.98, rtol=1e-3)
    dist = act(make_network("gru", "box"))
    std = np.exp(dist.log_std)
    assert (std >= 0.0999).all()
    assert (std <= 1.0001).all()
    assert np.abs(dist.mean).max() <= 5.0


def test_a_carry_is_flat_whatever_it_is_made_of():
    carry = {"a": jnp.array([[1 + 2j, 3 - 4j]], jnp.complex64), "b": jnp.array([[5]], jnp.int32)}
    flat = flat_carry(carry, (1,))
    assert flat.dtype == jnp.float32
    assert flat.tolist() == [[1, 3, 2, -4, 5]]
    assert flat_carry((), (2, 3)).shape == (2, 3, 0)  # of a model without memory
