"""Gated recurrent networks, GRU and LSTM: the baselines, sequential in time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn.initializers import zeros

from ssmrl.nn.base import Carry, SequenceModel
from ssmrl.nn.initializers import orthogonal
from ssmrl.registry import hp, models


def _scan_cell(cell: Callable, carry: Carry, inputs: jax.Array, reset: jax.Array) -> tuple[Carry, jax.Array]:
    """Run ``cell(carry, input_t) -> carry, y_t`` over time, zeroing the carry where ``reset`` says so."""

    def step(carry: Carry, xs: tuple[jax.Array, jax.Array]) -> tuple[Carry, jax.Array]:
        x_t, reset_t = xs
        carry = jax.tree.map(lambda h: jnp.where(reset_t[..., None], 0, h), carry)
        return cell(carry, x_t)

    if inputs.shape[0] == 1:
        carry, y = step(carry, (inputs[0], reset[0]))
        return carry, y[None]
    return lax.scan(step, carry, (inputs, reset))


def _recurrent_init(gates: int) -> Callable:
    def init(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        keys = jax.random.split(key, gates)
        return jnp.concatenate([orthogonal()(k, (shape[0], shape[1] // gates)) for k in keys], axis=1)

    return init


@models.register("gru", defaults={"activation": "none", "glu": "none", "skip": "none"})
class GRU(SequenceModel):
    """Gated recurrent unit (Cho et al. 2014, in cuDNN's form: the reset gate acts after the recurrent product)."""

    d_model: int = hp(64, "width of the hidden state", ge=1)

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        """Zeros, float32 ``[*B, D]``."""
        return jnp.zeros((*batch_shape, self.d_model))

    @nn.compact
    def __call__(self, carry: jax.Array, x: jax.Array, reset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See ``SequenceModel``."""
        H = self.d_model
        inputs = nn.Dense(3 * H, name="input")(x)  # all time steps in one product
        W = self.param("recurrent", _recurrent_init(3), (H, 3 * H))
        b_n = self.param("recurrent_bias", zeros, (H,)).reshape((1,) * (x.ndim - 2) + (H,))

        def cell(h: jax.Array, x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
            recurrent = h @ W
            r, z = jnp.split(nn.sigmoid(x_t[..., : 2 * H] + recurrent[..., : 2 * H]), 2, axis=-1)
            n = jnp.tanh(x_t[..., 2 * H :] + r * (recurrent[..., 2 * H :] + b_n))
            h = (1 - z) * n + z * h
            return h, h

        return _scan_cell(cell, carry, inputs, reset)


@models.register("lstm", defaults={"activation": "none", "glu": "none", "skip": "none"})
class LSTM(SequenceModel):
    """Long short-term memory (Hochreiter and Schmidhuber 1997) with forget gates, their bias starting at 1."""

    d_model: int = hp(64, "width of the cell and the hidden state", ge=1)

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> tuple[jax.Array, jax.Array]:
        """Zero cell and hidden state, each float32 ``[*B, D]``."""
        return jnp.zeros((*batch_shape, self.d_model)), jnp.zeros((*batch_shape, self.d_model))

    @nn.compact
    def __call__(self, carry: Any, x: jax.Array, reset: jax.Array) -> tuple[Any, jax.Array]:
        """See ``SequenceModel``."""
        H = self.d_model
        inputs = nn.Dense(4 * H, name="input", use_bias=False)(x)
        W = self.param("recurrent", _recurrent_init(4), (H, 4 * H))
        bias = self.param("bias", lambda _: jnp.zeros(4 * H).at[H : 2 * H].set(1.0))
        bias = bias.reshape((1,) * (x.ndim - 2) + (4 * H,))

        def cell(carry: tuple, x_t: jax.Array) -> tuple[tuple, jax.Array]:
            c, h = carry
            i, f, g, o = jnp.split(x_t + h @ W + bias, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

        return _scan_cell(cell, carry, inputs, reset)
