"""``ssmrl adapt``: how the returns of a trained policy rise within a trial, while it learns in its memory.

Beside the policy is the same policy with its memory wiped before each point of the curve: what it does without having
learned anything in the trial. Where the environment knows of players that need no network (``env.references()``, as
bandits know Thompson sampling), they play as many trials.
"""

import functools
import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssmrl import evaluation, plotting
from ssmrl.config import Config
from ssmrl.envs import make as make_env
from ssmrl.envs.trials import Trials
from ssmrl.fields import UserError, show
from ssmrl.policy import Policy, PolicyCarry, check_spaces
from ssmrl.results import summary
from ssmrl.rollout import reset_batch, step_batch
from ssmrl.vector import MAX_STEPS

_BATCH = 256  # trials at a time
_POINTS = 50  # of a curve over steps
_NAME = 150  # characters of a file's name; file systems take 255
POLICY, WIPED = "policy", "memory wiped"


def adapt(
    run_dir: str | Path,
    test: Config,
    *,
    trials: int = 512,
    step: str | int = "best",
    greedy: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Let every seed of a run play ``trials`` trials in the environment of ``test``; see the module.

    A curve's points are the episodes of a trial or, where a trial has no number of episodes, equal parts of its steps.
    Returns facts: for each player its name and ``/return`` (of a trial), ``/first`` and ``/last`` (of the curve's
    points), each followed by ``/low`` and ``/high`` (an interval of 95 %: a bootstrap over several seeds; for one, and
    for references, over trials), and ``/curve``, a list; of a mixture also for each of its tasks. Writes them to
    ``eval/adapt.json``, and the curves of all tasks together to ``plots/adapt.png`` with a CSV. Another environment
    than the run's, and parameters other than the run's or that environment's own, are added to the names of the files
    and, as ``env.KEY``, to the facts. Raises ``UserError`` if there are no trials in the environment, or its spaces are
    not the policy's.
    """
    run_dir, start = Path(run_dir), time.perf_counter()
    config = evaluation.read_config(run_dir)
    evaluation.check_policy(run_dir, config)
    env, env_params = make_env(test.env, **test.env_parameters)
    if not isinstance(env, Trials):
        raise UserError(f"{test.env} has no trials to adapt in: add env.trial_episodes=10, or env.trial_steps=500")
    agent, state, path = evaluation.restore(run_dir, config, step)
    policies = [agent.policy(evaluation.member(state, i)) for i in range(config.seeds)]
    check_spaces(policies[0], env, env_params)
    players = {}
    for name, wiped in ((POLICY, False), (WIPED, True)):
        rounds = [
            run_trials(p, env, env_params, jax.random.key(seed + i), trials=trials, greedy=greedy, wiped=wiped)
            for i, p in enumerate(policies)
        ]
        players[name] = np.stack(rounds)
    for name, play in (env.references() if env.episodes and hasattr(env, "references") else {}).items():
        players[name] = np.asarray(play(env, env_params, jax.random.key(seed), trials))[None]
    facts: dict[str, Any] = {"env": test.env, "env_steps": int(path.name), "trials": trials, "seeds": config.seeds}
    facts |= {"greedy": int(greedy), "seed": seed, "by": "episode" if env.episodes else "step"}
    if test.env == config.env:
        trained = config.env_parameters
        changed = {f"env.{k}": show(v) for k, v in test.env_parameters.items() if v != trained.get(k, v)}
    else:
        changed = test.env_changes
    facts |= changed
    suffix = _suffix([test.env] * (test.env != config.env) + [f"{k[4:]}={v}" for k, v in changed.items()])
    curves = {}
    for name, rewards in (players | _by_kind(env, players)).items():
        curves[name] = _interval(rewards)
        facts |= _facts(name, rewards, curves[name])
    curves = {name: curves[name] for name in players}
    x = np.arange(1, 1 + players[POLICY].shape[-1]) * (1 if env.episodes else env.steps / players[POLICY].shape[-1])
    output = run_dir / "plots" / f"adapt{suffix}.png"
    facts["plot"] = str(plotting.plot_adaptation(x, curves, output, facts["by"]))
    facts["wall_s"] = time.perf_counter() - start
    evaluation.write_json(run_dir / "eval" / f"adapt{suffix}.json", facts)
    return facts


def _suffix(settings: list[str]) -> str:
    """What the names of files have from settings: ``_meta_Bandit_num_arms=3``; a hash of what is too long for that."""
    text = "".join("_" + re.sub(r"[^\w.=-]+", "_", setting) for setting in settings)
    return text if len(text) <= _NAME else f"_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def run_trials(
    policy: Policy, env: Trials, env_params: Any, key: jax.Array, *, trials: int, greedy: bool, wiped: bool
) -> np.ndarray:
    """Rewards earned up to each point of ``trials`` trials: float32 ``[trials, P]``, NaN for episodes not played.

    ``wiped``: the policy's memory is reset before each point. ``key`` is consumed.
    """
    batches, size, kept = _layout(trials)
    keys = jax.random.split(key, batches)
    found = [_run_batch(policy, env, env_params, k, size=size, greedy=greedy, wiped=wiped) for k in keys]
    return np.concatenate([np.asarray(x) for x in found])[kept]


def _layout(trials: int) -> tuple[int, int, np.ndarray]:
    """Batches, trials in each, and which of all of them count: of a mixture's kinds, which are in order, as many."""
    batches = -(-trials // _BATCH)
    size = -(-trials // batches)
    return batches, size, np.arange(trials) * (batches * size) // trials


def _by_kind(env: Trials, players: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The policy's rewards, and those with a wiped memory, in each task of a mixture."""
    trials = players[POLICY].shape[1]
    batches, size, kept = _layout(trials)
    kinds = env.kinds(size) if hasattr(env, "kinds") else None
    if kinds is None:
        return {}
    tasks = np.array(env.tasks)[np.tile(kinds, batches)[kept]]  # a task may be named more than once
    return {
        f"{name}, {task}": players[name][:, tasks == task]
        for task in dict.fromkeys(env.tasks)
        for name in (POLICY, WIPED)
    }


@functools.partial(jax.jit, static_argnames=("env", "size", "greedy", "wiped"))
def _run_batch(
    policy: Policy, env: Trials, env_params: Any, key: jax.Array, *, size: int, greedy: bool, wiped: bool
) -> jax.Array:
    points = env.episodes or min(env.steps, _POINTS)
    key, key_reset = jax.random.split(key)
    rows = jnp.arange(size)
    start = (
        policy.initial_carry(size),
        reset_batch(env, env_params, size, key_reset),
        jnp.zeros(size, bool),
        jnp.full((points, size), jnp.nan),
        key,
        jnp.int32(0),
    )

    def running(loop: tuple) -> jax.Array:
        _, _, finished, _, _, t = loop
        return ~finished.all() & (t < MAX_STEPS)

    def step(loop: tuple) -> tuple:
        carry, batch, finished, rewards, key, t = loop
        key, key_act, key_env = jax.random.split(key, 3)
        trial = batch.env_state
        point = trial.episode if env.episodes else trial.time * points // env.steps
        new = jnp.isnan(rewards[point, rows])
        memory, dist, _ = policy.step(carry, batch.obs, batch.reset | (new & wiped), batch.reward)
        action = dist.to_env(dist.mode() if greedy else dist.sample(key_act))
        batch, outcome = step_batch(env, env_params, batch, action, key_env)
        earned = jnp.where(new, 0, rewards[point, rows]) + outcome.trial.reward
        slot = jnp.where(finished, points, point)  # out of range where the trial is over: dropped
        rewards = rewards.at[slot, rows].set(earned, mode="drop")
        return PolicyCarry(memory, action), batch, finished | outcome.terminated, rewards, key, t + 1

    return lax.while_loop(running, step, start)[3].T


def _interval(rewards: np.ndarray) -> np.ndarray:
    """Mean, low and high ``[3, ...]`` of ``[S, trials, ...]``, whose NaNs do not count: over seeds or over trials."""
    with np.errstate(invalid="ignore"):
        known = np.isfinite(rewards).sum(1)
        means = np.where(known > 0, np.nansum(rewards, 1) / known, np.nan)
        if len(rewards) > 1:
            return np.stack(summary([np.moveaxis(means, 0, -1)], "mean"))
        margin = 1.96 * np.sqrt(np.nansum((rewards[0] - means[0]) ** 2, 0)) / known[0]
    return np.stack([means[0], means[0] - margin, means[0] + margin])


def _facts(name: str, rewards: np.ndarray, curve: np.ndarray) -> dict[str, Any]:
    numbers = {"return": _interval(np.nansum(rewards, -1)), "first": curve[:, 0], "last": curve[:, -1]}
    facts: dict[str, Any] = {}
    for what, found in numbers.items():
        facts |= {f"{name}/{what}{end}": float(v) for end, v in zip(("", "/low", "/high"), found, strict=True)}
    return facts | {f"{name}/curve": [float(v) for v in curve[0]]}


def render(facts: Mapping[str, Any]) -> str:
    """The facts of :func:`adapt` as a table."""
    rows = [["", "return of a trial", f"first {facts['by']}", f"last {facts['by']}"]]
    for name in [k.removesuffix("/curve") for k in facts if k.endswith("/curve")]:
        cells = [[facts[f"{name}/{k}{end}"] for end in ("", "/low", "/high")] for k in ("return", "first", "last")]
        rows.append([name, *("{:.3f} [{:.3f}, {:.3f}]".format(*cell) for cell in cells)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    acting = "greedy" if facts["greedy"] else "sampled"
    settings = "".join(f" {k}={v}" for k, v in facts.items() if k.startswith("env."))
    head = f"{facts['env']}{settings}: {facts['seeds']} seed(s), {facts['trials']:,} trials each, {acting} actions"
    return "\n".join([f"{head}, {facts['env_steps']:,} steps trained", *lines, f"plot: {facts['plot']} (and .csv)"])
