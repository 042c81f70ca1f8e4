"""What the adapters of other people's environments have in common: their state, their types and their spaces."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from ssmrl import spaces
from ssmrl.envs.base import Environment, EnvState
from ssmrl.envs.gymnax import from_gymnax_space
from ssmrl.registry import UserError


@struct.dataclass
class ForeignState(EnvState):
    """The state ``inner`` as the other package has it, and whether that cut the episode off (bool)."""

    inner: Any
    truncated: jax.Array

    @classmethod
    def start(cls, inner: Any) -> "ForeignState":
        """The start of an episode."""
        return cls(jnp.int32(0), strong(inner), jnp.zeros((), bool))

    def after(self, inner: Any, truncated: jax.Array | None = None) -> "ForeignState":
        """The state ``inner`` that a step led to."""
        return ForeignState(
            self.time + 1, matching(inner, self.inner), self.truncated if truncated is None else truncated
        )


class Foreign(Environment):
    """An environment that another package, found and asked when ours is made, knows by ``id``."""

    id: str

    @property
    def _env(self) -> Any:
        raise NotImplementedError

    def __post_init__(self) -> None:
        _ = self._env  # its errors belong here, not inside somebody's jit

    @property
    def name(self) -> str:
        """The id."""
        return self.id


def require(package: str, env: str, remedy: str) -> Any:
    """Import the package that an environment comes from. Raises ``UserError`` with the remedy if there is none."""
    if importlib.util.find_spec(package.split(".")[0]) is None:
        raise UserError(f"{env} needs the package {package.split('.')[0]}, which is not installed: {remedy}")
    return importlib.import_module(package)


def fitted(picture: np.ndarray, side: int = 400) -> np.ndarray:
    """Enlarge a picture ``[H, W, 3]`` by a whole number, or shrink it, so that its longer side is at most ``side``."""
    from PIL import Image

    height, width = picture.shape[:2]
    scale = side // max(height, width) or side / max(height, width)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize((round(width * scale), round(height * scale)), how))


def strong(tree: Any) -> Any:
    """Make every leaf a strongly typed array, so that a scan can carry it and nothing compiles twice."""
    return jax.tree.map(lambda x: _as(jnp.asarray(x), jnp.asarray(x).dtype), tree)


def matching(new: Any, old: Any) -> Any:
    """Give the leaves of a stepped state the types that they had before, where no fraction is lost by it."""
    before: Any = jax.tree.structure(old)
    if before != jax.tree.structure(new):
        return new  # somebody's mistake, which the checker of environments describes

    def match(x: Any, y: Any) -> jax.Array:
        x, y = jnp.asarray(x), jnp.asarray(y)
        return _as(
            x, x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) > jnp.issubdtype(y.dtype, jnp.inexact) else y.dtype
        )

    return jax.tree.map(match, new, old)


def _as(x: jax.Array, dtype: Any) -> jax.Array:
    return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else lax.convert_element_type(x, dtype)


def element(space: spaces.Space, x: Any) -> Any:
    """Make ``x`` an element of ``space``: its types, and dicts and tuples in place of other containers."""
    match space:
        case spaces.Dict(items):
            return {name: element(s, x[name] if isinstance(x, Mapping) else getattr(x, name)) for name, s in items}
        case spaces.Tuple(parts):
            return tuple(element(s, v) for s, v in zip(parts, x, strict=True))
        case _:
            return lax.convert_element_type(jnp.asarray(x), space.dtype)


def to_space(space: Any) -> spaces.Space:
    """Convert a space of gymnasium, gymnax or a package with classes of the same names.

    Raises ``TypeError`` for one without a counterpart.
    """
    if isinstance(space, spaces.Space):
        return space
    if type(space).__module__.startswith("gymnasium."):
        return spaces.from_gymnasium(space)
    if type(space).__name__ == "MultiDiscrete":
        sizes = next(getattr(space, n) for n in ("nvec", "num_categories", "n") if hasattr(space, n))
        return spaces.MultiDiscrete(tuple(np.asarray(sizes).ravel().tolist()))
    return from_gymnax_space(space)
