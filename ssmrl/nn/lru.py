r"""LRU: the linear recurrent unit (Orvieto et al. 2023), a diagonal recurrence in discrete time.

Legend: Lambda ``[P]`` eigenvalues by modulus and phase, gamma ``[P]`` input scale, B ``[P, D]``, C ``[D, P]``, D_skip
``[D]`` the feed-through.

.. math:: h_t = \Lambda h_{t-1} + \gamma B u_t, \quad y_t = \mathrm{Re}(C h_t) + D u_t, \quad
          \Lambda = \exp(-e^\nu + i e^\theta)
"""

import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import normal

from ssmrl.nn.base import SequenceModel
from ssmrl.nn.ssm import complex_input, normalizing_scale, real_product
from ssmrl.registry import hp, models
from ssmrl.scan import linear_recurrence


@models.register("lru")
class LRU(SequenceModel):
    """Linear recurrent unit (Orvieto et al. 2023, equations 2 to 7), with resets."""

    d_model: int = hp(64, "width: features in and out", ge=1)
    d_state: int = hp(64, "number of complex states", ge=1)
    r_min: float = hp(0.0, "smallest initial modulus of an eigenvalue (.9 for long memory)", ge=0.0, lt=1.0)
    r_max: float = hp(1.0, "largest initial modulus of an eigenvalue", gt=0.0, le=1.0)
    max_phase: float = hp(6.283185, "largest initial phase, in radians (.3 for long memory)", gt=0.0)
    scan: Literal["auto", "sequential", "associative", "chunked"] = hp("auto", "method of the recurrence")

    requires: ClassVar[dict[str, str]] = {"r_min < r_max": "the moduli are drawn from an interval"}
    ssm_parameters: ClassVar[tuple[str, ...]] = ("nu_log", "theta_log", "gamma_log", "B")

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        """Zeros, complex64 ``[*B, P]``."""
        return jnp.zeros((*batch_shape, self.d_state), jnp.complex64)

    def _init_nu(self, key: jax.Array) -> jax.Array:
        """Eigenvalues uniform on the ring between ``r_min`` and ``r_max`` (lemma 3.2)."""
        u = jax.random.uniform(key, (self.d_state,), minval=1e-6, maxval=1 - 1e-6)  # neither 0 nor 1 in modulus
        return jnp.log(-0.5 * jnp.log(u * (self.r_max**2 - self.r_min**2) + self.r_min**2))

    @nn.compact
    def __call__(self, carry: jax.Array, x: jax.Array, reset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See ``SequenceModel``."""
        D, P = x.shape[-1], self.d_state
        nu = self.param("nu_log", self._init_nu)
        theta = self.param(
            "theta_log", lambda key: jnp.log(self.max_phase * jax.random.uniform(key, (P,), minval=1e-6))
        )
        Lambda = jnp.exp(jax.lax.complex(-jnp.exp(nu), jnp.exp(theta)))
        gamma = self.param("gamma_log", lambda _: jnp.log(normalizing_scale(Lambda)))
        B = self.param("B", normal(math.sqrt(0.5 / D)), (P, D, 2))
        C = self.param("C", normal(math.sqrt(1 / P)), (D, P, 2))
        D_skip = self.param("D", normal(1.0), (D,))
        b = complex_input(x, jnp.exp(gamma)[:, None] * jax.lax.complex(B[..., 0], B[..., 1]))
        h = linear_recurrence(Lambda, b, carry, reset, method=self.scan)
        return h[-1], real_product(h, C) + D_skip.reshape((1,) * (x.ndim - 1) + (D,)) * x
