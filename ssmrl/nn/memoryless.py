"""No memory at all: the control that every claim about memory is measured against."""

import jax

from ssmrl.nn.base import SequenceModel
from ssmrl.registry import hp, models


@models.register("none")
class Memoryless(SequenceModel):
    """The identity in time: what a policy can do with the present input alone."""

    d_model: int = hp(64, "width", ge=1)

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> tuple:
        """Nothing."""
        return ()

    def __call__(self, carry: tuple, x: jax.Array, reset: jax.Array) -> tuple[tuple, jax.Array]:
        """See ``SequenceModel``."""
        return carry, x
