"""Metrics reach every sink as promised, and no sink can stop a run."""

import json
import math
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ssmrl import tracking
from ssmrl.config import Config, WandbConfig
from ssmrl.registry import UserError
from ssmrl.tracking import Tracker, check_sinks, find_wandb_key, read_metrics, wandb_mode

KEY = "0123456789" * 4
OFF = Config(wandb=WandbConfig(mode="off"))
OFFLINE = Config(wandb=WandbConfig(mode="offline", project="p", tags=("a", "b")), agent_parameters={"heads": (64, 64)})


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path, monkeypatch):
    for name in [n for n in os.environ if n.startswith("WANDB")] + ["NETRC", "XDG_CONFIG_HOME"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def lines(run_dir="run"):
    return [json.loads(line) for line in Path(run_dir, "metrics.jsonl").read_text().splitlines()]


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_metrics_file_is_strict_json_per_seed_and_written_at_once():
    with Tracker(Path("run"), OFF) as tracker:
        tracker.log(100, {"loss": [1.0, math.nan], "steps_per_s": math.inf, "return_mean": np.float32([0.5, 0.25])})
        text = Path("run/metrics.jsonl").read_text()
        assert text.endswith("\n")
        assert json.loads(text, parse_constant=refuse) == {
            "env_steps": 100,
            "loss": [1.0, None],
            "steps_per_s": None,
            "return_mean": [0.5, 0.25],
        }
        tracker.log(200, {"loss": [1.0, 2.0]})
    assert [line["env_steps"] for line in lines()] == [100, 200]


def test_resuming_truncates_to_the_checkpoint_and_drops_a_torn_line():
    with Tracker(Path("run"), OFF) as tracker:
        for step in (10, 20, 30):
            tracker.log(step, {"loss": [float(step)]})
    path = Path("run/metrics.jsonl")
    path.write_text(path.read_text() + '{"env_steps": 40, "lo')
    assert [p["env_steps"] for p in read_metrics(path)] == [10, 20, 30]
    with Tracker(Path("run"), OFF, resume=True) as tracker:
        tracker.truncate(20)
        tracker.log(31, {"loss": [math.nan]})
    assert lines() == [
        {"env_steps": 10, "loss": [10.0]},
        {"env_steps": 20, "loss": [20.0]},
        {"env_steps": 31, "loss": [None]},
    ]
    path.write_text('{"env_steps": 1}\n{"env\n{"env_steps": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: damaged line"):
        read_metrics(path)
    assert read_metrics(Path("nowhere")) == []


def test_a_torn_line_is_dropped_even_without_truncating():
    Path("run/metrics.jsonl").write_text('{"env_steps": 1}\n{"env')
    with Tracker(Path("run"), OFF, resume=True) as tracker:
        tracker.log(2, {})
    assert lines() == [{"env_steps": 1}, {"env_steps": 2}]


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


@pytest.mark.parametrize(
    ("setting", "environment", "files", "mode", "reason"),
    [
        ("auto", {}, {}, "offline", "no API key"),
        ("auto", {"WANDB_API_KEY": KEY}, {}, "online", "API key in WANDB_API_KEY"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, {}, "offline", "WANDB_MODE=offline"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, {}, "off", "WANDB_MODE=disabled"),
        ("auto", {"WANDB_MODE": "online"}, {}, "offline", "no API key"),
        ("online", {"WANDB_MODE": "offline"}, {}, "online", "wandb=online"),
        ("off", {"WANDB_API_KEY": KEY}, {}, "off", "wandb=off"),
        ("auto", {}, {".netrc": f"machine api.wandb.ai login user password {KEY}"}, "online", ".netrc"),
        ("auto", {}, {".netrc": f"machine example.org login user password {KEY}"}, "offline", "no API key"),
        ("auto", {}, {".netrc": "machine"}, "offline", "no API key"),
        (
            "auto",
            {"WANDB_BASE_URL": "https://w.org"},
            {".netrc": f"machine w.org login u password {KEY}"},
            "online",
            "",
        ),
        (
            "auto",
            {"WANDB_BASE_URL": "https://w.org"},
            {".netrc": f"machine api.wandb.ai password {KEY}"},
            "offline",
            "",
        ),
        ("auto", {}, {".config/wandb/settings": f"[default]\napi_key = {KEY}\n"}, "online", "settings"),
        ("auto", {}, {".config/wandb/settings": "broken"}, "offline", "no API key"),
    ],
)
def test_mode(setting, environment, files, mode, reason, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        write(Path("home", name), text)
        Path("home", name).chmod(0o600)
    found, why = wandb_mode(setting)
    assert found == mode
    assert reason in why


def test_what_cannot_work_is_refused_before_anything_is_written(monkeypatch):
    online = Config(wandb=WandbConfig(mode="online"))
    with pytest.raises(UserError, match="wandb=online: no API key found; run `wandb login`"):
        Tracker(Path("run"), online)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tensorboard=true: .* pip install 'ssmrl\[tensorboard\]'"):
        Tracker(Path("run"), Config(tensorboard=True))
    assert list(Path("run").iterdir()) == []
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    check_sinks(online)
    assert find_wandb_key() == "WANDB_API_KEY"


class FakeWandb:
    """Stands in for the wandb module: remembers calls, and raises in those named in ``broken``."""

    def __init__(self, *broken):
        self.broken, self.calls = broken, []
        self.run = SimpleNamespace(id="abc", url="https://w/abc", **{n: self._call(n) for n in ("log", "finish")})
        self.run.define_metric, self.run.mark_preempting = self._call("define_metric"), self._call("mark_preempting")
        self.setup, self.teardown = self._call("setup"), self._call("teardown")
        self.Settings = lambda **settings: settings

    def _call(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            if name in self.broken:
                raise RuntimeError("boom\nmore")

        return call

    def init(self, **kwargs):
        self._call("init")(**kwargs)
        if kwargs["mode"] in self.broken:
            raise RuntimeError("no route\nmore")
        return self.run

    def of(self, name):
        return [(args, kwargs) for n, args, kwargs in self.calls if n == name]


@pytest.fixture
def wandb(monkeypatch):
    def install(*broken):
        fake = FakeWandb(*broken)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return install


def test_wandb_gets_flat_config_means_and_seeds(wandb, capsys):
    fake = wandb()
    with Tracker(Path("run"), OFFLINE) as tracker:
        tracker.log(100, {"loss": [1.0, 3.0], "one": [5.0], "scalar": 7.0, "bad": [math.nan, 1.0]})
    ((_, init),) = fake.of("init")
    assert (init["mode"], init["project"], init["name"], init["dir"]) == ("offline", "p", "run", "run")
    assert init["tags"] == ["a", "b"]
    assert init["config"]["agent.heads"] == [64, 64]
    assert init["config"]["wandb.project"] == "p"
    assert not any(isinstance(v, dict) for v in init["config"].values())
    assert init["settings"]["init_timeout"] == 20
    assert fake.of("define_metric") == [(("*",), {"step_metric": "env_steps"})]
    (((logged,), options),) = fake.of("log")
    assert options == {}  # no step=: points may come in any order
    assert math.isnan(logged.pop("bad"))
    assert math.isnan(logged.pop("bad/seed_0"))
    assert logged == {
        "env_steps": 100,
        "loss": 2.0,
        "loss/seed_0": 1.0,
        "loss/seed_1": 3.0,
        "one": 5.0,
        "scalar": 7.0,
        "bad/seed_1": 1.0,
    }
    assert fake.of("finish") == [((), {"exit_code": 0})]
    assert fake.of("mark_preempting") == []
    note = "note: wandb: offline (wandb=offline); upload later with: wandb sync run/wandb/offline-run-*\n"
    assert capsys.readouterr() == ("", note)


def test_wandb_failing_later_is_switched_off_with_one_warning(wandb, capsys):
    fake = wandb("log")
    with Tracker(Path("run"), OFFLINE, quiet=True) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"loss": [1.0]})
    assert len(fake.of("log")) == 1
    assert fake.of("finish") == []
    assert len(lines()) == 3
    assert capsys.readouterr().err == "warning: Wandb stopped (boom): training goes on, metrics.jsonl has all\n"


@pytest.mark.parametrize("method", ["finish", "define_metric", "setup", "offline"])
def test_wandb_failing_anywhere_does_not_stop_a_run(method, wandb, capsys):
    wandb(method)
    with Tracker(Path("run"), OFFLINE) as tracker:
        tracker.log(1, {"loss": [1.0]})
    assert len(lines()) == 1
    assert capsys.readouterr().err.count("warning: ") == 1


def test_an_unreachable_server_leaves_the_run_offline(wandb, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    fake = wandb("online")
    with Tracker(Path("run"), Config()) as tracker:
        tracker.log(1, {"loss": [1.0]})
    assert [kwargs["mode"] for _, kwargs in fake.of("init")] == ["online", "offline"]
    assert len(fake.of("log")) == 1
    assert "offline (not online: no route); upload later" in capsys.readouterr().err


def test_wandb_run_goes_on_under_its_id_except_in_a_sweep(wandb, monkeypatch):
    fake = wandb()
    for resume in (False, True):
        with Tracker(Path("run"), OFFLINE, resume=resume):
            pass
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    with Tracker(Path("run"), OFFLINE, resume=True):
        pass
    arguments = [(kwargs["id"], kwargs["resume"]) for _, kwargs in fake.of("init")]
    assert arguments == [(None, None), ("abc", "allow"), (None, None)]


@pytest.mark.parametrize(("code", "preempting"), [(0, 0), (1, 0), (143, 1)])
def test_exit_codes_reach_wandb(code, preempting, wandb):
    fake = wandb()
    with Tracker(Path("run"), OFFLINE) as tracker:
        tracker.close(code)
    assert fake.of("finish") == [((), {"exit_code": code})]
    assert len(fake.of("mark_preempting")) == preempting


def test_an_exception_in_the_run_is_a_failure_for_wandb(wandb):
    fake = wandb()
    with pytest.raises(KeyError), Tracker(Path("run"), OFFLINE):
        raise KeyError
    assert fake.of("finish") == [((), {"exit_code": 1})]


def test_off_does_not_import_wandb(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    with Tracker(Path("run"), OFF) as tracker:
        tracker.log(1, {"loss": [1.0]})
    assert capsys.readouterr() == ("", "")


def events(folder):
    """All scalars in TensorBoard files, read by their record format: length, checksum, protobuf, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(Path(folder).iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(v.tag, v.simple_value, event.step) for v in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard(capsys):
    config = Config(wandb=WandbConfig(mode="off"), tensorboard=True)
    with Tracker(Path("run"), config) as tracker:
        tracker.log(100, {"loss": [1.0, 2.0], "bad": [math.nan]})
        tracker.truncate(50)
        tracker.log(60, {"loss": [4.0, 4.0]})
    assert events("run/tensorboard") == [
        ("loss", 1.5, 100),
        ("loss/seed_0", 1.0, 100),
        ("loss/seed_1", 2.0, 100),
        ("loss", 4.0, 60),
        ("loss/seed_0", 4.0, 60),
        ("loss/seed_1", 4.0, 60),
    ]
    assert capsys.readouterr() == ("", "")


SCRIPT = """
    import sys
    from pathlib import Path
    from ssmrl import tracking
    from ssmrl.config import Config, WandbConfig
    tracking._INIT_TIMEOUT = 2
    config = Config(wandb=WandbConfig(mode="auto"), seeds=2)
    with tracking.Tracker(Path("run"), config) as tracker:
        tracker.log(100, {"loss": [1.0, float("nan")]})
    with tracking.Tracker(Path("run"), config, resume=True) as tracker:
        tracker.truncate(0)
        tracker.log(200, {"loss": [1.0, 2.0]})
    assert "jax" not in sys.modules
"""


@pytest.mark.parametrize("environment", [{}, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}])
def test_real_wandb_without_network(environment):
    """Without a key, and with a key for a server that nobody answers for: offline, silent but for one line each."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    notes = done.stderr.splitlines()
    assert len(notes) == 2, done.stderr
    why = "not online: " if environment else "no API key"
    assert all(
        n.startswith(f"note: wandb: offline ({why}") and "wandb sync run/wandb/offline-run-*" in n for n in notes
    )
    assert done.stdout == ""
    records = list(Path("run/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(records) == 2
    assert len({r.name for r in records}) == 1  # continued under the same id
    assert lines() == [{"env_steps": 200, "loss": [1.0, 2.0]}]
