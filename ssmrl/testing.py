"""The model checker: does a sequence model of your own keep the contract of :mod:`ssmrl.nn.base`?"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jax import lax

from ssmrl.nn.base import Carry, SequenceModel

__all__ = ["check_sequence_model"]

_ROWS = 6  # batch rows: resets nowhere, everywhere, first, last, twice in a row, at random
_DTYPES = (jnp.float32, jnp.complex64, jnp.int32)


def check_sequence_model(
    module: SequenceModel,
    *,
    d_input: int | None = None,
    length: int = 16,
    long: int = 2048,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> None:
    """Raise ``AssertionError`` with everything in which ``module`` breaks the contract, and what to do about each.

    Random sequences ``[length, 6, d_input]`` (``d_input`` is ``module.d_model`` if absent) with a different pattern of
    resets in each batch row are fed to randomly initialised parameters, those that start at zero drawn too, from the
    fresh carry and from that of a memory in use. Checked are

    * *types*: batch shapes ``()``, ``(B,)`` and ``(A, B)``, one step and many; carry leaves lead with the batch axes,
      are float32, complex64 or int32 and keep their shapes and types; ``y`` is float32 ``[T, *B, d_model]``;
    * *one memory*: a whole sequence, random pieces of it and single steps in ``lax.scan`` give the same outputs, and
      their carries the same future; the past does not depend on the future; with and without ``jit``;
    * *resets*: outputs after a reset are those of a fresh memory, however loud (x1000) the past was;
    * *batch*: rows neither mix nor depend on their order; batch axes and ``vmap`` are the same;
    * *gradients*: exactly zero from after a reset to before it and to the incoming carry, finite for all parameters,
      and defined under ``jax.checkpoint``;
    * *length*: ``long`` steps in one call are finite, and a reset near their end still gives a fresh memory;
    * *saving*: parameters and carry survive ``flax.serialization``.

    Make ``length`` exceed whatever window the model has. Outputs may differ by ``tolerance``, absolute below 1 and
    relative above. A reset need not clear ``inf`` or ``nan``. Takes some seconds, nearly all of them compilation.
    """
    if not 4 <= length < long:
        raise ValueError(f"4 <= length < long must hold: got length {length} and long {long}")
    checker = _Checker(module, module.d_model if d_input is None else d_input, length, tolerance, seed)
    checks = [checker.one_memory, checker.eager, checker.resets, checker.rows, checker.batch_axes, checker.gradients]
    checks += [partial(checker.length, long), checker.saving]
    violations = _collect([checker.types]) or _collect([checker.prepare]) or _collect(checks)  # each builds on the last
    if violations:
        title = f"{type(module).__name__} breaks the contract of ssmrl.nn.SequenceModel:"
        raise AssertionError("\n- ".join([title, *violations]))


def _collect(checks: Sequence[Callable[[], Iterable[str]]]) -> list[str]:
    """Run every check; an exception is a finding, and ends its check."""
    found: list[str] = []
    for check in checks:
        try:
            found.extend(check())
        except Exception as error:  # whatever a model raises
            name = getattr(check, "func", check).__name__.replace("_", " ")
            found.append(f"checking {name} raised {type(error).__name__}: {error}")
    return found


def _types(carry: Carry) -> str:
    leaves, structure = jax.tree.flatten(carry)
    types = [f"{c.dtype}{list(c.shape)}{' weak' * c.weak_type}" for c in leaves]
    return f"{', '.join(types)} in {structure}"


class _Checker:
    def __init__(self, module: SequenceModel, d_input: int, length: int, tolerance: float, seed: int):
        self.module, self.d_input, self.T, self.tolerance = module, d_input, length, tolerance
        self.rng, self.key = np.random.default_rng(seed), jax.random.key(seed)
        self.apply: Callable[..., Any] = module.apply
        self.compiled = jax.jit(module.apply)

    def run(self, *inputs: Any) -> tuple[Carry, np.ndarray]:
        """Apply the model to a carry, ``x`` and ``reset``; everything on the host."""
        return jax.device_get(self.compiled(self.variables, *inputs))

    def types(self) -> Iterator[str]:
        """Judge everything that is known without running the model."""
        for batch, T in [((), 1), ((_ROWS,), 1), ((_ROWS,), self.T), ((2, 3), self.T)]:
            fresh = jax.eval_shape(lambda batch=batch: self.module.initialize_carry(batch))
            x, reset = (jax.ShapeDtypeStruct((T, *batch, *d), t) for d, t in [((self.d_input,), "f4"), ((), bool)])
            for leaf in jax.tree.leaves(fresh):
                if leaf.shape[: len(batch)] != batch:
                    yield f"initialize_carry({batch}) has a leaf of shape {leaf.shape}: lead with the batch axes"
                if leaf.dtype not in _DTYPES:
                    yield f"initialize_carry has a leaf of {leaf.dtype}: keep memory in float32, complex64 or int32"
            variables = jax.eval_shape(self.module.init, self.key, fresh, x, reset)
            carry, y = jax.eval_shape(self.apply, variables, fresh, x, reset)
            if _types(carry) != _types(fresh):
                remedy = "keep its structure, shapes and types, strongly typed, for lax.scan"
                yield f"inputs {x.shape} turn the carry {_types(fresh)} into {_types(carry)}: {remedy}"
            if y.shape != (T, *batch, self.module.d_model) or y.dtype != jnp.float32:
                yield f"inputs {x.shape} give {y.dtype} outputs {y.shape}: return float32 [T, *B, d_model]"

    def prepare(self) -> Iterable[str]:
        """Draw parameters, inputs, resets and carries."""
        T, t, middle = self.T, np.arange(self.T), self.T // 2
        some = self.rng.random(T) < 0.3
        some[middle - 1] = True
        twice = (t == middle) | (t == middle + 1)
        self.reset = np.stack([t < 0, t >= 0, t == 0, t == T - 1, twice, some], axis=1)  # [T, B]
        self.start = np.array([T, middle, 0, T - 1, middle + 1, middle - 1])  # where a row's last piece begins
        self.x, self.other = self.inputs(T), self.inputs(T)
        self.fresh = jax.device_get(self.module.initialize_carry((_ROWS,)))
        drawn = jax.device_get(jax.jit(self.module.init)(self.key, self.fresh, self.x, self.reset))
        self.variables = jax.tree.map(  # what starts at zero would hide what it multiplies
            lambda p: p if np.any(p) else (0.1 * self.rng.normal(size=p.shape)).astype(p.dtype), drawn
        )
        never = np.zeros_like(self.reset)
        self.carry, _ = self.run(self.fresh, self.other, never)
        self.loud_carry, _ = self.run(self.fresh, 1e3 * self.other, never)
        self.end, self.y = self.run(self.carry, self.x, self.reset)
        self.before = t[:, None] < self.start  # [T, B]: what must not reach a row's last piece
        return ()

    def inputs(self, T: int) -> np.ndarray:
        return self.rng.normal(size=(T, _ROWS, self.d_input)).astype(np.float32)

    def compare(self, rule: str, got: np.ndarray, want: np.ndarray, remedy: str, where: Any = True) -> Iterator[str]:
        """Find outputs ``[T, B, D]`` that differ where ``where`` ``[T, B]`` tells to look."""
        error = np.abs(got - want) / max(1, np.max(np.abs(want)))
        wrong = ~(error <= self.tolerance).all(-1) & where
        if wrong.any():
            t, row = np.argwhere(wrong)[0]
            yield f"{rule} (first at step {t}, batch row {row}, by {error[t, row].max():.2g}): {remedy}"

    def one_memory(self) -> Iterator[str]:
        def step(carry: Carry, inputs: tuple) -> tuple[Carry, jax.Array]:
            x, reset = inputs
            carry, y = self.apply(self.variables, carry, x[None], reset[None])
            return carry, y[0]

        cut = int(self.rng.integers(1, self.T))
        remedy = "keep all that later outputs need in the carry: convolution buffers, keys and values, positions"
        stepped, y = jax.device_get(jax.jit(lambda *a: lax.scan(step, *a))(self.carry, (self.x, self.reset)))
        yield from self.compare("single steps differ from one call", y, self.y, remedy)
        halfway, one = self.run(self.carry, self.x[:cut], self.reset[:cut])
        pieced, two = self.run(halfway, self.x[cut:], self.reset[cut:])
        yield from self.compare(f"pieces cut at {cut} differ from one call", np.concatenate([one, two]), self.y, remedy)
        never = np.zeros_like(self.reset)
        _, future = self.run(self.end, self.other, never)
        for name, end in [("single steps", stepped), ("pieces", pieced)]:
            _, y = self.run(end, self.other, never)
            yield from self.compare(f"what follows {name} differs from what follows one call", y, future, remedy)
        middle = np.arange(self.T)[:, None] < self.T // 2
        _, y = self.run(self.carry, np.where(middle[..., None], self.x, self.other), self.reset & middle)
        yield from self.compare("outputs depend on later inputs", y, self.y, "make the model causal", middle)

    def eager(self) -> Iterator[str]:
        variables, *inputs = jax.device_put((self.variables, self.carry, self.x[:2], self.reset[:2]))
        _, y = self.apply(variables, *inputs)
        yield from self.compare(
            "outputs differ without jit", np.asarray(y), self.y[:2], "do not ask whether values are traced"
        )

    def resets(self) -> Iterator[str]:
        # Move each row's last piece to the front, where a fresh memory meets it.
        source = np.arange(self.T)[:, None] + self.start
        inside = source < self.T
        source, rows = np.where(inside, source, 0), np.arange(_ROWS)
        x = np.where(inside[..., None], self.x[source, rows], self.other)
        _, y = self.run(self.fresh, x, self.reset[source, rows] & inside)
        remedy = "where reset[t] is True, forget every part of the carry before x[t] is consumed"
        yield from self.compare(
            "outputs after a reset are not a fresh memory's", self.y[source, rows], y, remedy, inside
        )
        loud = np.where(self.before[..., None], 1e3 * self.other, self.x)
        _, y = self.run(self.loud_carry, loud, self.reset)
        yield from self.compare("outputs after a reset depend on inputs before it", y, self.y, remedy, ~self.before)

    def rows(self) -> Iterator[str]:
        x, reset = self.x.copy(), self.reset.copy()
        x[:, 0], reset[:, 0] = 1e3 * self.other[:, 0], ~reset[:, 0]
        carry = jax.tree.map(lambda c, loud: np.concatenate([loud[:1], c[1:]]), self.carry, self.loud_carry)
        _, y = self.run(carry, x, reset)
        others = np.arange(_ROWS) > 0
        yield from self.compare("batch rows influence one another", y, self.y, "keep them apart", others)
        order = self.rng.permutation(_ROWS)
        carry = jax.tree.map(lambda c: c[order], self.carry)
        _, y = self.run(carry, self.x[:, order], self.reset[:, order])
        yield from self.compare("outputs depend on the order of the batch", y, self.y[:, order], "keep rows apart")

    def batch_axes(self) -> Iterator[str]:
        x, reset = self.x.reshape(self.T, 2, 3, -1), self.reset.reshape(self.T, 2, 3)
        carry = jax.tree.map(lambda c: c.reshape(2, 3, *c.shape[1:]), self.carry)
        _, y = self.run(carry, x, reset)
        remedy = "treat all axes between time and features as batch axes"
        yield from self.compare("batch axes (2, 3) differ from (6,)", y.reshape(self.y.shape), self.y, remedy)
        mapped = jax.jit(jax.vmap(self.apply, in_axes=(None, 0, 1, 1), out_axes=(0, 1)))
        _, y = jax.device_get(mapped(self.variables, self.carry, self.x, self.reset))
        yield from self.compare("vmap over rows differs from a batch axis", y, self.y, remedy)

    def gradients(self) -> Iterator[str]:
        def gradients(weight: np.ndarray, apply: Callable = self.apply) -> tuple[list[jax.Array], ...]:
            def loss(variables: Any, carry: Carry, x: jax.Array) -> jax.Array:
                return jnp.sum(weight * apply(variables, carry, x, self.reset)[1])

            found = jax.grad(loss, (0, 1, 2), allow_int=True)(self.variables, self.carry, self.x)
            return tuple([g for g in jax.tree.leaves(tree) if g.dtype != jax.dtypes.float0] for tree in found)

        jax.eval_shape(partial(gradients, apply=jax.checkpoint(self.apply)), self.y)
        compiled = jax.jit(gradients)
        weight = self.rng.normal(size=self.y.shape).astype(np.float32)
        if not all(np.isfinite(g).all() for g in jax.tree.leaves(jax.device_get(compiled(weight)))):
            yield "gradients are not finite: guard the divisions, square roots and logarithms"
        _, of_carry, (of_x,) = jax.device_get(compiled(np.where(self.before[..., None], 0, weight)))
        remedy = "cut it with jnp.where(reset, 0, ...) or a mask, which are exact"
        if of_x[self.before].any():
            yield f"gradients flow across a reset to earlier inputs: {remedy}"
        if any(g.any() for g in of_carry):
            yield f"gradients flow across a reset to the incoming carry: {remedy}"

    def length(self, long: int) -> Iterator[str]:
        x = np.concatenate([self.inputs(long - self.T), self.x])
        reset = np.zeros((long, _ROWS), bool)
        reset[long - self.T] = True
        _, y = self.run(self.carry, x, reset)
        if not np.isfinite(y).all():
            t = np.argwhere(~np.isfinite(y).all(-1))[0][0]
            yield f"outputs of {long} steps are not finite from step {t}: normalise, or keep decays below 1"
        _, want = self.run(self.fresh, self.x, reset[long - self.T :])
        remedy = "let precision not depend on time since the start: no absolute time, no running sums over a sequence"
        yield from self.compare(f"after {long} steps, a reset gives no fresh memory", y[-self.T :], want, remedy)

    def saving(self) -> Iterator[str]:
        saved = (self.variables, self.carry)
        loaded = serialization.from_bytes(saved, serialization.to_bytes(saved))
        if not jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), saved, loaded)):
            yield "parameters or carry change in flax.serialization: use arrays in tuples, dicts or flax structs"
