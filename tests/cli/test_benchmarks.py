"""What the benchmarks of world models and of Dreamer measure, in their smallest form."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("shared_folder")

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_of_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def measure(monkeypatch):
    """Run a benchmark in its smallest form; returns what it writes."""

    def run(name):
        monkeypatch.setattr(sys, "argv", [name, "--quick", "--out=numbers.json"])
        load(name).main()
        return json.loads(Path("numbers.json").read_text())

    return run


def test_world_models_are_timed_with_the_blocks_that_are_compared():
    benchmark = load("world_model")
    agents = {name: benchmark.make_agent(name, "small", 64, 4) for name in benchmark.BACKBONES}
    stacks = [agent.model for agent in agents.values()]
    assert {(m.memories, m.norm, m.glu, m.skip, m.num_layers) for m in stacks} == {(2, "pre", "full", "residual", 2)}
    assert {name for name, agent in agents.items() if agent.posterior == "rssm"} == {"rssm"}
    assert (agents["s5"].model.d_model, agents["gru"].model.d_model) == (128, 106)  # twice those of the presets
    assert {agent.sequence_length for agent in agents.values()} == {64}


@pytest.mark.slow
def test_what_an_update_of_a_world_model_costs(measure, capsys):
    facts = measure("world_model")
    assert "latent steps/s" in capsys.readouterr().out
    assert [(row["backbone"], row["length"]) for row in facts["updates"]] == [("s5", 16), ("gru", 16)]
    for row in facts["updates"]:
        assert row["frames_per_s"] == pytest.approx(4 * 16 / (row["ms"] / 1e3))
        assert row["parameters"] == pytest.approx(138_134, rel=0.05)
        assert 0 < row["utilisation_dense"] < 1
        assert row["memory_mib"] > 0
    assert facts["imagination"]["tiny"]["latent_steps_per_s"] > 0


@pytest.mark.slow
def test_where_the_time_of_dreamer_goes(measure, capsys):
    facts = measure("dreamer")
    assert "imagined steps/s" in capsys.readouterr().out
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
