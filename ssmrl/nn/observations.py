"""What a world model makes of observations: encoders, decoders with their likelihoods, and scalar heads.

Integers (tiles, tokens) are decoded as categoricals, pictures as pixels of unit variance, vectors as symlog values of
unit variance (DreamerV3, Hafner et al. 2023, equation 10).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ssmrl import spaces
from ssmrl.nn.convolution import Conv, ConvTranspose
from ssmrl.spaces import Box, Discrete, MultiDiscrete, Space


def symlog(x: jax.Array) -> jax.Array:
    """Compress by ``sign(x) log(1 + |x|)``."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: jax.Array) -> jax.Array:
    """Inverse of :func:`symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def check_space(space: Any) -> None:
    """Raise ``ValueError`` unless observations in ``space`` can be encoded and decoded."""
    image = spaces.is_image(space)
    if image and (space.shape[0] != space.shape[1] or space.shape[0] % 8 or space.dtype != np.uint8):
        raise ValueError(f"pictures for a world model are square, uint8, with a side divisible by 8: got {space}")
    if not isinstance(space, Box | Discrete | MultiDiscrete) or (isinstance(space, Box) and len(space.shape) == 2):
        raise ValueError(f"a world model reads Discrete, MultiDiscrete, vectors or pictures: got {space}")


class Hidden(nn.Module):
    """Dense layers of the given widths, each with layer norm and silu."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[..., D]`` to ``[..., widths[-1]]``."""
        for width in self.widths:
            x = nn.silu(nn.LayerNorm()(nn.Dense(width)(x)))
        return x


def _halvings(side: int) -> int:
    """Strided convolutions that bring a picture's side down to 4 or 5 cells, where that divides."""
    count = 0
    while side % 2 == 0 and side > 4:
        side, count = side // 2, count + 1
    return count


class Encoder(nn.Module):
    """Observations ``[..., *shape]`` to features ``[..., F]``."""

    space: Any
    hidden: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """See the class."""
        if spaces.is_image(self.space):
            lead = obs.shape[:-3]
            x = obs.reshape(-1, *obs.shape[-3:]).astype(jnp.float32) / 255 - 0.5
            for i in range(_halvings(self.space.shape[0])):
                x = nn.silu(nn.LayerNorm()(Conv(self.channels * 2**i, 4, 2)(x)))
            return x.reshape(*lead, -1)
        x = spaces.flatten(self.space, obs)
        return Hidden(self.hidden)(symlog(x) if isinstance(self.space, Box) else x)


