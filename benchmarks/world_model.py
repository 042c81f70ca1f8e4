"""Measure world models: cost against sequence length, model-flop utilisation, memory, and imagination.

    python benchmarks/world_model.py [--lengths 64 256 1024 4096] [--backbones s5 gru none] [--quick] [--pieces]

One update records B sequences of T frames of ``memory/RingRecall`` and learns from them. Backbones have the blocks and
widths of their presets, ``worldmodel/backbones``, which at the smallest size have as many parameters as s5, or twice
and three times these widths; everything else is the same for all. ``ms`` is the median of some calls that make eight
updates each, as training makes many in one call; ``memory`` what XLA plans for such a call: temporaries, arguments and
outputs. Utilisation is flops / (seconds x the rate of a 1024 x 1024 float32 product in the same process), with the
flops of products with weights alone, counted by hand: 2 n a frame for n weights, and twice that backward; attention's
products of keys and queries are not among them. Imagination is latent steps/s, not decoded, from a batch of states.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssmrl import agents, config, frames
from ssmrl.agents.s4wm import S4WM

BACKBONES = ("s5", "s4d", "lru", "deltanet", "gru", "lstm", "transformer", "rssm", "none")
UPDATES = 8  # in one call
SIZES = {  # how many times as wide as the presets are, blocks, latent, hidden
    "tiny": (1, 1, (8, 8), 128),
    "small": (2, 2, (16, 16), 128),
    "demo": (3, 3, (16, 16), 192),
}
PRODUCTS = ("kernel", "recurrent", "B", "C")  # names of weights that take part in matrix products


def make_agent(backbone: str, size: str, length: int, num_envs: int) -> S4WM:
    """An agent with the blocks of ``worldmodel/backbones``, whose sequences have ``length`` frames."""
    presets = ["worldmodel/cue_recall", *([] if backbone == "s5" else [f"worldmodel/backbones/{backbone}"])]
    wider, num_layers, (groups, classes), hidden = SIZES[size]
    changes = ["env=memory/RingRecall-8", f"env.context={length * 3 // 4}", f"env.query={length // 4}"]
    changes += [f"agent.num_envs={num_envs}", f"agent.groups={groups}", f"agent.classes={classes}"]
    changes += [f"agent.hidden=[{hidden}]", f"model.num_layers={num_layers}"]
    model = config.resolve(presets, []).model_parameters
    changes += [f"model.{k}={wider * model[k]}" for k in ("d_model", "d_state") if k in model]
    return agents.make_agent(config.resolve(presets, changes))


def seconds(function: Callable[[], Any], runs: int) -> float:
    """Median time of a call."""
    jax.block_until_ready(function())
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_rate(n: int = 1024, runs: int = 20) -> float:
    """Flops/s of a float32 product of two n x n matrices, the best of some runs."""
    x, product = jnp.ones((n, n)), jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(product(x, x))
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def dense_flops(params: Any) -> float:
    """Flops that one frame costs in products with weights, forward and backward."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return 6.0 * sum(leaf.size for path, leaf in leaves if path[-1].key in PRODUCTS)


def measure_update(agent: S4WM, rate: float, runs: int) -> dict[str, float]:
    """Compile and time updates, several in one call, as in training: memory is mapped anew for each call."""
    state = jax.jit(agent.init)(jax.random.key(0))
    start = time.perf_counter()
    updates = jax.jit(lambda state: jax.lax.scan(lambda s, _: agent.update(s), state, None, length=UPDATES))
    compiled: Any = updates.lower(state).compile()
    compile_s, memory = time.perf_counter() - start, compiled.memory_analysis()
    bytes_ = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    took = seconds(lambda: compiled(state), runs) / UPDATES
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "ms": 1e3 * took,
        "frames_per_s": agent.steps_per_update / took,
        "memory_mib": bytes_ / 2**20,
        "utilisation_dense": dense_flops(state.params) * agent.steps_per_update / took / rate,
        "compile_s": compile_s,
    }


