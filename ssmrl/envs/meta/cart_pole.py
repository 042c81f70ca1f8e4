"""Cart pole behind random projections: the task of the S5 paper's in-context experiment."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from ssmrl.envs.base import EnvParams
from ssmrl.envs.meta import references
from ssmrl.envs.popgym.cart_pole import CartPole, State
from ssmrl.registry import envs, hp


@struct.dataclass
class CartPoleTask(EnvParams):
    """``start`` float32 ``[4]``: the physics in which each episode starts, if it is ``released``."""

    start: jax.Array = struct.field(kw_only=True)


@envs.register("meta/CartPole-Proj", defaults={"trial_episodes": 16, "project_observations": 4})
@dataclasses.dataclass(frozen=True)
class ProjectedCartPole(CartPole):
    """Balance a pole on a cart, seeing its position and angle through a random projection to four numbers.

    The projection is drawn for each trial, of 16 episodes of up to 200 steps, so that how cart and pole are seen is to
    be found out first; velocities are never seen. Physics and rewards are those of ``popgym/PositionOnlyCartPoleEasy``:
    an episode is worth at most 1. Source: Lu et al. 2023, "Structured State Space Models for In-Context Reinforcement
    Learning", whose ``released`` code starts all episodes of a trial from one state; there the projection is longer by
    a factor of sqrt(2), here it keeps lengths.
    """

    max_episode_length: int = hp(200, "time limit in steps", ge=1)
    released: bool = hp(False, "start all episodes of a trial from the same state")

    @property
    def default_params(self) -> CartPoleTask:
        """A start at rest."""
        return CartPoleTask(max_steps_in_episode=self.max_episode_length, start=jnp.zeros(4))

    def sample_task(self, key: jax.Array, params: CartPoleTask) -> CartPoleTask:
        """See ``Environment``."""
        return dataclasses.replace(params, start=self.draw_physics(key))

    def reset_env(self, key: jax.Array, params: CartPoleTask) -> tuple[jax.Array, State]:
        """See ``Environment``."""
        physics = params.start if self.released else self.draw_physics(key)
        state = State(jnp.int32(0), physics)
        return self.get_obs(state), state

    def references(self) -> dict[str, Callable[..., jax.Array]]:
        """See :mod:`ssmrl.envs.meta.references`."""
        return {"random": references.random}
