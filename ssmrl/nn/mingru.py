r"""minGRU: a GRU whose gates read the input alone, so that it is a linear recurrence (Feng et al. 2024).

.. math:: z_t = \sigma(W_z x_t), \quad \tilde h_t = g(W_h x_t), \quad h_t = (1 - z_t) h_{t-1} + z_t \tilde h_t

with g(x) = x + 1/2 above 0 and sigma(x) below. Not in log space, as the paper has it: there a reset is minus infinity.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssmrl.nn.base import SequenceModel
from ssmrl.registry import hp, models
from ssmrl.scan import linear_recurrence


@models.register("mingru")
class MinGRU(SequenceModel):
    """Minimal gated recurrent unit (Feng et al. 2024, section 3.1): input-dependent forgetting, parallel over time."""

    d_model: int = hp(64, "width: features in and out, and of the state", ge=1)
    scan: Literal["auto", "sequential", "associative", "chunked"] = hp("auto", "method of the recurrence")

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        """Zeros, float32 ``[*B, D]``."""
        return jnp.zeros((*batch_shape, self.d_model))

    @nn.compact
    def __call__(self, carry: jax.Array, x: jax.Array, reset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See ``SequenceModel``."""
        gate, candidate = jnp.split(nn.Dense(2 * self.d_model, name="input")(x), 2, axis=-1)
        positive = jnp.where(candidate >= 0, candidate + 0.5, nn.sigmoid(candidate))
        h = linear_recurrence(nn.sigmoid(-gate), nn.sigmoid(gate) * positive, carry, reset, method=self.scan)
        return h[-1], h