def measure_pieces(agent: S4WM, runs: int) -> dict[str, float]:
    """Milliseconds that parts of the update take when each is compiled alone; they need not add up to the whole."""
    network: Any = agent.world_model  # what its methods return has many types for mypy
    state = jax.jit(agent.init)(jax.random.key(0))
    key, length = jax.random.key(1), agent.sequence_length
    variables = {"params": state.params}
    record = jax.jit(lambda: frames.record(agent.env, agent.env_params, state.stream, length, key)[1])
    batch = jax.block_until_ready(record())
    shape = (length, agent.num_envs)
    z, h = jnp.ones((*shape, network.latent_size)), jnp.ones((*shape, agent.model.d_model))

    def gradient(function: Callable[[Any], jax.Array]) -> Callable[[], Any]:
        compiled = jax.jit(jax.grad(function))
        return lambda: compiled(variables)

    def encode(v: Any) -> jax.Array:
        return network.apply(v, batch.obs, method=lambda m, x: m.posterior_head(m.encoder(x))).sum()

    def remember(v: Any) -> jax.Array:
        return network.apply(v, state.carry, batch, z, method="observe_latents")[1].prior.log_probs().sum()

    def memory(v: Any) -> jax.Array:
        return network.apply(v, state.carry.memory, h, batch.reset, method=lambda m, *a: m.memory(*a)[1]).sum()

    def decode(v: Any) -> jax.Array:
        return sum(x.sum() for x in jax.tree.leaves(network.apply(v, jnp.concatenate([h, z], -1), method="predict")))

    def loss(v: Any) -> jax.Array:
        return agent.world_loss(v["params"], state.carry, batch, key)[0]

    def learn() -> Any:
        return agent.step(state.params, state.params, state.opt_state, jnp.float32(1e-3))

    update = jax.jit(agent.update)
    parts: dict[str, Callable[[], Any]] = {
        "record": record,
        "encoder": gradient(encode),
        "memory, input and prior": gradient(remember),
        "of which the memory": gradient(memory),
        "decoder and heads": gradient(decode),
        "loss and its gradient": gradient(loss),
        "optimiser": jax.jit(learn),
        "whole update": lambda: update(state),
    }
    return {name: 1e3 * seconds(part, runs) for name, part in parts.items()}


def measure_imagination(size: str, batch: int, horizon: int, runs: int) -> dict[str, float]:
    """Time ``imagine`` of the s5 model from ``batch`` states."""
    agent = make_agent("s5", size, 64, 1)
    network, params = agent.world_model, jax.jit(agent.init)(jax.random.key(0)).params
    state, actions = network.initial_state((batch,)), jnp.zeros((horizon, batch), jnp.int32)
    start = time.perf_counter()
    apply = jax.jit(lambda p, *inputs: network.apply({"params": p}, *inputs, method="imagine"))
    compiled = apply.lower(params, state, actions, jax.random.key(0)).compile()
    compile_s = time.perf_counter() - start
    took = seconds(lambda: compiled(params, state, actions, jax.random.key(0)), runs)
    return {"latent_steps_per_s": batch * horizon / took, "batch": batch, "horizon": horizon, "compile_s": compile_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 256, 1024, 4096])
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pieces", action="store_true", help="time the parts of the update, at the first length")
    parser.add_argument("--quick", action="store_true", help="one short length, one run, a few backbones")
    parser.add_argument("--out", default="", help="write the numbers here too, as JSON")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.lengths, arguments.backbones, arguments.runs = [16], ["s5", "gru"], 1
        arguments.size, arguments.num_envs = "tiny", 4
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())

    rate = matmul_rate()
    shapes = f"B = {arguments.num_envs}, {arguments.size} {SIZES[arguments.size]}"
    print(f"{shapes}, {jax.devices()[0]}, float32 product {rate / 1e9:.0f} Gflop/s")
    result: dict[str, Any] = {"benchmark": "world_model", "matmul_gflops": rate / 1e9, "shapes": shapes, "updates": []}
    columns = "backbone", "T", "parameters", "ms", "us/frame", "memory MiB", "utilisation", "compile s"
    print(("{:>12}" * len(columns)).format(*columns))
    for length in arguments.lengths:
        for backbone in arguments.backbones:
            row = measure_update(make_agent(backbone, arguments.size, length, arguments.num_envs), rate, arguments.runs)
            result["updates"].append({"backbone": backbone, "length": length, **row})
            cells = f"{row['ms']:12.1f}{1e6 / row['frames_per_s']:12.1f}{row['memory_mib']:12.0f}"
            cells += f"{row['utilisation_dense']:12.2f}{row['compile_s']:12.1f}"
            print(f"{backbone:>12}{length:12}{row['parameters']:12,}{cells}", flush=True)
            jax.clear_caches()
    if arguments.pieces:
        agent = make_agent(arguments.backbones[0], arguments.size, arguments.lengths[0], arguments.num_envs)
        result["pieces_ms"] = measure_pieces(agent, arguments.runs)
        for name, ms in result["pieces_ms"].items():
            print(f"{name:>24}{ms:10.1f} ms")
    batch, horizon = (8, 2) if arguments.quick else (1024, 16)
    for size in ["tiny"] if arguments.quick else SIZES:
        row = measure_imagination(size, batch, horizon, arguments.runs)
        result.setdefault("imagination", {})[size] = row
        print(
            f"imagination, {size:>6}, batch {batch}: {row['latent_steps_per_s']:12,.0f} latent steps/s,"
            f" compiled in {row['compile_s']:.1f} s"
        )
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(result, file, indent=1)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
