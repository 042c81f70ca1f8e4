r"""S5: a diagonal complex state-space model with many inputs and outputs (Smith, Warrington and Linderman 2023).

Legend: Lambda ``[P]`` continuous-time eigenvalues, B ``[P, D]`` and C ``[D, P]`` input and output matrices in their
eigenbasis, Delta ``[P]`` step sizes, Lambda_bar and B_bar their discretisation, D_skip ``[D]`` the feed-through.
P counts the complex numbers that are stored: half of ``d_state`` under conjugate symmetry.

.. math:: h_t = \bar\Lambda h_{t-1} + \bar B u_t, \qquad y_t = \mathrm{Re}(C h_t) + D u_t

with the real part doubled under conjugate symmetry. Of a share ``rotation`` of the states the input sets the phase too:
their eigenvalue at time t is :math:`\bar\Lambda e^{i W u_t}`, W ``[D, n]`` real, which a scan computes as well. If the
input tells how far one moved, such a state holds what was seen in the coordinates of the place, not of the time.
"""

import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn.initializers import lecun_normal, normal

from ssmrl.nn.base import SequenceModel
from ssmrl.nn.ssm import (
    STABLE,
    complex_input,
    discretize,
    hippo_normal,
    initial_eigenvalues,
    normalizing_scale,
    real_product,
)
from ssmrl.registry import hp, models
from ssmrl.scan import linear_recurrence


