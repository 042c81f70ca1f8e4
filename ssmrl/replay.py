"""Replay on the device: a ring of blocks of frames, each with the state that a world model had before it.

Legend: C blocks that the ring holds, T frames in a block, N environments, k blocks in a replayed sequence, b sequences.

A block is what one update collected: ``T`` frames of ``N`` environments. A replayed sequence is ``k`` blocks of one
environment that followed one another, so it never crosses the write head, where old frames meet new ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.frames import Frames
from ssmrl.spaces import Discrete, MultiDiscrete, Space


class Replay(struct.PyTreeNode):
    """The ring; integers that fit are stored as bytes."""

    frames: Frames  # [C, T, N, ...]
    start: Any  # state before each block's first frame, [C, N, ...]
    priority: jax.Array  # [C, N], of sequences that start with the block; inf: not measured yet
    head: jax.Array  # int32: the block that is written next
    size: jax.Array  # int32: blocks that are filled

    @property
    def capacity(self) -> int:
        """C."""
        return self.priority.shape[0]


class Place(struct.PyTreeNode):
    """Where sequences are from: blocks ``[k, b]`` and environments ``[b]``."""

    blocks: jax.Array
    env: jax.Array


def create(frame: Frames, state: Any, capacity: int, length: int, spaces: tuple[Space, Space]) -> Replay:
    """An empty ring for frames like ``frame`` ``[N, ...]`` and states like ``state`` ``[N, ...]``.

    ``spaces`` are those of observations and actions.
    """
    num_envs = frame.reset.shape[0]
    obs_type, action_type = (_compact(space) for space in spaces)
    like = frame.replace(
        obs=jax.tree.map(lambda x: x.astype(obs_type or x.dtype), frame.obs),
        action=jax.tree.map(lambda x: x.astype(action_type or x.dtype), frame.action),
    )
    frames = jax.tree.map(lambda x: jnp.zeros((capacity, length, *x.shape), x.dtype), like)
    start = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), state)
    return Replay(frames, start, jnp.full((capacity, num_envs), jnp.inf, jnp.float32), jnp.int32(0), jnp.int32(0))


def add(replay: Replay, frames: Frames, start: Any) -> Replay:
    """Write a block over the oldest one: frames ``[T, N, ...]`` and the states before them ``[N, ...]``.

    Its priority is not known until it is measured.
    """
    put = lambda ring, block: ring.at[replay.head].set(block.astype(ring.dtype))  # noqa: E731
    return Replay(
        jax.tree.map(put, replay.frames, frames),
        jax.tree.map(put, replay.start, start),
        replay.priority.at[replay.head].set(jnp.inf),
        (replay.head + 1) % replay.capacity,
        jnp.minimum(replay.size + 1, replay.capacity),
    )


def sample(
    replay: Replay, like: Frames, blocks: int, count: int, exponent: Any, key: jax.Array, envs: slice = slice(None)
) -> tuple[Frames, Any, Place]:
    """Draw ``count`` sequences of ``blocks`` blocks from ``envs``; ``key`` is consumed.

    The chance of a sequence is its priority to the power of ``exponent`` (0: all alike; Schaul et al. 2016, equation
    1); one that is not measured has the highest that was, so that new frames are soon seen. ``like`` has the frames'
    own types. There must be ``blocks`` blocks. Returns frames ``[k T, b, ...]``, the states before them ``[b, ...]``
    and their place.
    """
    C, N = replay.priority.shape
    oldest_first = (replay.head - replay.size + jnp.arange(C)) % C
    begins = replay.size - blocks + 1  # so many of these have enough blocks after them
    priority = replay.priority[oldest_first, envs]
    measured = jnp.isfinite(priority)
    priority = jnp.where(measured, priority, jnp.where(measured, priority, 0.0).max())
    weight = jnp.maximum(priority, 1e-6) ** exponent
    mass = jnp.cumsum(jnp.where(jnp.arange(C)[:, None] < begins, weight, 0.0).ravel())
    drawn = jnp.searchsorted(mass, mass[-1] * jax.random.uniform(key, (count,)), side="right")
    drawn = jnp.minimum(drawn, begins * weight.shape[1] - 1)  # sums are rounded: keep off what has no mass
    nth, env = jnp.divmod(drawn, weight.shape[1])
    env = env + range(N)[envs].start
    first = oldest_first[nth]
    place = Place((first[None] + jnp.arange(blocks)[:, None]) % C, env)

    def gather(ring: jax.Array, leaf: jax.Array) -> jax.Array:  # [C, T, N, ...] -> [k T, b, ...]
        chosen = jnp.moveaxis(ring[place.blocks, :, env[None]], 1, 2)  # [k, b, T, ...] -> [k, T, b, ...]
        return chosen.reshape(-1, *chosen.shape[2:]).astype(leaf.dtype)

    start = jax.tree.map(lambda x: x[first, env], replay.start)
    return jax.tree.map(gather, replay.frames, like), start, place


def refresh(replay: Replay, place: Place, states: Any, priority: jax.Array) -> Replay:
    """Renew what is stored about sequences: states after their last blocks ``[<= k, b, ...]``, priorities ``[b]``.

    The state after a block is that before the next one (as DreamerV3 keeps its latent states fresh), unless the write
    head lies between them. Of a place that was drawn twice the last is kept, or else it would not be defined
    which of the two is written.
    """
    C, N = replay.priority.shape
    following = (place.blocks[-len(jax.tree.leaves(states)[0]) :] + 1) % C
    drop = (following == replay.head) | _repeated(following * N + place.env[None])
    following = jnp.where(drop, C, following)  # out of range
    put = lambda ring, new: ring.at[following, place.env[None]].set(new, mode="drop")  # noqa: E731
    start = jax.tree.map(put, replay.start, states)
    first = jnp.where(_repeated(place.blocks[0] * N + place.env), C, place.blocks[0])
    return replay.replace(start=start, priority=replay.priority.at[first, place.env].set(priority, mode="drop"))


def _repeated(numbers: jax.Array) -> jax.Array:
    """Which of the numbers come again, bool of their shape."""
    flat = numbers.ravel()
    return jnp.triu(flat[:, None] == flat[None], 1).any(-1).reshape(numbers.shape)


def _compact(space: Space) -> Any:
    """A byte for integers that fit, None for what stays as it is."""
    match space:
        case Discrete(n) if n <= 256:
            return np.uint8
        case MultiDiscrete(nvec) if max(nvec) <= 256:
            return np.uint8
    return None
