"""What the README and docs tell users to type works as it stands there; no block and no line is passed over."""

import os
import re
import shlex
import sys
import tomllib
import types
from pathlib import Path

import pytest

from ssmrl import (
    adaptation,
    comparison,
    evaluation,
    imagining,
    playing,
    plotting,
    registry,
    training,
    world_report,
)
from ssmrl.cli import main
from ssmrl.config import resolve, to_yaml

ROOT = Path(__file__).parents[2]
PAGES = {p: p.read_text(encoding="utf-8") for p in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
TEXT = "\n".join(PAGES.values())
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
BASH = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines() if line.strip()]
LINES = [*dict.fromkeys(line.removesuffix(" --dry-run") for line in BASH)]  # which training always is, here
YAML = [code for language, code in BLOCKS if language == "yaml"]
SESSIONS = [code for language, code in BLOCKS if language == "text" and code.startswith("$ ")]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what commands set for jax ends with the test
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Some runs and a policy to talk about, and commands that take long replaced by what they would be asked."""
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "policy.json").touch()
    presets = {
        "RUN": "demo",
        "OTHER": "demo",
        "WORLD": "worldmodel/cue_recall",
        "CONTROL": "worldmodel/cue_recall",
        "TRIALS": "meta/bandit",
        "DREAMER": "dreamer/cartpole",
    }
    for name, preset in presets.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text(to_yaml(resolve([preset])))
    run = types.SimpleNamespace(dir=Path("runs/RUN"), status="done", summary={})
    monkeypatch.setattr(training, "resume", lambda *_, **__: run)
    monkeypatch.setattr(evaluation, "evaluate_run", lambda *_, **__: {"return_mean": 0.0})
    monkeypatch.setattr(evaluation, "export", lambda *_, **__: {"parameters": 1})
    monkeypatch.setattr(evaluation, "evaluate_exported", lambda *_, **__: {"return_mean": 0.0})
    monkeypatch.setattr(evaluation, "load", lambda run_dir: None)
    monkeypatch.setattr(training, "start_from", lambda config, agent, state: state)
    monkeypatch.setattr(adaptation, "adapt", lambda *_, **__: {})
    monkeypatch.setattr(adaptation, "render", lambda facts: "")
    monkeypatch.setattr(plotting, "plot_runs", lambda run_dirs, output, **_: run_dirs[0])
    monkeypatch.setattr(comparison, "compare_runs", lambda *_: {})
    monkeypatch.setattr(comparison, "render", lambda facts: "")
    monkeypatch.setattr(playing, "play", lambda run_dir, **options: {"output": None, "table": "t"})
    monkeypatch.setattr(world_report, "evaluate_run", lambda *_, **__: {})
    monkeypatch.setattr(world_report, "render", lambda facts: "")
    monkeypatch.setattr(imagining, "imagine", lambda run_dir, **options: {"output": None, "table": "t"})


def test_there_is_something_to_test():
    assert TEXT.count("```") == 2 * len(BLOCKS), "a block does not end"
    assert {language for language, _ in BLOCKS} <= {"bash", "python", "text", "yaml"}
    assert len(PYTHON) >= 2
    assert len([line for line in LINES if line.startswith("ssmrl train")]) >= 3


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("line", LINES)
def test_command(line, capsys):
    words = shlex.split(line, comments=True)
    for word in words:
        if word.startswith(("agent.data=", "agent.demos=")):
            preset = next(w for w in words if w not in ("ssmrl", "worldmodel", "train"))
            record = ["record", preset, "--sequences=4", "--quiet", f"--output={word.partition('=')[2]}"]
            assert main(record) == 0, capsys.readouterr().err
    match words:
        case ["ssmrl", "train" | "sweep" as command, *rest]:
            assert main([command, *rest, "--dry-run"]) == 0, capsys.readouterr().err
        case ["ssmrl", "worldmodel", "train", *_]:
            assert main([*words[1:], "--dry-run"]) == 0, capsys.readouterr().err
        case ["ssmrl", "record", *_]:
            assert main([*words[1:], "--sequences=4"]) == 0, capsys.readouterr().err
        case ["ssmrl", *rest]:
            assert main(rest) == 0, capsys.readouterr().err
        case ["make", *targets]:
            rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(rules)
        case ["pip", "install", *_, what]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert re.fullmatch(r"\.(\[\w+\])?|ssmrl(\[\w+\])?", what)
            assert set(re.findall(r"\[(\w+)\]", what)) <= extras.keys()
        case ["wandb", "sweep", path]:
            assert (ROOT / path).is_file()
        case ["git", "clone", _] | ["cd", _] | ["wandb", *_]:
            pass
        case _:
            pytest.fail(f"this test does not know what to do with: {line}")


@pytest.mark.parametrize("text", YAML, ids=lambda text: text.splitlines()[0])
def test_sweep_file(text, capsys):
    Path("sweep.yaml").write_text(text)
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("session", SESSIONS, ids=lambda s: s.splitlines()[0])
def test_what_a_session_shows(session, capsys):
    command, _, shown = session.partition("\n")
    main(shlex.split(command.removeprefix("$ "))[1:])
    out, err = capsys.readouterr()
    assert (out + err).split() == shown.split()


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python(code, monkeypatch):
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    registries = registry.envs, registry.models, registry.agents
    before = [r._user.copy() for r in registries]
    try:
        exec(compile(code, "README.md", "exec"), module.__dict__)
    finally:
        for r, entries in zip(registries, before, strict=True):
            r._user.clear()
            r._user.update(entries)


def test_what_is_named_exists():
    named = re.findall(r"`((?:ssmrl|tests|benchmarks|docs)/[\w/.-]*)`", TEXT)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
    listed = re.findall(r"^\| `(ssmrl/[\w.]+/?)`, (.*?) \|", TEXT, re.MULTILINE)
    for first, others in listed:
        for other in re.findall(r"`(\w+\.py)`", others):
            assert (ROOT / first).with_name(other).exists(), other


def test_links_lead_somewhere():
    for page, text in PAGES.items():
        links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]*))?\)", text)
        for path, anchor in links:
            target = page.parent / path
            assert target.exists(), f"{page.name}: {path}"
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in [h.lower().replace(" ", "-") for h in heads], f"{page.name}: {path}#{anchor}"