@models.register("s5")
class S5(SequenceModel):
    """S5 state-space layer (Smith et al. 2023), with the resets of Lu et al. 2023."""

    d_model: int = hp(64, "width: features in and out", ge=1)
    d_state: int = hp(64, "state size; under conjugate symmetry half as many complex numbers are stored", ge=1)
    blocks: int = hp(1, "J: number of HiPPO blocks that the initial state matrix is made of", ge=1)
    lambda_init: Literal["hippo", "s4d-lin", "s4d-inv", "s4d-real"] = hp("hippo", "initial eigenvalues")
    c_init: Literal["lecun", "complex_normal"] = hp("lecun", "initial C: rotated into the eigenbasis, or drawn in it")
    conj_sym: bool = hp(True, "store one of each conjugate pair of eigenvalues")
    discretization: Literal["zoh", "bilinear"] = hp("zoh", "discretisation rule")
    input_scale: Literal["step", "norm"] = hp(
        "step", "scale of the input: by the discretisation, or by sqrt(1 - |Lambda_bar|^2) (LRU), which long lags need"
    )
    stability: Literal["none", "clip", "exp", "softplus", "best"] = hp(
        "none", "how Re(Lambda) stays negative: not at all, clipped at -1e-4, or by a map of StableSSM"
    )
    dt_min: float = hp(1e-3, "smallest initial step size", gt=0.0)
    dt_max: float = hp(1e-1, "largest initial step size", gt=0.0)
    step_rescale: float = hp(1.0, "factor on all step sizes", gt=0.0)
    rotation: float = hp(
        0.0, "share of states that the input turns in phase, so that they can follow a position", ge=0.0, le=1.0
    )
    learned_init: bool = hp(False, "learn the state that a reset leads to")
    scan: Literal["auto", "sequential", "associative", "chunked"] = hp("auto", "method of the recurrence")

    requires: ClassVar[dict[str, str]] = {
        "d_state % (blocks * (1 + conj_sym)) == 0": "the state splits into equal blocks of conjugate pairs",
        "dt_min <= dt_max": "the step sizes are drawn from an interval",
    }
    # These parameters get their own learning rate and no weight decay (S5, section 6 and appendix G.2.1).
    ssm_parameters: ClassVar[tuple[str, ...]] = ("Lambda_re", "Lambda_im", "log_step", "B", "h_init")

    @property
    def P(self) -> int:
        """Number of complex states."""
        return self.d_state // 2 if self.conj_sym else self.d_state

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        """Zeros, complex64 ``[*B, P]``."""
        return jnp.zeros((*batch_shape, self.P), jnp.complex64)

    def _initial_system(self) -> tuple[np.ndarray, np.ndarray]:
        """Lambda ``[P]``, and V ``[full, P]`` whose columns are the eigenvectors, for ``blocks`` equal blocks."""
        n = self.d_state // self.blocks
        kept = n // 2 if self.conj_sym else n
        if self.lambda_init == "hippo":
            Lambda, V = hippo_normal(n)
            Lambda, V = Lambda[:kept], V[:, :kept]
        else:
            Lambda, V = initial_eigenvalues(self.lambda_init, kept), np.eye(n, kept, dtype=complex)
        return np.tile(Lambda, self.blocks), np.kron(np.eye(self.blocks), V)

    def _init_B(self, key: jax.Array, D: int) -> jax.Array:
        _, V = self._initial_system()
        B = jnp.complex64(V.conj().T) @ lecun_normal()(key, (V.shape[0], D)).astype(jnp.complex64)
        return jnp.stack([B.real, B.imag], -1)

    def _init_C(self, key: jax.Array, D: int) -> jax.Array:
        if self.c_init == "complex_normal":
            return normal(math.sqrt(0.5))(key, (D, self.P, 2))
        _, V = self._initial_system()
        C = lecun_normal(in_axis=1, out_axis=0, batch_axis=(2,))(key, (D, V.shape[0], 2))
        C = jax.lax.complex(C[..., 0], C[..., 1]) @ jnp.complex64(V)
        return jnp.stack([C.real, C.imag], -1)

    @nn.compact
    def __call__(
        self, carry: jax.Array, x: jax.Array, reset: jax.Array, dt: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """See ``SequenceModel``; ``dt`` ``[T, *B]`` are observed durations of the steps (all 1 if absent)."""
        D, P = x.shape[-1], self.P
        to_real, from_real = STABLE[self.stability]
        Lambda_re = self.param("Lambda_re", lambda _: jnp.float32(from_real(self._initial_system()[0].real)))
        Lambda_im = self.param("Lambda_im", lambda _: jnp.float32(self._initial_system()[0].imag))
        B, C = self.param("B", self._init_B, D), self.param("C", self._init_C, D)
        D_skip = self.param("D", normal(1.0), (D,))
        log_dt = math.log(self.dt_min), math.log(self.dt_max)
        log_step = self.param("log_step", lambda key: jax.random.uniform(key, (P,), minval=log_dt[0], maxval=log_dt[1]))
        Delta = self.step_rescale * jnp.exp(log_step)
        Lambda = jax.lax.complex(to_real(Lambda_re), Lambda_im)

        if dt is None:
            Lambda_bar, scale = self._discretize(Lambda, Delta)
            b = complex_input(x, scale[:, None] * jax.lax.complex(B[..., 0], B[..., 1]))
        else:
            lead = (1,) * dt.ndim
            Lambda_bar, scale = self._discretize(Lambda.reshape(*lead, P), Delta.reshape(*lead, P) * dt[..., None])
            b = scale * complex_input(x, jax.lax.complex(B[..., 0], B[..., 1]))
        if n := round(self.rotation * P):
            W_phase = self.param("W_phase", normal(0.1 / math.sqrt(D)), (D, n))
            turn = jnp.exp(1j * (x @ W_phase))
            Lambda_bar = Lambda_bar.reshape((1,) * (x.ndim - Lambda_bar.ndim) + Lambda_bar.shape)
            rest = jnp.broadcast_to(Lambda_bar[..., n:], (*turn.shape[:-1], P - n))
            Lambda_bar = jnp.concatenate([Lambda_bar[..., :n] * turn, rest], -1)
        if self.learned_init:
            h_init = self.param("h_init", nn.initializers.zeros, (P, 2))
            start = jnp.broadcast_to(jax.lax.complex(h_init[:, 0], h_init[:, 1]), b.shape)
            b = b + jnp.where(reset[..., None], jnp.broadcast_to(Lambda_bar, b.shape) * start, 0)

        h = linear_recurrence(Lambda_bar, b, carry, reset, method=self.scan)
        y = real_product(h, C * (2 if self.conj_sym else 1))
        return h[-1], y + D_skip.reshape((1,) * (x.ndim - 1) + (D,)) * x

    def _discretize(self, Lambda: jax.Array, Delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        Lambda_bar, scale = discretize(Lambda, Delta, self.discretization)
        if self.input_scale == "norm":
            scale = normalizing_scale(Lambda_bar).astype(Lambda_bar.dtype)
        return Lambda_bar, scale
