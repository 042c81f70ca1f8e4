"""``ssmrl worldmodel eval``: everything that is measured about a world model's memory, beside the controls.

To what ``ssmrl.world_evaluation`` measures this adds probes of the frozen model, the entropy of its predictions, curves
over the horizon and, as the floor that a memory must exceed, a run of the same task without one.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssmrl import evaluation, film, plotting, results
from ssmrl.config import Config
from ssmrl.fields import UserError
from ssmrl.nn.base import flat_carry
from ssmrl.probes import majority, probe
from ssmrl.spaces import Box
from ssmrl.world_evaluation import (
    context_length,
    episode_frames,
    evaluate_world_model,
    measured_episodes,
    record_episodes,
    standard_error,
)
from ssmrl.world_model import WorldModel

_BATCH = 64  # episodes at a time
_DRAWS = 64  # of the prior, for one predictive distribution
_PROBED = 16  # frames of the query of each episode, about
_HIDDEN = (128,)  # of the probe that is a network
_WIDEST = 4096  # numbers in a carry that is probed
_VARIANTS = ("_sampled", "_shuffled", "_next", "_recon")


def evaluate_run(
    run_dir: str | Path,
    *,
    control: str | Path | None = None,
    episodes: int = 1024,
    step: str | int = "best",
    seed: int = 0,
) -> dict[str, Any]:
    """Measure every seed of a run of a world model over fresh ``episodes``, in whole batches.

    ``control`` is a run of the same task without a memory: ``model=none agent.posterior=obs``. Returns flat facts:
    ``env.KEY`` for each parameter of the environment that is not its default, and for each metric its mean over seeds,
    and after its name ``/std``, ``/se`` (over episodes, where known), ``/low`` and ``/high`` (an interval of 95 %: a
    bootstrap over several seeds; for one, over its episodes) and ``/seed_i``; after ``control/`` the same of the
    control.
    Metrics are those of :func:`ssmrl.world_evaluation.evaluate_world_model`, ``memory_gap`` (``tile_acc_seen`` minus
    the control's), ``predictive_entropy`` with one for each event, and for each fact of the environment
    ``probe_<fact>_<h|x>_<linear|mlp>`` and ``probe_<fact>_majority``. Writes them to ``eval/<step>_full.json``, and
    ``plots/horizon.png`` with a CSV. Raises ``UserError`` if one of the runs is no world model, or the control none.
    """
    run_dir, start = Path(run_dir), time.perf_counter()
    config = evaluation.read_config(run_dir)
    evaluation.check_world_model(run_dir, config)
    if control is not None:
        other = evaluation.read_config(control)
        evaluation.check_world_model(control, other)
        _check_control(run_dir, config, control, other)
    episodes = measured_episodes(episodes)
    scalars, curves, path = _measure(run_dir, config, step, episodes, seed)
    facts = {"env": config.env, "env_steps": int(path.name), "episodes": episodes, "seed": seed, "seeds": config.seeds}
    facts |= config.env_changes
    floor: dict[str, np.ndarray] = {}
    floor_curves: dict[str, np.ndarray] = {}
    if control is not None:
        floor, floor_curves, _ = _measure(Path(control), other, "best", episodes, seed)
        facts["control"] = str(control)
    for prefix, metrics in (("", scalars), ("control/", floor)):
        for name in metrics:
            if not name.endswith("_se"):
                facts |= _statistics(f"{prefix}{name}", metrics[name], metrics.get(f"{name}_se"))
    if "tile_acc_seen" in floor:
        facts |= _gap(facts)
    plot = plotting.plot_horizon(curves, floor_curves, run_dir / "plots" / "horizon.png")
    facts |= {"plot": str(plot), "wall_s": time.perf_counter() - start}
    evaluation.write_json(run_dir / "eval" / f"{path.name}_full.json", facts)
    return facts


def render(facts: Mapping[str, Any]) -> str:
    """The facts of :func:`evaluate_run` as text: a table of metrics, one of probes, where the picture is."""
    names = [k for k in facts if f"{k}/low" in facts and "/" not in k and np.isfinite(facts[k])]
    shown = [k for k in names if not k.startswith("probe_") and not k.endswith(_VARIANTS)]
    columns = [v for v in _VARIANTS if any(f"{k}{v}" in facts for k in shown)]
    columns += ["control"] if "control" in facts else []
    rows = [["", "mean [95 %]", "std", *(c.removeprefix("_") for c in columns)]]
    for name in shown:
        others = [facts.get(f"control/{name}" if c == "control" else f"{name}{c}") for c in columns]
        rows.append([name, _interval(facts, name), _number(facts.get(f"{name}/std")), *map(_number, others)])
    text = [film.lay_out(rows)]
    probed = [k.removeprefix("probe_").removesuffix("_majority") for k in names if k.endswith("_majority")]
    if probed:
        kinds = [k for k in ("h_linear", "h_mlp", "x_linear", "x_mlp") if f"probe_{probed[0]}_{k}" in facts]
        rows = [["probe", "majority", *(k.replace("_", " ") for k in kinds)]]
        rows += [[f, *(_number(facts.get(f"probe_{f}_{k}")) for k in ("majority", *kinds))] for f in probed]
        text.append(film.lay_out(rows))
    env = " ".join([facts["env"], *(f"{k}={v}" for k, v in facts.items() if k.startswith("env."))])
    head = (
        f"{env}: {facts['seeds']} seed(s), {facts['episodes']:,} episodes each, {facts['env_steps']:,} frames trained"
    )
    return "\n\n".join([head, *text, f"plot: {facts['plot']} (and .csv)"])


def _gap(facts: Mapping[str, Any]) -> dict[str, float]:
    """How far ``tile_acc_seen`` is above the control's; intervals of differences as Zou and Donner 2008 combine them.

    Of two intervals that are symmetric, as over the episodes of single seeds, the squared widths add up.
    """
    (mean, low, high), (floor, floor_low, floor_high) = (
        [facts[f"{prefix}tile_acc_seen{k}"] for k in ("", "/low", "/high")] for prefix in ("", "control/")
    )
    gap = mean - floor
    return {
        "memory_gap": gap,
        "memory_gap/low": gap - float(np.hypot(mean - low, floor_high - floor)),
        "memory_gap/high": gap + float(np.hypot(high - mean, floor - floor_low)),
    }


def _check_control(run_dir: Path, config: Config, control: str | Path, other: Config) -> None:
    remedy = f"train one: ssmrl worldmodel train {run_dir}/config.yaml model=none agent.posterior=obs"
    if other.env != config.env or other.env_parameters != config.env_parameters:
        differing = [k for k, v in config.env_parameters.items() if other.env_parameters.get(k) != v]
        what = f"its env is {other.env}" if other.env != config.env else f"it has another env.{differing[0]}"
        raise UserError(f"--control={control}: {what}; {remedy}")
    if other.model != "none":
        raise UserError(f"--control={control}: its model is {other.model}, which remembers; {remedy}")
    if other.agent_parameters["posterior"] != "obs":  # an rssm's latent is a recurrent state
        given = f"agent.posterior={other.agent_parameters['posterior']}"
        raise UserError(f"--control={control}: it has {given}, whose latent remembers; {remedy}")


def _measure(
    run_dir: Path, config: Config, step: str | int, episodes: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Path]:
    """Metrics ``[S]`` and curves ``[S, Q]`` of all seeds of a run, and the checkpoint that they are of."""
    agent, state, path = evaluation.restore(run_dir, config, step)
    network, env, env_params = agent.world_model, agent.env, agent.env_params

    @jax.jit
    def measure(all_params: Any, i: jax.Array) -> tuple[Any, Any]:
        params = evaluation.member(all_params, i)
        key_measure, key_train = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
        key_scores, key_entropy, key_probes = jax.random.split(key_measure, 3)
        scalars, curves = evaluate_world_model(network, params, env, env_params, key_scores, episodes)
        scalars |= _entropies(network, params, env, env_params, key_entropy)
        if facts := getattr(env, "fact_classes", {}):
            scalars |= _probes(*_probe_data(network, params, env, env_params, key_probes, episodes), facts, key_train)
        return scalars, curves

    found = [jax.device_get(measure(state.params, i)) for i in range(config.seeds)]
    scalars, curves = jax.tree.map(lambda *x: np.stack(x).astype(float), *found)
    return scalars, curves, path


def _entropies(network: WorldModel, params: Any, env: Any, env_params: Any, key: jax.Array) -> dict[str, jax.Array]:
    """Mean entropy in nats of a tile as predicted one frame ahead: the decoder's probabilities mixed over the prior."""
    if isinstance(network.observation_space, Box):
        return {}
    key_record, key_observe, key_draw = jax.random.split(key, 3)
    recording, context = record_episodes(env, env_params, _BATCH, key_record), context_length(env, env_params)
    start = network.initial_state((_BATCH,))
    seen = _apply(network, params, "observe", start, recording.frames, key_observe, "mode")[1]
    h, prior = jax.tree.map(lambda x: x[context:] if jnp.ndim(x) else x, (seen.h, seen.prior.sharp()))

    def draw(key: jax.Array) -> jax.Array:
        features = jnp.concatenate([h, prior.sample(key)], -1)
        return jax.nn.softmax(_apply(network, params, "predict", features).obs)

    zeros = jnp.zeros(jax.eval_shape(draw, key_draw).shape)
    keys = jax.random.split(key_draw, _DRAWS)
    probs = lax.scan(lambda total, key: (total + draw(key), None), zeros, keys)[0] / _DRAWS
    entropy = -(probs * jnp.log(probs + 1e-20)).sum(-1)  # [Q, E, N]
    valid = (jnp.cumsum(recording.frames.reset[context:], axis=0) == 0)[..., None]  # not of a next episode
    masks = {"": jnp.broadcast_to(valid, entropy.shape)}
    masks |= {f"_{k}": v[context:] & valid for k, v in recording.events.items()}
    found = {}
    for k, mask in masks.items():
        total, count = (entropy * mask).sum((0, 2)), mask.sum((0, 2))
        found[f"predictive_entropy{k}"] = total.sum() / count.sum()
        found[f"predictive_entropy{k}_se"] = standard_error(total, count)
    return found


def _probe_data(
    network: WorldModel, params: Any, env: Any, env_params: Any, key: jax.Array, episodes: int
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """What probes read, ``h`` and ``x`` ``[M, E, D]``, and the facts ``[M, E, k]``, at M frames of the query.

    Neither ``h_t`` nor the carry ``x_t`` depends on observation ``t``. A carry that is too wide is left out.
    """
    length, context = episode_frames(env, env_params), context_length(env, env_params)
    chunk = max(1, (length - context) // _PROBED)
    used, size = length // chunk * chunk, min(episodes, _BATCH)
    times = np.arange(chunk - 1, used, chunk)
    late = np.flatnonzero(times >= context)
    width = jax.eval_shape(lambda: flat_carry(network.initial_state((1, 1)).memory, (1, 1))).shape[-1]
    keep_carry = 0 < width <= _WIDEST

    def batch(key: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        key_record, key_observe = jax.random.split(key)
        recording = record_episodes(env, env_params, size, key_record)
        frames = jax.tree.map(lambda x: x[:used], recording.frames)
        inputs = network.initial_state((size,)), frames, key_observe, "mode", chunk if keep_carry else 0
        seen = _apply(network, params, "observe", *inputs)[1]
        features = {"h": seen.h[times[late]]}
        if keep_carry:
            features["x"] = flat_carry(seen.states.memory, (len(times), size))[late]
        return features, {k: v[times[late]] for k, v in recording.facts.items()}

    found = lax.map(batch, jax.random.split(key, measured_episodes(episodes) // size))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(len(late), -1, x.shape[-1]), found)


def _probes(
    features: Mapping[str, jax.Array], facts: Mapping[str, jax.Array], classes: Mapping[str, int], key: jax.Array
) -> dict[str, jax.Array]:
    """Accuracy of facts read out of the features, with standard errors over the episodes that test the probes.

    One half of the episodes trains them, the other tests them.
    """

    def halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        middle = x.shape[1] // 2
        return x[:, :middle].reshape(-1, x.shape[-1]), x[:, middle:].reshape(-1, x.shape[-1])

    train, test = halves(jnp.concatenate(list(facts.values()), -1))
    counts = tuple(classes[name] for name, values in facts.items() for _ in range(values.shape[-1]))
    scores = {"majority": majority(train, test, counts)}
    for (name, x), key_probe in zip(features.items(), jax.random.split(key, len(features)), strict=True):
        x_train, x_test = halves(x)
        for kind, hidden in (("linear", ()), ("mlp", _HIDDEN)):
            scores[f"{name}_{kind}"] = probe(x_train, train, x_test, test, key_probe, classes=counts, hidden=hidden)
    ends = np.cumsum([values.shape[-1] for values in facts.values()])
    frames, found = next(iter(facts.values())).shape[0], {}
    for kind, score in scores.items():
        right = score.reshape(frames, -1, score.shape[-1])
        for fact, part in zip(facts, jnp.split(right, ends[:-1].tolist(), axis=-1), strict=True):
            accuracy = part.mean((0, 2))  # of each episode
            found[f"probe_{fact}_{kind}"] = accuracy.mean()
            found[f"probe_{fact}_{kind}_se"] = standard_error(accuracy, jnp.ones(len(accuracy)))
    return found


def _apply(network: WorldModel, params: Any, method: str, *args: Any) -> Any:
    return network.apply({"params": params}, *args, method=method)


def _statistics(name: str, values: np.ndarray, errors: np.ndarray | None) -> dict[str, float]:
    """Mean, spread and interval of a metric ``[S]``; ``errors`` ``[S]`` are standard errors over episodes."""
    low, high = results.interval([values], lambda x, axis: x.mean(axis))
    se = np.nan if errors is None else np.sqrt((errors**2).sum()) / len(errors)
    if len(values) == 1:
        low, high = values[0] - 1.96 * se, values[0] + 1.96 * se
    found = {"": values.mean(), "/std": values.std(), "/se": se, "/low": low, "/high": high}
    found |= {f"/seed_{i}": v for i, v in enumerate(values)}
    return {f"{name}{k}": float(v) for k, v in found.items()}


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _interval(facts: Mapping[str, Any], name: str) -> str:
    low, high = (_number(facts[f"{name}/{end}"]) for end in ("low", "high"))
    return _number(facts[name]) + (f" [{low}, {high}]" if low else "")
