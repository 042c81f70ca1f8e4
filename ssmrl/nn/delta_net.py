r"""Gated DeltaNet: a matrix corrected towards each new key and value, that decays (Yang, Kautz and Hatamizadeh 2025).

.. math:: S_t = S_{t-1} \left(\alpha_t (I - \beta_t k_t k_t^\top)\right) + \beta_t v_t k_t^\top, \qquad o_t = S_t q_t

stored transposed. Legend: alpha = exp(-A softplus(W x + dt_bias)) decay, beta writing strength, q, k, v query, key of
unit length, value. With beta in (0, 2) the transition has eigenvalues in (-1, 1), not in (0, 1): it may reflect, which
parity and other state tracking need (Grazzi et al. 2025). Without the gates: DeltaNet (Yang et al. 2024).
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssmrl.nn.base import SequenceModel
from ssmrl.nn.linear_attention import initial_steps, linear_attention
from ssmrl.nn.short_conv import initial_taps, short_convolution
from ssmrl.registry import hp, models


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
    scan: Literal["auto", "sequential", "chunked"] = hp("auto", "method of the recurrence")

    requires: ClassVar[dict[str, str]] = {"dt_min <= dt_max": "the heads' initial forgetting spans an interval"}
    ssm_parameters: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> tuple[jax.Array, ...]:
        """Zero matrices ``[*B, H, E, E]`` and, with a convolution, its last inputs ``[*B, conv - 1, 3 H E]``."""
        H, E = self.num_heads, self.head_dim
        matrix = jnp.zeros((*batch_shape, H, E, E))
        return (matrix, jnp.zeros((*batch_shape, self.conv - 1, 3 * H * E))) if self.conv > 1 else (matrix,)

    @nn.compact
    def __call__(self, carry: Any, x: jax.Array, reset: jax.Array) -> tuple[Any, jax.Array]:
        """See ``SequenceModel``."""
        H, E = self.num_heads, self.head_dim
        heads = (*x.shape[:-1], H, E)
        state, *buffer = carry
        qkv = nn.Dense(3 * H * E, use_bias=False, name="qkv")(x)
        if buffer:
            kernel = self.param("conv", initial_taps, (self.conv, 3 * H * E))
            *buffer, qkv = short_convolution(buffer[0], qkv, reset, kernel)
        q, k, v = (part.reshape(heads) for part in jnp.split(nn.silu(qkv), 3, axis=-1))
        beta = (2 if self.negative_eigenvalues else 1) * nn.sigmoid(nn.Dense(H, use_bias=False, name="beta")(x))
        log_decay = self._log_decay(x) if self.gate else jnp.zeros_like(beta)
        state, y = linear_attention(_unit(q), _unit(k), v, log_decay, beta, state, reset, self.scan)
        y = nn.RMSNorm(epsilon=1e-5, name="norm")(y)
        if self.gate:
            y = y * nn.silu(nn.Dense(H * E, use_bias=False, name="gate")(x)).reshape(heads)
        y = nn.Dense(self.d_model, use_bias=False, name="out")(y.reshape(*x.shape[:-1], H * E))
        return (state, *buffer), y

    def _log_decay(self, x: jax.Array) -> jax.Array:
        """``log alpha`` ``[T, *B, H]``, in the parameterisation of Mamba-2."""
        H = self.num_heads
        A_log = self.param("A_log", nn.initializers.zeros, (H,))
        dt_bias = self.param("dt_bias", lambda _: initial_steps(self.dt_min, self.dt_max, H))
        lead = (1,) * (x.ndim - 1)
        steps = nn.softplus(nn.Dense(H, use_bias=False, name="dt")(x) + dt_bias.reshape(*lead, H))
        return -jnp.exp(A_log).reshape(*lead, H) * steps


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-6)
