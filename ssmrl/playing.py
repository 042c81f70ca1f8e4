"""Watching a trained policy: whole episodes as a film, as brax's page, or as a table."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl import dreams, evaluation, film, portable
from ssmrl.config import Config, resolve
from ssmrl.dreams import Dreams
from ssmrl.envs import Wrapper
from ssmrl.envs import make as make_env
from ssmrl.film import Episode
from ssmrl.policy import Policy, PolicyCarry
from ssmrl.registry import UserError
from ssmrl.rollout import reset_batch

_CHUNK = 64  # steps per compiled call


def play(
    path: str | Path,
    output: str | Path | None = None,
    *,
    episodes: int = 2,
    seed_index: int = 0,
    seed: int = 0,
    step: str | int = "best",
    env: str | None = None,
    greedy: bool = False,
    fps: float | None = None,
    max_steps: int = 500,
    text: bool = False,
    dream: bool = False,
    dream_steps: int = 15,
) -> dict[str, Any]:
    """Let the policy at ``path``, of a run or exported, act for whole ``episodes``; write what happened to ``output``.

    The suffix says what is written: ``.gif`` a film, ``.png`` some of its frames, ``.txt`` a table, ``.html`` brax's
    three-dimensional page. By default it is the best of them that the environment has, in the run's ``media`` folder,
    or in the current folder under the name of an exported policy; with ``text`` it is the table, and no file. Episodes
    are cut off after ``max_steps``. ``step`` and ``seed_index`` choose in a run. With ``dream``, what happened is
    shown beside what the policy's world model imagines of it, ``dream_steps`` steps at a time (:mod:`ssmrl.dreams`).
    Returns ``output``, ``returns``, ``lengths``, ``endings`` and, where one was made, ``table``. Raises ``UserError``
    for what the environment cannot show, for ``fps`` of what is no film, and for a missing run, checkpoint, seed or
    world model.
    """
    policy, config, env_steps, stem = _trained(Path(path), step, seed_index)
    target, params = make_env(env) if env else make_env(config.env, **config.env_parameters)
    suffixes = dreams.SUFFIXES if dream else _suffixes(target, params)
    kind = ".txt" if text and output is None else Path(output).suffix if output else suffixes[0]
    if kind not in suffixes:
        raise UserError(f"output={output}: {target.name} can be shown as {', '.join(suffixes)}")
    film.check_fps(fps, kind)
    evaluation.check_spaces(policy, target, params)
    played = [
        run_episode(policy, target, params, key, greedy=greedy, max_steps=max_steps)
        for key in jax.random.split(jax.random.key(seed), episodes)
    ]
    dreamt = dreams.dream(policy, played, dream_steps) if dream else []
    marks = "_dream" * dream + "_greedy" * greedy
    name = f"{stem.name}{'_' + env.replace('/', '_') if env else ''}{marks}{kind}"
    written = Path(output) if output else None if text else stem.with_name(name)
    facts: dict[str, Any] = {
        "output": str(written) if written else None,
        "checkpoint": env_steps,
        "returns": [round(float(e.returns[-1]), 6) for e in played],
        "lengths": [e.length for e in played],
        "endings": [e.ending for e in played],
    }
    if kind == ".txt":
        names = getattr(target, "action_names", ())
        facts["table"] = dreams.table(dreamt, names) if dream else table(played, names)
    if written:
        try:
            written.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output={written}: cannot be written ({error.strerror})") from error
        _write(written, target, params, played, dreamt, fps, env or config.task, facts.get("table", ""))
    return facts


def _trained(path: Path, step: str | int, seed_index: int) -> tuple[Policy, Config, int, Path]:
    """A policy, the configuration of its environment, the steps that it learned from, and how its files are called."""
    if not portable.is_exported(path):
        config, saved = evaluation.read_config(path), int(evaluation.find_checkpoint(path, step).name)
        return evaluation.load(path, step, seed_index), config, saved, path / "media" / f"{saved}_seed_{seed_index}"
    policy, facts = evaluation.load(path, step, seed_index), portable.read_facts(path)
    config = resolve([], {k: v for k, v in facts["config"].items() if k.split(".")[0] == "env"})
    folder = path.resolve()  # which stays as it is
    return policy, config, facts["source"]["env_steps"], folder if folder == Path.cwd() else Path(folder.name)


def run_episode(
    policy: Policy, env: Any, env_params: Any, key: jax.Array, *, greedy: bool = False, max_steps: int = 500
) -> Episode:
    """Let ``policy`` act in one environment from its start to its end, and keep everything; ``key`` is consumed.

    Unlike ``rollout.step_batch`` this starts no new episode, so that the last state is the one in which it ended.
    """
    key, key_reset = jax.random.split(key)
    loop = _start(policy, env, env_params, key_reset)
    parts: list[Any] = []
    while True:
        key, key_chunk = jax.random.split(key)
        loop, rows = _steps(policy, env, env_params, loop, key_chunk, greedy)
        parts.append(jax.device_get(rows))
        ended = np.flatnonzero(np.concatenate([p["terminated"] | p["truncated"] for p in parts]))
        if ended.size or len(parts) * _CHUNK >= max_steps:
            break
    length = min(int(ended[0]) + 1 if ended.size else max_steps, max_steps)
    steps = [jax.tree.map(lambda x, i=i: x[i], part) for part in parts for i in range(_CHUNK)][:length]
    last = steps[-1]
    return Episode(
        states=[s["state"] for s in steps] + [last["next_state"]],
        obs=[s["obs"] for s in steps],
        actions=[s["action"] for s in steps],
        rewards=np.array([s["reward"] for s in steps], float),
        values=np.array([s["value"] for s in steps], float),
        final_obs=last["next_obs"],
        ending="terminated" if last["terminated"] else "truncated" if last["truncated"] else "still running",
    )


@partial(jax.jit, static_argnames=("env",))
def _start(policy: Policy, env: Any, env_params: Any, key: jax.Array) -> tuple:
    """What :func:`_steps` begins with."""
    batch = reset_batch(env, env_params, 1, key)
    return policy.initial_carry(1), batch.env_state, batch.obs, batch.reset, batch.reward


@partial(jax.jit, static_argnames=("env", "greedy"))
def _steps(
    policy: Policy, env: Any, env_params: Any, loop: tuple, key: jax.Array, greedy: bool
) -> tuple[tuple, dict[str, Any]]:
    """Take 64 steps in a batch of one, which rows do not have; those after an end are for the caller to drop."""

    def step(loop: tuple, key: jax.Array) -> tuple[tuple, dict[str, Any]]:
        carry, state, obs, reset, reward = loop
        key_act, key_env = jax.random.split(key)
        memory, dist, value = policy.step(carry, obs, reset, reward)
        action = dist.to_env(dist.mode() if greedy else dist.sample(key_act))
        next_obs, next_state, earned, terminated, _ = env.step_envs(key_env[None], state, action, env_params)
        truncated = jax.vmap(env.is_truncated, in_axes=(0, None))(next_state, env_params)
        earned = earned.astype(jnp.float32)
        row = {"state": state, "obs": obs, "action": action, "reward": earned, "value": value}
        row |= {"next_state": next_state, "next_obs": next_obs, "terminated": terminated, "truncated": truncated}
        return (PolicyCarry(memory, action), next_state, next_obs, jnp.zeros_like(reset), earned), row

    loop, rows = jax.lax.scan(step, loop, jax.random.split(key, _CHUNK))
    return loop, jax.tree.map(lambda x: x[:, 0], rows)


def table(episodes: list[Episode], names: tuple[str, ...] = ()) -> str:
    """Write every step of the episodes as a line of text; ``names`` are those of discrete actions."""
    rows = [("t", "reset", "observation", "action", "reward", "value", "return")]
    for e in episodes:
        for t, (obs, action) in enumerate(zip(e.obs, e.actions, strict=True)):
            numbers = (f"{e.rewards[t]:+.3f}", f"{e.values[t]:.3f}", f"{e.returns[t + 1]:.3f}")
            rows.append((str(t), "" if t else "RESET", film.words(obs), film.words(action, names), *numbers))
        rows.append(("", "", f"{e.ending} after {e.length} steps", "", "", "", ""))
    return film.lay_out(rows)


def _suffixes(env: Any, params: Any) -> list[str]:
    """What an environment can be shown as, the best first."""
    found = [".html"] if hasattr(_inner(env), "to_html") else []
    try:
        env.render(jax.device_get(env.reset(jax.random.key(0), params)[1]), params)
        found += [".gif", ".png"]
    except NotImplementedError:
        pass
    return [*found, ".txt"]


def _inner(env: Any) -> Any:
    return _inner(env.env) if isinstance(env, Wrapper) else env


def _write(
    path: Path,
    env: Any,
    params: Any,
    episodes: list[Episode],
    dreamt: list[Dreams],
    fps: float | None,
    name: str,
    text: str,
) -> None:
    if path.suffix == ".html":
        path.write_text(_inner(env).to_html([s for e in episodes for s in e.states]), encoding="utf-8")
    elif path.suffix == ".txt":
        path.write_text(text + "\n", encoding="utf-8")
    else:
        shown = dreams.frames(env, params, name, dreamt) if dreamt else film.frames(env, params, name, episodes)
        if path.suffix == ".gif":
            film.write_gif(path, shown, fps)
        else:
            film.write_strip(path, shown)
