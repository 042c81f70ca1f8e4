"""Convolutions of size 4 and stride 2, written as matrix products.

The same functions, with the same parameters, as ``nn.Conv`` and ``nn.ConvTranspose`` of flax. Those become XLA's
convolutions, whose gradients, and whose every pass once they are vectorised over seeds, have no fast path on a CPU.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

_initial = nn.initializers.lecun_normal()


class Conv(nn.Module):
    """As ``nn.Conv(features, (4, 4), (2, 2))``: pictures ``[N, H, W, C]`` of even sides to ``[N, H/2, W/2, features]``.

    A cell of the result reads 2 x 2 blocks of 2 x 2 pixels: blocks become channels, so that neighbours are slices.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """See the class."""
        n, h, w, c = x.shape
        kernel = self.param("kernel", _initial, (4, 4, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = _border(x).reshape(n, h // 2 + 1, 2, w // 2 + 1, 2, c)
        blocks = x.swapaxes(2, 3).reshape(n, h // 2 + 1, w // 2 + 1, 4 * c)
        by_block = kernel.reshape(2, 2, 2, 2, c, -1).swapaxes(1, 2)
        return _squares(blocks) @ by_block.reshape(16 * c, -1) + bias[None, None, None]


class ConvTranspose(nn.Module):
    """As ``nn.ConvTranspose(features, (4, 4), (2, 2))``: ``[N, H, W, C]`` to ``[N, 2 H, 2 W, features]``.

    The pixels between four cells are functions of these four.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """See the class."""
        n, h, w, c = x.shape
        kernel = self.param("kernel", _initial, (4, 4, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Of a cell above (0) or below (1), the upper pixel reads kernel rows 1 and 3, the lower one 0 and 2.
        by_pixel = kernel.reshape(2, 2, 2, 2, c, -1)[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
        pixels = _squares(_border(x)) @ by_pixel.reshape(4 * c, -1)
        pixels = pixels.reshape(n, h + 1, w + 1, 2, 2, -1).swapaxes(2, 3)
        return pixels.reshape(n, 2 * h + 2, 2 * w + 2, -1)[:, 1:-1, 1:-1] + bias[None, None, None]


def _border(x: jax.Array) -> jax.Array:
    """With a border of zeros, one wide."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _squares(x: jax.Array) -> jax.Array:
    """Each 2 x 2 cells of ``[N, H, W, C]`` beside each other: ``[N, H - 1, W - 1, 4 C]``."""
    return jnp.concatenate([x[:, i : x.shape[1] - 1 + i, j : x.shape[2] - 1 + j] for i in (0, 1) for j in (0, 1)], -1)
