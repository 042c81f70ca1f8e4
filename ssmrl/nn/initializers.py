"""Orthogonal initialisation from matrix products alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def orthogonal(scale: float = 1.0) -> Callable[..., jax.Array]:
    """Initialise ``[n, m]`` to ``scale`` times a uniformly random semi-orthogonal matrix (Saxe et al. 2014).

    The orthogonal polar factor of a Gaussian matrix is Haar distributed; it is found by Newton and Schulz's iteration
    (Higham 2008, section 8.3). Not by QR: ``vmap`` over seeds makes batched LAPACK calls of it, and two of those at
    once dead-lock jaxlib 0.10 on a machine with two cores.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        n, m = shape
        x = jax.random.normal(key, (max(n, m), min(n, m)))
        x = x / jnp.sqrt((x**2).sum())

        def iterate(_: jax.Array, x: jax.Array) -> jax.Array:
            return 1.5 * x - 0.5 * jnp.matmul(x, jnp.matmul(x.T, x, precision="highest"), precision="highest")

        x = lax.fori_loop(0, 40, iterate, x)
        return (scale * (x if n >= m else x.T)).astype(dtype)

    return init
