"""Learning curves: the numbers in the CSV are those of metrics.jsonl, and the picture is a picture."""

import csv
import json
import struct

import numpy as np
import pytest

from ssmrl.plotting import plot_runs, read_curve
from ssmrl.registry import UserError


def write_run(folder, lines, torn=False):
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + ('{"env_steps": 99, "retu' if torn else ""))
    return folder


@pytest.fixture
def two_seeds(tmp_path):
    lines = [
        {"env_steps": 10, "return_mean": [0.0, 1.0]},
        {"env_steps": 20, "return_mean": [0.5, None], "loss": [1, 2]},
    ]
    return write_run(tmp_path / "two_seeds", lines, torn=True)


@pytest.fixture
def one_seed(tmp_path):
    return write_run(tmp_path / "one_seed", [{"env_steps": 5, "return_mean": [-1.5]}])


def size_of(png):
    header = png.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return struct.unpack(">II", header[16:24])


def test_curves_are_read_without_the_torn_line(two_seeds):
    steps, values = read_curve(two_seeds)
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_array_equal(values, [[0, 1], [0.5, np.nan]])
    steps, values = read_curve(two_seeds, "loss")
    assert (steps.tolist(), values.tolist()) == ([20], [[1, 2]])


def test_several_runs_in_one_picture(two_seeds, one_seed, tmp_path):
    output = tmp_path / "new" / "both.png"
    assert plot_runs([two_seeds, one_seed], output) == output
    assert min(size_of(output)) > 300
    rows = list(csv.reader(output.with_suffix(".csv").read_text().splitlines()))
    assert rows == [
        ["run", "env_steps", "seed", "return_mean"],
        ["two_seeds", "10", "0", "0.0"],
        ["two_seeds", "10", "1", "1.0"],
        ["two_seeds", "20", "0", "0.5"],
        ["two_seeds", "20", "1", "nan"],
        ["one_seed", "5", "0", "-1.5"],
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


def test_what_is_no_run_or_has_no_curve_yet(tmp_path):
    with pytest.raises(UserError, match=r"is not a run directory: it has no metrics\.jsonl"):
        plot_runs([tmp_path])
    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(UserError, match="has logged no 'return_mean' yet"):
        plot_runs([empty])
