"""Every preset makes two updates, smaller than it is; one of each family goes through the whole program."""

import itertools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import ssmrl
from ssmrl import config, training
from ssmrl.cli import main
from ssmrl.config import PRESETS, resolve, to_flat

CACHE = Path(__file__).parents[2] / ".cache" / "jax"
NAMES = sorted(p.relative_to(PRESETS).with_suffix("").as_posix() for p in PRESETS.rglob("*.yaml"))
NAMES = [name for name in NAMES if not name.startswith("sweeps/")]
FAMILIES = ["gymnax/pendulum", "bsuite/memory_len"]  # popgym goes through the whole program elsewhere
SMALL = {
    "agent.num_envs": 4,
    "agent.num_steps": 6,
    "agent.num_minibatches": 2,
    "agent.epochs": 2,
    "agent.heads": (8,),
    "agent.hidden": (8,),
    "agent.prefill": 0,
    "agent.replay_size": 200,
    "agent.replay_ratio": 1,
    "agent.batch_size": 2,
    "agent.batch_length": 6,
    "agent.dream_every": 3,
    "agent.horizon": 3,
    "model.d_model": 8,
    "model.memories": 1,
    "model.d_state": 8,
    "model.num_layers": 1,
    "env.max_steps": 5,
    "total_steps": 2 * 4 * 6,
    "log.every": 1,
    "eval.episodes": 4,
    "wandb": "off",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what commands set for jax ends with the test


def test_all_presets_are_listed_with_a_line():
    assert list(config.presets()) == NAMES
    assert all(config.presets().values())
    assert {"demo", "popgym/repeat_previous_medium", "bsuite/memory_len", "gymnax/pendulum", "brax/ant-P"} <= set(NAMES)


@pytest.mark.parametrize("name", FAMILIES)
def test_dry_run(name, capsys):
    assert main(["train", name, "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["env_steps"] >= to_flat(resolve([name]))["total_steps"]
    assert facts["parameters"] > 1000
    assert not os.listdir()


def _smaller(name, **settings):
    """The preset with everything that costs time made small, so far as its environment and model have it."""
    known = to_flat(resolve([name]))
    trials = {"env.trial_episodes": 1} if known["env.trial_episodes"] else {}
    return resolve([name], {k: v for k, v in {**SMALL, **trials, **settings}.items() if k in known})


# These differ from others in their environment alone, which has tests of its own, and in numbers.
SLOW = {"brax/ant-P", "brax/halfcheetah-P", "brax/hopper-P", "brax/walker2d-P"}
SLOW |= {f"dreamer/{x}" for x in ("common", "memory_len", "pendulum", "position_only_cart_pole", "planner_cartpole")}
SLOW |= {"dreamer/continual", "dreamer/distracting_memory", "dreamer/repeat_previous_medium"}
NEEDS = {"paper/s5_meta": "mujoco_playground"}
WORLDS = [name for name in NAMES if name.startswith("worldmodel/") and name.count("/") == 1]
BACKBONES = [name for name in NAMES if "backbones/" in name]
POLICIES = [name for name in NAMES if not name.startswith("worldmodel/")]


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_model_learns_from_whole_episodes(name):
    facts = training.dry_run(resolve([name]))
    env, _ = ssmrl.make_env(facts["env"])
    assert facts["minibatch"].startswith(f"[{env.context + env.query}, ")
    assert facts["parameters"] > 50_000


@pytest.mark.parametrize(
    ("name", "weights"), [("s4wm", (0.8, 0.2, 0)), ("dreamerv3", (1, 0.1, 1)), ("r2i", (0.5, 0.1, 1))]
)
def test_balances_of_the_divergences(name, weights):
    flat = to_flat(resolve(["worldmodel/cue_recall", f"worldmodel/kl/{name}"]))
    assert tuple(flat[f"agent.{k}"] for k in ("dyn_weight", "rep_weight", "free_nats")) == weights
    assert flat["env"] == "memory/CueRecall-64"


@pytest.mark.parametrize("world", ["worldmodel/ring_recall", "worldmodel/two_rooms"])  # the smallest and the largest
def test_backbones_are_of_one_size(world):
    def size(*presets):
        agent = ssmrl.agents.make_agent(resolve([world, *presets]))
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(agent.init, jax.random.key(0)).params))

    s5 = size()
    assert {name: size(name) / s5 for name in BACKBONES} == pytest.approx(dict.fromkeys(BACKBONES, 1.0), abs=0.05)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in POLICIES])
def test_two_updates(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    init, update = ssmrl.make_train(_smaller(name))
    key, quick = jax.random.key(0), {"xla_backend_optimization_level": "0"}
    first = jax.jit(init).lower(key).compile(compiler_options=quick)(key)
    compiled = jax.jit(update).lower(first).compile(compiler_options=quick)
    second, _ = compiled(first)
    third, metrics = compiled(second)
    params = jax.device_get([first.params, second.params, third.params])
    for metric in ("loss", "grad_norm", "entropy"):
        assert np.isfinite(metrics[metric]), metric
    assert metrics.get("ratio_error", 0.0) < 1e-4  # also from a carry that an earlier rollout left
    assert metrics["episodes"] > 0
    assert metrics["length_mean"] <= 5
    for before, after in itertools.pairwise(params):
        assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after))) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_run_of_the_preset(name, tmp_path):
    config = _smaller(name, **{"cache.dir": str(CACHE), "run.dir": str(tmp_path / "run")})
    run = training.train(config, quiet=True)
    assert run.summary["env_steps"] == 48
    assert run.summary["length_mean"] <= 5
    for metric in ("loss", "grad_norm", "return_mean", "entropy"):
        assert np.isfinite(run.metrics[metric]).all(), metric
    assert (run.metrics["ratio_error"] < 1e-4).all()
    assert (run.metrics["grad_norm"] > 0).any()
