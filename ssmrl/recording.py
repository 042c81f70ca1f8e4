"""What one run leaves in its folder: configuration, status, metrics, checkpoints and evaluations."""

import json
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl import checkpoint
from ssmrl.agents import num_updates, score_of
from ssmrl.config import Config, to_yaml
from ssmrl.console import Console
from ssmrl.evaluation import summarize, summarize_metrics, write_json
from ssmrl.plotting import plot_runs
from ssmrl.registry import UserError
from ssmrl.tracking import Tracker
from ssmrl.world_evaluation import measured_episodes

_INPUTS = "inputs.json"  # hashes of what an agent reads from files


class Recorder:
    """Keeps the books of one run; a context manager while it trains, so that its files say how it ended.

    ``updates`` is how many it has made; ``keys`` ``[seeds]`` are what its randomness derives from.
    """

    def __init__(self, config: Config, agent: Any, run_dir: Path, *, parameters: int, quiet: bool):
        self.config, self.agent, self.dir, self._quiet = config, agent, run_dir, quiet
        self.console = Console(run_dir, config, agent, quiet, parameters)
        self.keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(config.seed), i))(jnp.arange(config.seeds))
        self.total = num_updates(config, agent)
        self.updates = 0
        self.status = "new"
        self.summary: dict[str, Any] = {}
        self.wall_s = self.compile_s = 0.0  # wall_s: in training, compilation excepted, by all processes of the run

    @property
    def env_steps(self) -> int:
        """Environment steps per seed so far."""
        return self.updates * self.agent.steps_per_update

    @property
    def chunks(self) -> int:
        """How many chunks of ``log.every`` updates those are."""
        return -(-self.updates // self.config.log.every)

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation is due after this chunk."""
        every = self.config.eval.every
        return self.updates >= self.total or (every > 0 and self.chunks % every == 0)

    def restore(self, like: Any) -> Any:
        """The newest intact checkpoint, as the shapes ``like``; None, with a note, if the run must start again.

        Damaged checkpoints are reported and passed over. Raises ``UserError`` if a file that the run learns from has
        changed since it began.
        """
        known = self.dir / _INPUTS
        if known.is_file() and (began := json.loads(known.read_text())) != (now := self._inputs()):
            changed = ", ".join(f"{k} was {v}, is {now.get(k)}" for k, v in began.items())
            raise UserError(f"{self.dir} has learned from another file: {changed}; bring that back, or train a new run")
        for path in reversed(checkpoint.available(self.dir / "checkpoints")):
            try:
                manifest = checkpoint.read_manifest(path)
                checkpoint.check_files(path, manifest)
            except checkpoint.CheckpointError as error:
                self.console.note(f"{error}; falling back to the checkpoint before it")
                continue
            self.updates, self.wall_s = manifest["updates"], manifest["wall_s"]
            return checkpoint.restore(path, like)
        self.console.note(f"{self.dir} has no intact checkpoint: starting again from the beginning")
        return None

    def _inputs(self) -> dict[str, str]:
        return self.agent.input_files() if hasattr(self.agent, "input_files") else {}

    def __enter__(self) -> "Recorder":
        if inputs := self._inputs():
            (self.dir / _INPUTS).write_text(json.dumps(inputs, indent=1) + "\n")
        self._tracker = Tracker(self.dir, self.config, resume=self.updates > 0, quiet=self._quiet)
        self.console.__enter__()
        self._tracker.truncate(self.env_steps)
        checkpoint.truncate(self.dir / "checkpoints", self.env_steps)
        self._write_status("running")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if error is not None and self.status == "running":
            self._write_status("failed", reason=f"{type(error).__name__}: {error}")
        self._close(0 if kind is None else 1)

    def evaluation(self, results: dict[str, np.ndarray]) -> dict[str, Any]:
        """Summarise ``returns`` and ``lengths`` ``[seeds, ...]`` of episodes, or metrics ``[seeds]``, and write."""
        if "returns" not in results:
            episodes = measured_episodes(self.config.eval.episodes)
            result = summarize_metrics(results) | {"episodes": episodes, "env_steps": self.env_steps}
            write_json(self.dir / "eval" / f"{result['env_steps']:012d}.json", result)
            return result
        scores = []
        for returns, lengths in zip(results["returns"], results["lengths"], strict=True):
            ended = np.isfinite(returns)
            mean, length = (float(x[ended].mean()) if ended.any() else float("nan") for x in (returns, lengths))
            scores.append({"return_mean": mean, "length_mean": length, "episodes": int(ended.sum())})
        result = summarize(scores) | {"env_steps": self.env_steps}
        write_json(self.dir / "eval" / f"{result['env_steps']:012d}.json", result)
        return result

    def log(self, metrics: dict[str, Any], steps_per_s: float) -> None:
        """Write one log point."""
        self._tracker.log(self.env_steps, {"updates": self.updates, "steps_per_s": steps_per_s, **metrics})
        self.console.log(self.updates, metrics, steps_per_s)
        self._write_status("running", metrics)

    def checkpoint(self, state: Any, metrics: dict[str, Any]) -> None:
        """Save ``state``, leaves ``[seeds, ...]``, and delete what is no longer to be kept."""
        name = score_of(self.agent)
        evaluated = metrics.get(f"eval/{name}") if self.config.eval.every or name not in metrics else None
        score = np.mean(metrics.get(name, np.nan) if evaluated is None else evaluated)
        facts = {"updates": self.updates, "wall_s": self.wall_s, name: float(score) if np.isfinite(score) else None}
        folder = self.dir / "checkpoints"
        checkpoint.save(folder, state, env_steps=self.env_steps, **facts)
        checkpoint.prune(folder, self.config.checkpoint.keep, name)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the final evaluation and the picture: the run is done."""
        self.summary = result | {
            "wall_s": self.wall_s,
            "compile_s": self.compile_s,
            "steps_per_s": self.env_steps * self.config.seeds / max(self.wall_s, 1e-9),
        }
        write_json(self.dir / "eval" / "final.json", self.summary)
        plot = plot_runs([self.dir], self.dir / "plots" / "learning_curve.png")
        self._write_status("done", self.summary)
        self.console.done(self.summary, plot)
        self._close(0)

    def end(self, status: str, exit_code: int, reason: str = "") -> None:
        """The run is over before its time: a signal, a failure, or a sweep's decision."""
        self._write_status(status, reason=reason)
        if status in ("interrupted", "terminated"):
            self.console.stopped(status, self.env_steps)
        self._close(exit_code)

    def failure(self, metrics: dict[str, Any], first_bad: int) -> UserError:
        """What to say about losses or gradients that are not finite, ``first_bad`` updates from here."""
        per_episode = ("return_mean", "length_mean", "episode_return/")  # not a number where no episode ended
        names = [k for k, v in metrics.items() if not k.startswith(per_episode) and not np.isfinite(v).all()]
        seeds = np.flatnonzero(~np.isfinite(np.asarray(metrics["loss"]) + np.asarray(metrics["grad_norm"])))
        saved = checkpoint.available(self.dir / "checkpoints")
        last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        update = self.updates + first_bad + 1
        return UserError(
            f"not a number in {', '.join(names)} (seed {', '.join(map(str, seeds))}) in update {update}, env step"
            f" {update * self.agent.steps_per_update:,}: {last}."
            " Lower agent.learning_rate or agent.max_grad_norm, or check the environment's rewards"
        )

    def _close(self, exit_code: int) -> None:
        self.console.__exit__()
        self._tracker.close(exit_code)

    def _write_status(self, status: str, metrics: dict[str, Any] | None = None, reason: str = "") -> None:
        self.status = status
        facts: dict[str, Any] = {
            "status": status,
            "env_steps": self.env_steps,
            "total_steps": self.total * self.agent.steps_per_update,
            "reason": reason,
            "score": score_of(self.agent),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        name, metrics = score_of(self.agent), metrics or {}
        score = metrics.get(name, metrics.get(f"eval/{name}"))
        if score is not None:
            facts[name] = float(np.mean(score))
        write_json(self.dir / "status.json", facts)


def create_run_dir(config: Config, command: str = "") -> Path:
    """Make a new run directory that says what the run is, and what its result depends on.

    Raises ``UserError`` if it exists with something in it, or cannot be written.
    """
    name = config.run.name or f"{re.split('[/:]', config.env)[-1]}_{config.model}"
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
    (path / "config.yaml").write_text(to_yaml(config))
    (path / "command.txt").write_text(command + "\n")
    _write_environment(path / "env.json")
    return path


def _write_environment(path: Path) -> None:
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
