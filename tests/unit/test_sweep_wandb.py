"""A run inside a wandb sweep leaves to the sweep what is the sweep's; runs of a population log side by side."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssmrl import config, training
from ssmrl.config import Config, WandbConfig
from ssmrl.tracking import Tracker

OFFLINE = Config(wandb=WandbConfig(mode="offline", project="p", entity="e"), agent_parameters={"heads": (8,)})


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path, monkeypatch):
    for name in [n for n in os.environ if n.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the module that remembers calls, by name and keywords."""
    calls, on_log = [], []

    def call(name):
        def remember(*args, **kwargs):
            calls.append((name, args, kwargs))
            if name == "log" and on_log:
                on_log.pop()()
            return fake.run

        return remember

    names = ("log", "finish", "define_metric", "mark_preempting")
    fake = SimpleNamespace(run=SimpleNamespace(id="abc", url="", **{n: call(n) for n in names}))
    fake.init, fake.setup, fake.teardown, fake.Settings = call("init"), call("setup"), call("teardown"), dict
    fake.calls, fake.on_log = calls, on_log
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.mark.parametrize("variable", ["WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", None])
def test_a_sweep_decides_where_its_runs_go(variable, wandb, monkeypatch):
    if variable:
        monkeypatch.setenv(variable, "x")
    for resume in (False, True):
        with Tracker(Path("run"), OFFLINE, resume=resume, quiet=True) as tracker:
            tracker.log(100, {"loss": [1.0]})
    inits = [kwargs for name, _, kwargs in wandb.calls if name == "init"]
    assert [(i.get("project"), i.get("entity")) for i in inits] == [(None, None) if variable else ("p", "e")] * 2
    assert [(i["id"], i["resume"]) for i in inits] == [(None, None), (None, None) if variable else ("abc", "allow")]
    assert all(i["settings"]["reinit"] == "create_new" for i in inits)
    given = inits[0]["config"]
    assert (given["agent.heads"], given["seeds"]) == ([8], 1)
    assert not any(isinstance(v, dict) for v in given.values()), "flat, dotted, and once: a sweep's own keys are too"
    axes = [(args, kwargs) for name, args, kwargs in wandb.calls if name == "define_metric"]
    assert axes == [(("*",), {"step_metric": "env_steps"})] * 2
    logged = [(args, kwargs) for name, args, kwargs in wandb.calls if name == "log"]
    assert logged[0] == (({"env_steps": 100, "loss": 1.0},), {})


def test_sigterm_from_the_agent(wandb, monkeypatch):
    """The chunk in progress ends and is saved, the run is marked for the queue, and the exit code says why."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "x")
    wandb.on_log.append(lambda: os.kill(os.getpid(), signal.SIGTERM))
    tiny = {  # as in test_population, whose compiled programs serve here too
        "env": "popgym/RepeatPreviousEasy",
        "agent.num_envs": 4,
        "agent.num_steps": 8,
        "agent.num_minibatches": 2,
        "agent.epochs": 1,
        "agent.heads": (8,),
        "agent.anneal": "linear",
        "agent.learning_rate": 1e-3,
        "agent.entropy_coef": 0.1,
        "seed": 7,
        "model": "gru",
        "model.d_model": 8,
        "eval.episodes": 4,
        "log.every": 1,
        "checkpoint.every": 100,
        "total_steps": 96,
        "wandb": "offline",
        "run.dir": "swept",
    }
    run = training.train(config.resolve([], tiny), quiet=True)
    assert run.status == "terminated"
    steps = [args[0]["env_steps"] for name, args, _ in wandb.calls if name == "log"]
    assert [int(p.name) for p in (run.dir / "checkpoints").iterdir()] == [steps[-1]]
    assert steps[-1] < 96
    assert [(name, kwargs) for name, _, kwargs in wandb.calls[-2:]] == [
        ("mark_preempting", {}),
        ("finish", {"exit_code": 143}),
    ]


SCRIPT = """
    from pathlib import Path
    from ssmrl.config import Config, WandbConfig
    from ssmrl.tracking import Tracker
    config = Config(wandb=WandbConfig(mode="offline"))
    one, two = (Tracker(Path(name), config, quiet=True) for name in ("run", "two"))
    ids = {t._copies[0].run.id for t in (one, two)}
    one.log(1, {"loss": [1.0]})
    two.log(1, {"loss": [2.0]})
    one.close()
    two.log(2, {"loss": [3.0]})
    two.close()
    assert len(ids) == 2, ids
"""


def test_real_wandb_keeps_two_runs_at_once_apart():
    Path("two").mkdir()
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    for folder in ("run", "two"):
        assert len(list(Path(folder, "wandb").glob("offline-run-*/run-*.wandb"))) == 1, folder
