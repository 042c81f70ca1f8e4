"""Time the resettable scan, forward and gradient, against the usual three-element associative form.

    python benchmarks/scan.py [--shape 1024 64 128] [--runs 9]

The rival carries (a, b, reset) through ``jax.lax.associative_scan``, as the published S5 RL code does, and is
differentiated by JAX. All programs run in turn, so that a noisy machine treats them alike; the ratio is taken round by
round.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from ssmrl.scan import linear_recurrence


def three_element_scan(a: jax.Array, b: jax.Array, h0: jax.Array, reset: jax.Array) -> jax.Array:
    """The reset operator of Lu et al. 2023, section 3.1: the reset flag is a third element of the scan."""
    a = jnp.broadcast_to(a, b.shape)
    b = b.at[0].add(jnp.where(reset[0][:, None], 0, a[0] * h0))

    def combine(left: tuple, right: tuple) -> tuple:
        a_l, b_l, r_l = left
        a_r, b_r, r_r = right
        return jnp.where(r_r, a_r, a_l * a_r), jnp.where(r_r, b_r, a_r * b_l + b_r), r_l | r_r

    return jax.lax.associative_scan(combine, (a, b, reset[..., None]))[1]


def inputs(T: int, B: int, P: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 5)
    a = jnp.exp(jax.lax.complex(-jnp.linspace(0.001, 0.1, P), jnp.linspace(0.0, 3.0, P)))
    b, g = (
        jax.lax.complex(jax.random.normal(re, (T, B, P)), jax.random.normal(im, (T, B, P)))
        for re, im in (keys[:2], keys[2:4])
    )
    return a, b, jnp.zeros((B, P), jnp.complex64), jax.random.bernoulli(keys[4], 0.02, (T, B)), g


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", nargs=3, type=int, default=(1024, 64, 128), metavar=("T", "B", "P"))
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    data = inputs(*arguments.shape)

    def program(scan):
        def forward_and_gradient(a, b, h0, reset, g):
            h, pull = jax.vjp(lambda a, b, h0: scan(a, b, h0, reset), a, b, h0)
            return h, pull(g)

        start = time.perf_counter()
        compiled = jax.jit(forward_and_gradient).lower(*data).compile()
        return compiled, time.perf_counter() - start

    scans: dict[str, Any] = {
        method: lambda *x, method=method: linear_recurrence(*x, method=method)
        for method in ("sequential", "chunked", "associative")
    }
    scans["three-element"] = three_element_scan
    programs = {name: program(scan) for name, scan in scans.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(arguments.runs + 1):
        for name, (compiled, _) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled(*data))
            seconds[name].append(time.perf_counter() - start)
    print(f"forward + gradient, complex64 {list(arguments.shape)}, {jax.devices()[0]}, {arguments.runs} rounds")
    print(f"{'method':>14} {'median ms':>10} {'min':>7} {'max':>7} {'compile s':>10} {'speed-up':>9}")
    rows = {}
    for name, (_, compile_s) in programs.items():
        times = [1e3 * s for s in seconds[name][1:]]
        speedup = statistics.median(r / s for r, s in zip(seconds["three-element"][1:], seconds[name][1:], strict=True))
        rows[name] = {"median_ms": statistics.median(times), "compile_s": compile_s, "speedup": speedup}
        middle = f"{statistics.median(times):10.1f} {min(times):7.1f} {max(times):7.1f}"
        print(f"{name:>14} {middle} {compile_s:10.2f} {speedup:8.2f}x")
    print(json.dumps({"benchmark": "scan", "shape": list(arguments.shape), **rows}))


if __name__ == "__main__":
    main()
