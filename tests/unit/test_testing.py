"""The model checker accepts a sound model and tells what is wrong with each broken one."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from ssmrl.nn.base import SequenceModel
from ssmrl.testing import check_sequence_model


class Decaying(SequenceModel):
    """A sound model, in pieces that the others break one of."""

    d_model: int = 2

    def initialize_carry(self, batch_shape=()):
        return jnp.zeros((*batch_shape, self.d_model))

    def forget(self, h, reset):
        return jnp.where(reset[..., None], 0, h)

    def read(self, h):
        return h

    def prepare(self, x):
        return x

    @nn.compact
    def __call__(self, carry, x, reset):
        scale = self.param("scale", nn.initializers.zeros, ())

        def step(h, inputs):
            x, reset = inputs
            h = 0.5 * self.forget(h, reset) + x
            return h, h

        carry, h = lax.scan(step, carry, (self.prepare(x), reset))
        return carry, (1 + scale) * self.read(h)


class IgnoresReset(Decaying):
    def forget(self, h, reset):
        return h


class ForgetsSoftly(Decaying):
    def forget(self, h, reset):
        return jnp.where(reset[..., None], 1e-12, 1) * h


class ResetsLate(Decaying):
    def __call__(self, carry, x, reset):
        def step(h, inputs):
            x, reset = inputs
            h = 0.5 * h + x
            return self.forget(h, reset), h

        return lax.scan(step, carry, (x, reset))


class CountsFromTheStart(Decaying):
    def initialize_carry(self, batch_shape=()):
        return super().initialize_carry(batch_shape), jnp.zeros(batch_shape, jnp.int32)

    def __call__(self, carry, x, reset):
        h, time = carry
        h, y = super().__call__(h, x, reset)
        times = time[None] + jnp.arange(len(x), dtype=jnp.int32).reshape(-1, *(1,) * time.ndim)
        return (h, times[-1] + 1), y + jnp.sin(times[..., None].astype(jnp.float32))


class ConvolvesWithoutBuffer(Decaying):
    def prepare(self, x):
        return x + jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])


class LooksAhead(Decaying):
    def prepare(self, x):
        return x + jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])


class CentresTheBatch(Decaying):
    def prepare(self, x):
        return x - x.mean(axis=tuple(range(1, x.ndim - 1)), keepdims=True)


class KnowsItsRow(Decaying):
    def read(self, h):
        return h + jnp.arange(h.shape[-2], dtype=jnp.float32)[None, :, None] if h.ndim == 3 else h


class ChangesDtype(Decaying):
    def initialize_carry(self, batch_shape=()):
        return jnp.zeros((*batch_shape, self.d_model), jnp.int32)

    def __call__(self, carry, x, reset):
        return super().__call__(carry.astype(jnp.float32), x, reset)


class RemembersInHalfPrecision(Decaying):
    def initialize_carry(self, batch_shape=()):
        return jnp.zeros((*batch_shape, self.d_model), jnp.bfloat16)

    def __call__(self, carry, x, reset):
        carry, y = super().__call__(carry.astype(jnp.float32), x, reset)
        return carry.astype(jnp.bfloat16), y


class WeaklyTyped(Decaying):
    def __call__(self, carry, x, reset):
        _, y = super().__call__(carry, x, reset)
        return jnp.full(carry.shape, 1.0), y


class SharesItsCarry(Decaying):
    def initialize_carry(self, batch_shape=()):
        return jnp.zeros(self.d_model)


class NarrowsItsOutput(Decaying):
    def read(self, h):
        return h[..., :1]


class RunsSums(Decaying):
    """The same recurrence in closed form, which overflows."""

    def __call__(self, carry, x, reset):
        t = jnp.arange(len(x)).reshape(-1, *(1,) * (x.ndim - 1))
        grow = 2.0**t
        seen = jnp.cumsum(reset, 0)
        start = lax.cummax(jnp.where(reset, t[..., 0], 0), axis=0)  # of the present sequence
        total = jnp.cumsum(grow * x, 0)
        total_before = jnp.take_along_axis(total - grow * x, jnp.broadcast_to(start[..., None], x.shape), 0)
        h = (total - total_before) / grow + jnp.where(seen[..., None] == 0, 0.5 / grow * carry[None], 0)
        return h[-1], h


class TakesRoots(Decaying):
    def read(self, h):
        return jnp.sqrt(jnp.maximum(h, 0))


class KnowsTheCompiler(Decaying):
    def read(self, h):
        return h if isinstance(h, jax.core.Tracer) else 2 * h


@jax.tree_util.register_pytree_node_class
class Unsavable:
    def __init__(self, h):
        self.h = h

    def tree_flatten(self):
        return (self.h,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


class CarriesAnObject(Decaying):
    def initialize_carry(self, batch_shape=()):
        return Unsavable(super().initialize_carry(batch_shape))

    def __call__(self, carry, x, reset):
        h, y = super().__call__(carry.h, x, reset)
        return Unsavable(h), y


class Projects(Decaying):
    """Sound too, with fewer inputs than outputs."""

    @nn.compact
    def __call__(self, carry, x, reset):
        return Decaying(self.d_model)(carry, nn.Dense(self.d_model)(x), reset)


def check(model, **options):
    check_sequence_model(model, long=256, **options)


def test_a_sound_model_passes():
    check(Decaying())
    check(Projects(d_model=4), d_input=3, length=5, seed=1)


@pytest.mark.parametrize(
    ("model", "findings"),
    [
        (IgnoresReset, ["outputs after a reset are not a fresh memory's"]),
        (ResetsLate, ["outputs after a reset are not a fresh memory's"]),
        (ForgetsSoftly, ["gradients flow across a reset to earlier", "gradients flow across a reset to the incoming"]),
        (CountsFromTheStart, ["outputs after a reset are not a fresh memory's"]),
        (
            ConvolvesWithoutBuffer,
            ["single steps differ", r"pieces cut at \d+ differ", "outputs after a reset depend on inputs before it"],
        ),
        (LooksAhead, ["outputs depend on later inputs"]),
        (CentresTheBatch, ["batch rows influence one another"]),
        (KnowsItsRow, ["order of the batch", r"batch axes \(2, 3\) differ", "vmap over rows differs"]),
        (ChangesDtype, [r"turn the carry int32\[2\] in PyTreeDef\(\*\) into float32\[2\] in PyTreeDef\(\*\)"]),
        (RemembersInHalfPrecision, ["a leaf of bfloat16: keep memory in float32"]),
        (WeaklyTyped, [r"into float32\[2\] weak in"]),
        (SharesItsCarry, [r"a leaf of shape \(2,\): lead with the batch axes"]),
        (NarrowsItsOutput, [r"give float32 outputs \(1, 1\): return float32 \[T, \*B, d_model\]"]),
        (RunsSums, ["outputs of 256 steps are not finite"]),
        (TakesRoots, ["gradients are not finite"]),
        (KnowsTheCompiler, ["outputs differ without jit"]),
        (CarriesAnObject, ["checking saving raised TypeError"]),
        (SequenceModel, [r"NotImplementedError: SequenceModel must define initialize_carry\(batch_shape\)"]),
    ],
)
def test_a_broken_model_fails(model, findings):
    with pytest.raises(AssertionError, match=f"^{model.__name__} breaks the contract") as error:
        check(model(d_model=2))
    for finding in findings:
        assert re.search(f"\n- .*{finding}", str(error.value)), error.value


def test_only_what_is_broken_is_reported():
    with pytest.raises(AssertionError) as error:
        check(KnowsTheCompiler())
    assert str(error.value).count("\n- ") == 1


@pytest.mark.parametrize(("length", "long"), [(3, 100), (16, 16)])
def test_unusable_lengths(length, long):
    with pytest.raises(ValueError, match=f"4 <= length < long must hold: got length {length} and long {long}"):
        check_sequence_model(Decaying(), length=length, long=long)
