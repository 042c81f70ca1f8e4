"""Trials that share one compiled program are the runs that they would be alone, and leave the same folders."""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from ssmrl import checkpoint, config, training
from ssmrl.evaluation import load
from ssmrl.program import Program, build_agent, program_key
from ssmrl.registry import UserError

PER_UPDATE = 32
TINY = {
    "env": "popgym/RepeatPreviousEasy",
    "agent.num_envs": 4,
    "agent.num_steps": 8,
    "agent.num_minibatches": 2,
    "agent.epochs": 1,
    "agent.heads": (8,),
    "agent.anneal": "linear",
    "model": "gru",
    "model.d_model": 8,
    "eval.episodes": 4,
    "eval.every": 1,
    "log.every": 1,
    "total_steps": 3 * PER_UPDATE,
    "checkpoint.keep": 9,
    "wandb": "off",
}
FIRST = {"agent.learning_rate": 3e-3, "agent.gamma": 0.9}
WILD = {"agent.learning_rate": 1e30, "agent.epochs": 1}
LAST = {"agent.learning_rate": 1e-3, "seed": 7, "agent.entropy_coef": 0.1}
SHORT = {"total_steps": 2 * PER_UPDATE}


def resolved(folder, **settings):
    return config.resolve([], {**TINY, **settings, "run.dir": str(folder)})


def lines(run_dir):
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def status(run_dir):
    return json.loads((Path(run_dir) / "status.json").read_text())


def assert_close(one, other, rtol=1e-4):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5, err_msg=str(path))


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """Four trials in two slots: the second fails, so that the third starts while the first runs."""
    folder = tmp_path_factory.mktemp("population")
    settings = (FIRST, WILD, LAST, SHORT)
    return training.train_population(
        [resolved(folder / str(i), **s) for i, s in enumerate(settings)], slots=2, command="typed"
    )


@pytest.fixture(scope="module")
def pair(population, tmp_path_factory):
    """The trial that took the slot of the one that failed, and the same configuration trained alone."""
    alone = training.train(resolved(tmp_path_factory.mktemp("alone") / "run", **LAST), quiet=True)
    return population[2], alone


def test_a_member_is_the_run_alone(pair):
    member, alone = pair
    assert member.status == alone.status == "done"
    assert_close(member.state.params, alone.state.params)
    assert_close(member.state.opt_state, alone.state.opt_state)
    ours, theirs = lines(member.dir), lines(alone.dir)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["env_steps"] == b["env_steps"]
        for name in ("loss", "learning_rate", "entropy", "grad_norm", "episodes", "eval/return_mean"):
            np.testing.assert_allclose(a[name], b[name], rtol=2e-3, atol=1e-5, err_msg=name)
    assert ours[-1]["eval/return_mean"] == member.summary["return_mean"], "the final evaluation is logged too"


def test_a_member_leaves_the_folder_of_a_run_alone(pair):
    member, alone = pair
    there = [sorted(p.relative_to(d).as_posix() for d in (run.dir,) for p in d.rglob("*.*")) for run in pair]
    assert [p for p in there[0] if "state/" not in p] == [p for p in there[1] if "state/" not in p]
    assert (member.dir / "command.txt").read_text() == "typed\n"
    same = {k: v for k, v in config.to_flat(member.config).items() if k != "run.dir"}
    assert same == {k: v for k, v in config.to_flat(alone.config).items() if k != "run.dir"}
    assert status(member.dir)["status"] == "done"
    final = json.loads((member.dir / "eval" / "final.json").read_text())
    assert final == member.summary
    assert_close(load(member.dir, "latest").params, jax.tree.map(lambda x: x[0], member.state.params), rtol=0)


def test_a_trial_that_fails_fails_alone(population):
    assert [run.status for run in population] == ["done", "failed", "done", "done"]
    failed = population[1]
    assert isinstance(failed.error, UserError)
    assert "not a number in " in str(failed.error)
    assert status(failed.dir)["reason"].startswith("UserError: not a number in ")
    assert len(lines(failed.dir)) == status(failed.dir)["env_steps"] // PER_UPDATE < 3
    assert [len(lines(run.dir)) for run in population] == [3, len(lines(failed.dir)), 3, 2]


