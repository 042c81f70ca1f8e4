"""What the README says of learning in memory, trained anew: minutes each."""

import pytest

import ssmrl
from ssmrl import adaptation, evaluation

pytestmark = pytest.mark.slow


def adapted(preset, tmp_path, greedy=False, **settings):
    run = ssmrl.train(preset, seeds=3, quiet=True, wandb="off", **{"run.dir": str(tmp_path / "run")})
    test = ssmrl.resolve([str(run.dir / "config.yaml")], settings)
    return adaptation.adapt(run.dir, test, trials=512, step="latest", greedy=greedy)


def test_a_bandit_is_played_as_well_as_by_thompson_sampling(tmp_path):
    facts = adapted("meta/bandit", tmp_path, greedy=True)
    assert facts["policy/return"] > 0.98 * facts["Thompson sampling/return"]
    assert abs(facts["memory wiped/return"] - 50) < 3


def test_a_goal_is_found_once_and_then_remembered(tmp_path):
    facts = adapted("meta/dark_room", tmp_path, **{"env.tasks": "held_out"})
    assert facts["policy/last"] > 3 * facts["policy/first"]
    assert facts["memory wiped/last"] < 1.5 * facts["memory wiped/first"]


def test_the_way_to_turn_is_remembered_for_a_hundred_steps(tmp_path):
    run = ssmrl.train("memory/tmaze_passive", seeds=3, quiet=True, wandb="off", **{"run.dir": str(tmp_path / "run")})
    found = evaluation.evaluate_run(run.dir, env="memory/TMazePassive-100")
    assert found["return_min"] > 0.95
