"""Every method of the resettable recurrence against a naive loop in double precision, and the laws that it obeys."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmrl.scan import linear_recurrence

METHODS = ("sequential", "associative", "chunked")
LENGTHS = (1, 2, 7, 64, 65, 257)
B, P = 6, 3
# The two kinds of problem that most tests share, so that they share compiled programs too.
KINDS = {
    "invariant": {"a_shape": (P,), "a_complex": True, "b_complex": True, "reverse": False},
    "varying": {"a_shape": ("T", B, P), "a_complex": False, "b_complex": False, "reverse": True},
}
# What else broadcasts to [T, B, P]; a real decay with a complex state among them.
SHAPES = [
    ((P,), False, True, True),
    (("T", B, P), True, True, False),
    (("T", 1, P), True, True, True),
    (("T", 1, 1), False, True, False),
    (("T", B, 1), False, False, True),
    ((B, P), True, False, False),
    ((B, 1), False, True, True),
    ((1, 1, P), True, True, False),
    ((), False, True, True),
]


@partial(jax.jit, static_argnames=("method", "reverse", "forward_mode"))
def solve(a, b, h0, reset, g, method, reverse=False, forward_mode=False):
    """The states, and the cotangents of a, b and h0 that the cotangent g of the states leads to."""

    def states(a, b, h0):
        return linear_recurrence(a, b, h0, reset, method=method, reverse=reverse, forward_mode=forward_mode)

    h, vjp = jax.vjp(states, a, b, h0)
    return h, vjp(g)


def naive(a, b, h0, reset, reverse=False):
    a, h, out = np.broadcast_to(a, b.shape), h0, np.empty(b.shape, np.result_type(a, b, h0))
    for t in reversed(range(len(b))) if reverse else range(len(b)):
        h = a[t] * np.where(reset[t][..., None], 0, h) + b[t]
        out[t] = h
    return out


def naive_vjp(a, b, h0, reset, g, reverse=False):
    """The chain rule, one time step after the other."""
    h, full = naive(a, b, h0, reset, reverse), np.broadcast_to(a, b.shape)
    da, db, dh = np.zeros_like(g), np.zeros_like(g), np.zeros_like(g[0])
    before = -1 if not reverse else 1
    for t in range(len(b)) if reverse else reversed(range(len(b))):
        dh = dh + g[t]
        kept = np.where(reset[t][..., None], 0, 1)
        previous = h[t + before] if 0 <= t + before < len(b) else h0
        da[t], db[t], dh = dh * kept * previous, dh, dh * kept * full[t]
    da = np.sum(da, axis=tuple(range(da.ndim - a.ndim)))
    da = np.sum(da, axis=tuple(i for i, n in enumerate(a.shape) if n == 1), keepdims=True).reshape(a.shape)
    return tuple(d if np.iscomplexobj(x) else d.real for d, x in zip((da, db, dh), (a, b, h0), strict=True))


def draw(rng, shape, complex_=True):
    x = rng.normal(size=shape)
    return x + 1j * rng.normal(size=shape) if complex_ else x


def problem(T, seed=0, a_shape=(P,), a_complex=True, b_complex=True, lead=(B,)):
    """Random ``a`` (modulus 0.3 to 1), ``b``, ``h0`` and a cotangent of the states."""
    rng = np.random.default_rng(seed)
    a = draw(rng, [T if n == "T" else n for n in a_shape], a_complex)
    a = a / np.abs(a) * rng.uniform(0.3, 1, a.shape)
    b, h0 = draw(rng, (T, *lead, P), b_complex), draw(rng, (*lead, P), b_complex)
    return a, b, h0, draw(rng, (T, *lead, P), a_complex or b_complex)


def masks(T):
    """Resets nowhere, everywhere, first, last, twice in a row and at random: one pattern per batch row."""
    t, middle = np.arange(T), T // 2
    random = np.random.default_rng(T).random(T) < 0.3
    return np.stack([t < 0, t >= 0, t == 0, t == T - 1, (t == middle) | (t == middle + 1), random], axis=1)


def assert_solves(a, b, h0, reset, g, method, reverse, tolerance=1e-10):
    h, gradients = solve(a, b, h0, reset, g, method, reverse)
    np.testing.assert_allclose(h, naive(a, b, h0, reset, reverse), tolerance, tolerance)
    expected = naive_vjp(a, b, h0, reset, g, reverse)
    for name, got, want in zip(("a", "b", "h0"), gradients, expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, tolerance, tolerance * max(1, np.abs(want).max()), err_msg=f"d{name}")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def shared(kind, T, seed=0):
    options = dict(KINDS[kind])
    reverse = options.pop("reverse")
    return problem(T, seed, **options), reverse


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_gradient_is_the_derivative_of_the_reference(kind):
    (a, b, h0, g), reverse = shared(kind, 7)
    reset, eps, rng = masks(7), 1e-6, np.random.default_rng(1)
    cotangents = naive_vjp(a, b, h0, reset, g, reverse)
    for i, x in enumerate((a, b, h0)):
        direction = draw(rng, x.shape, np.iscomplexobj(x))
        moved = [[*(a, b, h0)[:i], x + s * eps * direction, *(a, b, h0)[i + 1 :]] for s in (1, -1)]
        slope = (naive(*moved[0], reset, reverse) - naive(*moved[1], reset, reverse)) / (2 * eps)
        np.testing.assert_allclose((cotangents[i] * direction).sum(), (g * slope).sum(), 1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("method", METHODS)
def test_values_and_gradients(method, T, kind, x64):
    (a, b, h0, g), reverse = shared(kind, T)
    assert_solves(a, b, h0, masks(T), g, method, reverse)
    last = np.zeros_like(g)  # the cotangent that a carry alone gets
    last[0 if reverse else -1] = g[0]
    assert_solves(a, b, h0, masks(T), last, method, reverse)


@pytest.mark.parametrize(("a_shape", "a_complex", "b_complex", "reverse"), SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_whatever_broadcasts(method, a_shape, a_complex, b_complex, reverse, x64):
    a, b, h0, g = problem(7, 0, a_shape, a_complex, b_complex)
    assert_solves(a, b, h0 if b_complex else h0.real, masks(7), g, method, reverse)


@pytest.mark.parametrize("lead", [(), (2, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_any_batch_axes(method, lead, x64):
    a, b, h0, g = problem(7, lead=lead)
    assert_solves(a, b, h0, masks(7).reshape(7, 2, 3)[(..., *(0,) * (2 - len(lead)))], g, method, False)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(data=st.data())
def test_random_problems(data):
    T, kind = data.draw(st.sampled_from(LENGTHS[:-1])), data.draw(st.sampled_from(list(KINDS)))
    method, seed = data.draw(st.sampled_from(METHODS)), data.draw(st.integers(0, 2**31))
    reset = np.random.default_rng(seed).random((T, B)) < data.draw(st.sampled_from([0.02, 0.2, 0.8]))
    (a, b, h0, g), reverse = shared(kind, T, seed)
    with jax.enable_x64(True):
        assert_solves(a, b, h0, reset, g, method, reverse)


@pytest.mark.parametrize("method", METHODS)
def test_absent_carry_and_resets_count_as_zero_and_none(method, x64):
    a, b, h0, _ = problem(7)
    run = jax.jit(partial(linear_recurrence, method=method))
    np.testing.assert_allclose(run(a, b), naive(a, b, 0 * h0, np.zeros((7, B), bool)), 1e-10)
    h = run(a, b, h0, masks(7).astype(np.int32))
    np.testing.assert_allclose(h, naive(a, b, h0, masks(7)), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=10, derandomize=True)
@given(at=st.integers(0, 64))
def test_nothing_crosses_a_reset(method, kind, at):
    T = 65
    (a, b, h0, g), reverse = shared(kind, T)
    reset = np.zeros((T, B), bool)
    reset[at] = True
    before, after = (slice(at + 1, T), slice(at + 1)) if reverse else (slice(at), slice(at, T))
    louder = b.copy()
    louder[before] *= 1e3
    g[before] = 0
    with jax.enable_x64(True):
        h, (da, db, dh0) = jax.tree.map(np.asarray, solve(a, b, h0, reset, g, method, reverse))
        loud = np.asarray(solve(a, louder, 1e3 * h0, reset, g, method, reverse)[0])
    assert np.array_equal(h[after], loud[after])
    assert not db[before].any()
    assert not dh0.any()
    assert db[at].all()
    if kind == "varying":
        assert not da[before].any()
        assert not da[at].any()


@pytest.mark.parametrize("first", [1, 64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_one_call_is_two_chunks(method, kind, first, x64):
    (a, b, h0, g), reverse = shared(kind, 65)
    reset = masks(65)
    h, (da, db, dh0) = jax.tree.map(np.asarray, solve(a, b, h0, reset, g, method, reverse))
    chunks = [slice(first), slice(first, 65)][:: -1 if reverse else 1]
    one, two = ([a if a.ndim == 1 else a[c], b[c], reset[c], g[c].copy()] for c in chunks)
    end = 0 if reverse else -1
    h_one = solve(one[0], one[1], h0, one[2], one[3], method, reverse)[0]
    h_two, (da_two, db_two, carry_gradient) = solve(two[0], two[1], h_one[end], two[2], two[3], method, reverse)
    one[3][end] += carry_gradient
    _, (da_one, db_one, dh0_one) = solve(one[0], one[1], h0, one[2], one[3], method, reverse)
    order = -1 if reverse else 1
    np.testing.assert_allclose(np.concatenate([h_one, h_two][::order]), h, 1e-10)
    np.testing.assert_allclose(np.concatenate([db_one, db_two][::order]), db, 1e-8, 1e-10)
    np.testing.assert_allclose(dh0_one, dh0, 1e-8, 1e-10)
    total = da_one + da_two if a.ndim == 1 else np.concatenate([da_one, da_two][::order])
    np.testing.assert_allclose(total, da, 1e-8, 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_a_sequence_with_resets_is_its_pieces_apart(method, x64):
    a, b, h0, g = problem(257)
    starts = [0, 64, 128, 193]
    reset = np.isin(np.arange(257), starts[1:])[:, None] & np.ones(B, bool)
    h, _ = solve(a, b, h0, reset, g, method)
    for start, end in zip(starts, [*starts[1:], 257], strict=True):
        carry = h0 if start == 0 else 0 * h0
        piece, _ = solve(a, b[start:end], carry, np.zeros((end - start, B), bool), g[start:end], method)
        np.testing.assert_allclose(piece, h[start:end], 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_forward_mode(method, kind, x64):
    (a, b, h0, g), reverse = shared(kind, 7)
    reset, rng, eps = masks(7), np.random.default_rng(2), 1e-6
    custom, plain = (solve(a, b, h0, reset, g, method, reverse, forward_mode) for forward_mode in (False, True))
    for got, want in zip(jax.tree.leaves(plain), jax.tree.leaves(custom), strict=True):
        np.testing.assert_allclose(got, want, 1e-10, 1e-10)
    tangents = tuple(draw(rng, x.shape, np.iscomplexobj(x)) for x in (a, b, h0))
    run = partial(linear_recurrence, reset=reset, method=method, reverse=reverse, forward_mode=True)
    _, slope = jax.jit(lambda x, d: jax.jvp(run, x, d))((a, b, h0), tangents)
    ahead, behind = (
        naive(*(x + s * d for x, d in zip((a, b, h0), tangents, strict=True)), reset, reverse) for s in (eps, -eps)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * eps), 1e-6, 1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_a_gradient(method, kind, x64):
    (a, b, h0, _), reverse = shared(kind, 7)
    a, b, h0 = a.real, b.real, h0.real
    reset, rng, eps = masks(7), np.random.default_rng(3), 1e-6
    direction = tuple(rng.normal(size=x.shape) for x in (a, b, h0))

    def gradient(*x):
        loss = lambda *x: (linear_recurrence(*x, reset, method=method, reverse=reverse) ** 2).sum()  # noqa: E731
        return jax.grad(loss, (0, 1, 2))(*x)

    def slope(*x):
        return sum((g * d).sum() for g, d in zip(gradient(*x), direction, strict=True))

    def naive_gradient(*x):
        return naive_vjp(*x, reset, 2 * naive(*x, reset, reverse), reverse)

    second = jax.jit(jax.grad(slope, (0, 1, 2)))(a, b, h0)
    ahead, behind = (
        naive_gradient(*(x + s * d for x, d in zip((a, b, h0), direction, strict=True))) for s in (eps, -eps)
    )
    for got, plus, minus in zip(second, ahead, behind, strict=True):
        np.testing.assert_allclose(got, (plus - minus) / (2 * eps), 1e-5, 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_is_a_batch_axis(method, x64):
    a, b, h0, g = problem(7)
    run = jax.vmap(partial(solve, method=method), in_axes=(None, 1, 0, 1, 1), out_axes=(1, (0, 1, 0)))
    h, (da, db, dh0) = run(a, b, h0, masks(7), g)
    batched, (da_sum, *others) = solve(a, b, h0, masks(7), g, method)
    for got, want in zip((h, da.sum(0), db, dh0), (batched, da_sum, *others), strict=True):
        np.testing.assert_allclose(got, want, 1e-10, 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_long_sequences_of_slow_decay(method):
    T, rng = 100_000, np.random.default_rng(0)
    a = np.complex64(0.9999 * np.exp(1j * np.array([0.0, 1e-4, 2.0])))
    b = np.complex64(draw(rng, (T, 1, 3)))
    reset = np.zeros((T, 1), bool)
    h = jax.jit(partial(linear_recurrence, method=method))(a, b, np.zeros((1, 3), np.complex64), reset)
    exact = naive(a.astype(complex), b.astype(complex), np.zeros((1, 3)), reset)
    assert np.isfinite(h).all()
    assert np.abs(h - exact).max() < 1e-4 * np.abs(exact).max()


def lowered(method, T, with_reset=True):
    a, b, h0 = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((P,), (T, B, P), (B, P)))
    reset = jax.ShapeDtypeStruct((T, B), bool) if with_reset else None
    jaxpr = jax.make_jaxpr(partial(solve, method=method))(a, b, h0, reset, b)
    return jaxpr, solve.lower(a, b, h0, reset, b, method).as_text().count("\n")


@pytest.mark.parametrize("method", METHODS)
def test_program_size(method):
    short, long = 1_000, 16_000
    jaxprs, hlo = zip(*(lowered(method, T) for T in (short, long)), strict=True)
    lines = [str(jaxpr).count("\n") for jaxpr in jaxprs]
    if method == "associative":  # O(log T): 4 more levels on top of 10
        assert lines[1] < 2 * lines[0]
        assert hlo[1] < 2 * hlo[0]
    else:
        assert lines[1] == lines[0]
        assert hlo[1] == hlo[0]


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize("method", ["sequential", "chunked"])
def test_a_time_invariant_decay_is_never_tiled(method, with_reset):
    T = 1000
    tiles = [
        equation
        for equation in equations(lowered(method, T, with_reset)[0].jaxpr)
        if equation.primitive.name == "broadcast_in_dim"
        and equation.invars[0].aval.ndim > 0  # not a constant
        and equation.outvars[0].aval.dtype == jnp.float32  # not a mask
        and equation.outvars[0].aval.size >= T * P
    ]
    assert not tiles
    reset = jnp.zeros((T, B), bool) if with_reset else None
    run = partial(linear_recurrence, reset=reset, method=method)
    _, vjp = jax.vjp(run, jnp.ones(P), jnp.ones((T, B, P)), jnp.ones((B, P)))
    saved = sorted(x.size for x in jax.tree.leaves(vjp))
    assert saved == sorted([P, T * B * P, B * P, *([T * B] if with_reset else [])])  # a, h, h0 and the resets


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
@pytest.mark.parametrize("method", METHODS)
def test_states_are_kept_in_single_precision(method, dtype):
    run = jax.jit(partial(linear_recurrence, method=method))
    b = jnp.ones((300, 1), dtype)
    h = run(jnp.full(1, 0.999), b)  # 0.999 is 1 in bfloat16
    assert h.dtype == jnp.float32
    np.testing.assert_allclose(h[-1], (1 - 0.999**300) / (1 - 0.999), 1e-4)
    assert jax.eval_shape(run, jnp.full(1, 0.5j), b).dtype == jnp.complex64


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_types_are_strong(method):
    weak = jnp.full((7, 3), 0.5)
    assert weak.weak_type
    h = jax.eval_shape(partial(linear_recurrence, method=method), weak[0], weak, weak[0])
    assert not h.weak_type
    assert h.dtype == jnp.float32


@pytest.mark.parametrize(
    ("backend", "T", "parallel"), [("cpu", 100, False), ("gpu", 100, True), ("gpu", 15, False), ("tpu", 16, True)]
)
def test_auto_is_sequential_where_that_is_fastest(monkeypatch, backend, T, parallel):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    jaxpr = jax.make_jaxpr(lambda *x: linear_recurrence(*x))(jnp.ones(3), jnp.ones((T, 3)))  # traced afresh
    loops = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "scan"]
    assert bool(loops) != parallel


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b": jnp.ones(3)}, r"b must have shape \[T, \*B, P\] with T >= 1: got \(3,\)"),
        ({"b": jnp.ones((0, 3))}, r"with T >= 1: got \(0, 3\)"),
        ({"reset": jnp.zeros((7, 2), bool)}, r"reset must have the shape \[T, \*B\] = \(7,\) of b: got \(7, 2\)"),
        ({"h0": jnp.zeros(2)}, r"h0 must have the shape \[\*B, P\] = \(3,\) of b: got \(2,\)"),
        ({"a": jnp.ones((7, 2, 3))}, r"a must be broadcastable to b: got a \(7, 2, 3\) and b \(7, 3\)"),
        ({"a": jnp.ones(4)}, "a must be broadcastable to b"),
        ({"a": jnp.ones((2, 1)), "b": jnp.ones((1, 3))}, "a must be broadcastable to b"),
        ({"method": "parallel"}, "unknown method 'parallel': use auto, sequential, associative or chunked"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_recurrence(**{"a": jnp.ones(3), "b": jnp.ones((7, 3)), **arguments})
