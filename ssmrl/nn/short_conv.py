"""The short causal convolution in front of selective memories, with its past in the carry."""

import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling

initial_taps = variance_scaling(1 / 3, "fan_in", "uniform", in_axis=0, out_axis=1)  # [W, F], in +-1 / sqrt(W)


def short_convolution(
    buffer: jax.Array, x: jax.Array, reset: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Convolve each feature with its own last few values: ``y[t] = sum_i kernel[i] * x[t - i]``.

    ``x`` is ``[T, *B, F]``, ``kernel`` ``[W, F]`` and ``buffer`` ``[*B, W - 1, F]`` the inputs before ``x``, the latest
    one last; values from before a reset count as 0. Returns the next buffer and ``y`` ``[T, *B, F]``.
    """
    past, T = kernel.shape[0] - 1, x.shape[0]
    x = jnp.concatenate([jnp.moveaxis(buffer, -2, 0), x])
    segment = jnp.cumsum(reset, axis=0, dtype=jnp.int32)
    segments = jnp.concatenate([jnp.zeros((past, *segment.shape[1:]), jnp.int32), segment])

    def tap(i: int) -> jax.Array:
        same = segments[past - i : past - i + T] == segment
        return jnp.where(same[..., None], x[past - i : past - i + T], 0) * kernel[i].reshape(
            (1,) * (x.ndim - 1) + (-1,)
        )

    kept = jnp.where((segments[T:] == segment[-1:])[..., None], x[T:], 0)
    return jnp.moveaxis(kept, 0, -2), sum(map(tap, range(1, past + 1)), tap(0))
