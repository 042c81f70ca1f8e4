"""What ``ssmrl list`` and ``ssmrl doctor`` say about what is there."""

import json
import os

import pytest

from ssmrl import config, doctor, registry
from ssmrl.cli import main


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what commands set for jax ends with the test
    monkeypatch.setenv("COLUMNS", "120")


def typed(capsys, *words):
    assert main([*words]) == 0
    return capsys.readouterr().out


def test_a_pattern_that_fits_few_environments_shows_their_shapes(capsys):
    facts = {f["name"]: f for f in json.loads(typed(capsys, "list", "envs", "popgym/CountRecall", "--json"))}
    (only,) = facts.values()  # the family that the pattern names
    assert (only["observation"], only["action"]) == ("MultiDiscrete(2, 2)", "Discrete(27)")
    out = typed(capsys, "list", "envs", "popgym/CountRecall")
    line = next(line for line in out.splitlines() if line.startswith("popgym/CountRecallHard "))
    assert " ".join(line.split()[1:]) == "observes MultiDiscrete(13, 13) acts Discrete(17) at most 207 steps"
    assert f"preset popgym/count_recall: {config.presets()['popgym/count_recall']}" in out
    out = typed(capsys, "list", "envs", "popgym/LabyrinthEscapeEasy")
    assert "observes MultiDiscrete(5 x 10)  acts Discrete(4) (left, right, up, down)  at most 1,023 steps" in out
    out = typed(capsys, "list", "envs", "bsuite/MemoryLen/7")
    assert out.splitlines()[-1] == "bsuite/MemoryLen/7  observes Box[3] in [-1, 1]  acts Discrete(2)  at most 9 steps"
    out = typed(capsys, "list", "envs", "popgym/AutoencodeEasy")
    assert "observes (Discrete(2), Discrete(4))" in out


def test_what_cannot_be_built_says_why(capsys):
    (facts,) = json.loads(typed(capsys, "list", "envs", "brax/swimmer", "--json"))
    assert facts["unavailable"].startswith("brax/swimmer cannot run")
    assert "cannot be built: brax/swimmer cannot run" in typed(capsys, "list", "envs", "brax/swimmer")


def test_many_environments_are_names_and_a_hint(capsys):
    out = typed(capsys, "list", "envs", "popgym")
    assert "observes" not in out
    assert out.splitlines()[-1] == "a pattern that fits few names shows their shapes, lengths and presets too"


def test_one_model_shows_its_size(capsys):
    (facts,) = json.loads(typed(capsys, "list", "models", "gru", "--json"))
    assert facts["carry"] == 64
    assert f"{facts['parameters_total']:,} parameters, 64 numbers of memory" in typed(capsys, "list", "models", "gru")
    (s5,) = json.loads(typed(capsys, "list", "models", "s5", "--json"))
    assert s5["carry"] == 64  # 32 complex ones


def test_presets_show_the_scores_that_were_measured(capsys):
    assert "s5 1.000, gru -.297" in typed(capsys, "list", "presets", "repeat_previous_medium")


def test_doctor_says_what_optional_packages_are_for(monkeypatch, capsys):
    real = doctor.installed
    fakes = {"tensorboardX": "2.6", "optuna": None, "navix": None}
    monkeypatch.setattr(doctor, "installed", lambda package: fakes[package] if package in fakes else real(package))
    found = {f["name"]: f for f in json.loads(typed(capsys, "doctor", "--json"))}
    assert found["tensorboardX"] == {
        "verdict": "ok",
        "name": "tensorboardX",
        "detail": "2.6, for TensorBoard files (tensorboard=true)",
    }
    assert found["optuna"]["verdict"] == "note"
    assert found["optuna"]["detail"].endswith("(method: bayes): pip install 'ssmrl[sweep]'")
    families = {e.name.split("/")[0] for e in registry.envs.entries()}
    assert ("navix" in found) == ("navix" in families)
    assert found["wandb=auto"]["detail"].count("(") == 1  # the mode, and why
