"""Action distributions against scipy, by integration and by sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssmrl.nn.distributions import Categorical, MultiCategorical, TanhNormal, make_distribution, num_parameters
from ssmrl.spaces import Box, Discrete, MultiDiscrete, Tuple

SAMPLES = 40_000


def draw(distribution):
    """Many independent samples."""
    many = jax.tree.map(lambda p: jnp.broadcast_to(p, (SAMPLES, *p.shape)), distribution)
    return np.asarray(jax.jit(lambda distribution, key: distribution.sample(key))(many, jax.random.key(0)))


@jax.jit
def evaluate(distribution, raw):
    """Log-probability of ``raw``, entropy and mode, in one program."""
    return distribution.log_prob(raw), distribution.entropy(), distribution.mode()


LOGITS = np.float32([[0.3, -1.0, 2.0], [100.0, -100.0, 99.0], [0.0, 0.0, 0.0], [-1e4, 0.0, -1e4]])
P = np.exp(LOGITS.astype(float) - LOGITS.max(-1, keepdims=True))
P /= P.sum(-1, keepdims=True)


def test_categorical():
    distribution = make_distribution(Discrete(3), jnp.asarray(LOGITS))
    assert isinstance(distribution, Categorical)
    for action in range(3):
        log_prob, entropy, mode = jax.device_get(evaluate(distribution, jnp.full(4, action)))
        np.testing.assert_allclose(np.exp(log_prob), P[:, action], 1e-5, 1e-12)
    np.testing.assert_allclose(log_prob[[1, 3]], [-1.313262, -1e4], 1e-5)  # of the last action
    np.testing.assert_allclose(entropy, stats.entropy(P, axis=-1), 1e-5, 1e-6)
    assert mode[[0, 1, 3]].tolist() == [2, 0, 1]
    samples = draw(distribution)
    assert samples.dtype == mode.dtype == jnp.int32
    frequencies = np.stack([np.mean(samples == i, axis=0) for i in range(3)], -1)
    np.testing.assert_allclose(frequencies, P, atol=4 * 0.5 / np.sqrt(SAMPLES))
    assert distribution.to_env(samples) is samples


def test_a_share_of_the_uniform_distribution():
    share = jnp.array([0.1, 0.1, 0.0, 0.0])[:, None]
    logits = jnp.array([[0.0, -1.0], [0.0, -200.0], [0.0, -1.0], [0.0, -200.0]])

    def measure(logits):
        mixed = Categorical(logits).mix_uniform(share)
        return mixed.entropy().sum(), (jnp.exp(mixed.logits), mixed.log_prob(jnp.zeros(4, jnp.int32)))

    gradient, (found, log_prob) = jax.jit(jax.grad(measure, has_aux=True))(logits)
    p = np.exp(np.asarray(logits, np.float64))
    p = np.asarray((1 - share) * p / p.sum(-1, keepdims=True) + share / 2)
    np.testing.assert_allclose(found, p, 1e-5, 1e-30)
    np.testing.assert_allclose(log_prob, np.log(p[:, 0]), 1e-5, 1e-6)
    assert np.isfinite(gradient).all(), "probabilities that underflow"


def test_multi_categorical():
    space = MultiDiscrete((3, 2, 4))
    logits = np.random.default_rng(0).normal(size=(5, num_parameters(space))).astype(np.float32)
    distribution = make_distribution(space, jnp.asarray(logits))
    assert isinstance(distribution, MultiCategorical)
    action = np.int32([[2, 0, 3], [0, 1, 0], [1, 1, 1], [2, 1, 2], [0, 0, 3]])
    log_prob, entropy, mode = evaluate(distribution, action)
    parts = [np.exp(part) / np.exp(part).sum(-1, keepdims=True) for part in np.split(logits, [3, 5], axis=-1)]
    want = sum(np.log(part[np.arange(5), action[:, i]]) for i, part in enumerate(parts))
    np.testing.assert_allclose(log_prob, want, 1e-5)
    np.testing.assert_allclose(entropy, sum(stats.entropy(part, axis=-1) for part in parts), 1e-5)
    np.testing.assert_array_equal(mode, np.stack([part.argmax(-1) for part in parts], -1))
    samples = draw(distribution)
    assert samples.shape == (SAMPLES, 5, 3)
    assert samples.dtype == mode.dtype == jnp.int32
    for i, part in enumerate(parts):
        frequencies = np.stack([np.mean(samples[..., i] == k, axis=0) for k in range(space.nvec[i])], -1)
        np.testing.assert_allclose(frequencies, part, atol=4 * 0.5 / np.sqrt(SAMPLES))
    together = np.mean((samples[..., 0] == 0) & (samples[..., 1] == 0), axis=0)  # independent of one another
    apart = np.mean(samples[..., 0] == 0, axis=0) * np.mean(samples[..., 1] == 0, axis=0)
    np.testing.assert_allclose(together, apart, atol=0.015)


BOX = Box((-0.1, -2.0), (0.3, 5.0), (2,))
MEAN, LOG_STD = np.float32([[0.5, -1.0], [0.0, 2.0], [3.0, 0.1]]), np.float32([-0.5, 0.3])


def squashed():
    return make_distribution(BOX, jnp.asarray(MEAN), jnp.asarray(LOG_STD))


def test_tanh_normal_density():
    raw = np.random.default_rng(0).normal(size=(3, 2)) * 2
    normal = stats.norm(MEAN, np.exp(LOG_STD)).logpdf(raw)
    exact = (normal - np.log(1 - np.tanh(raw) ** 2)).sum(-1)
    log_prob, entropy, mode = evaluate(squashed(), jnp.float32(raw))
    np.testing.assert_allclose(log_prob, exact, 1e-4)
    np.testing.assert_allclose(entropy, stats.norm(MEAN, np.exp(LOG_STD)).entropy().sum(-1), 1e-5)
    np.testing.assert_array_equal(mode, MEAN)


def test_tanh_normal_density_integrates_to_one():
    raw = np.linspace(-12, 12, 20_001)
    mean = jnp.asarray(MEAN.reshape(-1, 1))
    log_std = jnp.broadcast_to(LOG_STD, MEAN.shape).reshape(-1, 1)
    each = TanhNormal(mean, log_std, Box(-1.0, 1.0, (1,)))  # six one-dimensional ones
    log_prob = jax.jit(jax.vmap(each.log_prob))(jnp.broadcast_to(jnp.float32(raw)[:, None, None], (len(raw), 6, 1)))
    density, action = np.exp(log_prob, dtype=float).T, np.tanh(raw)
    np.testing.assert_allclose(np.trapezoid(density, action), 1, 1e-3)
    samples = np.asarray(jax.jit(each.to_env)(draw(each)))
    np.testing.assert_allclose(samples.mean(0)[:, 0], np.trapezoid(density * action, action), atol=0.02)


def test_tanh_normal_far_out():
    """A stored action is given before the squashing, so that saturation costs no precision."""
    one = TanhNormal(jnp.full(1, 40.0), jnp.zeros(1), Box(-1.0, 1.0, (1,)))
    log_prob, slope = jax.jit(jax.value_and_grad(lambda raw: one.log_prob(raw[None])))(jnp.float32(41))
    np.testing.assert_allclose(log_prob, -0.5 - 0.5 * np.log(2 * np.pi) + 82 - 2 * np.log(2), 1e-5)
    np.testing.assert_allclose(slope, -1 + 2, 1e-5)


def test_tanh_normal_moments():
    samples = draw(squashed())
    assert samples.dtype == np.float32
    std = np.broadcast_to(np.exp(LOG_STD), MEAN.shape)
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=4 * std.max() / np.sqrt(SAMPLES))
    np.testing.assert_allclose(samples.std(0), std, 0.02)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-1.0, 0.7), (-0.9, 0.35), (-0.4, 0.1), (-1e-3, 1e3)])
def test_tanh_normal_bounds(low, high):
    one = TanhNormal(jnp.zeros(1), jnp.zeros(1), Box(low, high, (1,)))
    raw = jnp.float32(np.concatenate([np.linspace(-30, 30, 10_001), [-1e30, 1e30]]))[:, None]
    action = np.asarray(jax.jit(one.to_env)(raw))
    assert jax.vmap(one.space.contains)(action).all()
    np.testing.assert_allclose([action.min(), action.max()], [low, high], atol=1e-6 * (high - low))
    np.testing.assert_allclose(one.to_env(jnp.zeros(1)), (low + high) / 2, 1e-5)


def test_tanh_normal_shapes():
    space = Box(np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3) + 1.0, (2, 3))
    assert num_parameters(space) == 6
    distribution = make_distribution(space, jnp.zeros((4, 5, 6)), jnp.zeros(6))
    raw = draw(distribution)[0]
    assert raw.shape == (4, 5, 6)
    log_prob, entropy, _ = jax.eval_shape(evaluate, distribution, raw)
    assert log_prob.shape == entropy.shape == (4, 5)
    action = jax.jit(distribution.to_env)(raw)
    assert action.shape == (4, 5, 2, 3)
    np.testing.assert_array_equal(np.floor(action), np.broadcast_to(np.arange(6).reshape(2, 3), action.shape))
    scalar = make_distribution(Box(-1.0, 1.0, ()), jnp.zeros((4, 1)), jnp.zeros(1))
    assert scalar.to_env(scalar.mode()).shape == (4,)


def test_distributions_are_pytrees():
    for distribution in (Categorical(jnp.zeros(3)), make_distribution(MultiDiscrete((2, 3)), jnp.zeros(5)), squashed()):
        doubled = jax.jit(lambda d: jax.tree.map(lambda p: 2 * p, d))(distribution)
        assert type(doubled) is type(distribution)
        np.testing.assert_array_equal(doubled.mode(), 2 * distribution.mode())


def test_number_of_parameters():
    assert [num_parameters(s) for s in (Discrete(5), MultiDiscrete((3, 4)), BOX)] == [5, 7, 2]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Box(-np.inf, 1.0, (2,)), "continuous actions need finite bounds: got low -inf, high 1.0"),
        (Box((0.0, 0.0), (1.0, np.inf), (2,)), "continuous actions need finite bounds"),
        (Tuple((Discrete(2),)), "no distribution over actions in Tuple.*: use Discrete, MultiDiscrete or Box"),
    ],
)
def test_spaces_without_a_distribution(space, message):
    with pytest.raises(ValueError, match=message):
        num_parameters(space)


def test_make_distribution_errors():
    with pytest.raises(
        ValueError, match=r"no distribution over actions in Tuple.*: use Discrete, MultiDiscrete or Box"
    ):
        make_distribution(Tuple((Discrete(2),)), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"actions in a Box need log_std: give an array \[2\]"):
        make_distribution(BOX, jnp.zeros(2))
