"""Trained policies: loading, exporting and measuring them over whole episodes."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssmrl import checkpoint, portable
from ssmrl.agents import make_agent, score_of
from ssmrl.config import Config, resolve, to_flat
from ssmrl.envs import make as make_env
from ssmrl.envs.trials import Trials
from ssmrl.policy import Policy, PolicyCarry, check_spaces
from ssmrl.registry import UserError, agents
from ssmrl.rollout import episode_numbers, reset_batch, step_batch
from ssmrl.vector import MAX_STEPS, episode_statistics

SCORE = "return_mean"  # what "best" means, in manifests and in final.json
_MAX_ENVS = 256


def run_episodes(
    policy: Policy, env: Any, env_params: Any, key: jax.Array, *, episodes: int, greedy: bool
) -> dict[str, jax.Array]:
    """Run at least ``episodes`` whole episodes in parallel environments; pure, ``key`` is consumed.

    Each of ``B = min(episodes, 256)`` environments runs the same number of episodes, so that short ones do not count
    more often. Returns ``returns`` and ``lengths`` ``[episodes per environment, B]``; an episode without an end within
    100,000 steps is NaN. Of trials of K episodes these are whole trials, and ``by_place`` ``[K]`` the mean returns of
    their episodes by their place in the trial.
    """
    num_envs = min(episodes, _MAX_ENVS)
    per_env = -(-episodes // num_envs)
    key, key_reset = jax.random.split(key)
    results = jnp.full((2, per_env, num_envs), jnp.nan)
    places = env.episodes if isinstance(env, Trials) else 0
    start = (
        policy.initial_carry(num_envs),
        reset_batch(env, env_params, num_envs, key_reset),
        jnp.zeros(num_envs, jnp.int32),
        results,
        jnp.zeros((2, places)),  # by place in a trial: returns, and how many
        key,
        jnp.int32(0),
    )

    def running(loop: tuple) -> jax.Array:
        _, _, finished, *_, t = loop
        return (finished < per_env).any() & (t < per_env * MAX_STEPS)

    def step(loop: tuple) -> tuple:
        carry, batch, finished, results, by_place, key, t = loop
        key, key_act, key_env = jax.random.split(key, 3)
        memory, dist, _ = policy.step(carry, batch.obs, batch.reset, batch.reward)
        action = dist.to_env(dist.mode() if greedy else dist.sample(key_act))
        batch, outcome = step_batch(env, env_params, batch, action, key_env)
        ended = (outcome.terminated | outcome.truncated) & (finished < per_env)
        slot = jnp.where(ended, finished, per_env)  # out of range where nothing ended: dropped
        values = jnp.stack([outcome.episode_return, outcome.episode_length.astype(jnp.float32)])
        results = results.at[:, slot, jnp.arange(num_envs)].set(values, mode="drop")
        if places:
            trial = outcome.trial
            place = jnp.where(trial.ended & (finished < per_env), trial.episode, places)
            by_place = by_place.at[:, place].add(jnp.stack([trial.episode_return, jnp.ones(num_envs)]), mode="drop")
        return PolicyCarry(memory, action), batch, finished + ended, results, by_place, key, t + 1

    _, _, _, (returns, lengths), by_place, *_ = lax.while_loop(running, step, start)
    found = {"returns": returns, "lengths": lengths}
    return found | {"by_place": by_place[0] / by_place[1]} if places else found


_run_episodes = jax.jit(run_episodes, static_argnames=("env", "episodes", "greedy"))


def evaluate(
    policy: Policy, env: Any, episodes: int = 256, seed: int = 0, *, env_params: Any = None, greedy: bool = False
) -> dict[str, float]:
    """Measure ``policy`` in ``env``: an environment, its id, or a ``gymnasium.vector.VectorEnv``.

    Returns a flat dict: ``return_mean``, ``return_std`` and ``return_se`` over episodes, ``length_mean``, ``episodes``;
    for trials also ``episode_return/<number>``, by the place in the trial. ``env_params`` are for the first kind.
    Raises ``UserError`` if the environment's spaces are not the policy's.
    """
    if not isinstance(env, str) and not hasattr(env, "reset_env"):
        return policy.run(env, episodes, seed=seed, greedy=greedy)
    if isinstance(env, str):
        env, env_params = make_env(env)
    env_params = env.default_params if env_params is None else env_params
    check_spaces(policy, env, env_params)
    result = _run_episodes(policy, env, env_params, jax.random.key(seed), episodes=episodes, greedy=greedy)
    result = jax.tree.map(np.asarray, result)
    places = result.get("by_place", np.zeros(0))
    numbers = episode_numbers(len(places)) if len(places) else []
    found = episode_statistics(result["returns"], result["lengths"])
    return found | {f"episode_return/{n}": float(places[n - 1]) for n in numbers}


def load(path: str | Path, step: str | int = "best", seed_index: int = 0) -> Policy:
    """Load a trained policy, normaliser and input features included, from a run directory or an exported folder.

    ``step`` is ``"best"``, ``"latest"`` or a saved number of environment steps. Raises ``UserError`` if the run,
    the checkpoint or the seed is missing, or if what is there is damaged.
    """
    if portable.is_exported(path):
        if (step, seed_index) != ("best", 0):
            raise UserError(
                f"{path} is an exported policy: step and seed_index choose in a run directory; leave them out"
            )
        return portable.read(path)[0]
    return _load(path, step, seed_index)[0]


def export(run_dir: str | Path, folder: str | Path, step: str | int = "best", seed_index: int = 0) -> dict[str, Any]:
    """Write a trained policy to one new folder that :func:`load` reads anywhere, without the environment's package.

    ``step`` and ``seed_index`` as in :func:`load`. Returns flat facts about what was written. Raises ``UserError`` as
    :func:`load` does, and if the folder has something in it or cannot be written.
    """
    portable.check_free(Path(folder))
    folder = Path(folder).resolve()  # "." is replaced, and would be lost
    policy, config, path = _load(run_dir, step, seed_index)
    manifest = checkpoint.read_manifest(path)
    source = {
        "run": Path(run_dir).resolve().name,
        "env": config.env,
        "seed_index": seed_index,
        "env_steps": manifest["env_steps"],
        SCORE: manifest[SCORE],
    }
    portable.write(policy, to_flat(config), source, folder)
    network, leaves = policy.network, jax.tree.leaves(policy.params)
    return {
        "policy": str(folder),
        **source,
        "observation_space": str(network.observation_space),
        "action_space": str(network.action_space),
        "parameters": sum(leaf.size for leaf in leaves),
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }


def evaluate_run(
    run_dir: str | Path,
    *,
    step: str | int = "best",
    episodes: int = 256,
    env: str | None = None,
    greedy: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure every seed of a run, write the numbers to ``eval/<step>.json`` in its folder, and return them."""
    config = read_config(run_dir)
    check_policy(run_dir, config)
    agent, state, path = restore(Path(run_dir), config, step)
    target, target_params = make_env(env) if env else (agent.env, agent.env_params)
    start = time.perf_counter()
    scores = []
    for i in range(config.seeds):
        policy = agent.policy(member(state, i))
        scores.append(evaluate(policy, target, episodes, seed + i, env_params=target_params, greedy=greedy))
    result = {
        **summarize(scores),
        "env_steps": int(path.name),
        "greedy": int(greedy),
        "seed": seed,
        "wall_s": time.perf_counter() - start,
    }
    suffix = "" if env is None else "_" + env.replace("/", "_")
    write_json(Path(run_dir) / "eval" / f"{path.name}{suffix}{'_greedy' if greedy else ''}.json", result)
    return result


