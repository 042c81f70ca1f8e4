"""MultiarmedBandit: find the arm that pays best, in one episode."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import scenes
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.popgym.deck import verdict
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Discrete


@struct.dataclass
class State(EnvState):
    """``arms`` float32 ``[num_bandits]``: each arm's probability of paying out."""

    arms: jax.Array


@envs.register(
    "popgym/MultiarmedBandit",
    variants={
        "Easy": {"num_bandits": 10, "episode_length": 200},
        "Medium": {"num_bandits": 20, "episode_length": 400},
        "Hard": {"num_bandits": 30, "episode_length": 600},
    },
)
@dataclasses.dataclass(frozen=True)
class MultiarmedBandit(Environment):
    """Pull one of several arms that pay out with unknown probabilities, drawn anew for each episode.

    The observation is the last payout (0 or 1); a payout is worth ``+1/T`` and a blank ``-1/T``, where ``T`` is
    ``episode_length``. The episode never terminates, it is truncated after ``T`` steps.
    """

    num_bandits: int = hp(10, "number of arms", ge=1)
    episode_length: int = hp(200, "length of an episode in steps", ge=1)

    def __post_init__(self) -> None:
        check(self)

    @property
    def default_params(self) -> Any:
        """The time limit is ``episode_length``."""
        return EnvParams(max_steps_in_episode=self.episode_length)

    def draw_arms(self, key: jax.Array) -> jax.Array:
        """Draw the probabilities from U(0, 1), float32 ``[num_bandits]``; ``key`` is consumed."""
        return jax.random.uniform(key, (self.num_bandits,))

    def pull(self, key: jax.Array, state: State, action: jax.Array) -> jax.Array:
        """Draw whether an arm pays out, bool; ``key`` is consumed."""
        return jax.random.bernoulli(key, state.arms[action])

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        """See ``Environment``; the observation is 0, as if nothing had been paid."""
        return jnp.int32(0), State(time=jnp.int32(0), arms=self.draw_arms(key))

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        paid = self.pull(key, state, action)
        reward = verdict(paid, 1 / self.episode_length)
        state = State(time=state.time + 1, arms=state.arms)
        return paid.astype(jnp.int32), state, reward, jnp.bool_(False), {}

    def render(self, state: State, params: Any) -> np.ndarray:
        """Draw the arms' probabilities."""
        return scenes.arms(state.arms, "Find the arm that pays out most often", "bars: probabilities, hidden")

    def get_state(self, state: State) -> jax.Array:
        """Return the Markov state: the probabilities, float32 ``[num_bandits]``."""
        return state.arms

    def observation_space(self, params: Any) -> Discrete:
        """Last payout."""
        return Discrete(2)

    def action_space(self, params: Any) -> Discrete:
        """Arm to pull."""
        return Discrete(self.num_bandits)
