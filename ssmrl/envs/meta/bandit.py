"""Bandits: find out which arm pays best, and pull it, within a trial."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import scenes
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.envs.meta import references
from ssmrl.registry import check, envs, hp
from ssmrl.spaces import Discrete


@struct.dataclass
class BanditTask(EnvParams):
    """``arms`` float32 ``[num_arms]``: what each arm pays on average."""

    arms: jax.Array = struct.field(kw_only=True)


@envs.register(
    "meta/Bandit",
    variants={
        "-k5-n10": {"num_arms": 5, "trial_episodes": 10},
        "-k5-n100": {"num_arms": 5, "trial_episodes": 100},
        "-k5-n500": {"num_arms": 5, "trial_episodes": 500},
        "-k10-n10": {"num_arms": 10, "trial_episodes": 10},
        "-k10-n100": {"num_arms": 10, "trial_episodes": 100},
        "-k10-n500": {"num_arms": 10, "trial_episodes": 500},
        "-k50-n10": {"num_arms": 50, "trial_episodes": 10},
        "-k50-n100": {"num_arms": 50, "trial_episodes": 100},
        "-k50-n500": {"num_arms": 50, "trial_episodes": 500},
    },
    defaults={"trial_episodes": 100},
)
@dataclasses.dataclass(frozen=True)
class Bandit(Environment):
    """Pull one of several arms; an episode is one pull, and a trial of n episodes has the same arms.

    ``bernoulli`` arms pay 1 with probabilities drawn from U(0, 1), else 0; ``gaussian`` ones a mean drawn from N(0, 1)
    plus noise from N(0, 1). There is nothing to observe but the reward. Source: Duan et al. 2016, "RL^2: Fast
    Reinforcement Learning via Slow Reinforcement Learning", section 3.1 (Bernoulli arms).
    """

    num_arms: int = hp(5, "number of arms", ge=1)
    reward: Literal["bernoulli", "gaussian"] = hp("bernoulli", "what arms pay: 0 or 1, or a real number")

    def __post_init__(self) -> None:
        check(self)

    @property
    def default_params(self) -> BanditTask:
        """Arms that pay 1/k, 2/k, ..., 1."""
        arms = jnp.arange(1, self.num_arms + 1, dtype=jnp.float32) / self.num_arms
        return BanditTask(max_steps_in_episode=1, arms=arms)

    def sample_task(self, key: jax.Array, params: BanditTask) -> BanditTask:
        """See ``Environment``."""
        draw = jax.random.uniform if self.reward == "bernoulli" else jax.random.normal
        return dataclasses.replace(params, arms=draw(key, (self.num_arms,)))

    def reset_env(self, key: jax.Array, params: BanditTask) -> tuple[jax.Array, EnvState]:
        """See ``Environment``; ``key`` is not used."""
        return jnp.int32(0), EnvState(jnp.int32(0))

    def step_env(
        self, key: jax.Array, state: EnvState, action: jax.Array, params: BanditTask
    ) -> tuple[jax.Array, EnvState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        mean = params.arms[action]
        if self.reward == "bernoulli":
            reward = (jax.random.uniform(key) < mean).astype(jnp.float32)
        else:
            reward = mean + jax.random.normal(key)
        return jnp.int32(0), EnvState(state.time + 1), reward, jnp.bool_(True), {}

    def references(self) -> dict[str, Callable[..., jax.Array]]:
        """See :mod:`ssmrl.envs.meta.references`."""
        players = {"optimal": references.best_arm, "Gittins index": references.gittins}
        players |= {"Thompson sampling": references.thompson_sampling, "random": references.random}
        if self.reward != "bernoulli":
            del players["Gittins index"]
        return players

    def render(self, state: EnvState, params: BanditTask) -> np.ndarray:
        """Draw what the arms pay."""
        paid = "probabilities" if self.reward == "bernoulli" else "means"
        return scenes.arms(params.arms, "Find the arm that pays best", f"bars: {paid}, hidden")

    def observation_space(self, params: BanditTask) -> Discrete:
        """Always the same."""
        return Discrete(1)

    def action_space(self, params: BanditTask) -> Discrete:
        """Arm to pull."""
        return Discrete(self.num_arms)