def evaluate_exported(
    folder: str | Path, *, episodes: int = 256, env: str | None = None, greedy: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Measure an exported policy, in the environment of its run unless ``env`` is given."""
    policy, facts = portable.read(folder)
    start = time.perf_counter()
    config = resolve([], {k: v for k, v in facts["config"].items() if k.split(".")[0] == "env"})
    target, params = make_env(env) if env else make_env(config.env, **config.env_parameters)
    result: dict[str, Any] = evaluate(policy, target, episodes, seed, env_params=params, greedy=greedy)
    return result | {
        "env_steps": facts["source"]["env_steps"],
        "greedy": int(greedy),
        "seed": seed,
        "wall_s": time.perf_counter() - start,
    }


def summarize(scores: list[dict[str, float]]) -> dict[str, Any]:
    """Aggregate the per-seed results of :func:`evaluate`: means over seeds, and the deviation *between* seeds."""
    means = [s["return_mean"] for s in scores]
    summary: dict[str, Any] = {
        "return_mean": float(np.mean(means)),
        "return_std": float(np.std(means)),
        "return_min": float(np.min(means)),
        "return_max": float(np.max(means)),
        "length_mean": float(np.mean([s["length_mean"] for s in scores])),
        "episodes": int(sum(s["episodes"] for s in scores)),
        "seeds": len(scores),
    }
    by_place = [k for k in scores[0] if k.startswith("episode_return/")]
    summary |= {k: float(np.mean([s[k] for s in scores])) for k in by_place}
    return summary | {f"return_mean/seed_{i}": m for i, m in enumerate(means)}


def summarize_metrics(results: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means over seeds of metrics ``[seeds]``, and each seed's own as ``<name>/seed_i``."""
    summary: dict[str, Any] = {k: float(np.mean(v)) for k, v in results.items()}
    summary["seeds"] = max((len(v) for v in results.values()), default=0)
    return summary | {f"{k}/seed_{i}": float(x) for k, v in results.items() for i, x in enumerate(v)}


def read_config(run_dir: str | Path) -> Config:
    """The resolved configuration of a run. Raises ``UserError`` if ``run_dir`` is not a run."""
    path = Path(run_dir) / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{run_dir} is no run directory: it has no config.yaml; nor is it an exported policy (ssmrl list runs)"
        )
    return resolve([str(path)], {})