def test_stopped_and_interrupted_trials_can_be_resumed(population, tmp_path):
    """The judge stops one after its first evaluation; then a signal comes, and the other one is saved."""
    configs = [resolved(tmp_path / str(i), **s) for i, s in enumerate((FIRST, LAST))]
    agents = [build_agent(c) for c in configs]
    program, seen = Program(configs, agents, 2), []

    def judge(evaluated):
        seen.append({number: metrics["chunks"] for number, metrics in evaluated.items()})
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {1} if len(seen) == 1 else ()

    trials = [(i, c, a, Path(c.run.dir)) for i, (c, a) in enumerate(zip(configs, agents, strict=True))]
    ended = dict(training.continue_population(program, iter(trials), judge))
    assert seen == [{0: 1, 1: 1}, {0: 2}, {0: 3}]  # the chunk in progress was ended
    assert (ended[1].status, status(tmp_path / "1")["status"], len(lines(tmp_path / "1"))) == ("stopped", "stopped", 1)
    assert ended[0].status == "done"
    run = training.resume(tmp_path / "1", quiet=True)
    assert run.status == "done"
    assert_close(run.state.params, population[2].state.params)

    configs = [resolved(tmp_path / f"again{i}", **s) for i, s in enumerate((FIRST, {}))]
    agents = [build_agent(c) for c in configs]
    trials = [(i, c, a, Path(c.run.dir)) for i, (c, a) in enumerate(zip(configs, agents, strict=True))]
    seen.clear()
    seen.append({})  # the signal comes at once
    ended = dict(training.continue_population(program, iter(trials), judge))
    assert {run.status for run in ended.values()} == {"terminated"}
    assert [len(checkpoint.available(Path(c.run.dir) / "checkpoints")) for c in configs] == [2, 2]
    ended = dict(training.continue_population(program, iter(trials)))
    assert {run.status for run in ended.values()} == {"done"}
    assert_close(ended[0].state.params, population[0].state.params)
    assert [line["env_steps"] for line in lines(tmp_path / "again0")] == [32, 64, 96]


def test_what_may_differ_within_a_population(tmp_path):
    base = config.resolve([], TINY)
    key = program_key(base, build_agent(base))

    def same(**settings):
        other = config.resolve([], {**TINY, **settings})
        return program_key(other, build_agent(other)) == key

    assert same(**{"agent.learning_rate": 1.0, "agent.gamma": 0.5, "seed": 3, "total_steps": 10, "run.name": "x"})
    assert same(**{"eval.every": 3, "checkpoint.every": 2, "wandb": "offline"})
    for settings in (
        {"model.d_model": 16},
        {"model": "s5"},
        {"agent.num_envs": 8},
        {"agent.anneal": "cosine"},
        {"env.k": 2},
        {"env": "popgym/RepeatPreviousHard"},
        {"seeds": 2},
        {"log.every": 2},
        {"eval.episodes": 8},
    ):
        assert not same(**settings), settings
    for settings in ({"model.d_model": 16}, {"seeds": 2}):
        wrong = [resolved(tmp_path / "a"), resolved(tmp_path / "b", **settings)]
        with pytest.raises(UserError, match="cannot share a program"):
            training.train_population(wrong)
    assert not list(tmp_path.iterdir())


def test_a_program_knows_the_agents_that_it_can_train():
    configs = [config.resolve([], {**TINY, "agent.learning_rate": r}) for r in (1e-3, 2e-3)]
    agents = [build_agent(c) for c in configs]
    program = Program(configs, agents, 2)
    np.testing.assert_allclose(program.values(agents[1]), [2e-3])
    assert program.fits(agents[0].replace(learning_rate=5.0))
    assert not program.fits(agents[0].replace(gamma=0.5)), "gamma is a constant of this program"
