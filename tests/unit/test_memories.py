"""What single sequence models promise beyond the contract and their formulas."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl.nn import make_model
from ssmrl.nn.linear_attention import linear_attention
from ssmrl.nn.short_conv import short_convolution

T, D = 12, 8


def draw(layer, T=T, seed=0):
    """Parameters, and inputs ``[T, D]`` with no reset."""
    x, reset = jax.random.normal(jax.random.key(seed), (T, D)), jnp.zeros(T, bool)
    variables = jax.jit(layer.init)(jax.random.key(seed + 1), layer.initialize_carry(), x, reset)
    return variables, x, reset


def test_lru_starts_on_its_ring_and_keeps_white_noise_at_unit_variance():
    layer = make_model("lru", d_model=D, d_state=400, r_min=0.5, r_max=0.9, max_phase=0.3).layer
    variables, *_ = draw(layer, T=300)
    p = variables["params"]
    modulus, phase = np.exp(-np.exp(p["nu_log"])), np.exp(p["theta_log"])
    assert 0.5 <= modulus.min() < 0.55 < 0.85 < modulus.max() <= 0.9
    assert np.median(modulus**2) == pytest.approx((0.25 + 0.81) / 2, abs=0.05)  # uniform in area
    assert 0 <= phase.min() < 0.02 < 0.28 < phase.max() <= 0.3
    x = jax.random.normal(jax.random.key(5), (300, 200, D))
    carry, _ = jax.jit(layer.apply)(variables, layer.initialize_carry((200,)), x, jnp.zeros((300, 200), bool))
    B = p["B"][..., 0] ** 2 + p["B"][..., 1] ** 2
    assert np.mean(np.abs(carry) ** 2) == pytest.approx(float(B.sum(1).mean()), rel=0.05)


def test_s4d_takes_as_many_features_as_it_has_systems():
    layer = make_model("s4d", d_model=D).layer
    with pytest.raises(ValueError, match=r"S4D has a system per feature: give it 8 features \(d_model\), not 3"):
        layer.init(jax.random.key(0), layer.initialize_carry(), jnp.zeros((T, 3)), jnp.zeros(T, bool))


@pytest.mark.parametrize("window", [1, 3, 5, 12, 20])
def test_attention_sees_its_window_and_no_further(window):
    layer = make_model("transformer", d_model=D, num_heads=2, window=window).layer
    variables, x, reset = draw(layer)

    def last(x):
        return layer.apply(variables, layer.initialize_carry(), x, reset)[1][-1]

    influence = np.abs(jax.jit(jax.jacobian(last))(x)).sum((0, 2))  # [T]
    seen = np.arange(T) > T - 1 - window
    assert (influence[seen] > 0).all()
    assert (influence[~seen] == 0).all()


def test_attention_weights_sum_to_one_over_what_is_there():
    layer = make_model("transformer", d_model=D, num_heads=2, window=4).layer
    variables, x, reset = draw(layer)
    kernel = variables["params"]["qkv"]["kernel"].at[:, 2 * D :].set(0.0)  # no value depends on the input ...
    variables = {"params": {"qkv": {"kernel": kernel}, "out": {"kernel": jnp.eye(D)}}}
    keys, values, seen = layer.initialize_carry()
    carry = keys, values + 1.0, seen.at[-2:].set(1.0)  # ... and two of the remembered ones are 1
    _, y = jax.jit(layer.apply)(variables, carry, 0 * x, reset)  # no key stands out
    np.testing.assert_allclose(y[:4, 0], [2 / 3, 2 / 4, 1 / 4, 0], atol=1e-6)


def matrices(T, heads, width, seed=0):
    """Queries, keys of unit length, values ``[T, 2, heads, width]``, decays, strengths up to 2, a state and resets."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.normal(size=(3, T, 2, heads, width)).astype(np.float32)
    log_decay = -rng.exponential(0.2, (T, 2, heads)).astype(np.float32)
    beta = rng.uniform(0, 2, (T, 2, heads)).astype(np.float32)
    state, reset = rng.normal(size=(2, heads, width, width)).astype(np.float32), rng.random((T, 2)) < 0.05
    return (q, k / np.linalg.norm(k, axis=-1, keepdims=True), v, log_decay, beta, state), reset


