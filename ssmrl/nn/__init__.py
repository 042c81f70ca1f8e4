"""Neural networks: sequence models (one per file), their blocks, encoders, heads and distributions."""

from typing import Any

from ssmrl.nn.base import Carry, SequenceModel
from ssmrl.nn.stack import Block, Stack
from ssmrl.registry import models as _registry

register = _registry.register


def make_model(name: str, **parameters: Any) -> Stack:
    """Build a sequence model: ``make_model("s5", d_model=128, d_state=256, num_layers=2)``.

    ``parameters`` are the model's own and those of :class:`Stack` (``ssmrl list models NAME`` shows them). Raises
    ``UnknownNameError`` with suggestions and ``TypeError`` for an unknown parameter.
    """
    layer, shared = _registry.create(name, **parameters)
    return Stack(d_model=layer.d_model, layer=layer, **shared)


__all__ = ["Block", "Carry", "SequenceModel", "Stack", "make_model", "register"]
