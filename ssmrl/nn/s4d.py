r"""S4D: a diagonal complex state-space model for each feature (Gu, Gupta, Goel and Re 2022).

Legend: Lambda ``[D, N]`` continuous-time eigenvalues, C ``[D, N]`` output weights, Delta ``[D]`` step sizes, D_skip
``[D]`` the feed-through. N counts one of each conjugate pair: half of ``d_state``.

.. math:: h_{t,d} = \bar\Lambda_d h_{t-1,d} + \bar B_d u_{t,d}, \qquad
          y_{t,d} = 2 \mathrm{Re}(C_d \cdot h_{t,d}) + D_d u_{t,d}

with the input matrix B = 1, which C would absorb. Features mix in the block around the memory only.
"""

import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import normal

from ssmrl.nn.base import SequenceModel
from ssmrl.nn.ssm import STABLE, discretize, initial_eigenvalues, normalizing_scale
from ssmrl.registry import hp, models
from ssmrl.scan import linear_recurrence


@models.register("s4d")
class S4D(SequenceModel):
    """S4D state-space layer (Gu et al. 2022): a diagonal system per feature, with resets."""

    d_model: int = hp(64, "width: features in and out", ge=1)
    d_state: int = hp(16, "state size per feature; half as many complex numbers are stored", ge=2)
    lambda_init: Literal["s4d-lin", "s4d-inv", "s4d-real"] = hp("s4d-lin", "initial eigenvalues")
    discretization: Literal["zoh", "bilinear"] = hp("zoh", "discretisation rule")
    input_scale: Literal["step", "norm"] = hp(
        "step", "scale of the input: by the discretisation, or by sqrt(1 - |Lambda_bar|^2) (LRU), which long lags need"
    )
    stability: Literal["none", "clip", "exp", "softplus", "best"] = hp(
        "exp", "how Re(Lambda) stays negative: not at all, clipped at -1e-4, or by a map of StableSSM"
    )
    dt_min: float = hp(1e-3, "smallest initial step size", gt=0.0)
    dt_max: float = hp(1e-1, "largest initial step size", gt=0.0)
    scan: Literal["auto", "sequential", "associative", "chunked"] = hp("auto", "method of the recurrence")

    requires: ClassVar[dict[str, str]] = {
        "d_state % 2 == 0": "the state consists of conjugate pairs",
        "dt_min <= dt_max": "the step sizes are drawn from an interval",
    }
    ssm_parameters: ClassVar[tuple[str, ...]] = ("Lambda_re", "Lambda_im", "log_step")

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        """Zeros, complex64 ``[*B, D * N]``."""
        return jnp.zeros((*batch_shape, self.d_model * (self.d_state // 2)), jnp.complex64)

    @nn.compact
    def __call__(self, carry: jax.Array, x: jax.Array, reset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See ``SequenceModel``."""
        D, N = self.d_model, self.d_state // 2
        if x.shape[-1] != D:
            raise ValueError(f"S4D has a system per feature: give it {D} features (d_model), not {x.shape[-1]}")
        to_real, from_real = STABLE[self.stability]
        start = initial_eigenvalues(self.lambda_init, N)
        Lambda_re = self.param("Lambda_re", lambda _: jnp.tile(jnp.float32(from_real(start.real)), (D, 1)))
        Lambda_im = self.param("Lambda_im", lambda _: jnp.tile(jnp.float32(start.imag), (D, 1)))
        C, D_skip = self.param("C", normal(math.sqrt(0.5)), (D, N, 2)), self.param("D", normal(1.0), (D,))
        log_dt = math.log(self.dt_min), math.log(self.dt_max)
        log_step = self.param("log_step", lambda key: jax.random.uniform(key, (D,), minval=log_dt[0], maxval=log_dt[1]))
        Lambda = jax.lax.complex(to_real(Lambda_re), Lambda_im)
        Lambda_bar, scale = discretize(Lambda, jnp.exp(log_step)[:, None], self.discretization)
        if self.input_scale == "norm":
            scale = normalizing_scale(Lambda_bar).astype(Lambda_bar.dtype)

        lead = (1,) * (x.ndim - 1)
        b = scale.reshape(*lead, D, N) * x[..., None]
        h = linear_recurrence(Lambda_bar.ravel(), b.reshape(*x.shape[:-1], D * N), carry, reset, method=self.scan)
        C = C.reshape(*lead, D, N, 2)
        states = h.reshape(b.shape)
        y = 2 * (states.real * C[..., 0] - states.imag * C[..., 1]).sum(-1)
        return h[-1], y + D_skip.reshape(*lead, D) * x
