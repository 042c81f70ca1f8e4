"""Convolutions of pictures ``[N, H, W, C]``, written as matrix products.

The same functions, with the same parameters, as ``nn.Conv`` and ``nn.ConvTranspose`` of flax, which become XLA's
convolutions. On a CPU those have no fast path inside of a ``lax.scan``, where all training is, none for gradients, and
none once they are vectorised over seeds.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

_initial = nn.initializers.lecun_normal()


class Conv(nn.Module):
    """As ``nn.Conv(features, (size, size), (stride, stride))``."""

    features: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[N, H, W, C]`` to ``[N, ceil(H / stride), ceil(W / stride), features]``."""
        c, size, stride = x.shape[-1], self.size, self.stride
        kernel = self.param("kernel", _initial, (size, size, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        padding = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in padding), (0, 0)))
        if size % stride == 0:  # blocks of pixels become channels: fewer windows to compile
            n, h, w, _ = x.shape
            x = x.reshape(n, h // stride, stride, w // stride, stride, c).swapaxes(2, 3)
            x = x.reshape(n, h // stride, w // stride, -1)
            size //= stride
            kernel = kernel.reshape(size, stride, size, stride, c, -1).swapaxes(1, 2)
            stride = 1
        return _windows(x, size, stride) @ kernel.reshape(-1, self.features) + bias[None, None, None]


class ConvTranspose(nn.Module):
    """As ``nn.ConvTranspose(features, (4, 4), (2, 2))``: the pixels between four cells are functions of these four."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[N, H, W, C]`` to ``[N, 2 H, 2 W, features]``."""
        n, h, w, c = x.shape
        kernel = self.param("kernel", _initial, (4, 4, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Of a cell above (0) or below (1), the upper pixel reads kernel rows 1 and 3, the lower one 0 and 2.
        by_pixel = kernel.reshape(2, 2, 2, 2, c, -1)[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        pixels = _windows(x, 2, 1) @ by_pixel.reshape(4 * c, -1)
        pixels = pixels.reshape(n, h + 1, w + 1, 2, 2, -1).swapaxes(2, 3)
        return pixels.reshape(n, 2 * h + 2, 2 * w + 2, -1)[:, 1:-1, 1:-1] + bias[None, None, None]


def _windows(x: jax.Array, size: int, stride: int) -> jax.Array:
    """What lies within squares of ``size``, each ``stride`` further: ``[N, H, W, C]`` to ``[N, h, w, size**2 C]``."""
    last_row, last_column = (n - size for n in x.shape[1:3])
    parts = [
        x[:, i : last_row + i + 1 : stride, j : last_column + j + 1 : stride] for i in range(size) for j in range(size)
    ]
    return jnp.concatenate(parts, -1)
