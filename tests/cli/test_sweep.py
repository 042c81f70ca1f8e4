"""Sweep files under wandb's agent, and ``ssmrl sweep`` as typed."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ssmrl.arguments import Command, read_arguments
from ssmrl.cli import main
from ssmrl.config import resolve
from ssmrl.sweep import runner, search, spec
from ssmrl.sweep.ledger import Ledger

FILES = sorted(spec.FOLDER.glob("*.yaml"))
CACHE = Path(__file__).parents[2] / ".cache" / "jax"
PROGRAM = SimpleNamespace(key=None, metrics=["loss"], evaluated=["return_mean"])  # in place of a compiled one
TINY = """
method: grid
metric: {name: eval/return_mean, goal: maximize}
parameters:
  env: {value: popgym/RepeatPreviousEasy}
  model: {value: gru}
  model.d_model: {value: 8}
  agent.num_envs: {value: 4}
  agent.num_steps: {value: 8}
  agent.num_minibatches: {value: 1}
  agent.epochs: {value: 1}
  agent.heads: {value: [8]}
  eval.episodes: {value: 4}
  eval.every: {value: 1}
  log.every: {value: 1}
  total_steps: {value: 96}
  agent.learning_rate: {values: [0.001, 1.0e+30, 0.003]}
command: ["${env}", "ssmrl", "train", "${args_no_hyphens}"]
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what commands set for jax ends with the test
    for name in [n for n in os.environ if n.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def typed(capsys, *argv):
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err


# --- under wandb's agent


def agent_command(content, drawn, macro):
    """The words that wandb's agent would run, by its own functions (wandb_agent.py, ``_command_run``)."""
    from wandb.sdk.launch.sweeps import utils

    given = utils.create_sweep_command([c.replace("${args_no_hyphens}", macro) for c in content["command"]])
    variables = utils.create_sweep_command_args({"args": {k: {"value": v} for k, v in drawn.items()}})
    variables |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [content["program"]]}
    words = []
    for chunk in given:
        words += variables[chunk[2:-1]] if chunk.startswith("${") else [chunk]
    return words


@pytest.mark.parametrize("macro", ["${args}", "${args_no_equals}", "${args_no_hyphens}"])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_agents_command_is_the_local_trial(path, macro):
    content = yaml.safe_load(path.read_text())  # as `wandb sweep` does
    sweep = spec.read_sweep(str(path), {})
    trials = search.known_trials(sweep, 3, 0) or search.suggest_trials(sweep, {}, 3, 0)
    assert len(trials) == 3
    spec.check(sweep, [t.parameters for t in trials])
    for trial in trials:
        constants = {p.name: p.values[0] for p in sweep.parameters if p.constant}
        words = agent_command(content, {**constants, **trial.parameters}, macro)
        assert words[:3] == ["/usr/bin/env", "ssmrl", "train"]
        arguments = read_arguments("train", Command(None, "", most=None, settings=True), words[3:])
        assert not arguments.errors
        config = resolve(arguments.words, {"wandb": "off", **arguments.settings})
        assert config == sweep.resolve(trial.parameters)
        assert resolve(arguments.words, arguments.settings).wandb.mode == "auto", "wandb would see nothing of it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_file_says_how_to_run_it_and_holds_no_text_for_a_number(path):
    text = path.read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any(f"ssmrl sweep {path.stem}" in line for line in header)
    assert any(f"wandb sweep ssmrl/configs/sweeps/{path.name} && wandb agent" in line for line in header)
    content = yaml.safe_load(text)
    judged = "score" if path.stem == "world_models" else "return_mean"
    assert content["metric"] == {"name": f"eval/{judged}", "goal": "maximize"}
    assert spec.read_sweep(str(path), {}).notes == ()
    assert set(content["command"]) >= {"${env}", "${args_no_hyphens}"}


@pytest.mark.parametrize("macro", ["${args}", "${args_no_equals}", "${args_no_hyphens}"])
def test_values_as_wandb_writes_them(macro):
    drawn = {
        "agent.learning_rate": 1e-05,  # str() makes 1e-05, True, None and [64, 64] of these
        "agent.normalize_value": True,
        "wandb.entity": None,
        "agent.heads": [64, 64],
        "agent.num_envs": 64.0,
        "preset": "demo",
    }
    words = agent_command({"command": ["${args_no_hyphens}"], "program": "ssmrl"}, drawn, macro)
    arguments = read_arguments("train", Command(None, "", most=None, settings=True), words)
    config = resolve(arguments.words, arguments.settings)
    given = config.agent_parameters
    assert (given["learning_rate"], given["normalize_value"], given["heads"]) == (1e-5, True, (64, 64))
    assert (config.wandb.entity, given["num_envs"], config.wandb.mode) == (None, 64, "off")


