"""Measure sweeps: trials per minute of one vmapped population, and of one process a trial.

    python benchmarks/sweep.py [--trials 8] [--steps 50000] [--processes 1]

The same trials, which differ in learning rate: one ``ssmrl sweep``, then as many ``ssmrl train`` one after another
(``--processes`` of them at a time). Wall-clock time from the command to its end, so that start, compilation (with an
empty cache each), evaluation, checkpoints and pictures are in it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SETTINGS = ("demo", "eval.episodes=256")


def rates(n: int) -> list[float]:
    """Learning rates from 5e-4 to 1e-2, evenly on a logarithmic scale."""
    return [float(f"{5e-4 * 20 ** (i / max(n - 1, 1)):.3g}") for i in range(n)]


def ssmrl(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "ssmrl", *words, f"cache.dir={folder / 'cache'}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def population(folder: Path, trials: int, steps: int) -> dict[float, float]:
    """Final returns by learning rate."""
    sweep = {
        "method": "grid",
        "parameters": {
            "agent.learning_rate": {"values": rates(trials)},
            "total_steps": {"value": steps},
        },
        "command": ["ssmrl", "train", *SETTINGS, "${args_no_hyphens}"],
    }
    (folder / "sweep.yaml").write_text(json.dumps(sweep))  # JSON is YAML
    facts = json.loads(ssmrl(folder, "sweep", "sweep.yaml", f"--population={trials}", "--json"))
    assert facts["programs"] == 1
    return {t["parameters"]["agent.learning_rate"]: t["value"] for t in facts["trials"]}


def apart(folder: Path, trials: int, steps: int, processes: int) -> dict[float, float]:
    def one(rate: float) -> float:
        settings = (f"agent.learning_rate={rate}", f"total_steps={steps}", f"run.dir=run_{rate}")
        return json.loads(ssmrl(folder, "train", *SETTINGS, *settings, "--json"))["return_mean"]

    with ThreadPoolExecutor(processes) as pool:
        return dict(zip(rates(trials), pool.map(one, rates(trials)), strict=True))


def cpu_seconds() -> float:
    """Of all processes that have ended: what other work on the machine does not change."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=1, help="trials at a time, where each has its own")
    arguments = parser.parse_args()
    results, minutes, cpu = {}, {}, {}
    ways = {
        "one population": lambda folder: population(folder, arguments.trials, arguments.steps),
        "one process a trial": lambda folder: apart(folder, arguments.trials, arguments.steps, arguments.processes),
    }
    print(f"{arguments.trials} trials of {arguments.steps:,} steps, {os.cpu_count()} CPU cores")
    print(f"{'':>20} {'seconds':>8} {'trials/min':>11} {'CPU s':>7} {'best return':>12}")
    for name, run in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            start, before = time.perf_counter(), cpu_seconds()
            results[name] = run(Path(folder))
            minutes[name], cpu[name] = (time.perf_counter() - start) / 60, cpu_seconds() - before
        row = f"{60 * minutes[name]:8.1f} {arguments.trials / minutes[name]:11.2f} {cpu[name]:7.1f}"
        print(f"{name:>20} {row} {max(results[name].values()):12.3f}", flush=True)
    speeds = {name: arguments.trials / m for name, m in minutes.items()}
    ratio = speeds["one population"] / speeds["one process a trial"]
    facts = {
        "benchmark": "sweep",
        "trials": arguments.trials,
        "trials_per_minute": speeds,
        "cpu_s": cpu,
        "ratio": ratio,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
