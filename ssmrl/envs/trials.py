"""Trials: several episodes on one task, through which the agent's memory lasts (RL^2, Duan et al. 2016).

A trial is one episode to whoever steps it: it starts with ``reset``, its return is that of all its episodes, and it
ends ``terminated``, since there is nothing after it. Within it, episodes start anew on the same task, from fresh start
states; what the policy reads of that is a flag in its observation, and the reward and the action before.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from ssmrl import spaces
from ssmrl.envs.base import select_rows
from ssmrl.envs.foreign import strong
from ssmrl.envs.wrappers import Wrapper
from ssmrl.spaces import Box, Space


@struct.dataclass
class TrialState:
    """The task and the running episode of a trial."""

    time: jax.Array  # int32: steps of this trial
    task: Any  # the wrapped environment's parameters
    env_state: Any
    episode: jax.Array  # int32: index of the running episode
    episode_return: jax.Array  # of the running episode so far


class Progress(struct.PyTreeNode):
    """Where in its trial a step was taken, in ``info["trial"]``."""

    episode: jax.Array  # int32: index of the episode that the step belongs to
    ended: jax.Array  # bool: it was the last of that episode, or of the trial
    reward: jax.Array  # counted or not
    episode_return: jax.Array  # of that episode up to this step


@dataclasses.dataclass(frozen=True)
class Trials(Wrapper):
    """An environment whose episodes are trials of ``episodes`` episodes, or of ``steps`` steps, whichever ends first.

    Each trial is on a task of its own, ``env.sample_task``. The observation is the wrapped one, flat, then whether an
    episode starts, then the share of the trial that is over. Rewards of the first ``warmup`` episodes do not count
    (E-RL^2, Stadie et al. 2018), and are then a part of the observation, one step later. Raises ``ValueError`` for
    observations that are pictures, and if the warm-up may take all of the ``steps``.
    """

    episodes: int
    steps: int
    warmup: int = 0

    def __post_init__(self) -> None:
        space = self.env.observation_space(self.env.default_params)
        if spaces.is_image(space):
            raise ValueError(f"trials have flat observations, but {self.name} has pictures, {space}: use no trials")
        longest = self.env.longest_episode(self.env.default_params)
        if self.steps and longest and self.warmup * longest >= self.steps:
            raise ValueError(
                f"trial_steps={self.steps}, trial_warmup={self.warmup}: an episode has to count, but the warm-up may "
                f"take {self.warmup} episodes of {longest} steps; use trial_steps={(self.warmup + 1) * longest}"
            )

    def reset_envs(self, keys: jax.Array, params: Any, axis: int | None = None) -> tuple[Any, TrialState]:
        """See ``Environment``."""
        keys_task, keys_reset = jax.vmap(jax.random.split, out_axes=1)(keys)
        tasks = strong(self.env.sample_tasks(keys_task, params, axis))
        obs, env_states = self.env.reset_envs(keys_reset, tasks, 0)
        none = jnp.zeros(keys.shape[0])
        zero = none.astype(jnp.int32)
        state = TrialState(zero, tasks, env_states, zero, none)
        return self._observe(obs, state, jnp.ones_like(none, bool), none), state

    def step_envs(
        self, keys: jax.Array, states: TrialState, actions: Any, params: Any, axis: int | None = None
    ) -> tuple[Any, TrialState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``. ``info["trial"]`` is the :class:`Progress`."""
        keys_step, keys_reset = jax.vmap(jax.random.split, out_axes=1)(keys)
        stepped = self.env.step_envs(keys_step, states.env_state, actions, states.task, 0)
        obs, env_states, reward, terminated, info = stepped
        reward, time = reward.astype(jnp.float32), states.time + 1
        over = terminated | jax.vmap(self.env.is_truncated)(env_states, states.task)  # the episode is
        ended = over | (time >= self.steps) if self.steps else over
        episode = states.episode + ended
        trial_over = (episode >= self.episodes) if self.episodes else jnp.zeros_like(over)
        trial_over |= (time >= self.steps) if self.steps else False
        restarts = over & ~trial_over

        def restart(current: tuple[Any, Any]) -> tuple[Any, Any]:
            fresh = self.env.reset_envs(keys_reset, states.task, 0)
            return jax.tree.map(lambda new, old: select_rows(restarts, new, old), fresh, current)

        obs, env_states = lax.cond(restarts.any(), restart, lambda current: current, (obs, env_states))
        episode_return = states.episode_return + reward
        progress = Progress(states.episode, ended, reward, episode_return)
        states = TrialState(time, states.task, env_states, episode, jnp.where(ended, 0, episode_return))
        counted = jnp.where(progress.episode < self.warmup, 0, reward)
        return self._observe(obs, states, restarts, reward), states, counted, trial_over, {**info, "trial": progress}

    def _observe(self, obs: Any, states: TrialState, starts: jax.Array, reward: jax.Array) -> jax.Array:
        over = states.time / self.steps if self.steps else states.episode / self.episodes
        features = [starts, over, reward] if self.warmup else [starts, over]
        flat = spaces.flatten(self.env.observation_space(self.env.default_params), obs)
        return jnp.concatenate([flat, jnp.stack(features, -1).astype(jnp.float32)], -1)

    def is_truncated(self, state: TrialState, params: Any) -> jax.Array:
        """Never: a trial has an end of its own."""
        return jnp.zeros_like(state.time, bool)

    def longest_episode(self, params: Any) -> Any:
        """Steps after which a trial is over at the latest; None if nothing limits it."""
        limit = self.env.longest_episode(params)
        if limit is None:
            return self.steps or None
        by_episodes = self.episodes * limit
        return min(self.steps or by_episodes, by_episodes or self.steps)

    def observation_space(self, params: Any) -> Space:
        """Space of one observation."""
        inner = self.env.observation_space(params)
        low, high = (b.ravel() for b in inner.bounds()) if isinstance(inner, Box) else (0.0, 1.0)
        reward = ([-np.inf], [np.inf]) if self.warmup else ([], [])
        size = spaces.flat_size(inner)
        low = np.concatenate([np.broadcast_to(low, (size,)), [0, 0], reward[0]])
        high = np.concatenate([np.broadcast_to(high, (size,)), [1, 1], reward[1]])
        return Box(low, high, (len(low),))

    def render(self, state: TrialState, params: Any) -> np.ndarray:
        """Draw the wrapped environment on the trial's task."""
        return self.env.render(state.env_state, state.task)
