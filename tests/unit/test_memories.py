"""What single sequence models promise beyond the contract and their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl.nn import make_model

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
