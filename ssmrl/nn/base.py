"""The contract of a sequence model: one call that both acts (T = 1) and trains (T = L)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Carry = Any


class SequenceModel(nn.Module):
    """A memory: maps inputs ``[T, *B, D]`` to outputs ``[T, *B, D]``, forgetting where ``reset`` says so.

    The contract, checked by ``ssmrl.testing.check_sequence_model``:

    * ``reset[t]`` is True when ``x[t]`` is the first element of a new sequence; the memory forgets *before* it
      consumes ``x[t]``. Nothing before a reset, the incoming carry included, influences anything after it.
    * Feeding a sequence at once, in pieces with the carry threaded through, or step by step gives the same outputs.
    * The carry is state only: float32 or complex64 arrays with leading ``*B`` axes, of constant shape and type.
    """

    d_model: int

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Return the carry of a memory that has seen nothing; needs neither parameters nor a key."""
        raise NotImplementedError(f"{type(self).__name__} must define initialize_carry(batch_shape)")

    def __call__(self, carry: Carry, x: jax.Array, reset: jax.Array) -> tuple[Carry, jax.Array]:
        """Consume ``x`` ``[T, *B, D]`` with bool ``reset`` ``[T, *B]``; return the carry and ``y`` ``[T, *B, D]``."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(carry, x, reset)")


def flat_carry(carry: Carry, lead: tuple[int, ...]) -> jax.Array:
    """All numbers of a carry, leaves ``[*lead, ...]``, as float32 ``[*lead, X]``; complex numbers as two."""
    leaves = [x.reshape(*lead, -1) for x in jax.tree.leaves(carry)]
    parts = [part for x in leaves for part in ((x.real, x.imag) if jnp.iscomplexobj(x) else (x,))]
    return jnp.concatenate([part.astype(jnp.float32) for part in parts], -1) if parts else jnp.zeros((*lead, 0))
