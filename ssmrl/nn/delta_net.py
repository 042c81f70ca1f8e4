r"""Gated DeltaNet: a matrix corrected towards each new key and value, that decays (Yang, Kautz and Hatamizadeh 2025).

.. math:: S_t = S_{t-1} \left(\alpha_t (I - \beta_t k_t k_t^\top)\right) + \beta_t v_t k_t^\top, \qquad o_t = S_t q_t

stored transposed. Legend: alpha = exp(-A softplus(W x + dt_bias)) decay, beta writing strength, q, k, v query, key of
unit length, value. With beta in (0, 2) the transition has eigenvalues in (-1, 1), not in (0, 1): it may reflect, which
parity and other state tracking need (Grazzi et al. 2025). Without the gates: DeltaNet (Yang et al. 2024).

With ``rotation``, pairs of features of q and k are turned by angles that add up over the sequence,
:math:`\phi_t = \phi_{t-1} + W x_t`, keys by :math:`V x_t` more: rotary positions (Su et al. 2021) of a place that the
input moves, instead of the time. What is written is found again by place, and what is seen anew replaces it.
"""

import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import normal

from ssmrl.nn.base import SequenceModel
from ssmrl.nn.linear_attention import initial_steps, linear_attention
from ssmrl.nn.short_conv import initial_taps, short_convolution
from ssmrl.registry import hp, models
from ssmrl.scan import linear_recurrence


@models.register("deltanet", defaults={"norm": "pre", "activation": "none", "glu": "none"})
class DeltaNet(SequenceModel):
    """Gated DeltaNet (Yang et al. 2025): recall by overwriting, and with negative eigenvalues state tracking."""

    d_model: int = hp(64, "width: features in and out", ge=1)
    num_heads: int = hp(4, "heads, each with a matrix for its memory", ge=1)
    head_dim: int = hp(16, "width of a head's keys and values: its memory is the square of it", ge=1)
    gate: bool = hp(True, "input-dependent decay and output gate; off: plain DeltaNet")
    negative_eigenvalues: bool = hp(False, "writing strengths up to 2, not 1: the memory may flip signs")
    conv: int = hp(4, "width of the causal convolution of queries, keys and values (1: none)", ge=1)
    dt_min: float = hp(1e-3, "slowest head's initial forgetting: what it loses in a step", gt=0.0)
    dt_max: float = hp(1e-1, "fastest head's; the others lie between the two", gt=0.0)
    rotation: float = hp(
        0.0,
        "share of the keys' features that the input turns in phase, so that they can follow a position",
        ge=0.0,
        le=1.0,
    )
    scan: Literal["auto", "sequential", "chunked"] = hp("auto", "method of the recurrence")

    requires: ClassVar[dict[str, str]] = {"dt_min <= dt_max": "the heads' initial forgetting spans an interval"}
    ssm_parameters: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")

    @property
    def turned(self) -> int:
        """Number of a head's pairs of features that turn."""
        return round(self.rotation * (self.head_dim // 2))

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> tuple[jax.Array, ...]:
        """Zero matrices ``[*B, H, E, E]``, then, where there are any, angles ``[*B, H turned]`` and the convolution's
        last inputs ``[*B, conv - 1, 3 H E]``."""
        H, E = self.num_heads, self.head_dim
        shapes = [(H, E, E), *[(H * self.turned,)] * (self.turned > 0), *[(self.conv - 1, 3 * H * E)] * (self.conv > 1)]
        return tuple(jnp.zeros((*batch_shape, *shape)) for shape in shapes)

    @nn.compact
    def __call__(self, carry: Any, x: jax.Array, reset: jax.Array) -> tuple[Any, jax.Array]:
        """See ``SequenceModel``."""
        H, E = self.num_heads, self.head_dim
        heads = (*x.shape[:-1], H, E)
        state, *rest = carry
        qkv = nn.Dense(3 * H * E, use_bias=False, name="qkv")(x)
        if self.conv > 1:
            kernel = self.param("conv", initial_taps, (self.conv, 3 * H * E))
            rest[-1], qkv = short_convolution(rest[-1], qkv, reset, kernel)
        q, k, v = (part.reshape(heads) for part in jnp.split(nn.silu(qkv), 3, axis=-1))
        beta = (2 if self.negative_eigenvalues else 1) * nn.sigmoid(nn.Dense(H, use_bias=False, name="beta")(x))
        log_decay = self._log_decay(x) if self.gate else jnp.zeros_like(beta)
        if self.turned:
            rest[0], at, key_at = self._angles(rest[0], x, reset)
            q, k = _turn(q, at), _turn(k, key_at)
        state, y = linear_attention(_unit(q), _unit(k), v, log_decay, beta, state, reset, self.scan)
        y = nn.RMSNorm(epsilon=1e-5, name="norm")(y)
        if self.gate:
            y = y * nn.silu(nn.Dense(H * E, use_bias=False, name="gate")(x)).reshape(heads)
        y = nn.Dense(self.d_model, use_bias=False, name="out")(y.reshape(*x.shape[:-1], H * E))
        return (state, *rest), y

    def _angles(self, start: jax.Array, x: jax.Array, reset: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The last angles ``[*B, H turned]``, from 0 to 2 pi, and those of queries and keys ``[T, *B, H, turned]``."""
        size = self.num_heads * self.turned
        steps = nn.Dense(2 * size, use_bias=False, kernel_init=normal(0.1 / math.sqrt(x.shape[-1])), name="turn")(x)
        at = linear_recurrence(jnp.float32(1), steps[..., :size], start, reset)
        heads = (*x.shape[:-1], self.num_heads, self.turned)
        return at[-1] % (2 * jnp.pi), at.reshape(heads), (at + steps[..., size:]).reshape(heads)

    def _log_decay(self, x: jax.Array) -> jax.Array:
        """``log alpha`` ``[T, *B, H]``, in the parameterisation of Mamba-2."""
        H = self.num_heads
        A_log = self.param("A_log", nn.initializers.zeros, (H,))
        dt_bias = self.param("dt_bias", lambda _: initial_steps(self.dt_min, self.dt_max, H))
        lead = (1,) * (x.ndim - 1)
        steps = nn.softplus(nn.Dense(H, use_bias=False, name="dt")(x) + dt_bias.reshape(*lead, H))
        return -jnp.exp(A_log).reshape(*lead, H) * steps


def _turn(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Turn the first pairs of features of ``[..., E]`` by ``angle`` ``[..., turned]``."""
    n = angle.shape[-1]
    a, b, rest = jnp.split(x, [n, 2 * n], axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos, rest], -1)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-6)
