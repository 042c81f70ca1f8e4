"""Advantages and returns: the linear recurrence once more, run backwards in time."""

import jax
import jax.numpy as jnp

from ssmrl.scan import linear_recurrence


def gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: jax.Array | float,
    lambda_: jax.Array | float,
) -> jax.Array:
    """Generalised advantage estimates (Schulman et al. 2016, equation 16), ``[T, B]``.

    All arrays are ``[T, B]``. ``next_value[t]`` is the value of the observation that step ``t`` led to *before* any
    reset: of the final observation where an episode ends. After ``terminated`` that value counts as 0, after
    ``truncated`` it counts in full; either way no advantage flows back across the end.
    """
    continues = 1.0 - terminated
    delta = reward + gamma * continues * next_value - value
    decay = gamma * lambda_ * continues * (1.0 - truncated)
    return linear_recurrence(decay[..., None], delta[..., None], reverse=True)[..., 0]


def lambda_returns(
    reward: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: jax.Array | float,
    lambda_: jax.Array | float,
) -> jax.Array:
    """TD(lambda) returns (Sutton and Barto 2018, section 12.1), ``[T, B]``; arguments as in :func:`gae`.

    ``G[t] = r[t] + gamma * ((1 - lambda) next_value[t] + lambda G[t+1])``, from ``G[T] = next_value[T-1]``.
    """
    continues = 1.0 - terminated
    flows = continues * (1.0 - truncated)
    bootstrap = jnp.where(truncated, 1.0, 1.0 - lambda_) * continues * next_value
    decay = (gamma * lambda_ * flows)[..., None]
    G = linear_recurrence(decay, (reward + gamma * bootstrap)[..., None], next_value[-1][..., None], reverse=True)
    return G[..., 0]
