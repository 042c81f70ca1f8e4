r"""The resettable linear recurrence, the one kernel under every state-space model.

.. math:: h_t = a_t \odot (1 - r_t) \odot h_{t-1} + b_t

A reset ``r_t`` folds into the decay: the memory forgets *before* it consumes ``b_t``. There is no third scan element
and no extra time step, values before a reset reach nothing after it, and neither do gradients. Letters: T time,
B any batch axes, P state size.
"""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Method = Literal["auto", "sequential", "associative", "chunked"]

# Below this length an accelerator gains nothing from a parallel form.
_SHORT = 16


def linear_recurrence(
    a: jax.Array,
    b: jax.Array,
    h0: jax.Array | None = None,
    reset: jax.Array | None = None,
    *,
    reverse: bool = False,
    method: Method = "auto",
    forward_mode: bool = False,
) -> jax.Array:
    """Compute all states of ``h[t] = a[t] * h[t-1] + b[t]``, forgetting ``h[t-1]`` where ``reset[t]``.

    Args:
      a: decay, real or complex, broadcastable to ``b``; a time-invariant ``[P]`` is never tiled to ``[T, *B, P]``,
        except by the associative method when there are resets.
      b: input ``[T, *B, P]``, real or complex.
      h0: state before the first input ``[*B, P]``; zeros if absent.
      reset: bool ``[T, *B]``; True where ``b[t]`` is the first input of a new sequence.
      reverse: run time backwards: ``h[t]`` then depends on ``h[t+1]``, and ``h0`` comes after the last input.
      method: ``sequential`` (``lax.scan``: least work, fastest on CPUs), ``associative`` (``lax.associative_scan``:
        depth log T), ``chunked`` (parallel over about sqrt(T) chunks: depth 2 sqrt(T), and a program size that does
        not grow with T), or ``auto``: sequential on a CPU or below 16 steps, else associative.
      forward_mode: differentiate through the computation instead of by the custom rule, so that ``jax.jvp`` and
        ``jax.jacfwd`` work; reverse mode then stores more.

    Returns:
      The states ``h`` ``[T, *B, P]``, in at least single precision; ``h[-1]`` (``h[0]`` if reversed) is the last.

    Raises:
      ValueError: if the shapes do not fit or the method is unknown.

    The gradient of a linear recurrence is one linear recurrence run backwards (Martin and Cundy 2018, section 2.2);
    the custom rule stores only ``a``, ``h`` and ``h0``.
    """
    if b.ndim < 2 or b.shape[0] == 0:
        raise ValueError(f"b must have shape [T, *B, P] with T >= 1: got {b.shape}")
    if reset is not None and reset.shape != b.shape[:-1]:
        raise ValueError(f"reset must have the shape [T, *B] = {b.shape[:-1]} of b: got {reset.shape}")
    if h0 is not None and h0.shape != b.shape[1:]:
        raise ValueError(f"h0 must have the shape [*B, P] = {b.shape[1:]} of b: got {h0.shape}")
    if a.ndim > b.ndim or any(n not in (1, m) for n, m in zip(a.shape[::-1], b.shape[::-1], strict=False)):
        raise ValueError(f"a must be broadcastable to b: got a {a.shape} and b {b.shape}")
    if method not in ("auto", "sequential", "associative", "chunked"):
        raise ValueError(f"unknown method '{method}': use auto, sequential, associative or chunked")
    if method == "auto":
        method = "sequential" if jax.default_backend() == "cpu" or b.shape[0] < _SHORT else "associative"
    dtype = jnp.result_type(a, b, jnp.float32, *(() if h0 is None else (h0,)))
    a = jnp.asarray(a, dtype).reshape((1,) * (b.ndim - a.ndim) + a.shape)
    h0 = jnp.zeros(b.shape[1:], dtype) if h0 is None else jnp.asarray(h0, dtype)
    keep = None if reset is None else jnp.logical_not(reset)[..., None]  # ~ would turn an integer 1 into -2
    run = _run if forward_mode else _run_custom_vjp
    return run(method, reverse, a, jnp.asarray(b, dtype), h0, keep)


def _run(method: str, reverse: bool, a: jax.Array, b: jax.Array, h0: jax.Array, keep: jax.Array | None) -> jax.Array:
    """Dispatch; ``a`` has the rank of ``b`` and size 1 on every axis along which it is constant."""
    if method == "sequential" or b.shape[0] == 1:
        return _sequential(a, b, h0, keep, reverse)
    parallel = _associative if method == "associative" else _chunked
    if not reverse:
        return parallel(a, b, h0, keep)
    a, b, keep = jax.tree.map(lambda x: jnp.flip(x, 0), (a, b, keep))
    return jnp.flip(parallel(a, b, h0, keep), 0)


def _sequential(a: jax.Array, b: jax.Array, h0: jax.Array, keep: jax.Array | None, reverse: bool = False) -> jax.Array:
    invariant = a.shape[0] == 1

    def step(h: jax.Array, xs: tuple) -> tuple[jax.Array, jax.Array]:
        a_t, b_t, keep_t = xs
        if keep_t is not None:
            h = jnp.where(keep_t, h, 0)
        h = (a[0] if invariant else a_t) * h + b_t
        return h, h

    if b.shape[0] == 1:
        return step(h0, (a[0], b[0], None if keep is None else keep[0]))[1][None]
    return lax.scan(step, h0, (None if invariant else a, b, keep), reverse=reverse)[1]


