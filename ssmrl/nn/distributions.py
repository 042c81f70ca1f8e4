"""Action distributions, one per kind of action space.

A distribution draws *raw* actions: what ``log_prob`` takes and what is stored for learning. ``to_env`` turns a raw
action into the environment's, ``from_env`` back; only for continuous actions do they differ (before and after the
squashing), so that the probability of a stored action never has to invert a saturated tanh. ``flatten`` gives the
vector that networks read, ``spaces.flatten`` of the environment's action, with a gradient.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.spaces import Box, Discrete, MultiDiscrete, Space

Distribution = Any


class Categorical(struct.PyTreeNode):
    """A distribution over ``n`` integers, from ``logits`` ``[..., n]``."""

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw int32 ``[...]``; ``key`` is consumed."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> jax.Array:
        """The most likely action, int32 ``[...]``."""
        return jnp.argmax(self.logits, -1).astype(jnp.int32)

    def log_prob(self, raw: jax.Array) -> jax.Array:
        """Log-probability of ``raw`` ``[...]``."""
        log_p = jax.nn.log_softmax(self.logits)
        return (log_p * jax.nn.one_hot(raw, self.logits.shape[-1])).sum(-1)

    def entropy(self) -> jax.Array:
        """Entropy in nats ``[...]``."""
        log_p = jax.nn.log_softmax(self.logits)
        return -(jnp.exp(log_p) * log_p).sum(-1)

    def to_env(self, raw: jax.Array) -> jax.Array:
        """The action itself."""
        return raw

    def from_env(self, action: jax.Array) -> jax.Array:
        """The action itself."""
        return action

    def flatten(self, raw: jax.Array) -> jax.Array:
        """One-hot vectors ``[..., n]`` with the gradient of the probabilities (straight-through)."""
        probs = jax.nn.softmax(self.logits)
        return jax.nn.one_hot(raw, self.logits.shape[-1]) + probs - jax.lax.stop_gradient(probs)

    def mix_uniform(self, share: jax.Array | float) -> "Categorical":
        """The same with ``share`` of the uniform distribution, below which no probability falls."""
        n = self.logits.shape[-1]
        # the sum of logarithms, since probabilities underflow
        return Categorical(jnp.logaddexp(jax.nn.log_softmax(self.logits) + jnp.log1p(-share), jnp.log(share / n)))


class MultiCategorical(struct.PyTreeNode):
    """Independent categoricals, one per element of a MultiDiscrete space; actions are int32 ``[..., len(nvec)]``."""

    parts: tuple[Categorical, ...]

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw int32 ``[..., len(nvec)]``; ``key`` is consumed."""
        keys = jax.random.split(key, len(self.parts))
        return jnp.stack([p.sample(k) for p, k in zip(self.parts, keys, strict=True)], -1)

    def mode(self) -> jax.Array:
        """The most likely action."""
        return jnp.stack([p.mode() for p in self.parts], -1)

    def log_prob(self, raw: jax.Array) -> jax.Array:
        """Log-probability of ``raw`` ``[..., len(nvec)]``, summed over its elements."""
        return sum((p.log_prob(raw[..., i]) for i, p in enumerate(self.parts)), start=jnp.float32(0))

    def entropy(self) -> jax.Array:
        """Entropy in nats ``[...]``."""
        return sum((p.entropy() for p in self.parts), start=jnp.float32(0))

    def to_env(self, raw: jax.Array) -> jax.Array:
        """The action itself."""
        return raw

    def from_env(self, action: jax.Array) -> jax.Array:
        """The action itself."""
        return action

    def flatten(self, raw: jax.Array) -> jax.Array:
        """As of a categorical, concatenated ``[..., sum(nvec)]``."""
        return jnp.concatenate([p.flatten(raw[..., i]) for i, p in enumerate(self.parts)], -1)

    def mix_uniform(self, share: jax.Array | float) -> "MultiCategorical":
        """As of a categorical."""
        return MultiCategorical(tuple(p.mix_uniform(share) for p in self.parts))


