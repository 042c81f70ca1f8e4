"""Our environments as Gymnasium's: numpy in and out, seeds, and the auto-reset modes.

Importing this module registers every id with gymnasium, as ``ssmrl/`` and the id with a dot for each slash (gymnasium
allows one slash)::

    import ssmrl.gymnasium
    env = gymnasium.make("ssmrl/popgym.RepeatPreviousEasy")
    venv = gymnasium.make_vec("ssmrl/popgym.RepeatPreviousEasy", num_envs=64, autoreset_mode="NextStep")

``gymnasium.make("ssmrl.gymnasium:ssmrl/popgym.RepeatPreviousEasy")`` imports it by itself. Further keyword arguments
are the environment's parameters.
"""

import functools
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, create_empty_array
from jax import lax

from ssmrl import spaces
from ssmrl.envs import make
from ssmrl.registry import envs as registry
from ssmrl.rollout import EnvBatch, Outcome, reset_batch, step_batch


class VectorEnv(gymnasium.vector.VectorEnv):
    """``B`` copies of one of our environments, stepped in one jitted program; made by :func:`to_gymnasium`."""

    def __init__(self, env: Any, env_params: Any, num_envs: int, mode: AutoresetMode):
        self.env, self.env_params, self.num_envs, self.mode = env, env_params, num_envs, mode
        self.metadata = {"autoreset_mode": mode, "render_modes": []}
        self._action_space = env.action_space(env_params)
        self.single_observation_space = spaces.to_gymnasium(env.observation_space(env_params))
        self.single_action_space = spaces.to_gymnasium(self._action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._template = create_empty_array(self.single_observation_space, num_envs)
        self._batch: EnvBatch | None = None
        self._shown: Any = None  # the observations last returned
        self._ended = np.zeros(num_envs, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start new episodes: all, or those where ``options["reset_mask"]``, bool ``[B]``, is True."""
        super().reset(seed=seed)
        self._key = jax.random.key(int(self.np_random.integers(2**31)))
        self._key, key = jax.random.split(self._key)
        fresh = _reset(self.env, self.env_params, self.num_envs, key)
        mask = (options or {}).get("reset_mask")
        if mask is None:
            self._batch, self._shown, self._ended = fresh, fresh.obs, np.zeros(self.num_envs, bool)
        else:
            if self._batch is None:
                raise ResetNeeded("reset_mask before the first reset: call reset() without it")
            mask = np.asarray(mask, bool)
            self._batch, self._shown = _select(mask, (fresh, fresh.obs), (self._batch, self._shown))
            self._ended = self._ended & ~mask
        return self._to_numpy(self._shown), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all environments with actions ``[B, ...]``.

        Raises ``ResetNeeded`` before the first reset and, without auto-reset, where an episode has ended.
        """
        if self._batch is None or (self.mode is AutoresetMode.DISABLED and self._ended.any()):
            which = f" of environments {np.flatnonzero(self._ended).tolist()}" if self._batch is not None else ""
            raise ResetNeeded(f"step without reset{which}: call reset(), options={{'reset_mask': ended}} for some")
        same_step = self.mode is AutoresetMode.SAME_STEP
        self._batch, self._shown, outcome, self._key = _step(
            self.env, self.env_params, self._action_space, same_step, self._batch, self._ended, actions, self._key
        )
        reward, terminated, truncated = jax.device_get((outcome.reward, outcome.terminated, outcome.truncated))
        self._ended, infos = terminated | truncated, {}
        if same_step and self._ended.any():
            infos = self._final(outcome.final_obs)
        return self._to_numpy(self._shown), reward.astype(np.float64), terminated.copy(), truncated.copy(), infos

    def _final(self, final_obs: Any) -> dict[str, Any]:
        final_obs, found = self._to_numpy(final_obs), np.full(self.num_envs, None, object)
        for i in np.flatnonzero(self._ended):
            found[i] = _element(final_obs, int(i))
        mask = self._ended.copy()
        return {"final_obs": found, "_final_obs": mask, "final_info": {}, "_final_info": mask.copy()}

    def _to_numpy(self, obs: Any) -> Any:
        return jax.tree.map(lambda like, x: np.array(x, like.dtype), self._template, jax.device_get(obs))


class Env(gymnasium.Env):
    """One of our environments; made by :func:`to_gymnasium_single`."""

    def __init__(self, env: Any, env_params: Any):
        self._one = VectorEnv(env, env_params, 1, AutoresetMode.DISABLED)
        self.metadata = {"render_modes": []}
        self.observation_space = self._one.single_observation_space
        self.action_space = self._one.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        obs, info = self._one.reset(seed=int(self.np_random.integers(2**31)))
        return _element(obs, 0), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step. Raises ``ResetNeeded`` before the first reset and after the end of an episode."""
        actions = jax.tree.map(lambda x: np.asarray(x)[None], action)
        obs, reward, terminated, truncated, info = self._one.step(actions)
        return _element(obs, 0), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info


def to_gymnasium(
    env: Any, num_envs: int = 1, autoreset_mode: Any = AutoresetMode.SAME_STEP, **parameters: Any
) -> VectorEnv:
    """Make a ``gymnasium.vector.VectorEnv``: ``to_gymnasium("popgym/RepeatFirstEasy", num_envs=64)``.

    ``env`` is an id or an environment, ``autoreset_mode`` gymnasium's ``AutoresetMode`` or its value; ``parameters``
    are those of the id. Raises ``UnknownNameError`` with suggestions, ``TypeError`` for an unknown parameter and
    ``ValueError`` for a bad value.
    """
    if num_envs < 1:
        raise ValueError(f"a vector environment has environments: num_envs={num_envs}; use 1 or more")
    return VectorEnv(*_made(env, parameters), num_envs, AutoresetMode(autoreset_mode))


def to_gymnasium_single(env: Any, **parameters: Any) -> Env:
    """Make a ``gymnasium.Env`` of an environment or its id; ``parameters`` and errors as in :func:`to_gymnasium`."""
    return Env(*_made(env, parameters))


def _made(env: Any, parameters: dict[str, Any]) -> tuple[Any, Any]:
    if isinstance(env, str):
        return make(env, **parameters)
    if parameters:
        raise TypeError(f"{env.name} is made already: give its id to set {', '.join(parameters)}")
    return env, env.default_params


def _element(obs: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], obs)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _reset(env: Any, params: Any, num_envs: int, key: jax.Array) -> EnvBatch:
    return reset_batch(env, params, num_envs, key)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _step(
    env: Any,
    params: Any,
    action_space: spaces.Space,
    same_step: bool,
    batch: EnvBatch,
    ended: jax.Array,
    actions: Any,
    key: jax.Array,
) -> tuple[EnvBatch, Any, Outcome, jax.Array]:
    """One step: the new batch, the observations to show, the outcome, and the new key.

    ``step_batch`` starts new episodes at once. Where that is to be seen one step later, an environment that ``ended``
    in the last step stands still in this one, and shows its start.
    """
    key, key_env = jax.random.split(key)
    stepped, outcome = step_batch(env, params, batch, spaces.cast(action_space, actions), key_env)
    if same_step:
        return stepped, stepped.obs, outcome, key
    stepped, shown = _select(ended, (batch, batch.obs), (stepped, outcome.final_obs))
    outcome = outcome.replace(
        reward=outcome.reward * ~ended, terminated=outcome.terminated & ~ended, truncated=outcome.truncated & ~ended
    )
    return stepped, shown, outcome, key


@jax.jit
def _select(mask: jax.Array, new: Any, old: Any) -> Any:
    """Environments ``new`` where ``mask``, bool ``[B]``, else ``old``; leaves ``[B, ...]``, keys among them."""
    return jax.vmap(lambda m, a, b: jax.tree.map(lambda x, y: lax.select(m, x, y), a, b))(mask, new, old)


def _register() -> None:
    for entry in registry.entries():
        id = entry.name if entry.suffix is None else f"{entry.name}/{entry.fields[entry.suffix].default}"
        gymnasium.register(
            f"ssmrl/{entry.name.replace('/', '.')}",
            entry_point="ssmrl.gymnasium:to_gymnasium_single",
            vector_entry_point="ssmrl.gymnasium:to_gymnasium",
            kwargs={"env": id},
        )


_register()