def _associative(a: jax.Array, b: jax.Array, h0: jax.Array, keep: jax.Array | None) -> jax.Array:
    a = jnp.broadcast_to(a, (b.shape[0], *a.shape[1:])) if keep is None else jnp.where(keep, a, 0)
    b = b.at[0].add(a[0] * h0)

    def combine(left: tuple, right: tuple) -> tuple:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return lax.associative_scan(combine, (a, b))[1]


def _chunked(a: jax.Array, b: jax.Array, h0: jax.Array, keep: jax.Array | None) -> jax.Array:
    """Solve chunks from rest side by side, chain their last states, then add what each chunk inherits."""
    T = b.shape[0]
    K = math.isqrt(T - 1) + 1  # steps per chunk
    C = -(-T // K)  # chunks

    def split(x: jax.Array, fill: complex) -> jax.Array:  # [T, ...] -> [K, C, ...]
        x = jnp.pad(x, [(0, C * K - T)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
        return x.reshape(C, K, *x.shape[1:]).swapaxes(0, 1)

    a = a[None] if a.shape[0] == 1 else split(a, 1)  # [1, 1, ...] or [K, C, ...]
    keep = None if keep is None else split(keep, True)
    b = split(b, 0)
    from_rest = _sequential(a, b, jnp.zeros_like(b[0]), keep)
    decay = jnp.cumprod(jnp.broadcast_to(a, (K, *a.shape[1:])), 0)  # from before the chunk to each step
    alive = None if keep is None else jnp.cumprod(keep, 0).astype(bool)  # no reset since before the chunk
    last = _sequential(decay[-1], from_rest[-1], h0, None if alive is None else alive[-1])
    inherited = decay * jnp.concatenate([h0[None], last[:-1]])[None]
    h = from_rest + (inherited if alive is None else jnp.where(alive, inherited, 0))
    return h.swapaxes(0, 1).reshape(C * K, *h.shape[2:])[:T]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run_custom_vjp(
    method: str, reverse: bool, a: jax.Array, b: jax.Array, h0: jax.Array, keep: jax.Array | None
) -> jax.Array:
    return _run(method, reverse, a, b, h0, keep)


def _forward(
    method: str, reverse: bool, a: jax.Array, b: jax.Array, h0: jax.Array, keep: jax.Array | None
) -> tuple[jax.Array, tuple]:
    h = _run_custom_vjp(method, reverse, a, b, h0, keep)
    return h, (a, h, h0, keep)


def _backward(method: str, reverse: bool, residuals: tuple, g: jax.Array) -> tuple:
    """With ``dh[t]`` the total derivative by ``h[t]``: ``dh[t] = g[t] + a[t+1] dh[t+1]``, ``db = dh``,
    ``da[t] = dh[t] h[t-1]``, ``dh0 = a[0] dh[0]``; JAX's cotangents are transposes, so nothing is conjugated.
    """
    a, h, h0, keep = residuals
    if method == "sequential" and a.shape[0] == 1:
        return _sequential_backward(reverse, residuals, g)

    def next_step(x: jax.Array) -> jax.Array:  # x[t+1] at t; the value past the end meets a zero state
        if x.shape[0] == 1:
            return x
        return jnp.concatenate([x[:1], x[:-1]] if reverse else [x[1:], x[-1:]])

    keep_next = None if keep is None else next_step(keep)
    dh = _run_custom_vjp(method, not reverse, next_step(a), g, jnp.zeros_like(h0), keep_next)
    h_prev = jnp.concatenate([h[1:], h0[None]] if reverse else [h0[None], h[:-1]])
    u = dh if keep is None else jnp.where(keep, dh, 0)
    first = -1 if reverse else 0
    return _sum_to(u * h_prev, a.shape), dh, a[first] * u[first], None


def _sequential_backward(reverse: bool, residuals: tuple, g: jax.Array) -> tuple:
    """The same for a time-invariant decay in one pass over memory, with ``da`` summed on the way."""
    a, h, h0, keep = residuals

    def step(carry: tuple, xs: tuple) -> tuple[tuple, jax.Array]:
        u, da = carry  # u: derivative by a[t+1] * h[t]
        g_t, h_t, keep_t = xs
        da = da + u * h_t
        dh = g_t + a[0] * u
        u = dh if keep_t is None else jnp.where(keep_t, dh, 0)
        return (u, da), dh

    (u, da), dh = lax.scan(step, (jnp.zeros_like(h0), jnp.zeros_like(h0)), (g, h, keep), reverse=not reverse)
    return _sum_to((da + u * h0)[None], a.shape), dh, a[0] * u, None


def _sum_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return x.sum([i for i, (n, m) in enumerate(zip(shape, x.shape, strict=True)) if n == 1 and m != 1], keepdims=True)


_run_custom_vjp.defvjp(_forward, _backward)
