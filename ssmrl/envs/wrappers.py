"""What any environment can be given on top, always in the same order.

Flat actions, a time limit, random projections of observations and actions (``projection.py``), and trials
(``trials.py``).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl.envs.base import Environment
from ssmrl.registry import hp
from ssmrl.spaces import Discrete, MultiDiscrete, Space


@dataclasses.dataclass(frozen=True)
class Options:
    """The parameters that every environment takes; ``make`` wraps it where one is set."""

    flat_actions: bool = hp(False, "turn a vector of discrete actions into one discrete action, row-major")
    max_steps: int = hp(0, "time limit in steps that truncates the episode (0: the environment's own)", ge=0)
    project_observations: int = hp(0, "observe this many random projections, drawn per task (0: none)", ge=0)
    project_actions: int = hp(0, "act through this many random projections, drawn per task (0: none)", ge=0)
    trial_episodes: int = hp(0, "a trial is so many episodes on one task, through which memory lasts (0: none)", ge=0)
    trial_steps: int = hp(0, "a trial is so many steps on one task (0: as many as its episodes take)", ge=0)
    trial_warmup: int = hp(0, "first episodes of a trial whose rewards do not count, as in E-RL^2", ge=0)

    requires: ClassVar[dict[str, str]] = {
        "(project_observations + project_actions > 0) <= (trial_episodes + trial_steps > 0)": (
            "projections are drawn with a trial"
        ),
        "(trial_warmup > 0) <= (trial_episodes + trial_steps > 0)": "only a trial has a warm-up",
        "(trial_episodes > 0) * trial_warmup <= (trial_episodes > 0) * (trial_episodes - 1)": "an episode has to count",
    }


@dataclasses.dataclass(frozen=True)
class Wrapper(Environment):
    """An environment that is what the wrapped one is; subclasses change one thing."""

    env: Any

    def __getattr__(self, name: str) -> Any:
        """What else the wrapped environment has, say a scripted policy."""
        if name.startswith("_") or name == "env":  # not yet there while an instance is copied or read
            raise AttributeError(name)
        return getattr(self.env, name)

    @property
    def name(self) -> str:
        """Name of the wrapped environment."""
        return self.env.name

    @property
    def action_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the wrapped environment's actions."""
        return self.env.action_names

    @property
    def default_params(self) -> Any:
        """Parameters of the wrapped environment."""
        return self.env.default_params

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """:meth:`reset_envs` of one environment."""
        return jax.tree.map(lambda x: x[0], self.reset_envs(key[None], params))

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        """:meth:`step_envs` of one environment."""
        states, actions = jax.tree.map(lambda x: jnp.asarray(x)[None], (state, action))
        return jax.tree.map(lambda x: x[0], self.step_envs(key[None], states, actions, params))

    def reset_envs(self, keys: jax.Array, params: Any, axis: int | None = None) -> tuple[Any, Any]:
        """See ``Environment``."""
        return self.env.reset_envs(keys, params, axis)

    def step_envs(
        self, keys: jax.Array, states: Any, actions: Any, params: Any, axis: int | None = None
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        return self.env.step_envs(keys, states, actions, params, axis)

    def sample_task(self, key: jax.Array, params: Any) -> Any:
        """:meth:`sample_tasks` of one environment."""
        return jax.tree.map(lambda x: x[0], self.sample_tasks(key[None], params))

    def sample_tasks(self, keys: jax.Array, params: Any, axis: int | None = None) -> Any:
        """See ``Environment``."""
        return self.env.sample_tasks(keys, params, axis)

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        """See ``Environment``."""
        return self.env.is_truncated(state, params)

    def longest_episode(self, params: Any) -> Any:
        """See ``Environment``."""
        return self.env.longest_episode(params)

    def observation_space(self, params: Any) -> Space:
        """Space of one observation."""
        return self.env.observation_space(params)

    def action_space(self, params: Any) -> Space:
        """Space of one action."""
        return self.env.action_space(params)

    def render(self, state: Any, params: Any) -> np.ndarray:
        """Draw the wrapped environment."""
        return self.env.render(state, params)


@dataclasses.dataclass(frozen=True)
class FlatActions(Wrapper):
    """An environment whose vector of discrete actions is one discrete action, row-major."""

    def step_envs(
        self, keys: jax.Array, states: Any, actions: Any, params: Any, axis: int | None = None
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        nvec = self.env.action_space(self.env.default_params).nvec  # params may be traced, and do not change the space
        actions = jnp.stack(jnp.unravel_index(actions, nvec), axis=-1).astype(jnp.int32)
        return self.env.step_envs(keys, states, actions, params, axis)

    def action_space(self, params: Any) -> Space:
        """Space of one action."""
        return Discrete(int(np.prod(self.env.action_space(params).nvec)))


@dataclasses.dataclass(frozen=True)
class TimeLimit(Wrapper):
    """An environment whose episodes are cut off after ``max_steps`` steps, whatever its own rule."""

    max_steps: int

    @property
    def default_params(self) -> Any:
        """Parameters of the wrapped environment, with this time limit where they have one."""
        params = self.env.default_params
        return (
            params.replace(max_steps_in_episode=self.max_steps) if hasattr(params, "max_steps_in_episode") else params
        )

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        """See ``Environment``."""
        return self.env.is_truncated(state, params) | (state.time >= self.max_steps)

    def longest_episode(self, params: Any) -> Any:
        """See ``Environment``."""
        return self.max_steps


def wrap(env: Any, options: Options) -> Any:
    """Put on ``env`` what ``options`` ask for. Raises ``ValueError`` where the environment cannot have it."""
    from ssmrl.envs.projection import Projection  # they are wrappers too
    from ssmrl.envs.trials import Trials

    if options.flat_actions and isinstance(env.action_space(env.default_params), MultiDiscrete):
        env = FlatActions(env)
    if options.max_steps:
        env = TimeLimit(env, options.max_steps)
    if options.project_observations or options.project_actions:
        env = Projection(env, options.project_observations, options.project_actions)
    if options.trial_episodes or options.trial_steps:
        env = Trials(env, options.trial_episodes, options.trial_steps, options.trial_warmup)
    return env
