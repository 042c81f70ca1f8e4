"""Time the gradient of our convolutions against flax's, inside of a scan, as in training.

    python benchmarks/convolution.py [--runs 5]

Layers of a world model of pictures (encoder and decoder), of a policy of pictures, and of a policy of small grids. Both
kinds are the same functions of the same parameters, and run in turn; the ratio is taken round by round.
"""

import argparse
import functools
import json
import statistics
import time
from typing import Any

import jax
from flax import linen as nn

from ssmrl.nn.convolution import Conv, ConvTranspose

STEPS = 2  # of the scan
Layers = tuple[nn.Module, ...]


def flax_conv(features: int, size: int, stride: int) -> nn.Module:
    return nn.Conv(features, (size, size), (stride, stride))


def flax_conv_transpose(features: int) -> nn.Module:
    return nn.ConvTranspose(features, (4, 4), (2, 2))


def stacks(conv, conv_transpose) -> dict[str, tuple[tuple[int, ...], Layers]]:
    """By name: what the layers read, and the layers."""
    encoder = (conv(32, 4, 2), conv(64, 4, 2), conv(128, 4, 2))
    decoder = (conv_transpose(64), conv_transpose(32), conv_transpose(3))
    return {
        "world model, 40 x 40 pixels": ((128, 40, 40, 3), (*encoder, *decoder)),
        "policy, 84 x 84 pixels": ((32, 84, 84, 3), (conv(32, 8, 4), conv(64, 4, 2), conv(64, 3, 1))),
        "policy, 9 x 9 grid": ((512, 9, 9, 4), (conv(16, 3, 1), conv(32, 3, 2))),
    }


def program(layers: Layers, x: jax.Array):
    """Descend along the gradient a few times; returns what runs it, compiled, and the seconds of compilation."""
    network = nn.Sequential([layer for module in layers for layer in (module, nn.silu)])
    params = network.init(jax.random.key(0), x)

    def loss(params: Any) -> Any:
        y: Any = network.apply(params, x)
        return (y**2).mean()

    @jax.jit
    def train(params):
        step = lambda p, _: (jax.tree.map(lambda a, b: a - 1e-3 * b, p, jax.grad(loss)(p)), None)  # noqa: E731
        return jax.lax.scan(step, params, None, length=STEPS)[0]

    start = time.perf_counter()
    return functools.partial(train.lower(params).compile(), params), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    kinds = {"ours": stacks(Conv, ConvTranspose), "flax": stacks(flax_conv, flax_conv_transpose)}
    print(f"gradient steps in a scan, {jax.devices()[0]}, {arguments.runs} rounds")
    print(f"{'':>28} {'ours, ms (range)':>24} {'flax, ms (range)':>24} {'faster':>8} {'compile s':>14}")
    rows = {}
    for name, (shape, _) in kinds["ours"].items():
        x = jax.random.normal(jax.random.key(1), shape)
        programs = {kind: program(kinds[kind][name][1], x) for kind in kinds}
        ms: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.runs + 1):
            for kind, (run, _) in programs.items():
                start = time.perf_counter()
                jax.block_until_ready(run())
                ms[kind].append(1e3 * (time.perf_counter() - start) / STEPS)
        ms = {kind: times[1:] for kind, times in ms.items()}
        ratio = statistics.median(flax / ours for ours, flax in zip(ms["ours"], ms["flax"], strict=True))
        cells = [f"{statistics.median(t):,.1f} ({min(t):,.1f} - {max(t):,.1f})" for t in ms.values()]
        compile_s = {kind: seconds for kind, (_, seconds) in programs.items()}
        print(
            f"{name:>28} {cells[0]:>24} {cells[1]:>24} {ratio:7.1f}x {compile_s['ours']:6.1f} {compile_s['flax']:6.1f}"
        )
        rows[name] = {"ms": {k: statistics.median(t) for k, t in ms.items()}, "faster": ratio, "compile_s": compile_s}
    print(json.dumps({"benchmark": "convolution", **rows}))


if __name__ == "__main__":
    main()
