"""Blocks around a memory (norm, activation, gated linear unit, skip connection) and stacks of blocks."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssmrl.nn.base import Carry, SequenceModel
from ssmrl.registry import hp

_ACTIVATIONS = {"gelu": nn.gelu, "relu": nn.relu, "silu": nn.silu, "tanh": jnp.tanh, "none": lambda x: x}

# Blocks in one step of the loop over them. Two compile in the time of one, and learn 1.1 to 1.2 times as fast on a CPU.
_UNROLL = 2


class GRUGate(nn.Module):
    """Gate a branch ``y`` into a stream ``x``, both ``[..., D]`` (GTrXL, Parisotto et al. 2020, section 3.2).

    ``bias`` keeps the gate near the identity at the start of training.
    """

    bias: float = 2.0

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Return the gated sum, ``[..., D]``."""
        d = x.shape[-1]
        r_y, z_y, h_y = jnp.split(nn.Dense(3 * d, use_bias=False, name="branch")(y), 3, axis=-1)
        r_x, z_x = jnp.split(nn.Dense(2 * d, use_bias=False, name="stream")(x), 2, axis=-1)
        r, z = nn.sigmoid(r_y + r_x), nn.sigmoid(z_y + z_x - self.bias)
        return (1 - z) * x + z * jnp.tanh(h_y + nn.Dense(d, use_bias=False, name="candidate")(r * x))


class Block(nn.Module):
    """Memories, each with norm, activation, gated linear unit and skip connection, and an MLP; see :class:`Stack`."""

    layer: SequenceModel
    norm: str
    activation: str
    glu: str
    skip: str
    memories: int
    mlp: int

    @nn.compact
    def __call__(self, carry: Carry, x: jax.Array, reset: jax.Array, *args: Any) -> tuple[Carry, jax.Array]:
        """See ``SequenceModel``; further arguments go to the memories."""
        d = x.shape[-1]
        carries = [carry] if self.memories == 1 else list(carry)
        for i in range(self.memories):
            tag = f"_{i}" if i else ""
            layer = self.layer.copy(name=f"layer{tag}") if i else self.layer
            carries[i], y = layer(carries[i], self._enter(x, f"norm{tag}"), reset, *args)
            x = self._join(x, self._activate(y, f"glu{tag}"), f"norm{tag}", f"gate{tag}")
        if self.mlp:
            hidden = nn.gelu(nn.Dense(self.mlp * d, name="mlp_in")(self._enter(x, "mlp_norm")))
            x = self._join(x, nn.Dense(d, name="mlp_out")(hidden), "mlp_norm", "mlp_gate")
        return carries[0] if self.memories == 1 else tuple(carries), x

    def _activate(self, y: jax.Array, glu: str) -> jax.Array:
        d, branch = y.shape[-1], _ACTIVATIONS[self.activation](y)
        match self.glu:
            case "full":
                value, gate = jnp.split(nn.Dense(2 * d, name=glu)(branch), 2, axis=-1)
                return value * nn.sigmoid(gate)
            case "half1":
                return branch * nn.sigmoid(nn.Dense(d, name=glu)(branch))
            case "half2":
                return y * nn.sigmoid(nn.Dense(d, name=glu)(branch))
        return branch

    def _enter(self, x: jax.Array, norm: str) -> jax.Array:
        return nn.LayerNorm(name=norm)(x) if self.norm in ("pre", "gtrxl") else x

    def _join(self, stream: jax.Array, branch: jax.Array, norm: str, gate: str) -> jax.Array:
        if self.norm == "gtrxl":
            branch = nn.relu(branch)
        match self.skip:
            case "residual":
                branch = stream + branch
            case "gru":
                branch = GRUGate(name=gate)(stream, branch)
        return nn.LayerNorm(name=norm)(branch) if self.norm == "post" else branch


class Stack(SequenceModel):
    """Equal blocks on top of each other; a stack is a sequence model again.

    The parameters of block ``i`` are slice ``i`` of each parameter, and its carry is slice ``i`` of the axis that
    follows the batch axes. Over a sequence the blocks are rolled into one ``lax.scan``, two to a step, so that compile
    time does not grow with depth.
    """

    d_model: int = 64
    layer: Any = None
    num_layers: int = hp(1, "number of blocks, each with a memory of its own", ge=1)
    norm: Literal["none", "pre", "post", "gtrxl"] = hp(
        "none", "layer norm: before the memory, after the block, or before it with a rectified branch (TrXL-I)"
    )
    activation: Literal["gelu", "relu", "silu", "tanh", "none"] = hp("gelu", "activation of the memory's output")
    glu: Literal["none", "full", "half1", "half2"] = hp(
        "full", "gated linear unit: W1 y * sigmoid(W2 y), y * sigmoid(W y), or as half1 with the gate alone activated"
    )
    skip: Literal["none", "residual", "gru"] = hp("residual", "how a block's output joins its input (gru: as in GTrXL)")
    memories: int = hp(1, "memories in each block, one after the other (S4WM: 2)", ge=1)
    mlp: int = hp(0, "feed-forward branch at the block's end, so many times as wide as the model (0: none)", ge=0)

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """See ``SequenceModel``; leaves are ``[*B, num_layers, ...]``, in a tuple if a block has several memories."""
        carry = self.layer.initialize_carry((*batch_shape, self.num_layers))
        return carry if self.memories == 1 else (carry,) * self.memories

    @nn.compact
    def __call__(self, carry: Carry, x: jax.Array, reset: jax.Array, *args: Any) -> tuple[Carry, jax.Array]:
        """See ``SequenceModel``; further arguments go to every memory."""
        axis = x.ndim - 2

        def apply(block: Block, x: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
            carry, y = block(carry, x, reset, *args)
            return y, carry

        scan = nn.scan(
            apply,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=axis,
            out_axes=axis,
            length=self.num_layers,
            # flax traces a block once more for what all could share: only where initial parameters depend on that
            check_constancy_invariants=self.is_initializing(),
            # one time step is cheaper than a loop over its blocks
            unroll=self.num_layers if x.shape[0] == 1 else min(self.num_layers, _UNROLL),
        )
        block = Block(
            self.layer.clone(parent=None),
            *(self.norm, self.activation, self.glu, self.skip, self.memories, self.mlp),
            name="blocks",
        )
        y, carry = scan(block, x, carry)
        return carry, y
