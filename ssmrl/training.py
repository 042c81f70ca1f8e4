"""The host loop: compile once, run chunks of updates, log, evaluate, checkpoint; and resume where it stopped."""

import dataclasses
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssmrl import checkpoint
from ssmrl.agents import make_agent, num_updates
from ssmrl.config import Config, check_resumable, resolve, to_yaml
from ssmrl.console import Console
from ssmrl.evaluation import SCORE, read_config, run_episodes, summarize, write_json
from ssmrl.plotting import plot_runs
from ssmrl.registry import UserError
from ssmrl.tracking import Tracker, check_sinks

_NEVER = 2**31 - 1  # the first bad update of a chunk without one
_BY_EPISODE = ("return_mean", "length_mean")  # means over episodes, not over updates


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training run left behind."""

    dir: Path
    config: Config
    status: str  # "done", "interrupted" (Ctrl-C) or "terminated" (SIGTERM)
    state: Any  # the agent's State, with a leading seed axis
    summary: dict[str, Any]  # the numbers of eval/final.json; empty if the run was stopped

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """Logged metrics by name: arrays ``[log points]``, or ``[log points, seeds]`` for those of the agent."""
        lines = [json.loads(line) for line in (self.dir / "metrics.jsonl").read_text().splitlines()]
        names = dict.fromkeys(k for line in lines for k in line)  # evaluations are not in every line
        return {k: np.array([line.get(k) for line in lines], float) for k in names}


def make_train(config: Config) -> tuple[Callable, Callable]:
    """The experiment as two pure functions: ``init(key) -> state`` and ``step(state) -> (state, metrics)``.

    Both can be jitted, scanned, sharded, and vmapped over seeds.
    """
    agent = make_agent(config)
    return agent.init, agent.update


def train(
    config: Config | str = "demo", *presets: str, quiet: bool = False, command: str = "", **overrides: Any
) -> Run:
    """Train an agent in a new run directory: ``train("demo", seeds=4, **{"agent.learning_rate": 1e-3})``.

    ``config`` is a resolved configuration, or the first of some presets (names, or paths of YAML files) that
    ``overrides`` change. Raises ``UserError`` before anything is compiled or written if the configuration or the folder
    cannot work.
    """
    if isinstance(config, str):
        config = resolve([config, *presets], overrides)
    elif presets or overrides:
        raise TypeError("a resolved configuration takes no presets and overrides: give them to ssmrl.resolve")
    check_sinks(config)
    program = _build(config)
    run_dir = _create_run_dir(config)
    (run_dir / "config.yaml").write_text(to_yaml(config))
    (run_dir / "command.txt").write_text(command + "\n")
    write_environment(run_dir / "env.json")
    return _Loop(config, program, run_dir, quiet).run(None, 0)


def resume(run_dir: str | Path, overrides: dict[str, Any] | None = None, *, quiet: bool = False) -> Run:
    """Go on from the latest intact checkpoint of a run, bit for bit as if it had never stopped.

    ``overrides`` may change how long and how it is observed, not what is trained (``ssmrl.config.check_resumable``).
    """
    run_dir = Path(run_dir)
    config = read_config(run_dir)
    if overrides:
        config = resolve([str(run_dir / "config.yaml")], check_resumable(config, overrides))
    check_sinks(config)
    loop = _Loop(config, _build(config), run_dir, quiet)
    state, updates = loop.restore_latest()
    if updates >= loop.total and (run_dir / "eval" / "final.json").exists():
        raise UserError(
            f"{run_dir} is finished ({updates * loop.agent.steps_per_update:,} steps): to go on, raise total_steps"
            f" (ssmrl resume {run_dir} total_steps={2 * config.total_steps})"
        )
    (run_dir / "config.yaml").write_text(to_yaml(config))
    return loop.run(state, updates)


def dry_run(config: Config) -> dict[str, Any]:
    """Build everything and trace its shapes without compiling: flat facts about what would run."""
    agent, _, _, state = _build(config)
    updates = num_updates(config, agent)
    obs_space, action_space = agent.env.observation_space(agent.env_params), agent.env.action_space(agent.env_params)
    rollout = _bytes(jax.eval_shape(lambda s: s.env.obs, state)) * agent.num_steps
    width = getattr(agent.model, "d_model", 1)
    activations = (
        4 * agent.steps_per_update // agent.num_minibatches * width * 12 * config.model_parameters["num_layers"]
    )
    return {
        "env": config.env,
        "observation_space": str(obs_space),
        "action_space": str(action_space),
        "agent": config.agent,
        "model": config.model,
        "parameters": _size(state.params),
        "seeds": config.seeds,
        "updates": updates,
        "env_steps": updates * agent.steps_per_update,
        "steps_per_update": agent.steps_per_update,
        "minibatch": f"[{agent.num_steps}, {agent.num_envs // agent.num_minibatches}]",
        "state_bytes": config.seeds * _bytes(state),
        "rollout_bytes": config.seeds * rollout,
        "activation_bytes_estimate": config.seeds * activations,
    }


class _Program(NamedTuple):
    """An agent with its functions under ``jit``: they are traced once, whoever asks, since tracing takes a second."""

    agent: Any
    init: Callable
    update: Callable
    like: Any  # the shapes of one seed's State


class _Loop:
    """One run's compiled programs, sinks and folders."""

    def __init__(self, config: Config, program: _Program, run_dir: Path, quiet: bool):
        self.config, self.program, self.agent, self.dir = config, program, program.agent, run_dir
        self.wall_s = 0.0  # spent in training, compilation excepted, by all processes of the run
        self.updates = 0  # made so far
        self.total = num_updates(config, self.agent)
        self.quiet, self.console = quiet, Console(run_dir, config, self.agent, quiet, _size(program.like.params))
        self.keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(config.seed), i))(jnp.arange(config.seeds))
        self.like = jax.eval_shape(jax.vmap(program.init), self.keys)

    def run(self, state: Any, updates: int) -> Run:
        """Train from ``updates`` (0: from the start) to the end, or to the first signal."""
        with (
            _signals() as stop,
            Tracker(self.dir, self.config, resume=updates > 0, quiet=self.quiet) as tracker,
            self.console,
        ):
            tracker.truncate(updates * self.agent.steps_per_update)
            checkpoint.truncate(self.dir / "checkpoints", updates * self.agent.steps_per_update)
            self.updates = updates
            self._status("running", updates)
            try:
                state, updates = self._train(state, updates, tracker, stop)
                if stop.is_set() and updates < self.total:
                    status = "interrupted" if stop.signal == signal.SIGINT else "terminated"
                    self._status(status, updates)
                    tracker.close(128 + stop.signal)
                    self.console.stopped(status, updates * self.agent.steps_per_update)
                    return Run(self.dir, self.config, status, state, {})
                summary = self._finish(state, updates)
            except BaseException as error:
                self._status("failed", self.updates, reason=f"{type(error).__name__}: {error}")
                raise
        return Run(self.dir, self.config, "done", state, summary)

    def restore_latest(self) -> tuple[Any, int]:
        """The newest intact checkpoint; damaged ones are reported and passed over. From scratch if there is none."""
        for path in reversed(checkpoint.available(self.dir / "checkpoints")):
            try:
                manifest = checkpoint.read_manifest(path)
                checkpoint.check_files(path, manifest)
            except checkpoint.CheckpointError as error:
                self.console.note(f"{error}; falling back to the checkpoint before it")
                continue
            self.wall_s = manifest["wall_s"]
            return checkpoint.restore(path, self.like), manifest["updates"]
        self.console.note(f"{self.dir} has no intact checkpoint: starting again from the beginning")
        return None, 0

    def _train(self, state: Any, updates: int, tracker: Tracker, stop: "_Stop") -> tuple[Any, int]:
        chunk, evaluator, state = self._compile(state)
        every, per_update = self.config.log.every, self.agent.steps_per_update
        self.console.start(updates)
        last = updates >= self.total or stop.is_set()
        while not last:
            before, n, start = state, min(every, self.total - updates), time.perf_counter()
            state, metrics, bad = jax.block_until_ready(chunk(state, jnp.int32(n)))
            seconds = time.perf_counter() - start
            self.wall_s += seconds
            metrics = {k: np.asarray(v).tolist() for k, v in metrics.items()}
            if np.min(bad) != _NEVER:
                if self.config.debug.nans:
                    self._find_nan(chunk(before, jnp.min(bad))[0], int(np.argmin(bad)))
                raise self._not_finite(metrics, int(np.min(bad)), updates)
            updates, steps_per_s = updates + n, n * per_update * self.config.seeds / seconds
            self.updates = updates
            chunks = -(-updates // every)
            if self.config.eval.every and chunks % self.config.eval.every == 0 and updates < self.total:
                result = self._evaluate(evaluator, state, updates)
                metrics |= {f"eval/{k}": result[k] for k in ("return_mean", "return_std", "length_mean")}
            tracker.log(updates * per_update, {"updates": updates, "steps_per_s": steps_per_s, **metrics})
            self.console.log(updates, metrics, steps_per_s)
            last = updates >= self.total or stop.is_set()  # asked once: what ends the loop is saved
            if last or chunks % self.config.checkpoint.every == 0:
                self._checkpoint(state, updates, metrics)
            self._status("running", updates, metrics)
        self.evaluator = evaluator
        return state, updates

    def _compile(self, state: Any) -> tuple[Callable, Callable, Any]:
        """Compile all programs side by side: compilation is what a short run waits for."""
        start = time.perf_counter()
        keys_like = jax.eval_shape(lambda: self.keys)
        programs: list[tuple[Callable, tuple]] = [
            (_over_seeds(self._chunk, self.config.seeds, (0, None)), (self.like, jax.ShapeDtypeStruct((), jnp.int32))),
            (_over_seeds(self._run_episodes, self.config.seeds, (0, 0)), (self.like, keys_like)),
        ]
        with ThreadPoolExecutor(3) as pool:
            compiled = [pool.submit(jax.jit(f).lower(*args).compile) for f, args in programs]
            if state is None:  # runs once: not worth optimising
                init = jax.jit(_over_seeds(self.program.init, self.config.seeds, (0,))).lower(keys_like)
                state = init.compile(compiler_options={"xla_backend_optimization_level": "0"})(self.keys)
            chunk, evaluator = (program.result() for program in compiled)
        self.compile_s = time.perf_counter() - start
        self.console.compiled(self.compile_s)
        return chunk, evaluator, state

    def _chunk(self, state: Any, n: jax.Array) -> tuple[Any, dict[str, jax.Array], jax.Array]:
        """``n`` updates: the new state, metrics averaged over them, and the first update with a non-finite loss."""

        def add(i: jax.Array, carry: tuple) -> tuple:
            state, totals, bad = carry
            state, metrics = self.program.update(state)
            weight = metrics["episodes"]
            metrics |= {k: jnp.where(weight > 0, metrics[k] * weight, 0) for k in _BY_EPISODE}
            broken = ~jnp.isfinite(jnp.stack([metrics["loss"], metrics["grad_norm"]])).all()
            bad = jnp.where(broken, jnp.minimum(bad, i), bad)
            return state, jax.tree.map(jnp.add, totals, metrics), bad

        shapes = jax.eval_shape(self.program.update, state)[1]
        zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in shapes.items()}
        state, totals, bad = lax.fori_loop(0, n, add, (state, zeros, jnp.int32(_NEVER)))
        means = {k: v / (totals["episodes"] if k in _BY_EPISODE else n) for k, v in totals.items()}
        return state, means | {"episodes": totals["episodes"]}, bad

    def _run_episodes(self, state: Any, key: jax.Array) -> dict[str, jax.Array]:
        agent = self.agent
        return run_episodes(
            agent.policy(state),
            agent.env,
            agent.env_params,
            key,
            episodes=self.config.eval.episodes,
            greedy=self.config.eval.greedy,
        )

    def _evaluate(self, evaluator: Callable, state: Any, updates: int) -> dict[str, Any]:
        """Evaluate every seed with randomness that depends on the seed and the step alone."""
        keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 1), updates))(self.keys)
        results = jax.tree.map(np.asarray, evaluator(state, keys))
        scores = []
        for returns, lengths in zip(results["returns"], results["lengths"], strict=True):
            ended = np.isfinite(returns)
            mean, length = (float(x[ended].mean()) if ended.any() else float("nan") for x in (returns, lengths))
            scores.append({"return_mean": mean, "length_mean": length, "episodes": int(ended.sum())})
        result = summarize(scores) | {"env_steps": updates * self.agent.steps_per_update}
        write_json(self.dir / "eval" / f"{result['env_steps']:012d}.json", result)
        return result

    def _finish(self, state: Any, updates: int) -> dict[str, Any]:
        summary = self._evaluate(self.evaluator, state, updates) | {
            "wall_s": self.wall_s,
            "compile_s": self.compile_s,
            "steps_per_s": updates * self.agent.steps_per_update * self.config.seeds / max(self.wall_s, 1e-9),
        }
        write_json(self.dir / "eval" / "final.json", summary)
        plot = plot_runs([self.dir], self.dir / "plots" / "learning_curve.png")
        self._status("done", updates, summary)
        self.console.done(summary, plot)
        return summary

    def _checkpoint(self, state: Any, updates: int, metrics: dict[str, Any]) -> None:
        score = metrics.get(f"eval/{SCORE}", np.mean(metrics[SCORE]))
        facts = {"updates": updates, "wall_s": self.wall_s, SCORE: float(score) if np.isfinite(score) else None}
        folder = self.dir / "checkpoints"
        checkpoint.save(folder, state, env_steps=updates * self.agent.steps_per_update, **facts)
        checkpoint.prune(folder, self.config.checkpoint.keep, SCORE)

    def _find_nan(self, state: Any, seed: int) -> None:
        """Repeat an update operation by operation, and raise ``FloatingPointError`` at the one that makes a NaN."""
        with jax.disable_jit(), jax.debug_nans(True):
            self.agent.update(jax.tree.map(lambda x: x[seed], state))

    def _not_finite(self, metrics: dict[str, Any], first_bad: int, updates: int) -> UserError:
        names = [k for k, v in metrics.items() if k not in _BY_EPISODE and not np.isfinite(v).all()]
        seeds = np.flatnonzero(~np.isfinite(np.asarray(metrics["loss"]) + np.asarray(metrics["grad_norm"])))
        saved = checkpoint.available(self.dir / "checkpoints")
        last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        return UserError(
            f"not a number in {', '.join(names)} (seed {', '.join(map(str, seeds))}) in update"
            f" {updates + first_bad + 1}, env step {(updates + first_bad + 1) * self.agent.steps_per_update:,}: {last}."
            " Lower agent.learning_rate or agent.max_grad_norm, or check the environment's rewards"
        )

    def _status(self, status: str, updates: int, metrics: dict[str, Any] | None = None, reason: str = "") -> None:
        facts: dict[str, Any] = {
            "status": status,
            "env_steps": updates * self.agent.steps_per_update,
            "total_steps": self.total * self.agent.steps_per_update,
            "reason": reason,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        score = None if metrics is None else metrics.get(SCORE)
        if score is not None:
            facts[SCORE] = float(np.mean(score))
        write_json(self.dir / "status.json", facts)


class _Stop(threading.Event):
    """Set by the first SIGINT or SIGTERM, which ends the run after the chunk in progress."""

    signal: int = 0


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Catch Ctrl-C and SIGTERM; a second one of either takes effect at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(signum: int, frame: Any) -> None:
        stop.signal = signum
        stop.set()
        for s, handler in previous.items():
            signal.signal(s, handler)
        print("\nstopping after this chunk, which will be saved (again to stop at once)", file=sys.stderr)

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def _over_seeds(f: Callable, seeds: int, in_axes: tuple) -> Callable:
    """Map ``f`` over the leading seed axis. A single seed is not vmapped: that would turn its conditionals into
    selections, and compute every branch.
    """
    if seeds > 1:
        return jax.vmap(f, in_axes=in_axes)

    def single(*args: Any) -> Any:
        args = tuple(
            a if axis is None else jax.tree.map(lambda x: x[0], a) for a, axis in zip(args, in_axes, strict=True)
        )
        return jax.tree.map(lambda x: x[None], f(*args))

    return single


def _build(config: Config) -> _Program:
    """Build and trace the agent; errors of the environment or the model become user errors."""
    try:
        agent = make_agent(config)
        init, update = jax.jit(agent.init), jax.jit(agent.update)
        like = jax.eval_shape(init, jax.random.key(0))
        jax.eval_shape(update, like)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    return _Program(agent, init, update, like)


def _create_run_dir(config: Config) -> Path:
    """Make a new folder. Raises ``UserError`` if it exists with something in it, or cannot be written."""
    name = config.run.name or f"{config.env.split('/')[-1]}_{config.model}"
    path = Path(config.run.root) / f"{time.strftime('%Y-%m-%d_%H%M%S')}_{name}_{secrets.token_hex(2)}"
    try:
        if config.run.dir is not None:
            path = Path(config.run.dir)
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UserError(f"run.dir={path} exists and is not empty: choose another, or `ssmrl resume {path}`")
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to the run directory {path}: {error.strerror}; set run.dir or run.root"
        ) from error
    return path


def write_environment(path: Path) -> None:
    """Write what a result depends on besides its configuration: versions, devices, machine, code."""
    packages = ("ssmrl", "jax", "jaxlib", "flax", "optax", "gymnax", "brax", "orbax-checkpoint", "numpy", "wandb")

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # no git on this machine
            return ""

    facts = {
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [str(d) for d in jax.devices()],
        "argv": sys.argv,
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }
    path.write_text(json.dumps(facts, indent=1) + "\n")


def _size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


__all__ = ["Run", "dry_run", "make_train", "resume", "train"]
