"""Learning curves: the numbers in the CSV are those of metrics.jsonl, and the picture is a picture."""

import csv
import json
import struct

import numpy as np
import pytest

from ssmrl import plotting
from ssmrl.plotting import plot_runs
from ssmrl.registry import UserError
from ssmrl.results import read_curve


def write_run(folder, lines, torn=False):
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + ('{"env_steps": 99, "retu' if torn else ""))
    return folder


@pytest.fixture
def two_seeds(tmp_path):
    lines = [
        {"env_steps": 10, "steps_per_s": 5, "return_mean": [0.0, 1.0]},
        {"env_steps": 20, "steps_per_s": 4, "return_mean": [0.5, None], "loss": [1, 2]},
    ]
    return write_run(tmp_path / "two_seeds", lines, torn=True)


@pytest.fixture
def one_seed(tmp_path):
    return write_run(tmp_path / "one_seed", [{"env_steps": 5, "steps_per_s": 10, "return_mean": [-1.5]}])


def size_of(png):
    header = png.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return struct.unpack(">II", header[16:24])


def test_curves_are_read_without_the_torn_line(two_seeds):
    curve = read_curve(two_seeds)
    np.testing.assert_array_equal(curve.env_steps, [10, 20])
    np.testing.assert_array_equal(curve.wall_s, [10 * 2 / 5, 10 * 2 / 5 + 10 * 2 / 4])  # two seeds share the speed
    np.testing.assert_array_equal(curve.values, [[0, 1], [0.5, np.nan]])
    curve = read_curve(two_seeds, "loss")
    assert (curve.env_steps.tolist(), curve.wall_s.tolist(), curve.values.tolist()) == ([20], [9], [[1, 2]])


def test_several_runs_in_one_picture(two_seeds, one_seed, tmp_path):
    output = tmp_path / "new" / "both.png"
    assert plot_runs([two_seeds, one_seed], output) == output
    assert min(size_of(output)) > 300
    rows = list(csv.reader(output.with_suffix(".csv").read_text().splitlines()))
    assert rows == [
        ["experiment", "env", "env_steps", "wall_s", "mean", "low", "high", "seed_0", "seed_1"],
        ["two_seeds", "", "10", "4.0", "0.5", "0.0", "1.0", "0.0", "1.0"],  # a point without all seeds is not drawn
        ["one_seed", "", "5", "0.5", "-1.5", "", "", "-1.5"],  # one seed has no interval
    ]


def test_the_picture_goes_into_the_first_run_unless_told(one_seed, two_seeds):
    path = plot_runs([one_seed, two_seeds])
    assert path == one_seed / "plots" / "learning_curve.png"
    assert size_of(path)
    assert path.with_suffix(".csv").exists()


def test_curves_differ_in_the_picture(one_seed, tmp_path):
    flat = write_run(tmp_path / "a" / "r", [{"env_steps": i, "return_mean": [0.0]} for i in range(5)])
    rising = write_run(tmp_path / "b" / "r", [{"env_steps": i, "return_mean": [float(i)]} for i in range(5)])
    assert plot_runs([flat]).read_bytes() != plot_runs([rising]).read_bytes()


def test_settings_share_a_curve_and_environments_have_panels(tmp_path):
    runs = []
    for name, seed, model, env in (("a", 0, "s5", "X"), ("b", 1, "s5", "X"), ("c", 0, "gru", "X"), ("d", 0, "s5", "Y")):
        runs.append(write_run(tmp_path / name, [{"env_steps": 5, "steps_per_s": 1, "return_mean": [seed + 0.5]}]))
        (runs[-1] / "config.yaml").write_text(f"{{env: {env}, model: {model}, seed: {seed}}}")
    path = plot_runs(runs, tmp_path / "x.png", statistic="iqm", x="wall_s")
    rows = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert [(r["experiment"], r["env"], r["iqm"], r["low"]) for r in rows] == [
        ("model=s5", "X", "1.0", "0.5"),
        ("model=gru", "X", "0.5", ""),
        ("model=s5", "Y", "0.5", ""),
    ]
    wide, high = size_of(path)
    assert wide > 1.5 * high


def test_runs_in_which_no_episode_ended_are_drawn_empty(tmp_path):
    lines = [{"env_steps": i, "steps_per_s": 1, "return_mean": [None, None]} for i in (1, 2)]
    path = plot_runs([write_run(tmp_path / "endless", lines)])
    assert size_of(path)
    assert len(path.with_suffix(".csv").read_text().splitlines()) == 1


def test_what_is_no_run_or_has_no_curve_yet(tmp_path):
    with pytest.raises(UserError, match=r"is not a run directory: it has no metrics\.jsonl"):
        plot_runs([tmp_path])
    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(UserError, match="has logged no 'return_mean' yet"):
        plot_runs([empty])


def test_an_unknown_metric_is_answered_with_those_there_are(two_seeds):
    with pytest.raises(UserError, match=r"has logged no 'los' yet: it has loss, return_mean, steps_per_s"):
        plot_runs([two_seeds], metric="los")


@pytest.mark.parametrize(("rare", "lines"), [(np.nan, 3), (0.5, 4)])
def test_tiles_that_some_frames_do_not_have_are_not_drawn(rare, lines, tmp_path, monkeypatch):
    curves = {"tile_acc_seen": np.full((2, 3), 0.9), "tile_acc_unseen": np.array([[0.0, rare, 1.0]] * 2)}
    curves |= {"door_acc": np.array([[np.nan, 0.5, 1.0]] * 2), "gen_mse": np.ones((2, 3)), "tile_acc": np.ones((2, 3))}
    figures, save = [], plotting._save
    monkeypatch.setattr(plotting, "_save", lambda figure, *rest: figures.append(figure) or save(figure, *rest))
    plotting.plot_horizon(curves, {}, tmp_path / "horizon.png")
    drawn = [line.get_label() for axes in figures[0].axes for line in axes.lines]
    assert len(drawn) == lines
    assert {"tile_acc_seen", "door_acc", "gen_mse"} <= set(drawn)
    [_, middle, _] = csv.DictReader((tmp_path / "horizon.csv").read_text().splitlines())
    assert middle["tile_acc_unseen"] == ("" if np.isnan(rare) else "0.5")
