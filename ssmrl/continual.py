r"""Parameters that depend on a task's number: a set for each task, or what a hypernetwork makes of its embedding.

Legend: K tasks, E size of an embedding, R features of a task. For every array theta of a network,

.. math:: \theta_k = \theta_0 + \sum_r f_r(k)\, W_r

with ``theta_0`` as initialised and never changed. With ``heads`` f is one-hot, so that tasks share nothing. With
``hyper`` it is ``tanh`` of an affine map of a learned embedding: W is the hypernetwork's last layer. Either way the sum
of abs(f) is 1, so that a step of Adam, which moves every W alike, moves theta by its step size, whatever R is.
That hypernetwork forgets, unless what it makes for earlier tasks is held to what it was (von Oswald et al. 2020,
equation 2, "Continual learning with hypernetworks"; for world models Huang et al. 2021, HyperCRL).
"""

from typing import Any

import jax
import jax.numpy as jnp

Source = dict[str, Any]  # "shared" parts; "weights", W of the others, [R, ...]; "hyper", which makes f, or nothing

_EMBEDDING = 8  # E


def create(params: Any, parts: tuple[str, ...], tasks: int, features: int, key: jax.Array) -> tuple[Source, Any]:
    """Let ``parts`` of ``params``, a dict of parts, depend on the task; ``key`` is consumed.

    ``features`` is R, or 0 for a set of parameters for each task. Returns what the parameters are made of, and
    ``theta_0`` of ``parts``; at first every task has ``params``.
    """
    start = {k: v for k, v in params.items() if k in parts}
    shared = {k: v for k, v in params.items() if k not in parts}
    weights = jax.tree.map(lambda x: jnp.zeros((features or tasks, *x.shape), x.dtype), start)
    source = {"shared": shared, "weights": weights, "hyper": {}}
    if features and start:
        key_embedding, key_map = jax.random.split(key)
        embedding = jax.random.normal(key_embedding, (tasks, _EMBEDDING))
        affine = jax.random.normal(key_map, (_EMBEDDING + 1, features)) / _EMBEDDING**0.5
        source["hyper"] = {"embedding": embedding, "map": affine}
    return source, start


def generate(source: Source, start: Any, task: jax.Array) -> Any:
    """The parameters of task number ``task``."""
    own = _weigh(source, task)
    return {**source["shared"], **jax.tree.map(jnp.add, start, own)}


def drift(source: Source, before: Source, task: jax.Array) -> jax.Array:
    """How far parameters of the tasks before ``task`` are from what ``before`` made: mean squared distance, or 0."""
    if not source["hyper"]:  # sets of their own stay
        return jnp.float32(0)

    def distance(number: jax.Array) -> jax.Array:
        now, then = (jax.tree.leaves(_weigh(s, number)) for s in (source, before))
        return sum((((x - y) ** 2).sum() for x, y in zip(now, then, strict=True)), start=jnp.float32(0))

    numbers = jnp.arange(len(source["hyper"]["embedding"]))
    return jnp.where(numbers < task, jax.vmap(distance)(numbers), 0.0).sum() / jnp.maximum(task, 1)


def _weigh(source: Source, task: jax.Array) -> Any:
    """The sum over features of what they add to ``theta_0``."""

    def one(w: jax.Array) -> jax.Array:
        if not source["hyper"]:
            return w[task]
        f = jnp.tanh(source["hyper"]["embedding"][task] @ source["hyper"]["map"][:-1] + source["hyper"]["map"][-1])
        return jnp.tensordot(f / jnp.abs(f).sum(), w, 1)

    return jax.tree.map(one, source["weights"])
