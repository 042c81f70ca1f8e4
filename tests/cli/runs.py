"""Small runs, and what is read of them: for the tests of the program."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from ssmrl import checkpoint, config, training
from ssmrl.cli import main

CACHE = Path(__file__).parents[2] / ".cache" / "jax"
UPDATES, PER_UPDATE = 60, 32
TINY = {
    "env": "popgym/RepeatPreviousEasy",
    "env.max_steps": 6,  # truncates: final values are computed
    "agent.num_envs": 4,
    "agent.num_steps": 8,
    "agent.num_minibatches": 2,
    "agent.epochs": 2,
    "agent.heads": (8,),
    "agent.anneal": "linear",
    "model.d_model": 8,
    "model.d_state": 8,
    "eval.episodes": 8,
    "log.every": 1,
    "wandb": "off",
    "cache.dir": str(CACHE),
}
DREAMER = {
    k: v for k, v in TINY.items() if k.split(".")[-1] not in ("num_minibatches", "epochs", "anneal", "d_state")
} | {
    "agent": "dreamer",
    "agent.batch_size": 4,
    "agent.batch_length": 16,
    "agent.replay_ratio": 4,
    "agent.replay_size": 10 * PER_UPDATE,  # written over several times
    "agent.prefill": 2 * PER_UPDATE,
    "agent.priority": 0.5,
    "agent.dream_every": 4,
    "agent.horizon": 3,
    "agent.hidden": (8,),
    "agent.groups": 2,
    "agent.classes": 3,
    "agent.bins": 5,
    "model": "gru",
}
WALL_CLOCK = {"steps_per_s", "wall_s", "compile_s"}


def words(updates=UPDATES, base=TINY, **more):
    settings = {**base, "total_steps": updates * PER_UPDATE, **{k.replace("__", "."): v for k, v in more.items()}}
    return [f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in settings.items()]


def train(run_dir, updates=3, base=TINY, **more):
    settings = {**base, "total_steps": updates * PER_UPDATE, "run.dir": str(run_dir)}
    return training.train(config.resolve([], settings | {k.replace("__", "."): v for k, v in more.items()}), quiet=True)


def lines(run_dir):
    """The metrics of a run, without those that the clock makes."""
    read = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in read]


def status(run_dir):
    return json.loads((Path(run_dir) / "status.json").read_text())


def final(run_dir):
    facts = json.loads((Path(run_dir) / "eval" / "final.json").read_text())
    return {k: v for k, v in facts.items() if k not in WALL_CLOCK}


def assert_same_state(one, other):
    raw = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(np.asarray(raw(a)), np.asarray(raw(b)), err_msg=str(path))


def assert_same_run(run, reference):
    assert lines(run.dir) == lines(reference.dir)
    assert final(run.dir) == final(reference.dir)
    assert_same_state(run.state, reference.state)


def typed(capsys, *argv):
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err


def stop_by(signum, run_dir, updates=UPDATES, base=TINY):
    """Train as a program and send it a signal when its first checkpoint is there; returns the exit code and stderr."""
    command = [sys.executable, "-W", "error", "-m", "ssmrl", "train", *words(updates, base, platform="cpu")]
    command.append(f"run.dir={run_dir}")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 240
    while not checkpoint.available(run_dir / "checkpoints") and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.005)
    process.send_signal(signum)
    _, err = process.communicate(timeout=120)
    return process.returncode, err
