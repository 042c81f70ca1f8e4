"""Causal self-attention over a window of the recent past, with a cache of keys and values as its memory.

Windows, not the Transformer-XL's cached chunks: an output depends on the last ``window`` steps of its own sequence and
on nothing else, so that acting step by step and training on whole sequences agree. Positions are rotary (Su et al.
2021) and relative, so that no absolute time is kept. Letters: T time, B batch, H heads, E features per head, W window.
"""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssmrl.nn.base import SequenceModel
from ssmrl.registry import hp, models


@models.register("transformer", defaults={"norm": "pre", "activation": "none", "glu": "none", "mlp": 4})
class Attention(SequenceModel):
    """Windowed multi-head attention (Vaswani et al. 2017), which the defaults make a pre-norm transformer of.

    ``skip=gru norm=gtrxl`` gives the gating of GTrXL (Parisotto et al. 2020).
    """

    d_model: int = hp(64, "width: features in and out", ge=1)
    num_heads: int = hp(4, "attention heads", ge=1)
    window: int = hp(128, "how many steps it looks back on, the present one included", ge=1)

    requires: ClassVar[dict[str, str]] = {"d_model % (2 * num_heads) == 0": "heads have equal, even widths"}

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Keys and values ``[*B, W, D]`` of the last steps, and which are of this sequence ``[*B, W]``: none yet."""
        empty = jnp.zeros((*batch_shape, self.window, self.d_model))
        return empty, empty, empty[..., 0]

    @nn.compact
    def __call__(self, carry: Any, x: jax.Array, reset: jax.Array) -> tuple[Any, jax.Array]:
        """See ``SequenceModel``."""
        T, D, W = x.shape[0], self.d_model, self.window
        batch = x.shape[1:-1]
        q, *new = jnp.split(nn.Dense(3 * D, use_bias=False, name="qkv")(x).reshape(T, -1, 3 * D), 3, axis=-1)
        *past, seen = (jnp.moveaxis(c.reshape(-1, *c.shape[len(batch) :]), 0, 1) for c in carry)
        keys, values = (jnp.concatenate(pair) for pair in zip(past, new, strict=True))  # [W + T, B, D]
        segment = jnp.cumsum(reset.reshape(T, -1), axis=0, dtype=jnp.int32)
        segments = jnp.concatenate([jnp.where(seen > 0.5, 0, -1), segment])  # -1: of no sequence that goes on

        y = self._attend(q, keys, values, segments)
        y = nn.Dense(D, use_bias=False, name="out")(y.reshape(T, *batch, D))
        seen = (segments[T:] == segments[-1:]).astype(jnp.float32)
        kept = (jnp.moveaxis(c, 0, 1).reshape(*batch, W, *c.shape[2:]) for c in (keys[T:], values[T:], seen))
        return tuple(kept), y

    def _attend(self, q: jax.Array, keys: jax.Array, values: jax.Array, segments: jax.Array) -> jax.Array:
        """Attend from ``q`` ``[T, B, D]`` to the last W of ``[W + T, B, D]`` in the same segment; ``[T, B, D]``.

        Queries go in blocks of C, each with the W + C keys that it may reach: linear in T, and exact.
        """
        (T, B, D), W, H = q.shape, self.window, self.num_heads
        E, C = D // H, min(T, W)
        n = -(-T // C)
        ahead = ((0, n * C - T), (0, 0), (0, 0))
        q, keys, values = (jnp.pad(x, ahead).reshape(-1, B, H, E) for x in (q, keys, values))
        segments = jnp.pad(segments, ahead[:2], constant_values=-2)
        reach = C * jnp.arange(n)[:, None] + jnp.arange(W + C)[None]  # [n, W + C]
        q, own = q.reshape(n, C, B, H, E), segments[W:].reshape(n, C, B)
        distance = W + jnp.arange(C)[:, None] - jnp.arange(W + C)[None]  # [C, W + C]
        near = (distance >= 0) & (distance < W)
        same = own[:, :, None] == segments[reach][:, None]  # [n, C, W + C, B]
        q, k = rotate(q, W + jnp.arange(C)), rotate(keys[reach], jnp.arange(W + C))
        scores = jnp.einsum("ncbhe,nkbhe->nckbh", q, k) / math.sqrt(E)
        scores = jnp.where((near[None, :, :, None] & same)[..., None], scores, -jnp.inf)
        y = jnp.einsum("nckbh,nkbhe->ncbhe", jax.nn.softmax(scores, axis=2), values[reach])
        return y.reshape(n * C, B, D)[:T]


def rotate(x: jax.Array, position: jax.Array) -> jax.Array:
    """Turn pairs of features of ``x`` ``[n, K, B, H, E]`` by their position ``[K]`` (Su et al. 2021, equation 34)."""
    half = x.shape[-1] // 2
    angle = position[:, None] * 10_000.0 ** (-jnp.arange(half)[None] / half)
    cos, sin = (f(angle).reshape(1, -1, 1, 1, half) for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
