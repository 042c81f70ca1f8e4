"""Measure Dreamer: environment steps, gradient steps and imagined steps per second, and where the time goes.

    python benchmarks/dreamer.py [--backbones s5 gru rssm] [--presets tiny small] [--compare] [--quick]

``gymnax/CartPole-v1``, a ring that is full enough to learn from. Each piece of an update is compiled alone and timed;
its share is of the sum of all pieces, which is given beside the whole update, in which XLA fuses across them. ``actor
and critic`` is the gradient of their loss less the imagination in it. Times are medians; ``memory`` is what XLA plans
for an update: temporaries, arguments and outputs, of which the replay is given apart. ``--compare`` times gradient
steps that differ in one setting, in turn, so that a busy machine slows all of them alike.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssmrl import frames, make_env, make_model, replay
from ssmrl.agents.dreamer import Dreamer, Learner, State

BACKBONES = ("s5", "gru", "lstm", "transformer", "rssm", "none")
PRESETS = {
    "tiny": {"d_model": 64, "num_layers": 1, "groups": 8, "classes": 8, "hidden": (128,), "heads": (128,)},
    "small": {"d_model": 128, "num_layers": 2, "groups": 16, "classes": 16, "hidden": (128,), "heads": (256, 256)},
}
DATA = {"num_envs": 8, "num_steps": 16, "batch_size": 16, "batch_length": 32, "replay_ratio": 64, "prefill": 0}
QUICK = {"num_envs": 2, "num_steps": 4, "batch_size": 2, "batch_length": 8, "replay_ratio": 4, "dream_every": 4}
COMPARED = {"dream_every": (4, 8, 16), "horizon": (5, 10, 15, 30)}


def make_agent(backbone: str, preset: str, **settings: Any) -> Dreamer:
    """An agent in CartPole."""
    size: dict[str, Any] = dict(PRESETS[preset])
    options: dict[str, Any] = {k: size.pop(k) for k in ("d_model", "num_layers")}
    if backbone == "s5":
        options |= {"d_state": options["d_model"], "norm": "pre", "memories": 2, "mlp": 2, "input_scale": "norm"}
    env, params = make_env("gymnax/CartPole-v1")
    model = make_model("gru" if backbone == "rssm" else backbone, **options)
    size["posterior"] = "rssm" if backbone == "rssm" else "obs"
    return Dreamer(env, params, model, anneal="none", normalize_obs=True, **size, **settings)


def filled(agent: Dreamer) -> tuple[State, Any]:
    """A state whose ring is full enough to learn from, and the last block in it."""
    state = jax.jit(agent.init)(jax.random.key(0))

    @jax.jit
    def collect(state: State) -> tuple[State, Any]:
        env, stream = (agent.env, agent.env_params), state.stream
        stream, block, _ = frames.record(*env, stream, agent.num_steps, state.key, agent.policy(state))
        ring = replay.add(state.learner.replay, block, state.stream.carry.memory)
        return state.replace(
            stream=stream, learner=state.learner.replace(replay=ring), updates=state.updates + 1
        ), block

    for _ in range(agent.num_envs * agent.batch_length // agent.steps_per_update + 1):
        state, block = collect(state)
    return state, block


def imagined(agent: Dreamer) -> int:
    """Steps that a gradient step imagines."""
    return agent.batch_size * agent.batch_length // agent.dream_every * agent.horizon


def interleaved(calls: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Median seconds of each call, in ``runs`` rounds in which they take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if run:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def pieces(agent: Dreamer, state: State, block: Any) -> dict[str, Callable[[], Any]]:
    """The parts of an update, each compiled alone."""
    key, learner = jax.random.key(1), state.learner
    blocks, last = agent.batch_length // agent.num_steps, agent.num_steps // agent.dream_every

    @jax.jit
    def collect(state: State) -> Any:
        return frames.record(agent.env, agent.env_params, state.stream, agent.num_steps, key, agent.policy(state))

    @jax.jit
    def sample(ring: Any) -> Any:
        return replay.sample(ring, block, blocks, agent.batch_size, agent.priority, key)

    batch, start, place = sample(learner.replay)
    assert state.obs_stats is not None
    batch = batch.replace(obs=state.obs_stats.normalize(batch.obs))

    def world_loss(params: Any) -> Any:
        return agent.world_loss(params, start, batch, key, agent.dream_every)

    model = jax.jit(jax.grad(world_loss, has_aux=True))
    gradient, (_, _, seen, _) = model(learner.params["world"])
    ends = jax.tree.map(lambda x: x[last - 1 :: last], seen.states)
    behaviour = {k: learner.params[k] for k in ("actor", "critic")}

    @jax.jit
    def dream(learner: Learner) -> Any:
        start = seen.states, seen.h[agent.dream_every - 1 :: agent.dream_every]
        start = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), start)
        return agent.network.apply({"params": learner.params}, *start, agent.horizon, key, method="dream")

    learn = jax.jit(jax.grad(agent._behaviour_loss, has_aux=True))

    @jax.jit
    def optimise(learner: Learner, gradient: Any) -> Any:
        moved = {
            k: agent.step(p, gradient[k], learner.opt_state[k], jnp.float32(1e-3)) for k, p in learner.params.items()
        }
        return moved, optax.incremental_update(moved["critic"][0], learner.slow_critic, agent.slow_rate)

    gradients = {"world": gradient, **learn(behaviour, learner, seen, batch.terminated, key)[0]}
    refresh = jax.jit(lambda ring: replay.refresh(ring, place, ends, batch.reward.sum(0)), donate_argnums=0)
    rings = [jax.tree.map(lambda x: x.copy(), learner.replay)]

    def renew() -> Any:
        rings[0] = refresh(rings[0])  # in place, as in the update
        return rings[0].priority

    return {
        "collecting": lambda: collect(state),
        "sampling": lambda: sample(learner.replay),
        "model's gradient": lambda: model(learner.params["world"]),
        "imagination": lambda: dream(learner),
        "actor and critic": lambda: learn(behaviour, learner, seen, batch.terminated, key),
        "optimiser": lambda: optimise(learner, gradients),
        "refreshing": renew,
    }


def measure(agent: Dreamer, runs: int) -> dict[str, Any]:
    """Time an update and its parts."""
    state, block = filled(agent)
    start = time.perf_counter()
    update: Any = jax.jit(agent.update, donate_argnums=0).lower(state).compile()
    compile_s, memory = time.perf_counter() - start, update.memory_analysis()
    took = interleaved(pieces(agent, state, block), runs)
    took["actor and critic"] -= took["imagination"]
    parts = {k: s * (1 if k == "collecting" else agent.gradient_steps) for k, s in took.items()}
    states = [state]

    def whole() -> Any:
        states[0], metrics = update(states[0])
        assert metrics["loss"] > 0, "it does not learn yet"
        return metrics

    seconds = interleaved({"whole": whole}, runs)["whole"]
    planned = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "update_ms": 1e3 * seconds,
        "env_steps_per_s": agent.steps_per_update / seconds,
        "gradient_steps_per_s": agent.gradient_steps / seconds,
        "imagined_steps_per_s": agent.gradient_steps * imagined(agent) / seconds,
        "pieces_ms": {k: 1e3 * s for k, s in parts.items()},
        "share": {k: s / sum(parts.values()) for k, s in parts.items()},
        "sum_over_whole": sum(parts.values()) / seconds,
        "memory_mib": (planned - memory.alias_size_in_bytes) / 2**20,
        "replay_mib": sum(x.nbytes for x in jax.tree.leaves(states[0].learner.replay)) / 2**20,
        "compile_s": compile_s,
    }


def compare(agent: Dreamer, name: str, values: tuple[int, ...], runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a gradient step, and imagined steps/s, for some values of one setting."""
    calls, agents = {}, {str(value): agent.replace(**{name: value}) for value in values}
    state, block = filled(agent)  # to which the setting makes no difference
    for value, other in agents.items():
        step = jax.jit(other._gradient_step)
        calls[value] = lambda step=step: step(state.learner, block, state.obs_stats, state.updates, state.key)[1]
    found = {}
    for value, seconds in interleaved(calls, runs).items():
        row = {"gradient_step_ms": 1e3 * seconds, "imagined_steps_per_s": imagined(agents[value]) / seconds}
        found[value] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=["s5", "gru", "rssm"])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument(
        "--compare", action="store_true", help="compare dream_every and horizon, with the first of both"
    )
    parser.add_argument("--quick", action="store_true", help="one backbone, small shapes, one run; compares too")
    parser.add_argument("--out", default="", help="write the numbers here too, as JSON")
    arguments = parser.parse_args()
    data: dict[str, Any] = DATA
    compared: dict[str, Any] = COMPARED
    if arguments.quick:
        arguments.backbones, arguments.presets, arguments.runs, arguments.compare = ["gru"], ["tiny"], 1, True
        data, compared = DATA | QUICK, {"horizon": (2, 4)}
        jax.config.update("jax_disable_most_optimizations", True)  # compiling is all that it takes time for
    else:
        jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())

    print(f"{data}, {jax.devices()[0]}")
    result: dict[str, Any] = {"benchmark": "dreamer", "data": data, "updates": []}
    for preset in arguments.presets:
        for backbone in arguments.backbones:
            row = measure(make_agent(backbone, preset, **data), arguments.runs)
            result["updates"].append({"backbone": backbone, "preset": preset, **row})
            rates = [f"{row[f'{k}_per_s']:,.0f} {k.replace('_', ' ')}/s" for k in ("env_steps", "gradient_steps")]
            print(f"{backbone}, {preset}, {row['parameters']:,} parameters: an update takes {row['update_ms']:.1f} ms")
            print(f"  {', '.join(rates)}, {row['imagined_steps_per_s']:,.0f} imagined steps/s")
            print(f"  {', '.join(f'{k} {share:.0%}' for k, share in row['share'].items())}")
            print(f"  the pieces add up to {row['sum_over_whole']:.2f} of the update", end="; ")
            print(f"{row['memory_mib']:.1f} MiB, the replay {row['replay_mib']:.1f}", end="; ")
            print(f"compiled in {row['compile_s']:.1f} s", flush=True)
            jax.clear_caches()
    for name, values in compared.items() if arguments.compare else ():
        first = arguments.backbones[0], arguments.presets[0]
        found = compare(make_agent(*first, **data), name, values, arguments.runs)
        result.setdefault("compared", {})[name] = found
        for value, row in found.items():
            cells = f"{row['gradient_step_ms']:8.2f} ms a gradient step, {row['imagined_steps_per_s']:9,.0f} imagined/s"
            print(f"{', '.join(first)}, {name} {value:>3}: {cells}", flush=True)
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(result, file, indent=1)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
