"""Measure training: environment steps/s, compile seconds and model-flop utilisation of PPO for several models.

    python benchmarks/train.py [--models s5 gru none] [--small] [--runs 5]

Utilisation is (matrix-product flops per environment step x environment steps/s) over the measured rate of a
4096 x 4096 float32 product in the same process. Per environment step a product with n weights costs 2 n flops forward,
once in the rollout and ``epochs`` times in the loss, and twice that backward. "cold" compiles with an empty cache,
"warm" loads what the cold one left in the persistent cache.
"""

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from ssmrl import make_env, make_model
from ssmrl.agents.ppo import PPO

PRODUCTS = ("kernel", "recurrent", "B", "C")  # names of weights that take part in matrix products


def matmul_rate(n: int = 4096, runs: int = 5) -> float:
    """Flops/s of a float32 product of two n x n matrices, the best of some runs."""
    x = jnp.ones((n, n))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(product(x, x))
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def flops_per_step(agent: PPO, params: Any) -> float:
    """Matrix-product flops that one environment step costs in acting and learning."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    forward = sum(2 * leaf.size for path, leaf in leaves if path[-1].key in PRODUCTS)
    return forward * (1 + 3 * agent.epochs)


def compile_update(agent: PPO, state: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    compiled = jax.jit(agent.update).lower(state).compile()
    return compiled, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["s5", "gru", "none"])
    parser.add_argument("--small", action="store_true", help="d_model 64, one layer, one episode per rollout")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    env, env_params = make_env("popgym/RepeatPreviousEasy")
    size: dict[str, Any] = {"d_model": 64} if arguments.small else {"d_model": 256, "num_layers": 2}
    setting: dict[str, Any] = {"num_envs": 64, "num_steps": 51 if arguments.small else 256}
    if not arguments.small:
        setting |= {"encoder": (128,), "heads": (128,)}
    rate, rows = matmul_rate(), dict[str, Any]()
    print(f"{setting}, {size}, 4 epochs x 4 minibatches, {jax.devices()[0]}, float32 product {rate / 1e9:.0f} Gflop/s")
    print(f"{'model':>6} {'steps/s':>9} {'min':>8} {'max':>8} {'utilisation':>12} {'cold s':>7} {'warm s':>7}")
    for name in arguments.models:
        model = make_model(name, **size, **({"d_state": size["d_model"]} if name == "s5" else {}))
        agent = PPO(env=env, env_params=env_params, model=model, **setting)
        state = jax.jit(agent.init)(jax.random.key(0))
        update, cold = compile_update(agent, state)
        jax.clear_caches()
        _, warm = compile_update(agent, state)
        rates = []
        for run in range(arguments.runs + 1):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(update(state))
            if run:
                rates.append(agent.steps_per_update / (time.perf_counter() - start))
        rate = max(rate, matmul_rate(runs=2))
        median = statistics.median(rates)
        utilisation = flops_per_step(agent, state.params) * median / rate
        rows[name] = {"steps_per_s": median, "utilisation": utilisation, "cold_s": cold, "warm_s": warm}
        spread = f"{median:9,.0f} {min(rates):8,.0f} {max(rates):8,.0f}"
        print(f"{name:>6} {spread} {utilisation:12.2f} {cold:7.1f} {warm:7.1f}", flush=True)
    print(json.dumps({"benchmark": "train", "small": arguments.small, "matmul_gflops": rate / 1e9, **rows}))


if __name__ == "__main__":
    main()