class Decoder(nn.Module):
    """Features ``[..., F]`` to the ``outputs`` that :func:`observation_loss` and :func:`observation_mode` read."""

    space: Any
    hidden: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits ``[..., N, K]`` of N integers, or means: ``[..., D]``, or pictures in units of 255."""
        if not spaces.is_image(self.space):
            x = Hidden(self.hidden)(x)
            if isinstance(self.space, Box):
                return nn.Dense(spaces.flat_size(self.space))(x)
            nvec = num_classes(self.space)
            logits = nn.Dense(len(nvec) * max(nvec))(x).reshape(*x.shape[:-1], len(nvec), max(nvec))
            exists = np.arange(max(nvec)) < np.array(nvec)[:, None]
            return jnp.where(exists.reshape((1,) * (x.ndim - 1) + exists.shape), logits, -1e9)
        side, _, colours = self.space.shape
        n, lead = _halvings(side), x.shape[:-1]
        start, depth = side // 2**n, self.channels * 2 ** (n - 1)
        x = nn.Dense(start * start * depth)(x).reshape(-1, start, start, depth)
        for i in reversed(range(n)):
            x = nn.silu(nn.LayerNorm()(x))
            x = ConvTranspose(self.channels * 2 ** (i - 1) if i else colours)(x)
        return x.reshape(*lead, *self.space.shape) + 0.5


def num_classes(space: Any) -> tuple[int, ...]:
    """How many values each integer of an observation can take."""
    return (space.n,) if isinstance(space, Discrete) else space.nvec


def observation_loss(space: Space, outputs: jax.Array, obs: jax.Array) -> jax.Array:
    """Negative log-likelihood of ``obs`` ``[..., *shape]`` up to a constant, summed over its parts: ``[...]``."""
    if isinstance(space, Box):
        target = obs.astype(jnp.float32) / 255 if spaces.is_image(space) else symlog(spaces.flatten(space, obs))
        axes = tuple(range(outputs.ndim - (3 if spaces.is_image(space) else 1), outputs.ndim))
        return 0.5 * ((outputs - target) ** 2).sum(axes)
    return -integer_log_probs(space, outputs, obs).sum(-1)


def integer_log_probs(space: Space, outputs: jax.Array, obs: jax.Array) -> jax.Array:
    """Log-probability of each integer of ``obs``, ``[..., N]``."""
    tiles = obs[..., None] if isinstance(space, Discrete) else obs
    chosen = jax.nn.one_hot(tiles, outputs.shape[-1])
    return (jax.nn.log_softmax(outputs) * chosen).sum(-1)


def observation_mode(space: Space, outputs: jax.Array) -> jax.Array:
    """The most likely observation, ``[..., *shape]``, in the observation's own type."""
    if spaces.is_image(space):
        return jnp.clip(jnp.round(outputs * 255), 0, 255).astype(jnp.uint8)
    if isinstance(space, Box):
        return symexp(outputs).reshape(*outputs.shape[:-1], *space.shape).astype(space.dtype)
    tiles = jnp.argmax(outputs, -1).astype(jnp.int32)
    return tiles[..., 0] if isinstance(space, Discrete) else tiles


class TwoHot(nn.Module):
    """Logits over the bins of a scalar, as DreamerV3 predicts rewards and values; starts at 0.

    The far bins start as unlikely as they are far, squared, so that what is left of them is no noise in the mean.
    """

    hidden: tuple[int, ...]
    bins: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[..., F]`` to logits ``[..., bins]``."""
        unlikely = -2 * jnp.abs(jnp.linspace(-_RANGE, _RANGE, self.bins))
        last = nn.Dense(self.bins, kernel_init=nn.initializers.zeros, bias_init=lambda *_: unlikely)
        return last(Hidden(self.hidden)(x))


def two_hot_loss(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Cross-entropy of scalars ``[...]`` shared out between their two nearest bins, given ``[..., bins]`` logits."""
    bins = logits.shape[-1]
    centers = _bins(bins)
    position = (symlog(target) / _RANGE + 1) / 2 * (bins - 1)
    lower = jnp.clip(position, 0, bins - 2).astype(jnp.int32)
    upper = jnp.clip((target - centers[lower]) / (centers[lower + 1] - centers[lower]), 0, 1)
    weights = (1 - upper)[..., None] * jax.nn.one_hot(lower, bins) + upper[..., None] * jax.nn.one_hot(lower + 1, bins)
    return -(weights * jax.nn.log_softmax(logits)).sum(-1)


def two_hot_mean(logits: jax.Array) -> jax.Array:
    """Expectations ``[...]`` of the scalars whose distributions have logits ``[..., bins]``."""
    centers = _bins(logits.shape[-1]).reshape((1,) * (logits.ndim - 1) + (-1,))
    weighted = jax.nn.softmax(logits) * centers
    return (weighted + weighted[..., ::-1]).sum(-1) / 2  # in pairs, so that what is symmetric has the mean 0 exactly


def _bins(count: int) -> jax.Array:
    """Their centres, evenly spaced in symlog; distributions are over them, so that means are not squashed."""
    centers = symexp(jnp.linspace(-_RANGE, _RANGE, count))
    return (centers - centers[::-1]) / 2  # symmetric to the bit


_RANGE = 10.0  # the bins reach from -symexp(10) to symexp(10), 22,000
