"""Stochastic latents of a world model: what the posterior and the prior are distributions over.

Both kinds are made from ``parameters`` ``[..., n]`` of a dense layer and drawn as flat vectors ``[..., size]``.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class CategoricalLatent(struct.PyTreeNode):
    """``G`` independent one-hot vectors of ``K`` classes each, from ``logits`` ``[..., G, K]``.

    ``unimix`` is the share of the uniform distribution in the probabilities (DreamerV3, Hafner et al. 2023): it bounds
    the divergence of two of them.
    """

    logits: jax.Array
    unimix: float = 0.0

    def __getitem__(self, index: Any) -> "CategoricalLatent":
        """Those at ``index`` of the leading axes."""
        return self.replace(logits=self.logits[index])

    def probs(self) -> jax.Array:
        """Probabilities, unimix included, ``[..., G, K]``."""
        return (1 - self.unimix) * jax.nn.softmax(self.logits) + self.unimix / self.logits.shape[-1]

    def log_probs(self) -> jax.Array:
        """Logarithms of the probabilities, ``[..., G, K]``."""
        return jnp.log(self.probs() + 1e-20)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw one-hot vectors ``[..., G * K]`` with the gradient of the probabilities; ``key`` is consumed."""
        probs = self.probs()
        fixed = jax.lax.stop_gradient(probs)
        # One uniform number a vector, by the inverse of the distribution function: Gumbel noise would take K, and
        # a good part of the time of imagination.
        below = fixed @ jnp.triu(jnp.ones((probs.shape[-1], probs.shape[-1])))
        u = jax.random.uniform(key, (*probs.shape[:-1], 1)) * below[..., -1:]
        index = (below[..., :-1] <= u).sum(-1)
        return _flat(jax.nn.one_hot(index, probs.shape[-1]) + (probs - fixed))

    def mode(self) -> jax.Array:
        """The most likely one-hot vectors, ``[..., G * K]``."""
        return _flat(jax.nn.one_hot(jnp.argmax(self.logits, -1), self.logits.shape[-1]))

    def sharp(self) -> "CategoricalLatent":
        """The same without unimix, as imagination draws: a rare uniform draw would spoil the rest of the future."""
        return self.replace(unimix=0.0)

    def kl(self, other: "CategoricalLatent") -> jax.Array:
        """Divergence from ``other``, summed over the vectors, in nats ``[...]``."""
        p, q = self.log_probs(), other.log_probs()
        return (jnp.exp(p) * (p - q)).sum((-2, -1))

    def entropy(self) -> jax.Array:
        """Entropy in nats ``[...]``."""
        p = self.log_probs()
        return -(jnp.exp(p) * p).sum((-2, -1))


class GaussianLatent(struct.PyTreeNode):
    """A diagonal normal distribution with ``mean`` and ``std`` ``[..., n]`` (PlaNet, Hafner et al. 2019)."""

    mean: jax.Array
    std: jax.Array

    def __getitem__(self, index: Any) -> "GaussianLatent":
        """Those at ``index`` of the leading axes."""
        return self.replace(mean=self.mean[index], std=self.std[index])

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw ``[..., n]`` by reparametrisation; ``key`` is consumed."""
        return self.mean + self.std * jax.random.normal(key, self.mean.shape)

    def mode(self) -> jax.Array:
        """The mean."""
        return self.mean

    def sharp(self) -> "GaussianLatent":
        """Itself."""
        return self

    def kl(self, other: "GaussianLatent") -> jax.Array:
        """Divergence from ``other``, in nats ``[...]``."""
        ratio = (self.std / other.std) ** 2
        shift = ((self.mean - other.mean) / other.std) ** 2
        return 0.5 * (ratio + shift - 1 - jnp.log(ratio)).sum(-1)

    def entropy(self) -> jax.Array:
        """Differential entropy in nats ``[...]``."""
        return (jnp.log(self.std) + 0.5 * jnp.log(2 * jnp.pi * jnp.e)).sum(-1)


def num_parameters(kind: str, groups: int, classes: int) -> int:
    """How many numbers a dense layer has to put out for a latent of ``groups * classes`` entries."""
    return groups * classes * (2 if kind == "gaussian" else 1)


def make_latent(kind: str, parameters: jax.Array, classes: int, unimix: float) -> CategoricalLatent | GaussianLatent:
    """The latent of ``kind`` (``categorical`` or ``gaussian``) that ``parameters`` ``[..., n]`` describe."""
    if kind == "gaussian":
        mean, raw = jnp.split(parameters, 2, axis=-1)
        return GaussianLatent(mean, jax.nn.softplus(raw) + 0.1)
    return CategoricalLatent(parameters.reshape(*parameters.shape[:-1], -1, classes), unimix)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-2], -1)
