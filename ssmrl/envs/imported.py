"""Environments of users' own, by the place of their class: ``env=my_package.module:MyEnv``.

Such a name stands for a class, or a function, in a module that Python finds from the current folder. What it makes is

* a :class:`ssmrl.envs.Environment`: fields declared with ``hp`` are its parameters, as for the built-in ones;
* an environment like gymnax's, old or new: ``default_params``, ``observation_space(params)``, ``action_space(params)``,
  ``reset_env(key, params) -> obs, state`` and ``step_env(key, state, action, params)``, which returns ``obs, state,
  reward, terminated, info`` if there is an ``is_truncated(state, params)`` (gymnax 1.x); ``obs, state, reward,
  terminated, truncated, info``; or ``obs, state, reward, done, info`` (gymnax 0.x). Parameters are the arguments of the
  constructor and the fields of ``default_params``, as far as they can be read in the source. A function may return the
  pair of the environment and its parameters, as ``gymnax.make`` does.

``done`` does not say who ended the episode. With ``params.max_steps_in_episode`` an end in the step in which that
many were taken is put down to the clock, even if it was natural as well; without it every end is a natural one.

``reset_env`` and ``step_env`` are needed because they do not reset by themselves. ``step`` usually does, which hides
the last observation of the old episode, whose value an episode that is cut off goes on with. It is used where
there is no ``step_env``, if its ``info["final_observation"]`` has that observation.
"""

import dataclasses
import functools
import importlib
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from ssmrl import spaces
from ssmrl.envs.base import Environment
from ssmrl.envs.foreign import ForeignState, element, matching, strong, to_space
from ssmrl.registry import UserError, suggest

_VALUES = "(obs, state, reward, terminated, truncated, info) or (obs, state, reward, done, info)"


def make(target: str, /, **values: Any) -> Environment:
    """Make the environment that ``target``, a ``module:Name``, stands for.

    ``values`` are arguments of its constructor and fields of its ``default_params``. Raises ``UserError`` where there
    is none, saying what is missing.
    """
    made = _made(target, tuple(sorted(values.items())))
    return made[0] if isinstance(made[0], Environment) else Imported(target, tuple(sorted(values.items())))


@dataclasses.dataclass(frozen=True)
class Imported(Environment):
    """An environment with gymnax's protocol; equal ones come from the same place and values."""

    target: str
    values: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The place that it comes from."""
        return self.target

    @property
    def _env(self) -> Any:
        return _made(self.target, self.values)[0]

    @functools.cached_property
    def _spaces(self) -> tuple[spaces.Space, spaces.Space]:
        with jax.ensure_compile_time_eval():
            found = self._env.observation_space(self.default_params), self._env.action_space(self.default_params)
            return to_space(found[0]), to_space(found[1])

    @property
    def default_params(self) -> Any:
        """Its own parameters."""
        return _made(self.target, self.values)[1]

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, ForeignState]:
        """See ``Environment``."""
        reset = getattr(self._env, "reset_env" if _steps_alone(self._env) else "reset")
        with jax.numpy_rank_promotion("allow"):
            obs, inner = reset(key, params)
        return element(self._spaces[0], obs), ForeignState(jnp.int32(0), strong(inner), jnp.zeros((), bool))

    def step_env(
        self, key: jax.Array, state: ForeignState, action: jax.Array, params: Any
    ) -> tuple[Any, ForeignState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``. Raises ``ValueError`` for another number of values."""
        alone = _steps_alone(self._env)
        with jax.numpy_rank_promotion("allow"):
            values = getattr(self._env, "step_env" if alone else "step")(key, state.inner, action, params)
            if not isinstance(values, tuple) or len(values) not in (5, 6):
                got = f"{len(values)} values" if isinstance(values, tuple) else type(values).__name__
                raise ValueError(f"{self.target}: a step returns {got}: return {_VALUES}")
            obs, inner, reward, *ends, info = values
            terminated, truncated = self._ends(ends, inner, state.time + 1, params)
        if not alone:
            if "final_observation" not in info:
                raise ValueError(
                    f"{self.target}: step may have reset by itself, and then hides the last observation of the episode:"
                    " define reset_env and step_env, which do not, or put it into info['final_observation']"
                )
            obs = info["final_observation"]
        after = ForeignState(state.time + 1, matching(inner, state.inner), truncated)
        return element(self._spaces[0], obs), after, jnp.asarray(reward, jnp.float32), terminated, {}

    def _ends(self, ends: list[Any], inner: Any, time: jax.Array, params: Any) -> tuple[jax.Array, jax.Array]:
        """The two flags, from those that a step returned."""
        done, *rest = (jnp.asarray(end, bool) for end in ends)
        if rest:
            return done, rest[0]
        if hasattr(self._env, "is_truncated"):
            return done, jnp.asarray(self._env.is_truncated(inner, params), bool)
        truncated = done & (time >= getattr(params, "max_steps_in_episode", jnp.inf))
        return done & ~truncated, truncated

    def is_truncated(self, state: ForeignState, params: Any) -> jax.Array:
        """Whether the environment's own rules cut the episode off in the step that led here."""
        return state.truncated

    def observation_space(self, params: Any) -> spaces.Space:
        """Space of one observation."""
        return self._spaces[0]

    def action_space(self, params: Any) -> spaces.Space:
        """Space of one action."""
        return self._spaces[1]


def _steps_alone(env: Any) -> bool:
    return hasattr(env, "reset_env") and hasattr(env, "step_env")


@functools.cache
def _made(target: str, values: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    """Import and make an environment, once; returns it and its parameters."""
    module, _, name = target.partition(":")
    try:
        maker = getattr(importlib.import_module(module), name)
    except AttributeError:
        raise UserError(f"{module} has no '{name}' when it is imported: define it, or name another") from None
    except Exception as error:  # a user's module may fail in any way
        raise UserError(f"importing {module} raises {type(error).__name__}: {error}") from error
    if not callable(maker):
        raise UserError(f"{target} is a {type(maker).__name__}: name a class, or a function that makes an environment")
    known = inspect.signature(maker).parameters
    with jax.ensure_compile_time_eval():
        made = maker(**{k: v for k, v in values if k in known})
    env, *pair = made if isinstance(made, tuple) and len(made) == 2 else (made,)
    if isinstance(env, Environment):
        return env, env.default_params
    missing = [n for n in ("observation_space", "action_space") if not callable(getattr(env, n, None))]
    missing += [] if pair or hasattr(env, "default_params") else ["default_params"]
    if not _steps_alone(env) and not (hasattr(env, "reset") and hasattr(env, "step")):
        missing = [n for n in ("reset_env", "step_env") if not hasattr(env, n)] + missing
    if missing:
        raise UserError(
            f"{target} makes a {type(env).__name__}, which is no environment: it has no {', '.join(missing)}; inherit "
            "from ssmrl.envs.Environment and define them"
        )
    return env, _replaced(target, pair[0] if pair else env.default_params, {k: v for k, v in values if k not in known})


def _replaced(target: str, params: Any, values: dict[str, Any]) -> Any:
    unknown = [k for k in values if not hasattr(params, k)]
    if unknown:
        close = suggest(unknown[0], vars(params))
        hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(vars(params)) or 'none'}"
        raise UserError(f"{target} has no parameter '{unknown[0]}': {hint}")
    return dataclasses.replace(params, **values) if values else params
