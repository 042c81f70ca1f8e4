"""What state-space models share: initial eigenvalues, stable parameterisations, discretisation, real products.

Legend: Lambda continuous-time eigenvalues, Delta step sizes, Lambda_bar discrete-time eigenvalues.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MAX_REAL = -1e-4  # eigenvalues clipped to this keep long sequences stable


@functools.lru_cache(maxsize=8)
def hippo_normal(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues ``[n]`` (by ascending imaginary part) and eigenvectors ``[n, n]`` of HiPPO-N.

    HiPPO-N is the normal part of the HiPPO-LegS matrix (S5, appendix B.1.1; S4D, section 4).
    """
    p = np.sqrt(1 + 2 * np.arange(n))
    A = -(np.tril(np.outer(p, p)) - np.diag(np.arange(n)))
    q = np.sqrt(np.arange(n) + 0.5)
    S = A + np.outer(q, q)
    imag, V = np.linalg.eigh(-1j * S)
    return np.mean(np.diagonal(S)) + 1j * imag, V


def initial_eigenvalues(init: str, n: int) -> np.ndarray:
    """The ``n`` eigenvalues of an S4D initialisation (Gu et al. 2022, section 4), all with imaginary part >= 0."""
    k = np.arange(n)
    match init:
        case "s4d-lin":
            return -0.5 + 1j * np.pi * k
        case "s4d-inv":
            N = 2 * n
            return -0.5 + 1j * N / np.pi * (N / (2 * k + 1) - 1)
        case "s4d-real":
            return -(k + 1.0) + 0j
    raise ValueError(f"unknown initialisation '{init}': use hippo, s4d-lin, s4d-inv or s4d-real")


# Re(Lambda) < 0 as a function of an unconstrained parameter w, and its inverse (StableSSM, Wang and Li 2024).
STABLE: dict[str, tuple[Any, Any]] = {
    "none": (lambda w: w, lambda re: re),
    "clip": (lambda w: jnp.minimum(w, _MAX_REAL), lambda re: re),
    "exp": (lambda w: -jnp.exp(w), lambda re: np.log(-re)),
    "softplus": (lambda w: -jax.nn.softplus(w), lambda re: np.log(np.expm1(-re))),
    "best": (lambda w: -1 / (w**2 + 0.1), lambda re: np.sqrt(np.maximum(-1 / re - 0.1, 1e-6))),
}


def discretize(Lambda: jax.Array, Delta: jax.Array, method: str) -> tuple[jax.Array, jax.Array]:
    """Discretise ``Lambda`` with steps ``Delta`` (broadcastable): Lambda_bar and the factor that turns B into B_bar.

    ``zoh`` (zero-order hold) or ``bilinear`` (S5, equation 6 and appendix B). The zero-order hold uses ``expm1``
    and, near 0, its limit, where the textbook formula cancels.
    """
    z = Lambda * Delta
    if method == "bilinear":
        return (1 + z / 2) / (1 - z / 2), Delta / (1 - z / 2)
    small = jnp.abs(z) < 1e-4
    safe = jnp.where(small, 1, z)
    # expm1 of a complex number without cancellation: e^x (cos y - 1) + (e^x - 1) and e^x sin y
    growth, turn = jnp.exp(safe.real), jax.lax.complex(-2 * jnp.sin(safe.imag / 2) ** 2, jnp.sin(safe.imag))
    expm1 = growth * turn + jnp.expm1(safe.real)
    return jnp.exp(z), Delta * jnp.where(small, 1 + z / 2, expm1 / safe)


def normalizing_scale(Lambda_bar: jax.Array) -> jax.Array:
    """The factor sqrt(1 - |Lambda_bar|^2) that keeps states of white inputs at unit variance (LRU, section 3.4)."""
    modulus = Lambda_bar.real**2 + Lambda_bar.imag**2
    return jnp.sqrt(jnp.maximum(1 - modulus, 1e-8))


def complex_input(x: jax.Array, B: jax.Array) -> jax.Array:
    """``B x`` for real ``x`` ``[..., D]`` and complex ``B`` ``[P, D]``: complex ``[..., P]``.

    By real products of stacked parts: complex ones cost twice the flops at a lower rate.
    """
    P = B.shape[0]
    Bx = x @ jnp.concatenate([B.real, B.imag]).T
    return jax.lax.complex(Bx[..., :P], Bx[..., P:])


def real_product(h: jax.Array, C: jax.Array) -> jax.Array:
    """``Re(C h)`` ``[..., D]`` for complex ``h`` ``[..., P]`` and ``C`` ``[D, P, 2]``, its real and imaginary part."""
    return jnp.concatenate([h.real, h.imag], -1) @ jnp.concatenate([C[..., 0], -C[..., 1]], -1).T
