r"""Mamba-2: a selective state-space model with one decay per head (Dao and Gu 2024).

.. math:: S_t = \exp(-A \Delta_t) S_{t-1} + B_t (\Delta_t x_t)^\top, \qquad y_t = S_t^\top C_t + D x_t

Legend: x ``[T, *B, H, E]`` inputs of H heads, Delta ``[T, *B, H]`` step sizes, A ``[H]`` decay rates, B and C
``[T, *B, N]`` where to write and to read, shared by the heads, D ``[H]`` feed-through, z the output gate.
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssmrl.nn.base import SequenceModel
from ssmrl.nn.linear_attention import initial_steps, linear_attention
from ssmrl.nn.short_conv import initial_taps, short_convolution
from ssmrl.registry import hp, models


@models.register("mamba2", defaults={"norm": "pre", "activation": "none", "glu": "none"})
class Mamba2(SequenceModel):
    """Mamba-2 (Dao and Gu 2024, section 7): what is written, read and forgotten depends on the input."""

    d_model: int = hp(64, "width: features in and out", ge=1)
    num_heads: int = hp(4, "heads, each with a decay and a matrix for its memory", ge=1)
    head_dim: int = hp(32, "features per head; heads times this is the inner width, the paper's twice d_model", ge=1)
    d_state: int = hp(16, "N: what a head stores per feature", ge=1)
    conv: int = hp(4, "width of the causal convolution of x, B and C (1: none)", ge=1)
    dt_min: float = hp(1e-3, "smallest initial step size, the one of the head that forgets most slowly", gt=0.0)
    dt_max: float = hp(1e-1, "largest initial step size; the other heads' lie between the two", gt=0.0)
    scan: Literal["auto", "sequential", "chunked"] = hp("auto", "method of the recurrence")

    requires: ClassVar[dict[str, str]] = {"dt_min <= dt_max": "the heads' step sizes span an interval"}
    ssm_parameters: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")

    @property
    def _convolved(self) -> int:
        return self.num_heads * self.head_dim + 2 * self.d_state

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> tuple[jax.Array, ...]:
        """Zero matrices ``[*B, H, N, E]`` and, with a convolution, its last inputs ``[*B, conv - 1, H E + 2 N]``."""
        matrix = jnp.zeros((*batch_shape, self.num_heads, self.d_state, self.head_dim))
        return (matrix, jnp.zeros((*batch_shape, self.conv - 1, self._convolved))) if self.conv > 1 else (matrix,)

    @nn.compact
    def __call__(self, carry: Any, x: jax.Array, reset: jax.Array) -> tuple[Any, jax.Array]:
        """See ``SequenceModel``."""
        H, E, N = self.num_heads, self.head_dim, self.d_state
        one, lead = (1,) * (x.ndim - 1), x.shape[:-1]
        state, *buffer = carry
        z, xBC = jnp.split(nn.Dense(H * E + self._convolved, use_bias=False, name="input")(x), [H * E], -1)
        if buffer:
            kernel = self.param("conv", initial_taps, (self.conv, self._convolved))
            bias = self.param("conv_bias", nn.initializers.zeros, (self._convolved,))
            *buffer, xBC = short_convolution(buffer[0], xBC, reset, kernel)
            xBC = xBC + bias.reshape(*one, -1)
        u, B, C = jnp.split(nn.silu(xBC), [H * E, H * E + N], -1)
        u = u.reshape(*lead, H, E)
        B, C = (jnp.broadcast_to(m[..., None, :], (*lead, H, N)) for m in (B, C))

        A_log = self.param("A_log", nn.initializers.zeros, (H,)).reshape(*one, H)
        dt_bias = self.param("dt_bias", lambda _: initial_steps(self.dt_min, self.dt_max, H)).reshape(*one, H)
        D = self.param("D", nn.initializers.ones, (H,)).reshape(*one, H, 1)
        Delta = nn.softplus(nn.Dense(H, use_bias=False, name="dt")(x) + dt_bias)
        state, y = linear_attention(C, B, Delta[..., None] * u, -jnp.exp(A_log) * Delta, None, state, reset, self.scan)
        y = (y + D * u).reshape(*lead, H * E)
        y = nn.RMSNorm(epsilon=1e-5, name="norm")(y * nn.silu(z))
        return (state, *buffer), nn.Dense(self.d_model, use_bias=False, name="out")(y)
