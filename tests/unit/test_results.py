"""Runs read back: which belong together, what they reached, and intervals against numbers computed by hand."""

import csv
import itertools
import json

import numpy as np
import pytest

from ssmrl.comparison import compare_runs, render
from ssmrl.fields import UserError
from ssmrl.results import distinguishing, interval, label, profile, read_experiments, statistic, summary


def write_run(folder, curve, final=None, **config):
    """A finished run with a curve ``[N][S]`` at steps 10, 20, ..."""
    (folder / "eval").mkdir(parents=True)
    lines = [
        {"env_steps": 10 * (i + 1), "steps_per_s": 10 * len(row), "return_mean": list(row)}
        for i, row in enumerate(curve)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(
        json.dumps({"env": "X", "model": "s5", "seed": 0, "run.dir": folder.name, **config})
    )
    if final is not None:
        facts = {"seeds": len(final)} | {f"return_mean/seed_{i}": x for i, x in enumerate(final)}
        (folder / "eval" / "final.json").write_text(json.dumps(facts))
    return folder


def test_seeds_of_one_setting_are_one_experiment(tmp_path):
    a = write_run(tmp_path / "a", [[0.0, 1.0], [2.0, 3.0], [4.0, 1.0]], final=[4.5, 1.5])
    b = write_run(tmp_path / "b", [[5.0], [7.0]], seed=7, **{"wandb.project": "other"})
    (e,) = read_experiments([a, b])
    assert e.runs == (a, b)
    np.testing.assert_array_equal(e.curve.values, [[0, 1, 5], [2, 3, 7]])  # as far as both have come
    np.testing.assert_array_equal(e.curve.env_steps, [10, 20])
    np.testing.assert_array_equal(e.final, [4.5, 1.5, 7.0])  # the evaluation, and the last chunk of what goes on
    np.testing.assert_array_equal(e.best, [2, 3, 7])
    np.testing.assert_array_equal(e.area, [1, 2, 6])


def test_area_is_the_mean_height_where_all_seeds_have_scores(tmp_path):
    (e,) = read_experiments([write_run(tmp_path / "a", [[None], [0.0], [1.0], [4.0]])])
    assert e.area == pytest.approx((0.5 + 2.5) / 2)
    assert e.best == 4


def test_nothing_is_known_of_runs_in_which_no_episode_ended(tmp_path):
    run = write_run(tmp_path / "a", [[None, None], [None, None]])
    (e,) = read_experiments([run])
    assert np.isnan([e.final, e.best, e.area]).all()
    assert "nan" in render(compare_runs([run]))


def test_the_same_run_twice_is_one_and_its_copy_an_error(tmp_path):
    a, copy = (write_run(tmp_path / name, [[1.0]]) for name in ("a", "copy"))
    assert len(read_experiments([a, a])) == 1
    with pytest.raises(UserError, match=r"copy and .*a are the same experiment with the same seed: name one of them"):
        read_experiments([a, copy])


def test_labels_name_what_differs_within_a_task(tmp_path):
    settings = [
        {"env": "X", "model": "s5", "model.d_state": 8, "agent.num_steps": 5},
        {"env": "X", "model": "s5", "model.d_state": 16, "agent.num_steps": 5},
        {"env": "X", "model": "gru", "model.glu": "none", "agent.num_steps": 5},
        {"env": "Y", "model": "s5", "model.d_state": 8, "agent.num_steps": 99},
    ]
    experiments = read_experiments([write_run(tmp_path / str(i), [[1.0]], **s) for i, s in enumerate(settings)])
    assert distinguishing(experiments) == ["model", "model.d_state"]
    assert [label(e, experiments) for e in experiments] == [
        "model=s5, model.d_state=8",
        "model=s5, model.d_state=16",
        "model=gru",
        "model=s5, model.d_state=8",
    ]
    assert label(experiments[0], experiments[:1]) == "0"


def test_the_interquartile_mean_drops_a_quarter_at_either_end():
    samples = [np.array([0.0, 100.0, 3.0, 4.0]), np.array([-100.0, 1.0, 2.0, 5.0])]
    assert statistic("iqm", samples) == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert statistic("mean", samples) == pytest.approx(15 / 8)


def test_intervals_are_those_of_all_resamples():
    x = np.array([0.0, 1.0, 5.0])
    every = [np.mean(x[list(i)]) for i in itertools.product(range(3), repeat=3)]  # all 27 equally likely resamples
    low, high = interval([x], lambda s, axis: s.mean(axis), confidence=0.8)
    assert (low, high) == pytest.approx(np.quantile(every, [0.1, 0.9]), abs=0.05)
    assert summary([x], "mean") == (2.0, *interval([x], lambda s, axis: s.mean(axis)))


def test_tasks_are_resampled_apart():
    # tasks of equal seeds but different levels: resampling within tasks leaves nothing to vary
    low, high = interval([np.zeros(3), np.full(3, 10.0)], lambda *s, axis: statistic("mean", s, axis))
    assert (low, high) == (5, 5)


def test_one_seed_has_no_interval():
    value, low, high = summary([np.array([[1.0], [2.0]])], "mean")
    assert value.tolist() == [1, 2]
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_profiles_weigh_tasks_alike():
    samples = [np.array([0.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0])]
    fraction, low, high = profile(samples, np.array([-1.0, 0.5, 1.0]))
    assert fraction == pytest.approx([1, (1 / 2 + 3 / 4) / 2, 0])
    assert (low <= fraction).all()
    assert (high >= fraction).all()
    assert high[1] > low[1]
    assert (low[0], high[0]) == (1, 1)


def test_compare_writes_table_picture_and_csv(tmp_path):
    runs = [
        write_run(tmp_path / f"{env}_{model}", [[0.0, 0.5], [level, level + 0.5]], env=env, model=model)
        for env, shift in (("X", 0.0), ("Y", 10.0))
        for model, level in (("s5", shift + 1.0), ("gru", shift))
    ]
    facts = compare_runs([runs[0], runs[2], runs[1], runs[3]])
    assert [(r["env"], r["label"], r["final"]) for r in facts["experiments"]] == [
        ("X", "model=s5", 1.25),
        ("X", "model=gru", 0.25),
        ("Y", "model=s5", 11.25),
        ("Y", "model=gru", 10.25),
    ]
    assert [(r["label"], r["iqm"]) for r in facts["overall"]] == [("model=s5", 6.25), ("model=gru", 5.25)]
    picture = runs[0] / "plots" / "comparison.png"
    assert facts["plot"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(picture.with_suffix(".csv").read_text().splitlines()))
    assert [(r["env"], r["model"], r["final"], r["final_low"]) for r in rows[:2]] == [
        ("X", "s5", "1.25", "1"),
        ("X", "gru", "0.25", "0"),
    ]
    text = render(facts)
    assert "X            model=s5   2      20     1.250 [1.000, 1.500]" in text
    assert "model=gru  5.250 [5.000, 5.500]  (2 tasks)" in text


def test_what_did_not_run_every_task_is_not_pooled(tmp_path):
    a = write_run(tmp_path / "a", [[1.0]], env="X")
    b = write_run(tmp_path / "b", [[1.0]], env="X", model="gru")
    c = write_run(tmp_path / "c", [[1.0]], env="Y")
    assert [r["label"] for r in compare_runs([a, b, c])["overall"]] == ["model=s5"]
