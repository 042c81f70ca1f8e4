"""Measure environments: steps/s of a random policy, auto-reset and episode statistics included.

    python benchmarks/envs.py [PATTERN ...] [--num-envs 256] [--runs 5]

Without a pattern: the Easy variant of each POPGym family, the control pool, one gymnax and two bsuite tasks.
"""

import argparse
import json
import statistics
import time

import jax

from ssmrl import make_env
from ssmrl.registry import envs
from ssmrl.rollout import reset_batch, step_batch

OTHERS = ["gymnax/CartPole-v1", "bsuite/MemoryLen/30", "bsuite/UmbrellaLength/20", "meta/Control-Train"]


def chosen(patterns: list[str]) -> list[str]:
    names = [e.name for e in envs.entries() if not e.alias and e.suffix is None]
    if patterns:
        return [n for n in names if any(p.lower() in n.lower() for p in patterns)]
    easy = [n for n in names if n.startswith("popgym/") and n.endswith("Easy")]
    return easy + [n for n in names if n.startswith("control/")] + OTHERS


def measure(name: str, num_envs: int, runs: int) -> tuple[float, float, float, float]:
    """Median, least and greatest steps/s, and compile seconds."""
    env, params = make_env(name)
    space, steps = env.action_space(params), 2048  # several episodes of each task

    def unroll(batch, key):
        def step(batch, key):
            key_act, key_env = jax.random.split(key)
            actions = jax.vmap(space.sample)(jax.random.split(key_act, num_envs))
            batch, outcome = step_batch(env, params, batch, actions, key_env)
            return batch, outcome.reward.sum()

        return jax.lax.scan(step, batch, jax.random.split(key, steps))

    batch = jax.jit(lambda key: reset_batch(env, params, num_envs, key))(jax.random.key(0))
    start = time.perf_counter()
    program = jax.jit(unroll).lower(batch, jax.random.key(1)).compile()
    compile_s, rates = time.perf_counter() - start, []
    for run in range(runs + 1):
        start = time.perf_counter()
        batch, rewards = program(batch, jax.random.key(run))
        jax.block_until_ready(rewards)
        if run:
            rates.append(num_envs * steps / (time.perf_counter() - start))
    return statistics.median(rates), min(rates), max(rates), compile_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{arguments.num_envs} environments, {jax.devices()[0]}, random actions, auto-reset; million steps/s")
    print(f"{'environment':>40} {'median':>8} {'min':>8} {'max':>8} {'compile s':>10}")
    rows = {}
    for name in chosen(arguments.patterns):
        median, low, high, compile_s = measure(name, arguments.num_envs, arguments.runs)
        rows[name] = median
        print(f"{name:>40} {median / 1e6:8.2f} {low / 1e6:8.2f} {high / 1e6:8.2f} {compile_s:10.1f}", flush=True)
    print(json.dumps({"benchmark": "envs", "num_envs": arguments.num_envs, **rows}))


if __name__ == "__main__":
    main()
