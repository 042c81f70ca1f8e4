"""A probe finds what is in the features, and no more than the most frequent value where nothing is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import probes

CLASSES = (4, 2)


@pytest.fixture(scope="module")
def data():
    """Noise, in which the first fact is hidden linearly and the second as an exclusive or; 3/4 of a third are 0."""
    rng = np.random.default_rng(0)
    facts = np.stack([rng.integers(0, 4, 1024), rng.integers(0, 2, 1024)], axis=1)
    first, second = rng.integers(0, 2, 1024), rng.integers(0, 2, 1024)
    facts[:, 1] = first ^ second
    noise = rng.normal(size=(1024, 8))
    told = np.concatenate([100 + 7 * np.eye(4)[facts[:, 0]], first[:, None], second[:, None]], axis=1)
    arrays = (facts, noise, 0.05 * noise[:, :6] + told)
    return [(jnp.asarray(x[:512]), jnp.asarray(x[512:])) for x in arrays]


@pytest.mark.parametrize("hidden", [(), (32,)])
def test_what_is_in_the_features_is_found(data, hidden):
    (facts, test_facts), (noise, test_noise), (told, test_told) = data
    key = jax.random.key(1)
    right = probes.probe(told, facts, test_told, test_facts, key, classes=CLASSES, hidden=hidden)
    linear, parity = right.mean(0)
    assert linear > 0.99
    assert parity > 0.99 if hidden else parity < 0.8  # a linear map cannot
    chance = probes.probe(noise, facts, test_noise, test_facts, key, classes=CLASSES, hidden=hidden)
    np.testing.assert_allclose(chance.mean(0), [0.25, 0.5], atol=0.07)


def test_the_majority_is_of_the_training_data():
    facts, test = jnp.array([[0, 1], [0, 1], [2, 0]]), jnp.array([[0, 0], [1, 0], [2, 0], [0, 1]])
    np.testing.assert_array_equal(probes.majority(facts, test, (3, 2)), (test == jnp.array([[0, 1]])))


def test_values_that_a_fact_cannot_take_are_never_predicted(data):
    """Facts have different numbers of classes; the shorter ones are padded."""
    (facts, test_facts), _, (told, test_told) = data
    facts, test_facts = facts[:, ::-1], test_facts[:, ::-1]
    reverse = probes.probe(told, facts, test_told, test_facts, jax.random.key(1), classes=CLASSES[::-1], hidden=(32,))
    assert (reverse.mean(0) > 0.99).all()
