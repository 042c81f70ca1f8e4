"""Observation and action spaces: hashable descriptions, and the encoding of their elements as vectors.

The shapes and names are gymnasium's and gymnax's; unlike theirs, these compare and hash by value, so that an
environment may be a static argument of ``jax.jit`` without recompiling for an equal one.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Discrete:
    """One integer in ``[0, n)``, int32."""

    n: int

    shape: tuple[int, ...] = dataclasses.field(default=(), init=False)
    dtype = jnp.int32

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw uniformly; ``key`` is consumed."""
        return jax.random.randint(key, (), 0, self.n, jnp.int32)

    def contains(self, x: Any) -> jax.Array:
        """Whether ``x`` is an element."""
        return (jnp.asarray(x) >= 0) & (jnp.asarray(x) < self.n)


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """A vector of integers, element ``i`` in ``[0, nvec[i])``, int32."""

    nvec: tuple[int, ...]

    dtype = jnp.int32

    def __post_init__(self) -> None:
        object.__setattr__(self, "nvec", tuple(int(n) for n in self.nvec))

    @property
    def shape(self) -> tuple[int, ...]:
        """``(len(nvec),)``."""
        return (len(self.nvec),)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw uniformly; ``key`` is consumed."""
        return jax.random.randint(key, self.shape, 0, jnp.asarray(self.nvec), jnp.int32)

    def contains(self, x: Any) -> jax.Array:
        """Whether ``x`` is an element."""
        x = jnp.asarray(x)
        return jnp.all((x >= 0) & (x < jnp.asarray(self.nvec)))


@dataclasses.dataclass(frozen=True)
class Box:
    """Real (or integer) arrays of one shape; the bounds, both included, are scalars or have one number per element.

    Arrays are accepted as bounds and kept as flat tuples.
    """

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        for name in ("low", "high"):
            bound = np.asarray(getattr(self, name), np.float64)
            if bound.size not in (1, math.prod(shape)):
                raise ValueError(f"Box {name} has {bound.size} numbers: give one, or one for each entry of {shape}")
            object.__setattr__(self, name, bound.item() if bound.ndim == 0 else tuple(bound.ravel().tolist()))
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", np.dtype(self.dtype))

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lower and upper bound as arrays of the box's shape."""
        low, high = (np.broadcast_to(np.float32(b), (math.prod(self.shape),)) for b in (self.low, self.high))
        return low.reshape(self.shape), high.reshape(self.shape)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw uniformly (standard normal where a side is unbounded); ``key`` is consumed."""
        low, high = self.bounds()
        if np.issubdtype(self.dtype, np.integer):
            return jax.random.randint(key, self.shape, low.astype(np.int64), high.astype(np.int64) + 1, self.dtype)
        bounded = np.isfinite(low) & np.isfinite(high) & (high - low < 1e6)
        uniform = jax.random.uniform(
            key, self.shape, minval=np.where(bounded, low, 0), maxval=np.where(bounded, high, 1)
        )
        normal = jnp.clip(jax.random.normal(key, self.shape), low, high)
        return jnp.where(bounded, uniform, normal).astype(self.dtype)

    def contains(self, x: Any) -> jax.Array:
        """Whether ``x`` is an element."""
        low, high = self.bounds()
        return jnp.all((jnp.asarray(x) >= low) & (jnp.asarray(x) <= high))


@dataclasses.dataclass(frozen=True)
class Tuple:
    """A tuple of spaces."""

    spaces: tuple["Space", ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "spaces", tuple(self.spaces))

    def sample(self, key: jax.Array) -> tuple[Any, ...]:
        """Draw each part; ``key`` is consumed."""
        keys = jax.random.split(key, len(self.spaces))
        return tuple(space.sample(k) for space, k in zip(self.spaces, keys, strict=True))

    def contains(self, x: Any) -> jax.Array:
        """Whether ``x`` is an element."""
        return jnp.all(jnp.stack([s.contains(v) for s, v in zip(self.spaces, x, strict=True)]))


@dataclasses.dataclass(frozen=True)
class Dict:
    """A dict of spaces; given as a dict or as ``(key, space)`` pairs, kept as sorted pairs."""

    items: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(sorted(dict(self.items).items())))

    def sample(self, key: jax.Array) -> dict[str, Any]:
        """Draw each part; ``key`` is consumed."""
        keys = jax.random.split(key, len(self.items))
        return {name: space.sample(k) for (name, space), k in zip(self.items, keys, strict=True)}

    def contains(self, x: Any) -> jax.Array:
        """Whether ``x`` is an element."""
        return jnp.all(jnp.stack([space.contains(x[name]) for name, space in self.items]))


Space = Discrete | MultiDiscrete | Box | Tuple | Dict


def flat_size(space: Space) -> int:
    """Length of the vector that :func:`flatten` makes of one element."""
    match space:
        case Discrete(n):
            return n
        case MultiDiscrete(nvec):
            return sum(nvec)
        case Box():
            return math.prod(space.shape)
        case Tuple(parts):
            return sum(flat_size(s) for s in parts)
        case Dict(items):
            return sum(flat_size(s) for _, s in items)


def flatten(space: Space, x: Any) -> jax.Array:
    """Encode elements as vectors: integers one-hot, boxes flat, tuples and dicts concatenated.

    ``x`` is an element with any leading batch axes ``[...]``; returns float32 ``[..., flat_size(space)]``.
    """
    match space:
        case Discrete(n):
            return jax.nn.one_hot(x, n)
        case MultiDiscrete(nvec) if len(set(nvec)) == 1:
            return jax.nn.one_hot(x, nvec[0]).reshape(*x.shape[:-1], sum(nvec))
        case MultiDiscrete(nvec):
            return jnp.concatenate([jax.nn.one_hot(x[..., i], n) for i, n in enumerate(nvec)], axis=-1)
        case Box(shape=shape):
            lead = x.shape[: x.ndim - len(shape)]
            return jnp.asarray(x, jnp.float32).reshape(*lead, math.prod(shape))
        case Tuple(parts):
            return jnp.concatenate([flatten(s, v) for s, v in zip(parts, x, strict=True)], axis=-1)
        case Dict(items):
            return jnp.concatenate([flatten(s, x[name]) for name, s in items], axis=-1)


def cast(space: Space, x: Any) -> Any:
    """Give every leaf of an element the dtype that its space declares, strongly typed."""
    match space:
        case Tuple(parts):
            return tuple(cast(s, v) for s, v in zip(parts, x, strict=True))
        case Dict(items):
            return {name: cast(s, x[name]) for name, s in items}
        case _:
            return jnp.asarray(x, space.dtype)


def zeros(space: Space, batch_shape: tuple[int, ...] = ()) -> Any:
    """An all-zero element with leading axes ``batch_shape`` (the null action)."""
    match space:
        case Tuple(parts):
            return tuple(zeros(s, batch_shape) for s in parts)
        case Dict(items):
            return {name: zeros(s, batch_shape) for name, s in items}
        case _:
            return jnp.zeros((*batch_shape, *space.shape), space.dtype)


def is_image(space: Space) -> bool:
    """Whether elements are ``[height, width, channels]`` arrays, to be read by a CNN."""
    return isinstance(space, Box) and len(space.shape) == 3


def to_json(space: Space) -> dict[str, Any]:
    """Describe a space by lists, numbers and text, for :func:`from_json`, which takes infinities as text too."""
    match space:
        case Tuple(parts):
            return {"kind": "Tuple", "spaces": [to_json(s) for s in parts]}
        case Dict(items):
            return {"kind": "Dict", "spaces": {name: to_json(s) for name, s in items}}
        case Box():
            shape = list(space.shape)
            return {"kind": "Box", "low": space.low, "high": space.high, "shape": shape, "dtype": str(space.dtype)}
        case MultiDiscrete(nvec):
            return {"kind": "MultiDiscrete", "nvec": list(nvec)}
        case Discrete(n):
            return {"kind": "Discrete", "n": n}


def from_json(facts: Mapping[str, Any]) -> Space:
    """Make the space that :func:`to_json` described. Raises ``ValueError`` for a description of none."""
    try:
        match facts["kind"]:
            case "Tuple":
                return Tuple(tuple(from_json(s) for s in facts["spaces"]))
            case "Dict":
                return Dict({name: from_json(s) for name, s in facts["spaces"].items()})
            case "Box":
                low, high = (np.asarray(facts[name], np.float64) for name in ("low", "high"))
                return Box(low, high, facts["shape"], np.dtype(facts["dtype"]))
            case "MultiDiscrete":
                return MultiDiscrete(facts["nvec"])
            case "Discrete":
                return Discrete(int(facts["n"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no space is described by {facts!r}: {error}") from error
    raise ValueError(f"unknown kind of space {facts['kind']!r}: use Discrete, MultiDiscrete, Box, Tuple or Dict")


def to_gymnasium(space: Space) -> Any:
    """The gymnasium space with the same elements; its integers are int64, as is usual there."""
    from gymnasium import spaces

    match space:
        case Tuple(parts):
            return spaces.Tuple([to_gymnasium(s) for s in parts])
        case Dict(items):
            return spaces.Dict({name: to_gymnasium(s) for name, s in items})
        case Box():
            low, high = (bound.astype(space.dtype) for bound in space.bounds())
            return spaces.Box(low, high, space.shape, space.dtype)
        case MultiDiscrete(nvec):
            return spaces.MultiDiscrete(list(nvec))
        case Discrete(n):
            return spaces.Discrete(n)


def from_gymnasium(space: Any) -> Space:
    """The space of ours that corresponds to a gymnasium space; integers are counted from 0, wherever it starts.

    Raises ``TypeError`` for a space that has no counterpart.
    """
    from gymnasium import spaces

    match space:
        case spaces.Discrete():
            return Discrete(int(space.n))
        case spaces.MultiDiscrete() if space.nvec.ndim == 1:
            return MultiDiscrete(tuple(space.nvec))
        case spaces.MultiBinary() if len(space.shape) == 1:
            return MultiDiscrete((2,) * space.shape[0])
        case spaces.Box():
            return Box(space.low, space.high, space.shape, space.dtype)
        case spaces.Tuple():
            return Tuple(tuple(from_gymnasium(s) for s in space.spaces))
        case spaces.Dict():
            return Dict({name: from_gymnasium(s) for name, s in space.spaces.items()})
    raise TypeError(f"no counterpart of {space}: use vectors of Discrete or binary numbers, Box, Tuple or Dict")