class TanhNormal(struct.PyTreeNode):
    """A normal distribution squashed by tanh into the bounds of a Box (Haarnoja et al. 2018, appendix C).

    ``mean`` and ``log_std`` are ``[..., n]``, of the variable before the squashing.
    """

    mean: jax.Array
    log_std: jax.Array
    space: Box = struct.field(pytree_node=False)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw the variable before the squashing; ``key`` is consumed."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def mode(self) -> jax.Array:
        """The mean before the squashing."""
        return self.mean

    def log_prob(self, raw: jax.Array) -> jax.Array:
        """Log-density of the squashed action in ``(-1, 1)`` units, given it before the squashing."""
        z = (raw - self.mean) * jnp.exp(-self.log_std)
        normal = -0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))  # log(1 - tanh(raw)^2)
        return (normal - log_slope).sum(-1)

    def entropy(self) -> jax.Array:
        """Entropy of the normal before the squashing (that of the squashed one has no closed form)."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def from_env(self, action: jax.Array) -> jax.Array:
        """The raw action of an environment's, ``[..., *shape]``; at the bounds, which have none, of one close by."""
        lead = action.ndim - len(self.space.shape)
        low, high = (bound.reshape((1,) * lead + bound.shape) for bound in self.space.bounds())
        unit = 2 * (jnp.clip(action, low, high) - low) / (high - low) - 1
        return jnp.arctanh(jnp.clip(unit, -0.999, 0.999)).reshape(*action.shape[:lead], -1)

    def to_env(self, raw: jax.Array) -> jax.Array:
        """Squash and scale to the bounds of the space, ``[..., *shape]``."""
        lead = (1,) * (raw.ndim - 1)
        low, high = (bound.reshape(*lead, -1) for bound in self.space.bounds())
        unit = 0.5 * (jnp.tanh(raw) + 1)
        action = jnp.clip(low + (high - low) * unit, low, high)  # a rounding error would leave the box
        return action.reshape(*raw.shape[:-1], *self.space.shape)

    def flatten(self, raw: jax.Array) -> jax.Array:
        """The environment's action as a vector ``[..., n]``, differentiable."""
        return self.to_env(raw).reshape(raw.shape)

    def mix_uniform(self, share: jax.Array | float) -> "TanhNormal":
        """Itself: its deviation is what keeps it exploring."""
        return self


def num_parameters(space: Space) -> int:
    """How many numbers a policy head has to put out for actions in ``space``.

    Raises ``ValueError`` for a space that no distribution covers.
    """
    match space:
        case Discrete(n):
            return n
        case MultiDiscrete(nvec):
            return sum(nvec)
        case Box(shape=shape):
            low, high = space.bounds()
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise ValueError(f"continuous actions need finite bounds: got low {space.low}, high {space.high}")
            return math.prod(shape)
    raise ValueError(f"no distribution over actions in {space}: use Discrete, MultiDiscrete or Box")


def make_distribution(space: Space, parameters: jax.Array, log_std: jax.Array | None = None) -> Distribution:
    """The distribution over ``space`` with head outputs ``parameters`` ``[..., num_parameters(space)]``.

    A Box needs ``log_std`` too, broadcastable to ``parameters``. Raises ``ValueError`` if it is absent, or for a
    space that no distribution covers.
    """
    match space:
        case Discrete():
            return Categorical(parameters)
        case MultiDiscrete(nvec):
            edges = [sum(nvec[: i + 1]) for i in range(len(nvec) - 1)]
            return MultiCategorical(tuple(Categorical(p) for p in jnp.split(parameters, edges, axis=-1)))
        case Box():
            if log_std is None:
                raise ValueError(f"actions in a Box need log_std: give an array [{num_parameters(space)}]")
            return TanhNormal(parameters, jnp.broadcast_to(log_std, parameters.shape), space)
    raise ValueError(f"no distribution over actions in {space}: use Discrete, MultiDiscrete or Box")