# --- trained


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A grid of three in two slots, as a program that is killed when the first checkpoint is there, and run again."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.yaml").write_text(TINY)
    argv = ["sweep", "tiny.yaml", "--population=2", "platform=cpu", f"cache.dir={CACHE}"]
    command = [sys.executable, "-W", "error", "-m", "ssmrl", *argv]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(folder.glob("runs/tiny/0000/checkpoints/*/manifest.json")) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = (folder / "runs/tiny/ledger.jsonl").read_text()
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    return SimpleNamespace(folder=folder, argv=argv, killed=killed, again=again)


def test_a_killed_sweep_goes_on(swept, capsys, monkeypatch):
    folder = swept.folder / "runs" / "tiny"
    assert swept.again.returncode == 0, swept.again.stderr
    assert (folder / "ledger.jsonl").read_text().startswith(swept.killed)
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert sorted(e["trial"] for e in entries if "status" in e) == [0, 1, 2]
    for number, status in enumerate(("done", "failed", "done")):
        assert json.loads((folder / f"{number:04d}" / "status.json").read_text())["status"] == status
    for number in (0, 2):
        lines = (folder / f"{number:04d}" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["env_steps"] for line in lines] == [32, 64, 96]
    before = (folder / "ledger.jsonl").read_text()
    monkeypatch.chdir(swept.folder)
    monkeypatch.setattr(runner, "continue_population", lambda *_: pytest.fail("trained again"))
    code, out, err = typed(capsys, *swept.argv, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["programs"] == 0
    assert (folder / "ledger.jsonl").read_text() == before


def test_the_report(swept):
    out, err = swept.again.stdout, swept.again.stderr
    assert "Traceback" not in err
    assert "note: " not in err, "no wandb, no account"
    folder = swept.folder / "runs" / "tiny"
    final = {n: json.loads((folder / n / "eval" / "final.json").read_text())["return_mean"] for n in ("0000", "0002")}
    ledger = Ledger(folder, json.loads((folder / "ledger.jsonl").read_text().splitlines()[0]))
    ledger.close()
    assert {f"{t.number:04d}": t.value for t in ledger.trials.values() if t.status == "done"} == pytest.approx(final)
    assert "not a number in " in ledger.trials[1].reason
    best = max(final, key=final.__getitem__)
    rows = out.splitlines()
    assert rows[0].split() == ["trial", "status", "eval/return_mean", "agent.learning_rate"]
    assert rows[1].split()[:2] == [str(int(best)), "done"]
    assert rows[3].split()[:2] == ["1", "failed"]
    assert "2 done, 1 failed of 3 trials in" in out
    assert "1 program" in out
    rate = {"0000": "0.001", "0002": "0.003"}[best]
    command = shlex.split(rows[-1])
    assert command[:2] == ["ssmrl", "train"]
    assert f"agent.learning_rate={rate}" in command
    config = resolve([], dict(word.split("=", 1) for word in command[2:]))
    saved = resolve([str(folder / best / "config.yaml")])
    assert (config.agent_parameters, config.model, config.total_steps) == (saved.agent_parameters, "gru", 96)
    assert (folder / "parallel_coordinates.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in table] == [int(best), 2 - int(best), 1]
    assert float(table[0]["eval/return_mean"]) == pytest.approx(final[best])
    assert table[2]["reason"].startswith("UserError: not a number")


def test_a_changed_file_is_refused(swept, capsys, monkeypatch):
    monkeypatch.chdir(swept.folder)
    Path("other").mkdir()
    Path("other/tiny.yaml").write_text(TINY.replace("0.003]", "0.004]"))
    code, _, err = typed(capsys, "sweep", "other/tiny.yaml", *swept.argv[2:])
    assert code == 2
    assert err.startswith("error: runs/tiny holds another sweep: its parameters differs from what you ask for")


def test_a_dry_run_shows_trials_and_programs(capsys, tmp_path):
    (tmp_path / "two.yaml").write_text(TINY.replace("model.d_model: {value: 8}", "model.d_model: {values: [8, 16]}"))
    code, out, _ = typed(capsys, "sweep", "two.yaml", "--dry-run", "--count=5", "--json")
    facts = json.loads(out)
    assert (code, facts["count"], facts["programs"], facts["groups"]) == (0, 5, 2, [[0, 1, 2], [3, 4]])
    assert facts["trials"][4] == {"trial": 4, "parameters": {"model.d_model": 16, "agent.learning_rate": 1e30}}
    code, out, _ = typed(capsys, "sweep", "two.yaml", "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, "6 trials of two (grid), 2 programs")
    assert "program 2: 3 trials, popgym/RepeatPreviousEasy, gru, 4 envs x 8 steps" in out
    assert sorted(os.listdir(tmp_path)) == ["two.yaml"]


# --- decided, with a stand-in for training


@pytest.fixture
def pretend(monkeypatch):
    """Replace training by one that evaluates ``curve(parameters, k)`` for k = 1 to 9, two trials at a time."""

    signals = {"interrupted": signal.SIGINT, "terminated": signal.SIGTERM}

    def install(curve, evaluations=9, statuses=None):
        began = []

        def fake(program, trials, judge, stop):
            queue, live = iter(trials), {}
            while True:
                for _ in range(2 - len(live)):
                    trial = next(queue, None)
                    if trial is not None:
                        number, config, _, folder = trial
                        began.append(number)
                        folder.mkdir(parents=True)
                        live[number] = SimpleNamespace(config=config, dir=folder, k=0, lines=[])
                if not live or stop.is_set():
                    return
                reports = {}
                for number, run in live.items():
                    run.k += 1
                    value = curve(run.config.agent_parameters, run.k)
                    reports[number] = {"chunks": run.k, "eval/return_mean": value}
                    run.lines.append({"env_steps": run.k, "eval/return_mean": value})
                    (run.dir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in run.lines))
                stopped = judge(reports) if judge else ()
                for number, run in list(live.items()):
                    status = (statuses or {}).get(number, "done")
                    if status in signals:
                        stop.signal = signals[status]
                        stop.set()
                    if number in stopped or run.k == evaluations or status != "done":
                        del live[number]
                        status = "stopped" if number in stopped else status
                        error = RuntimeError("boom\nmore") if status == "failed" else None
                        yield number, SimpleNamespace(dir=run.dir, status=status, error=error)

        monkeypatch.setattr(runner, "continue_population", fake)
        monkeypatch.setattr(
            runner, "Program", lambda *_: SimpleNamespace(key=None, metrics=["loss"], evaluated=["return_mean"])
        )
        return began

    return install


def sweep_file(tmp_path, lines, name="s"):
    text = "method: grid\nmetric: {name: eval/return_mean, goal: maximize}\n" + lines
    (tmp_path / f"{name}.yaml").write_text(text)
    return f"{name}.yaml"


RATES = "parameters:\n  eval.every: {value: 1}\n  agent.learning_rate: {values: [0.3, 0.9, 0.5, 0.7, 0.1]}\n"


def statuses(out):
    return {t["trial"]: (t["status"], t["value"]) for t in json.loads(out)["trials"]}


def test_hyperband_stops_at_its_bands(pretend, tmp_path, capsys):
    """Two at a time, eta 2: at band 3, then 6, a trial goes on if it is no worse than rank n / 2 of those there."""
    pretend(lambda p, k: p["learning_rate"] * k)
    file = sweep_file(tmp_path, "early_terminate: {type: hyperband, min_iter: 3, eta: 2}\n" + RATES)
    code, out, _ = typed(capsys, "sweep", file, "--json")
    assert code == 0
    # band 3: {.3, .9} -> rank 1 is .3: both go on; band 6: the same; then .5 with {.9, .5, .3} (rank 1 is .5), and
    # .7 with {.9, .7, .5, .3} (rank 2 is .5; they come together, so .5 stays too); .1 is the worst of five
    ended = {n: (s, round(v, 6)) for n, (s, v) in statuses(out).items()}
    assert ended == {0: ("done", 2.7), 1: ("done", 8.1), 2: ("done", 4.5), 3: ("done", 6.3), 4: ("stopped", 0.3)}
    assert [t["trial"] for t in json.loads(out)["trials"]] == [1, 3, 2, 0, 4]
    bands = [json.loads(x) for x in Path("runs/s/ledger.jsonl").read_text().splitlines() if '"band"' in x]
    assert [(b["trial"], b["band"]) for b in bands] == [
        (0, 3),
        (1, 3),
        (0, 6),
        (1, 6),
        (2, 3),
        (3, 3),
        (2, 6),
        (3, 6),
        (4, 3),
    ]


def test_hyperband_minimizes_and_may_take_the_best_so_far(pretend, tmp_path, capsys):
    """At the band the second of two is worse, before it was better: which one goes depends on what is compared."""
    curves = {0.5: [3, 4, 1], 0.9: [2, 5, 1]}
    pretend(lambda p, k: curves[p["learning_rate"]][k - 1], evaluations=3)
    for strict, expected in (("true", ["done", "stopped"]), ("false", ["stopped", "done"])):
        lines = f"early_terminate: {{type: hyperband, min_iter: 2, strict: {strict}}}\n" + RATES
        file = sweep_file(tmp_path, lines.replace("0.3, 0.9, 0.5, 0.7, 0.1", "0.5, 0.9"), name=strict)
        Path(file).write_text(Path(file).read_text().replace("maximize", "minimize"))
        _, out, _ = typed(capsys, "sweep", file, "--json")
        assert [s for s, _ in dict(sorted(statuses(out).items())).values()] == expected


def test_a_target_ends_the_sweep(pretend, tmp_path, capsys):
    began = pretend(lambda p, k: p["learning_rate"], evaluations=1)
    file = sweep_file(tmp_path, RATES)
    Path(file).write_text(Path(file).read_text().replace("maximize", "maximize, target: 0.9"))
    code, out, _ = typed(capsys, "sweep", file, "--json")
    assert (code, began, list(statuses(out))) == (0, [0, 1], [1, 0])


def test_failures_are_recorded_and_skipped(pretend, tmp_path, capsys):
    began = pretend(lambda p, k: p["learning_rate"], evaluations=1, statuses={1: "failed"})
    file = sweep_file(tmp_path, RATES)
    code, out, err = typed(capsys, "sweep", file)
    assert code == 0
    assert "2/5  trial 1 failed  agent.learning_rate=0.9  RuntimeError: boom" in err
    assert "4 done, 1 failed of 5 trials" in out
    assert out.splitlines()[1].split() == ["3", "done", "0.7", "0.7"]
    assert began == [0, 1, 2, 3, 4]
    code, out, _ = typed(capsys, "sweep", file, "--json")
    assert (code, began) == (0, [0, 1, 2, 3, 4]), "a trial was tried again"


def test_without_any_success_it_fails(pretend, tmp_path, capsys):
    pretend(lambda p, k: None, evaluations=1)
    file = sweep_file(tmp_path, RATES)
    assert typed(capsys, "sweep", file, "--quiet") == (1, "", "")
    code, out, _ = typed(capsys, "sweep", file)
    assert code == 1
    assert "5 failed of 5 trials" in out


@pytest.mark.parametrize(("status", "code"), [("interrupted", 130), ("terminated", 143)])
def test_a_signal_is_no_end_of_a_trial(status, code, pretend, tmp_path, capsys):
    pretend(lambda p, k: 1.0, evaluations=1, statuses={1: status})
    file = sweep_file(tmp_path, RATES.replace("values: [0.3,", "values: [0.2, 0.3,"))
    returned, out, _ = typed(capsys, "sweep", file)
    assert returned == code
    assert f"{status}: everything is saved; go on with:\n  ssmrl sweep s.yaml\n" in out
    assert '"trial": 1, "status"' not in Path("runs/s/ledger.jsonl").read_text()


def test_more_trials_may_be_asked_for_later(pretend, tmp_path, capsys):
    pytest.importorskip("optuna")
    began = pretend(lambda p, k: -abs(p["learning_rate"] - 0.5), evaluations=1)
    text = "method: bayes\nparameters: {agent.learning_rate: {min: 0.0, max: 1.0}}\n"
    (tmp_path / "b.yaml").write_text(text)
    typed(capsys, "sweep", "b.yaml", "--count=3", "--population=2", "--json")
    assert began == [0, 1, 2]
    code, out, _ = typed(capsys, "sweep", "b.yaml", "--count=5", "--population=2", "--json")
    assert (code, began) == (0, [0, 1, 2, 3, 4])
    assert len(statuses(out)) == 5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sweep"], "ssmrl sweep needs FILE: 0 given"),
        (["sweep", "nowhere.yaml"], "no sweep file 'nowhere.yaml'"),
        (["sweep", "models", "--population=0"], "--population=0: expected integer >= 1"),
        (["sweep", "models", "--dryrun"], "did you mean --dry-run"),
        (["sweep", "models", "run.dir=x"], "trials get folders of their own: use --root"),
        (["sweep", "models", "seedz=3"], "unknown key 'seedz': did you mean seed"),
        (["sweep", "control", "agent.gamma=1"], "agent.gamma=1: the sweep file searches it"),
        (["train", "models"], "'models' is a sweep: ssmrl sweep models"),
        (["train", str(FILES[0])], "is a sweep, not a preset: ssmrl sweep "),
    ],
)
def test_what_cannot_work_is_said_at_once(argv, message, capsys, tmp_path):
    code, out, err = typed(capsys, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_metric_that_no_run_logs(capsys, tmp_path, monkeypatch):
    file = sweep_file(tmp_path, RATES)
    Path(file).write_text(Path(file).read_text().replace("eval/return_mean", "los"))
    monkeypatch.setattr(
        runner, "Program", lambda *_: SimpleNamespace(key=None, metrics=["loss"], evaluated=["return_mean"])
    )
    code, _, err = typed(capsys, "sweep", file)
    assert code == 2
    assert "metric.name: no run logs 'los': did you mean loss?" in err
