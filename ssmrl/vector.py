"""A policy in the vector environments of Gymnasium: the loop on the host, with the reset flag of each auto-reset mode.

In the step that ends an episode, and after it, a vector environment shows::

    SameStep   the first observation of the new episode
    NextStep   the final observation; the step after it ignores its action, earns nothing and shows the first one
    Disabled   the final observation; reset(options={"reset_mask": ended}) shows the first one

The policy's ``reset`` is True with that first observation and nowhere else.
"""

import functools
from typing import Any

import jax
import numpy as np

from ssmrl import spaces
from ssmrl.fields import UserError, show

MAX_STEPS = 100_000  # per episode, for environments without an end
MODES = ("SameStep", "NextStep", "Disabled")  # the values of gymnasium's AutoresetMode


def run(policy: Any, venv: Any, episodes: int, *, seed: int = 0, greedy: bool = False) -> dict[str, float]:
    """Run whole episodes of a policy in ``venv``; see :meth:`ssmrl.policy.Policy.run`."""
    mode = check(policy, venv)
    num_envs = venv.num_envs
    per_env = -(-episodes // num_envs)
    results = np.full((2, per_env, num_envs), np.nan)
    totals, finished = np.zeros((2, num_envs)), np.zeros(num_envs, int)

    obs, _ = venv.reset(seed=seed)
    carry, key = policy.initial_carry(num_envs), jax.random.key(seed)
    reset, reward, ended = np.ones(num_envs, bool), np.zeros(num_envs), np.zeros(num_envs, bool)
    for _ in range(per_env * MAX_STEPS):
        obs = _read(venv.single_observation_space, obs)
        action, carry, key = _act(policy, carry, obs, reset, np.asarray(reward, np.float32), key, greedy=greedy)
        obs, reward, terminated, truncated, _ = venv.step(_written(venv.single_action_space, action))
        ended_before, ended = ended, np.asarray(terminated, bool) | np.asarray(truncated, bool)
        reset = reset_flag(mode, ended, ended_before)
        idle = reset & (mode == "NextStep")  # the step that brought a new start was no step of an episode
        totals += np.where(idle, 0, np.stack([reward, np.ones(num_envs)]))
        done = np.flatnonzero(ended & (finished < per_env))
        results[:, finished[done], done] = totals[:, done]
        finished[done] += 1
        totals[:, ended] = 0
        if (finished == per_env).all():
            break
        if mode == "Disabled" and ended.any():
            obs, _ = venv.reset(options={"reset_mask": ended})
    return episode_statistics(*results)


def reset_flag(mode: str, ended: np.ndarray, ended_before: np.ndarray) -> np.ndarray:
    """Whether the observations that a step returned are the first of an episode, bool ``[B]``.

    ``ended`` says which episodes ended in that step, ``ended_before`` in the step before it. ``mode`` is the value of
    gymnasium's ``AutoresetMode``; in ``"Disabled"`` the observations are those of the masked reset that follows.
    """
    return ended_before if mode == "NextStep" else ended


def autoreset_mode(venv: Any) -> str:
    """The value of gymnasium's ``AutoresetMode`` that ``venv`` follows. Raises ``UserError`` if it does not say."""
    # Sync- and AsyncVectorEnv write into the metadata of the environment's class, which all their instances share:
    # the attribute, where there is one, is the instance's own.
    said = getattr(getattr(venv, "unwrapped", venv), "autoreset_mode", None) or venv.metadata.get("autoreset_mode")
    mode = getattr(said, "value", said)
    if mode not in MODES:
        raise UserError(
            f"{venv} does not say how it starts new episodes: metadata['autoreset_mode'] is {show(mode)}; set it to "
            "what holds, gymnasium.vector.AutoresetMode.SAME_STEP, NEXT_STEP or DISABLED: "
            "venv.metadata = {**venv.metadata, 'autoreset_mode': ...}"
        )
    return str(mode)


def check(policy: Any, venv: Any) -> str:
    """Return the auto-reset mode of ``venv``.

    Raises ``UserError`` if it is no vector environment, if the policy does not read what it shows or do what it takes,
    or if the mode is unknown.
    """
    if not hasattr(venv, "single_observation_space"):
        raise UserError(
            f"{venv} is no gymnasium.vector.VectorEnv: for one environment of gymnasium, give "
            "gymnasium.vector.SyncVectorEnv([lambda: env])"
        )
    network = policy.network
    for name, own, there, bounds in (
        ("observations", network.observation_space, venv.single_observation_space, False),
        ("actions", network.action_space, venv.single_action_space, True),  # a policy scales actions to the bounds
    ):
        try:
            fits = _fits(own, spaces.from_gymnasium(there), bounds)
        except TypeError:
            fits = False
        if not fits:
            raise UserError(f"the policy was trained with {name} in {own}, but {venv} has {there}")
    return autoreset_mode(venv)


def episode_statistics(returns: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    """Summarise episodes, those that are NaN left out: a flat dict of statistics over episodes."""
    ended = np.isfinite(returns)
    returns, lengths = returns[ended], lengths[ended]
    some = returns.size > 0
    return {
        "return_mean": float(returns.mean()) if some else float("nan"),
        "return_std": float(returns.std()) if some else float("nan"),
        "return_se": float(returns.std() / np.sqrt(returns.size)) if some else float("nan"),
        "length_mean": float(lengths.mean()) if some else float("nan"),
        "episodes": int(returns.size),
    }


@functools.partial(jax.jit, static_argnames="greedy")
def _act(
    policy: Any, carry: Any, obs: Any, reset: jax.Array, reward: jax.Array, key: jax.Array, *, greedy: bool
) -> tuple[Any, Any, jax.Array]:
    key, key_act = jax.random.split(key)
    obs = spaces.cast(policy.network.observation_space, obs)
    action, carry = policy.act(carry, obs, reset, reward=reward, key=key_act, greedy=greedy)
    return action, carry, key


def _fits(own: spaces.Space, there: spaces.Space, bounds: bool) -> bool:
    """Whether a policy made for one space can be used with another: as ``==``, but boxes differ in type and bounds."""
    match own, there:
        case spaces.Box(), spaces.Box():
            return own.shape == there.shape and (not bounds or np.allclose(own.bounds(), there.bounds()))
        case spaces.Tuple(one), spaces.Tuple(other):
            return len(one) == len(other) and all(_fits(a, b, bounds) for a, b in zip(one, other, strict=True))
        case spaces.Dict(one), spaces.Dict(other):
            other = dict(other)
            return dict(one).keys() == other.keys() and all(_fits(s, other[name], bounds) for name, s in one)
    return own == there


def _read(space: Any, x: Any) -> Any:
    """Observations of a gymnasium space ``[B, ...]`` as elements of ours, whose integers start at 0."""
    if isinstance(x, dict):
        return {name: _read(space[name], v) for name, v in x.items()}
    if isinstance(x, tuple):
        return tuple(_read(s, v) for s, v in zip(space, x, strict=True))
    x = np.asarray(x)
    return x - space.start if hasattr(space, "start") else x


def _written(space: Any, action: jax.Array) -> np.ndarray:
    """Actions ``[B, ...]`` as elements of a gymnasium space."""
    x = np.array(action, space.dtype)
    if hasattr(space, "low"):
        return np.clip(x, space.low, space.high)  # the same bounds may be rounded differently
    return x + space.start if hasattr(space, "start") else x