def check_policy(run_dir: str | Path, config: Config) -> None:
    """Raise ``UserError`` unless the agent of a run learns a policy."""
    if not _has_policy(config):
        raise UserError(f"{run_dir} has no policy, it is a world model: use ssmrl worldmodel eval {run_dir}")


def check_world_model(run_dir: str | Path, config: Config) -> None:
    """Raise ``UserError`` unless the agent of a run learns a world model, and nothing else."""
    if _has_policy(config):
        raise UserError(f"{run_dir} has a policy, its agent is {config.agent}: use ssmrl eval {run_dir}")


def _has_policy(config: Config) -> bool:
    return hasattr(agents.load(agents.find(config.agent)), "policy")


def find_checkpoint(run_dir: Path, step: str | int, score: str = SCORE) -> Path:
    """The checkpoint that ``step`` names. Raises ``UserError`` with what there is instead."""
    folder = run_dir / "checkpoints"
    paths = checkpoint.available(folder)
    if not paths:
        raise UserError(f"{run_dir} has no checkpoint yet")
    if step == "latest":
        return paths[-1]
    if step == "best":
        return checkpoint.best_of(folder, score) or paths[-1]
    for path in paths:
        if str(step).isdigit() and int(path.name) == int(step):
            return path
    saved = ", ".join(str(int(p.name)) for p in paths)
    raise UserError(f"{run_dir} has no checkpoint '{step}': use best, latest or one of {saved}")


def check_precision() -> None:
    """Raise ``UserError`` where jax computes in double precision, which agents and what is saved of them do not."""
    if jnp.result_type(float) != jnp.float32:
        raise UserError("ssmrl computes in float32: jax_enable_x64 is on; turn it off (unset JAX_ENABLE_X64)")


def _load(run_dir: str | Path, step: str | int, seed_index: int) -> tuple[Policy, Config, Path]:
    """One seed's policy, the configuration of its run, and the checkpoint that it is from."""
    config = read_config(run_dir)
    check_policy(run_dir, config)
    if not 0 <= seed_index < config.seeds:
        raise UserError(f"{run_dir} has {config.seeds} seed(s): seed_index={seed_index}; use 0 to {config.seeds - 1}")
    agent, state, path = restore(Path(run_dir), config, step)
    return agent.policy(member(state, seed_index)), config, path


@jax.jit
def member(tree: Any, i: Any) -> Any:
    """What belongs to one seed, or one trial, of leaves ``[N, ...]``: one program, where each ``x[i]`` would be one."""
    return jax.tree.map(lambda x: x[i], tree)


def restore(run_dir: Path, config: Config, step: str | int) -> tuple[Any, Any, Path]:
    """A run's agent, its state (leaves ``[seeds, ...]``) and the checkpoint that this is from.

    Raises :class:`~ssmrl.checkpoint.CheckpointError`, with the others that are intact, if that one is damaged.
    """
    check_precision()
    agent = make_agent(config)
    path = find_checkpoint(run_dir, step, score_of(agent))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.seeds))
    like = jax.eval_shape(jax.vmap(agent.init), keys)
    try:
        return agent, checkpoint.restore(path, like), path
    except checkpoint.CheckpointError as error:
        intact = checkpoint.intact(run_dir / "checkpoints")
        if path in intact:  # it is, and fits another configuration
            raise
        others = f"intact: --step={', '.join(str(int(p.name)) for p in intact)}" if intact else "no other is intact"
        raise checkpoint.CheckpointError(f"{error}; {others}") from error


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write a flat dict of numbers; what is not finite becomes null."""
    finite = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in facts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(finite, indent=1) + "\n")
    partial.replace(path)
