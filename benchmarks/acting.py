"""Measure acting: actions/s of a policy with its environments, in one jitted loop and through Gymnasium; latency.

    python benchmarks/acting.py [--preset demo] [--batches 1 64 1024] [--runs 5]

The policy is that of a preset, untrained: the numbers do not depend on what it has learned. ``jax`` is ``policy.act``
and the environments in one ``lax.scan``; ``gymnasium`` is ``policy.run`` in ``ssmrl.to_gymnasium``, with a call of the
policy and one of the environments per step, numpy between them. Latency is of one jitted ``policy.act`` at batch 1,
from numpy observation to numpy action.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import ssmrl
from ssmrl import spaces
from ssmrl.agents import make_agent
from ssmrl.policy import Policy
from ssmrl.rollout import reset_batch, step_batch


def rate(run: Callable[[], int], runs: int) -> float:
    """Median actions/s of a function that returns how many actions it took; its first call compiles."""
    run()
    rates = []
    for _ in range(runs):
        start = time.perf_counter()
        actions = run()
        rates.append(actions / (time.perf_counter() - start))
    return statistics.median(rates)


def in_jax(policy: Policy, env, params, batch: int, runs: int) -> float:
    steps = max(256, 65_536 // batch)

    @jax.jit
    def unroll(policy, key):
        def step(loop, key):
            carry, envs = loop
            key_act, key_env = jax.random.split(key)
            action, carry = policy.act(carry, envs.obs, envs.reset, reward=envs.reward, key=key_act)
            envs, outcome = step_batch(env, params, envs, action, key_env)
            return (carry, envs), outcome.reward.sum()

        start = policy.initial_carry(batch), reset_batch(env, params, batch, key)
        return jax.lax.scan(step, start, jax.random.split(key, steps))[1]

    def run() -> int:
        jax.block_until_ready(unroll(policy, jax.random.key(0)))
        return batch * steps

    return rate(run, runs)


def in_gymnasium(policy: Policy, env, batch: int, runs: int) -> float:
    venv = ssmrl.to_gymnasium(env, batch)
    episodes = batch * max(1, 16 // batch)

    def run() -> int:
        result = policy.run(venv, episodes)
        return int(result["length_mean"] * result["episodes"])

    return rate(run, runs)


def latencies(policy: Policy, calls: int) -> np.ndarray:
    """Seconds of single calls."""
    act = jax.jit(lambda policy, carry, obs, reset, key: policy.act(carry, obs, reset, key=key))
    carry, key, reset = policy.initial_carry(1), jax.random.key(0), np.array([False])
    obs = jax.tree.map(np.asarray, spaces.zeros(policy.network.observation_space, (1,)))
    seconds = []
    for _ in range(calls + 10):
        start = time.perf_counter()
        action, carry = act(policy, carry, obs, reset, key)
        np.asarray(action)
        seconds.append(time.perf_counter() - start)
    return np.array(seconds[10:])  # the first one compiles, the next ones settle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=3000)
    arguments = parser.parse_args()
    config = ssmrl.resolve([arguments.preset])
    agent = make_agent(config)
    policy = jax.jit(lambda key: agent.policy(agent.init(key)))(jax.random.key(0))
    print(f"{config.env}, {config.model}, {jax.devices()[0]}; actions/s with environments, median of {arguments.runs}")
    print(f"{'batch':>8} {'jax':>12} {'gymnasium':>12}")
    facts: dict[str, Any] = {"benchmark": "acting", "env": config.env, "model": config.model}
    for batch in arguments.batches:
        fast = in_jax(policy, agent.env, agent.env_params, batch, arguments.runs)
        slow = in_gymnasium(policy, agent.env, batch, arguments.runs)
        facts |= {f"jax_{batch}": round(fast), f"gymnasium_{batch}": round(slow)}
        print(f"{batch:>8} {fast:>12,.0f} {slow:>12,.0f}", flush=True)
    p50, p95, p99 = 1e6 * np.percentile(latencies(policy, arguments.calls), (50, 95, 99))
    print(f"latency at batch 1: p50 {p50:.0f} us, p95 {p95:.0f} us, p99 {p99:.0f} us")
    facts |= {"latency_us_p50": round(p50), "latency_us_p95": round(p95), "latency_us_p99": round(p99)}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
