"""Probes: what can be read out of frozen features (Alain and Bengio 2016; Pasukonis et al. 2022 for world models).

A probe is a linear map, or a small network, trained to predict categorical facts from features that it does not change.
It is scored on other episodes than those it was trained on, against the most frequent value of each fact.

Legend: M samples, D features, K facts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

_STEPS = 600
_MINIBATCH = 512
_PEAK = 1e-2  # Adam's step size, annealed to 0
_DECAY = 1e-3  # decoupled weight decay: there may be more features than samples


class _Probe(nn.Module):
    classes: tuple[int, ...]
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.hidden:
            x = nn.silu(nn.Dense(width)(x))
        logits = nn.Dense(sum(self.classes))(x)
        parts = jnp.split(logits, np.cumsum(self.classes)[:-1].tolist(), axis=-1)
        missing = [max(self.classes) - n for n in self.classes]
        padded = [jnp.pad(p, ((0, 0), (0, n)), constant_values=-1e9) for p, n in zip(parts, missing, strict=True)]
        return jnp.stack(padded, axis=1)


@partial(jax.jit, static_argnames=("classes", "hidden"))
def probe(
    features: jax.Array,
    facts: jax.Array,
    test_features: jax.Array,
    test_facts: jax.Array,
    key: jax.Array,
    *,
    classes: tuple[int, ...],
    hidden: tuple[int, ...] = (),
) -> jax.Array:
    """Train a probe on ``features`` ``[M, D]`` and ``facts`` int32 ``[M, K]``; which test facts it gets right, bool.

    Fact ``k`` is one of ``classes[k]`` values. Without ``hidden`` widths the probe is linear. ``key`` is consumed.
    """
    mean, std = features.mean(0, keepdims=True), features.std(0, keepdims=True)
    features, test_features = ((x - mean) / (std + 1e-6) for x in (features, test_features))
    network = _Probe(classes, hidden)
    optimizer = optax.adamw(optax.cosine_decay_schedule(_PEAK, _STEPS), weight_decay=_DECAY)
    key_init, key_train = jax.random.split(key)
    params = network.init(key_init, features[:1])
    apply: Callable[..., Any] = network.apply

    def loss(params: optax.Params, x: jax.Array, y: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(apply(params, x))
        return -jnp.take_along_axis(log_probs, y[..., None], -1).mean()

    def step(state: tuple[optax.Params, optax.OptState], key: jax.Array) -> tuple:
        params, moments = state
        chosen = jax.random.randint(key, (min(_MINIBATCH, len(features)),), 0, len(features))
        gradient = jax.grad(loss)(params, features[chosen], facts[chosen])
        change, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, change), moments), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key_train, _STEPS))
    return jnp.argmax(apply(params, test_features), -1) == test_facts


def majority(facts: jax.Array, test_facts: jax.Array, classes: Sequence[int]) -> jax.Array:
    """Which of ``test_facts`` ``[M, K]`` are the fact's most frequent value in ``facts`` ``[M, K]``; bool."""
    counts = jax.nn.one_hot(facts, max(classes)).sum(0)
    return jnp.argmax(counts, -1)[None] == test_facts
