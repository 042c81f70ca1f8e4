"""What the benchmark of Dreamer measures, in its smallest form."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("shared_folder")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dreamer.py"


@pytest.mark.slow
def test_where_the_time_of_dreamer_goes(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("benchmark_of_dreamer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick", "--out=numbers.json"])
    module.main()
    assert "imagined steps/s" in capsys.readouterr().out
    facts = json.loads(Path("numbers.json").read_text())
    [row] = facts["updates"]
    assert (row["backbone"], row["preset"]) == ("gru", "tiny")
    assert sum(row["share"].values()) == pytest.approx(1)
    assert {"collecting", "sampling", "model's gradient", "imagination", "optimiser"} < row["share"].keys()
    assert all(ms > 0 for name, ms in row["pieces_ms"].items() if name != "actor and critic")  # a difference
    # 8 frames an update are replayed 4 times, 16 at a time; every fourth of these starts 15 steps
    assert row["gradient_steps_per_s"] == pytest.approx(row["env_steps_per_s"] * 2 / 8)
    assert row["imagined_steps_per_s"] == pytest.approx(row["gradient_steps_per_s"] * 4 * 15)
    assert row["memory_mib"] > row["replay_mib"] > 0.1
    assert {k: v["gradient_step_ms"] > 0 for k, v in facts["compared"]["horizon"].items()} == {"2": True, "4": True}
