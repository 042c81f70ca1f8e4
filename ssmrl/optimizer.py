"""Adam as every agent here uses it: clipped by global norm, with a step size of its own for state-space parameters."""

from collections.abc import Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Schedule = Literal["none", "linear", "cosine"]


def adam(max_grad_norm: Any, epsilon: Any) -> optax.GradientTransformation:
    """Adam's direction after clipping the gradient to the global norm ``max_grad_norm``; without a step size."""
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.scale_by_adam(eps=epsilon))


def annealed(schedule: Schedule, rate: Any, to: Any, updates: jax.Array, total: Any) -> jax.Array:
    """The learning rate after ``updates`` of ``total``: from ``rate`` to ``to * rate``, float32.

    A ``total`` of 0 is not known, as of an agent that nobody set it for, and there is no schedule.
    """
    progress = jnp.where(total > 0, jnp.minimum(updates / jnp.maximum(total, 1.0), 1.0), 0.0)
    match schedule:
        case "linear":
            left = 1 - progress
        case "cosine":
            left = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        case _:
            left = jnp.ones_like(progress)
    return jnp.asarray(rate * (to + (1 - to) * left), jnp.float32)


def ssm_parameters(model: Any) -> tuple[str, ...]:
    """Names of a sequence model's state-space parameters (S5, Smith et al. 2023, appendix G.2.1)."""
    return getattr(getattr(model, "layer", model), "ssm_parameters", ())


def move(params: Any, direction: Any, rate: Any, ssm_scale: Any, weight_decay: Any, ssm: Collection[str]) -> Any:
    """Step against ``direction``: parameters in ``ssm`` ``ssm_scale`` times as fast and undecayed.

    The decay is decoupled (Loshchilov and Hutter 2019), and of matrices alone, not of biases and norms.
    """

    def one(path: tuple, p: jax.Array, d: jax.Array) -> jax.Array:
        keys = [k.key for k in path]
        if keys[-1] in ssm and any(k.startswith("layer") for k in keys):
            return p - rate * ssm_scale * d
        decay = weight_decay if keys[-1] == "kernel" else 0.0
        return p - rate * (d + decay * p)

    return jax.tree_util.tree_map_with_path(one, params, direction)