@pytest.mark.parametrize("delta", [True, False])
def test_chunks_and_steps_are_the_same_attention(delta):
    inputs, reset = matrices(T=75, heads=2, width=4)  # two chunks and a part of one
    weight = np.random.default_rng(1).normal(size=inputs[2].shape).astype(np.float32)

    def run(method):
        def loss(q, k, v, log_decay, beta, state):
            state, y = linear_attention(q, k, v, log_decay, beta if delta else None, state, reset, method)
            return jnp.sum(weight * y) + jnp.sum(state**2), (state, y)

        return jax.jit(jax.value_and_grad(loss, tuple(range(6)), has_aux=True))(*inputs)

    got, want = jax.device_get(run("chunked")), jax.device_get(run("sequential"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-4)
    assert all(np.abs(g).max() > 0.1 for g in (want[1] if delta else want[1][:4]))


@pytest.mark.parametrize("method", ["sequential", "chunked"])
def test_the_delta_rule_replaces_and_plain_attention_adds(method):
    (_, k, v, log_decay, beta, state), _ = matrices(T=3, heads=1, width=4)
    k, log_decay, never = np.broadcast_to(k[:1], k.shape), 0 * log_decay, np.zeros((3, 2), bool)

    def read(beta):  # under the key that all values are written to
        run = jax.jit(partial(linear_attention, method=method))
        return run(k, k, v, log_decay, beta, 0 * state, never)[1]

    np.testing.assert_allclose(read(np.ones_like(beta)), v, atol=1e-5)
    np.testing.assert_allclose(
        read(np.full_like(beta, 2.0)), 2 * np.array([v[0], v[1] - v[0], v[2] - v[1] + v[0]]), atol=1e-5
    )
    np.testing.assert_allclose(read(None), v.cumsum(0), atol=1e-5)


def test_deltanet_starts_by_forgetting_slowly():
    variables, *_ = draw(make_model("deltanet", d_model=D, num_heads=3, dt_min=0.001, dt_max=0.1).layer)
    steps = np.log1p(np.exp(variables["params"]["dt_bias"])) * np.exp(variables["params"]["A_log"])
    np.testing.assert_allclose(steps, [0.001, 0.01, 0.1], rtol=1e-4)


def test_turning_keys_follow_a_position_and_replace_what_was_there():
    """On a ring, what was painted last at a place is read there, whichever way one came, however often it changed."""
    places, colors, steps = 5, 3, 60
    size = 2 * places  # a place is a complex number of each frequency
    layer = make_model("deltanet", d_model=size, num_heads=1, head_dim=size, gate=False, conv=1, rotation=1.0).layer
    frequencies = 2 * np.pi * np.arange(places) / places
    read = np.zeros((2 + colors, 3 * size))  # inputs: 1, the step to here, what was painted before it where one stood
    read[0, :places] = read[0, size : size + places] = 10  # queries and keys: 1 at the origin
    read[2:, 2 * size : 2 * size + colors] = 10 * np.eye(colors)
    turn = np.zeros((2 + colors, 2 * places))
    turn[1] = [*frequencies, *-frequencies]  # keys go back to before the step
    strength = np.zeros((2 + colors, 1))
    strength[0] = 20
    kernels = {"qkv": read, "turn": turn, "beta": strength, "out": np.eye(size)}
    params = {name: {"kernel": jnp.float32(kernel)} for name, kernel in kernels.items()}
    params["norm"] = {"scale": jnp.ones(size)}

    rng = np.random.default_rng(0)
    step, paint = rng.choice([-1, 1], steps), rng.integers(colors, size=steps)
    x = np.concatenate([np.ones((steps, 1)), step[:, None], np.eye(colors)[paint]], -1).astype(np.float32)
    _, y = jax.device_get(jax.jit(layer.apply)({"params": params}, layer.initialize_carry(), x, np.zeros(steps, bool)))
    painted, revisits = {}, 0
    for t, (place, here) in enumerate(pairwise(np.cumsum([0, *step]) % places)):
        painted[place] = paint[t]
        if here in painted:
            assert np.argmax(y[t, :colors]) == painted[here]
            assert y[t, painted[here]] > 10 * np.abs(y[t, :colors]).sum() - 10 * y[t, painted[here]]
            revisits += 1
    assert revisits > steps / 2


def test_short_convolution_weighs_the_last_values_of_a_sequence():
    x, reset = jnp.arange(1.0, 7.0)[:, None], jnp.array([0, 0, 0, 1, 0, 0], bool)
    buffer, y = short_convolution(jnp.array([[-2.0], [-1.0]]), x, reset, jnp.array([[1.0], [10.0], [100.0]]))
    np.testing.assert_array_equal(y[:, 0], [1 - 10 - 200, 2 + 10 - 100, 3 + 20 + 100, 4, 5 + 40, 6 + 50 + 400])
    np.testing.assert_array_equal(buffer, [[5], [6]])
    buffer, _ = short_convolution(buffer, x[:1], jnp.array([True]), jnp.ones((3, 1)))
    np.testing.assert_array_equal(buffer, [[0], [1]])
