r"""Linear attention with decay and the delta rule: memories whose state is a matrix, sequential or in chunks.

.. math:: S_t = \alpha_t (I - \beta_t k_t k_t^\top) S_{t-1} + \beta_t k_t v_t^\top, \qquad y_t = S_t^\top q_t

Read as :math:`S_t = \alpha_t S_{t-1} + k_t u_t^\top` with the corrected values
:math:`u_t = \beta_t (v_t - \alpha_t S_{t-1}^\top k_t)`: what is written under a key replaces what was found there.
Letters: T time, B batch, H heads, E key features, F value features per head, C steps per chunk.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Method = Literal["auto", "sequential", "chunked"]

_CHUNK = 32  # steps
_SHORT = 16  # below this length an accelerator gains nothing from chunks

_einsum = partial(jnp.einsum, precision="highest")  # TF32 would tell chunks from steps apart


def initial_steps(smallest: float, largest: float, heads: int) -> jax.Array:
    """Biases ``[H]`` that softplus turns into steps spread evenly, on a log scale, between the two."""
    return jnp.log(jnp.expm1(jnp.geomspace(smallest, largest, heads)))


def linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array | None,
    state: jax.Array,
    reset: jax.Array,
    method: Method = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Run the recurrence over time and read it at every step.

    Args:
      q: queries ``[T, *B, H, E]``.
      k: keys ``[T, *B, H, E]``; for a stable delta rule of length 1, or less.
      v: values ``[T, *B, H, F]``.
      log_decay: ``log alpha``, at most 0, ``[T, *B, H]``.
      beta: writing strengths ``[T, *B, H]``, or None for plain linear attention, ``u = v``.
      state: ``S`` before the first step ``[*B, H, E, F]``.
      reset: bool ``[T, *B]``; where True, ``S`` is 0 before the step.
      method: ``sequential`` (``lax.scan``), ``chunked`` (matrix products within chunks, and a scan over these), or
        ``auto``: sequential on a CPU or below 16 steps, else chunked.

    Returns:
      The last state ``[*B, H, E, F]`` and the outputs ``[T, *B, H, F]``.

    Raises:
      ValueError: if the method is unknown.

    The chunked form is that of Yang et al. 2024 (DeltaNet, section 3.2) and 2025 (gated DeltaNet, section 3.3); resets
    are masks, and decays are sums over the steps between two others, never differences of sums over a sequence.
    """
    if method not in ("auto", "sequential", "chunked"):
        raise ValueError(f"unknown method '{method}': use auto, sequential or chunked")
    T, batch = q.shape[0], q.shape[1:-2]
    if method == "auto":
        method = "sequential" if jax.default_backend() == "cpu" or T < _SHORT else "chunked"
    run = _chunked if method == "chunked" and T > 1 else _sequential
    inputs = jax.tree.map(lambda x: x.reshape(T, -1, *x.shape[1 + len(batch) :]), (q, k, v, log_decay, beta, reset))
    flat, y = run(state.reshape(-1, *state.shape[len(batch) :]), *inputs)
    return flat.reshape(state.shape), y.reshape(T, *batch, *y.shape[2:])


def _sequential(
    state: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array | None,
    reset: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    def step(S: jax.Array, xs: tuple) -> tuple[jax.Array, jax.Array]:
        q, k, u, decay, beta, reset = xs
        S = jnp.where(reset[:, None, None, None], 0, decay[..., None, None] * S)
        if beta is not None:
            u = beta[..., None] * (u - _einsum("bhe,bhef->bhf", k, S))
        S = S + k[..., None] * u[..., None, :]
        return S, _einsum("bhe,bhef->bhf", q, S)

    xs = (q, k, v, jnp.exp(log_decay), beta, reset)
    if q.shape[0] == 1:
        state, y = step(state, jax.tree.map(lambda x: x[0], xs))
        return state, y[None]
    return lax.scan(jax.checkpoint(step, prevent_cse=False), state, xs)  # stores S alone: half the time and memory


def _chunked(
    state: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array | None,
    reset: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Solve for all ``u`` as affine functions of the state that their chunk starts from, then chain the chunks."""
    T = q.shape[0]
    C = min(_CHUNK, T)
    n = -(-T // C)

    def split(x: jax.Array) -> jax.Array:  # [T, B, (H, (E))] -> [n, B, (H), C, (E)]; padding leaves a state as it is
        x = jnp.pad(x, [(0, n * C - T)] + [(0, 0)] * (x.ndim - 1)).reshape(n, C, *x.shape[1:])
        return jnp.moveaxis(x, 1, min(x.ndim - 1, 3))

    q, k, v, log_decay = map(split, (q, k, v, log_decay))
    segment = jnp.cumsum(split(reset), -1, dtype=jnp.int32)[:, :, None]  # [n, B, 1, C]
    lower = jnp.tril(jnp.ones((C, C), bool))[None, None, None]
    between = jnp.where(jnp.tril(lower, -1), log_decay[..., None], 0)
    between = jnp.cumsum(between, -2)  # [n, B, H, C, C]: log decay from after step j up to step i
    same = lower & (segment[..., None] == segment[..., None, :])
    decay = jnp.where(same, jnp.exp(between), 0)
    inherited = jnp.where(segment == 0, jnp.exp(jnp.cumsum(log_decay, -1)), 0)[..., None]  # [n, B, H, C, 1]
    weights = decay * _einsum("nbhie,nbhje->nbhij", q, k)
    if beta is None:
        u, w = v, None
    else:
        beta = split(beta)[..., None]
        mixing = beta * decay * _einsum("nbhie,nbhje->nbhij", k, k)
        right = jnp.concatenate([beta * v, beta * inherited * k], -1)
        solved = _einsum("nbhij,nbhjf->nbhif", _inverse(mixing), right)
        u, w = jnp.split(solved, [v.shape[-1]], -1)  # u of a chunk that starts from 0, and what its state takes off

    def chain(S: jax.Array, xs: tuple) -> tuple[jax.Array, jax.Array]:
        weights, u, w, read, write, kept = xs
        if w is not None:
            u = u - _einsum("bhie,bhef->bhif", w, S)
        y = _einsum("bhie,bhef->bhif", read, S) + _einsum("bhij,bhjf->bhif", weights, u)
        return kept * S + _einsum("bhie,bhif->bhef", write, u), y

    xs = (weights, u, w, inherited * q, decay[..., -1, :, None] * k, inherited[..., -1:, :])
    state, y = lax.scan(chain, state, xs)
    return state, jnp.moveaxis(y, 3, 1).reshape(n * C, *y.shape[1:3], -1)[:T]


def _inverse(mixing: jax.Array) -> jax.Array:
    """Invert ``I + mixing`` ``[..., C, C]``, of which only what is below the diagonal counts.

    By blocks that double in size: [[P, 0], [R, Q]] has the inverse [[P', 0], [-Q' R P', Q']]. Not by a triangular
    solve: two batched LAPACK calls at once dead-lock jaxlib 0.10 on a machine with two cores.
    """
    C, lead = mixing.shape[-1], (1,) * (mixing.ndim - 2)
    i = np.arange(C)
    inverse, size = jnp.eye(C, dtype=mixing.dtype).reshape(*lead, C, C), 1
    while size < C:
        block, pair = i // size, i // (2 * size)
        corner = (pair[:, None] == pair) & (block[:, None] > block)
        R = jnp.where(corner.reshape(*lead, C, C), mixing, 0)
        inverse = inverse - (R if size == 1 else _einsum("...ij,...jk,...kl->...il", inverse, R, inverse))
        size *= 2
    return inverse
