"""Advantages and returns: by hand, by their definitions as sums, and in their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl.returns import gae, lambda_returns

# Four steps, of which the second ends the episode: not at all, by termination, by truncation, by both (columns).
REWARD = np.float32([[1], [2], [3], [4]] * np.ones((4, 4)))
VALUE = REWARD.copy()
NEXT_VALUE = np.float32([[2, 2, 2, 2], [3, 8, 8, 8], [4, 4, 4, 4], [5, 5, 5, 5]])
TERMINATED, TRUNCATED = np.zeros((2, 4, 4), bool)
TERMINATED[1, [1, 3]] = TRUNCATED[1, [2, 3]] = True


def test_gae_by_hand():
    advantage = gae(REWARD, VALUE, NEXT_VALUE, TERMINATED, TRUNCATED, 0.5, 0.5)
    # delta = r + V'/2 - V: 1, 1.5, 2, 2.5 without an end; in step 1 then 0, 4 and 0. Each adds a quarter of the next.
    expected = [
        [1.5390625, 1, 2, 1],
        [2.15625, 0, 4, 0],
        [2.625, 2.625, 2.625, 2.625],
        [2.5, 2.5, 2.5, 2.5],
    ]
    np.testing.assert_allclose(advantage, expected)


def test_lambda_returns_by_hand():
    returns = lambda_returns(REWARD, NEXT_VALUE, TERMINATED, TRUNCATED, 0.5, 0.5)
    # G = r + (V' + G')/4, from 5 at the end: 6.5, 5.625, ... ; r alone at termination, r + V'/2 at truncation.
    expected = [
        [2.5390625, 2, 3, 2],
        [4.15625, 2, 6, 2],
        [5.625, 5.625, 5.625, 5.625],
        [6.5, 6.5, 6.5, 6.5],
    ]
    np.testing.assert_allclose(returns, expected)


def test_an_end_in_the_last_step():
    terminated, truncated = np.zeros((2, 4, 4), bool)
    terminated[3, [1, 3]] = truncated[3, [2, 3]] = True
    assert lambda_returns(REWARD, NEXT_VALUE, terminated, truncated, 0.5, 0.5)[3].tolist() == [6.5, 4, 6.5, 4]
    assert gae(REWARD, VALUE, NEXT_VALUE, terminated, truncated, 0.5, 0.5)[3].tolist() == [2.5, 0, 2.5, 0]


def random_problem(T=20, B=5, seed=0):
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(3, T, B)).astype(np.float32)
    return *numbers, *(rng.random((2, T, B)) < 0.2)


def naive_gae(reward, value, next_value, terminated, truncated, gamma, lambda_):
    """Schulman et al. 2016, equation 16, as the sum over all steps to the end of the episode."""
    advantage = np.zeros(reward.shape)
    for t, b in np.ndindex(*reward.shape):
        for later in range(t, len(reward)):
            bootstrap = 0 if terminated[later, b] else gamma * next_value[later, b]
            delta = reward[later, b] + bootstrap - value[later, b]
            advantage[t, b] += (gamma * lambda_) ** (later - t) * delta
            if terminated[later, b] or truncated[later, b]:
                break
    return advantage


def naive_lambda_returns(reward, next_value, terminated, truncated, gamma, lambda_):
    """Sutton and Barto 2018, equation 12.3: the mean of the n-step returns, weighted by powers of lambda."""
    returns = np.zeros(reward.shape)
    for t, b in np.ndindex(*reward.shape):
        rewards = 0.0
        for later in range(t, len(reward)):
            n = later - t
            rewards += gamma**n * reward[later, b]
            n_step = rewards + (0 if terminated[later, b] else gamma ** (n + 1) * next_value[later, b])
            if terminated[later, b] or truncated[later, b] or later == len(reward) - 1:
                returns[t, b] += lambda_**n * n_step
                break
            returns[t, b] += (1 - lambda_) * lambda_**n * n_step
    return returns


@pytest.mark.parametrize(("gamma", "lambda_"), [(0.99, 0.95), (0.9, 0.0), (0.9, 1.0), (1.0, 1.0), (0.0, 0.5)])
def test_against_the_definitions(gamma, lambda_):
    reward, _, next_value, terminated, truncated = problem = random_problem()
    assert (terminated & truncated).any()
    np.testing.assert_allclose(gae(*problem, gamma, lambda_), naive_gae(*problem, gamma, lambda_), 1e-4, 1e-5)
    arguments = reward, next_value, terminated, truncated, gamma, lambda_
    np.testing.assert_allclose(lambda_returns(*arguments), naive_lambda_returns(*arguments), 1e-4, 1e-5)


def test_limits():
    reward, value, next_value, terminated, truncated = problem = random_problem()
    one_step = reward + 0.9 * ~terminated * next_value
    np.testing.assert_allclose(gae(*problem, 0.9, 0.0), one_step - value, 1e-5, 1e-6)
    np.testing.assert_allclose(lambda_returns(reward, *problem[2:], 0.9, 0.0), one_step, 1e-5, 1e-6)
    monte_carlo, tail = np.zeros(reward.shape), next_value[-1]
    for t in reversed(range(len(reward))):
        tail = reward[t] + 0.9 * np.where(terminated[t], 0, np.where(truncated[t], next_value[t], tail))
        monte_carlo[t] = tail
    np.testing.assert_allclose(lambda_returns(reward, *problem[2:], 0.9, 1.0), monte_carlo, 1e-5, 1e-5)
    goes_on = ~(terminated | truncated)[:-1]
    next_value[:-1][goes_on] = value[1:][goes_on]  # one value per observation, and the sum telescopes
    np.testing.assert_allclose(gae(*problem, 0.9, 1.0), monte_carlo - value, 1e-4, 1e-5)


def test_rates_may_be_mapped_over():
    """A population trains with one discount and one lambda per member."""
    problem = [jnp.asarray(x) for x in random_problem()]
    gammas, lambdas = jnp.float32([0.9, 0.99]), jnp.float32([0.5, 1.0])
    advantages = jax.vmap(gae, in_axes=(*(None,) * 5, 0, 0))(*problem, gammas, lambdas)
    for advantage, gamma, lambda_ in zip(advantages, gammas, lambdas, strict=True):
        np.testing.assert_allclose(advantage, gae(*problem, gamma, lambda_), 1e-5, 1e-6)


def test_types():
    problem = [jnp.asarray(x) for x in random_problem()]
    for result in (gae(*problem, 0.9, 0.5), lambda_returns(problem[0], *problem[2:], 0.9, 0.5)):
        assert result.dtype == jnp.float32
        assert not result.weak_type
