"""Environments with a policy of their own, from whose episodes world models learn.

An episode has a part that a world model observes and one that it imagines. Observations are tiles, as their kinds or
as a picture. The layout is drawn with the start state; what follows is deterministic, if not said otherwise.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from ssmrl.envs.base import Environment, EnvParams
from ssmrl.envs.memory import tiles
from ssmrl.fields import check
from ssmrl.spaces import Box, MultiDiscrete


@struct.dataclass
class Annotation:
    """What evaluation wants to know about a frame, tile by tile in the order of the observation; no model sees it.

    ``cells`` int32 ``[N]``: the piece of the layout that a tile shows; -1 where there is nothing to recall, or where
    copying from the previous frame would do. ``events`` by name, bool ``[N]``: tiles on which an accuracy of that name
    is measured, the first of which is the environment's score. ``facts`` by name, int32 ``[k]``: hidden truths, each in
    ``[0, fact_classes[name])``.
    """

    cells: jax.Array
    events: dict[str, jax.Array]
    facts: dict[str, jax.Array]


class ScriptedEnvironment(Environment):
    """Base class of tasks for world models: ``context`` frames to observe, then ``query`` frames to imagine.

    An episode of the scripted policy has ``context + query`` frames, the first included, and one action less.
    Subclasses define ``reset_env``, ``step_env``, ``action_space`` and what raises ``NotImplementedError`` here.
    """

    has_reward: ClassVar[bool] = False  # whether the reward on the last frame is part of the task

    def __post_init__(self) -> None:
        check(self)

    @property
    def context(self) -> int:
        """Number of frames to observe."""
        raise NotImplementedError(f"{self.name} must define context")

    @property
    def query(self) -> int:
        """Number of frames to imagine."""
        raise NotImplementedError(f"{self.name} must define query")

    @property
    def pixels(self) -> bool:
        """Whether the observation is a picture."""
        return False

    @property
    def kinds(self) -> tuple[tiles.Tile, ...]:
        """The kinds of tiles that there are."""
        raise NotImplementedError(f"{self.name} must define kinds")

    @property
    def fact_classes(self) -> dict[str, int]:
        """The number of values that each fact of ``annotate`` can take."""
        raise NotImplementedError(f"{self.name} must define fact_classes")

    @property
    def num_tiles(self) -> int:
        """``N``, the number of tiles observed."""
        return tiles.VIEW**2

    @property
    def num_steps(self) -> int:
        """Length of the script, in actions."""
        return self.context + self.query - 1

    @property
    def default_params(self) -> Any:
        """The time limit is the length of the script."""
        return EnvParams(max_steps_in_episode=self.num_steps)

    def script(self, key: jax.Array, state: Any, params: Any) -> jax.Array:
        """The scripted policy's actions for an episode from its start state, int32 ``[steps]``; ``key`` is consumed."""
        raise NotImplementedError(f"{self.name} must define script(key, state, params) -> actions")

    def annotate(self, state: Any, params: Any) -> Annotation:
        """What is true of a state and of the tiles that are seen in it."""
        raise NotImplementedError(f"{self.name} must define annotate(state, params) -> Annotation")

    def see(self, state: Any) -> jax.Array:
        """The kinds of the tiles in view, int32 ``[N]``."""
        raise NotImplementedError(f"{self.name} must define see(state) -> kinds")

    def lay_out(self, seen: jax.Array) -> jax.Array:
        """Arrange the tiles in view as the board ``[5, 5]`` that a picture shows; one tile covers it all."""
        return jnp.broadcast_to(seen, tiles.VIEW**2).reshape(tiles.VIEW, tiles.VIEW)

    def observe(self, state: Any) -> Any:
        """The observation: kinds of tiles, int32 ``[N]``, or their picture, uint8 ``[40, 40, 3]``."""
        seen = self.see(state)
        if self.pixels:
            return tiles.assemble(jnp.asarray(tiles.pictures(self.kinds)), self.lay_out(seen))
        return seen

    def observation_space(self, params: Any) -> Box | MultiDiscrete:
        """Kinds of tiles, or a picture of them."""
        if self.pixels:
            side = tiles.VIEW * tiles.SIDE
            return Box(0, 255, (side, side, 3), jnp.uint8)
        return MultiDiscrete((len(self.kinds),) * self.num_tiles)
