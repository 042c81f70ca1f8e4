"""The command line as typed: what it understands, what it refuses, and how fast it says so."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssmrl import cli, config, registry
from ssmrl.cli import main
from ssmrl.config import ConfigError, resolve, to_flat, to_yaml
from ssmrl.registry import UserError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what commands set for jax ends with the test
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")


def typed(capsys, *argv):
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


def settings(capsys, *argv):
    code, out, err = typed(capsys, "config", "--json", *argv)
    assert (code, err) == (0, [])
    return json.loads(out)


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--help"], 0, "usage: ssmrl COMMAND"),
        (["train", "typo=1"], 2, "unknown key 'typo'"),
        (["train", "--agent.learning_rat", "1e-3", "env=popgym/RepeatPrevEasy"], 2, "did you mean agent.learning_rate"),
        (["list", "envs"], 0, "popgym/RepeatPrevious[Easy|Medium|Hard]"),
        (["train", "--help"], 0, "agent.learning_rate"),
    ],
)
def test_answers_come_before_jax_is_imported(argv, code, says):
    """One second of processor time, interpreter included; a busy machine must not fail this."""
    script = "import sys\nfrom ssmrl.cli import main\ncode = main(sys.argv[1:])\n"
    script += "assert not {'jax', 'flax', 'gymnax', 'wandb', 'brax'} & sys.modules.keys()\nsys.exit(code)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script, *argv], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_the_module_runs():
    done = subprocess.run([sys.executable, "-m", "ssmrl", "trian"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command 'trian': did you mean ssmrl train? (ssmrl --help)\n"


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m ssmrl list envs --json | head -n 1", shell=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[\n", "")


SWEPT = {
    "preset": "a.yaml",
    "agent.learning_rate": 1e-05,
    "agent.heads": [64, 64],
    "agent.normalize_obs": True,
    "run.name": None,
    "agent.entropy_coef": -0.5,
    "model": "gru",
    "seeds": 2,
}


@pytest.mark.parametrize(
    "argv",
    [
        [f"--{k}={v}" for k, v in SWEPT.items()],  # ${args}
        [word for k, v in SWEPT.items() for word in (f"--{k}", str(v))],  # ${args_no_equals}
        [f"{k}={v}" for k, v in SWEPT.items()],  # ${args_no_hyphens}
    ],
)
def test_the_three_ways_in_which_a_wandb_agent_passes_arguments(argv, capsys):
    Path("a.yaml").write_text("total_steps: 5")
    found = settings(capsys, *argv)
    assert found["agent.learning_rate"] == 1e-5
    assert found["agent.heads"] == [64, 64]
    assert found["agent.normalize_obs"] is True
    assert found["run.name"] is None
    assert found["agent.entropy_coef"] == -0.5
    assert (found["model"], found["seeds"], found["total_steps"]) == ("gru", 2, 5)
    assert found == settings(capsys, "a.yaml", *[f"{k}={v}" for k, v in SWEPT.items() if k != "preset"])


@pytest.mark.parametrize(
    ("argv", "errors"),
    [
        (["nonsense"], ["unknown command 'nonsense': it is one of train, resume, sweep, eval, adapt, export, "]),
        (["train", "--dry-runn", "seed=3"], ["unknown option 'dry-runn': did you mean --dry-run (check everything"]),
        (["train", "-x"], ["unknown option '-x' (ssmrl train --help)"]),
        (["train", "--seeds"], ["--seeds has no value: write --seeds=VALUE"]),
        (["train", "--seeds", "--json"], ["--seeds has no value: write --seeds=VALUE"]),
        (["train", "seeds=0", "--x", "gone"], ["unknown key 'x'", "seeds=0: expected integer >= 1"]),
        (["train", "agent.num_envs=10", "agent.num_minibatches=3"], ["agent.num_envs=10, agent.num_minibatches=3: "]),
        (
            ["train", "env=popgym/RepeatPreviousEasy", "env.k=60"],
            ["env.k=60, env.num_decks=1: the deck must have a card"],
        ),
        (["eval"], ["ssmrl eval needs RUN|POLICY: 0 given"]),
        (["eval", "a", "b"], ["ssmrl eval takes RUN|POLICY only: 'b' is too much"]),
        (
            ["eval", "a", "--step=worst", "--episodes", "0", "--foo=3"],
            [
                "--step=worst: expected best|latest or integer",
                "--episodes=0: expected integer >= 1",
                "unknown option 'foo': (ssmrl eval --help)",
            ],
        ),
        (
            ["play", "a", "--max-steps", "0", "--dream_steps=0", "fps=0"],
            ["--max-steps=0: expected", "--dream_steps=0: expected", "fps=0: expected"],  # as typed
        ),
        (["eval", "gone"], ["'gone' is no run: it has no config.yaml (ssmrl list runs)"]),
        (["plot"], ["ssmrl plot needs RUN ...: 0 given"]),
        (["compare", "--output=x.jpg", "nowhere"], ["'nowhere' is no run: it has no config.yaml"]),
        (["resume"], ["ssmrl resume needs RUN: 0 given"]),
        (["resume", "gone", "a=1"], ["'gone' is no run"]),
        (["doctor", "x"], ["ssmrl doctor takes no names: 'x' is too much"]),
        (["list"], ["ssmrl list needs envs|models|agents|presets|runs [PATTERN]"]),
        (["list", "evns"], ["ssmrl list 'evns': did you mean envs?"]),
        (["list", "envs", "popgymm"], ["unknown env 'popgymm': known: brax, bsuite, "]),
        (["config", "--explain", "agent.gama"], ["unknown key 'agent.gama': did you mean agent.gamma (discount;"]),
    ],
)
def test_errors_are_lines_with_exit_code_2(argv, errors, capsys):
    code, out, err = typed(capsys, *argv)
    assert (code, out) == (2, "")
    assert len(err) == len(errors), err
    for line, start in zip(err, errors, strict=True):
        assert line.startswith(f"error: {start}")


def saved_run(name="runs/one", **overrides):
    Path(name).mkdir(parents=True)
    Path(name, "config.yaml").write_text(to_yaml(resolve([], overrides)))
    return Path(name)


def test_resume_refuses_by_name_what_it_would_have_to_ignore(capsys):
    saved_run(model="gru")
    code, _, err = typed(capsys, "resume", "runs/one", "model=s5", "seed=1", "total_steps=x", "--agent.gamma", "0.5")
    assert code == 2
    assert [line.split(":")[1] for line in err] == [" model=s5", " seed=1", " total_steps=x", " agent.gamma=0.5"]
    code, _, err = typed(capsys, "resume", "runs/onee")
    assert err == ["error: 'runs/onee' is no run: did you mean runs/one? (ssmrl list runs)"]


@pytest.fixture
def training(monkeypatch):
    """The library's functions, replaced by a record of their calls."""
    calls = []

    def result(status="done"):
        return SimpleNamespace(
            dir=Path("runs/one"), status=status, summary={"return_mean": float("nan"), "episodes": 4}
        )

    fake = SimpleNamespace(
        status="done",
        calls=calls,
        train=lambda config, **options: calls.append((config, options)) or result(fake.status),
        resume=lambda path, overrides, **options: calls.append((path, overrides, options)) or result(fake.status),
        dry_run=lambda config: {"parameters": 569, "minibatch": (4, 2), "scale": 1 / 3},
        evaluate_run=lambda path, **options: calls.append((path, options)) or {"return_mean": 0.25},
        plot_runs=lambda paths, output, **options: calls.append((paths, output, options)) or Path("plot.png"),
    )
    for name in ("training", "evaluation", "plotting"):
        monkeypatch.setitem(sys.modules, f"ssmrl.{name}", fake)
        monkeypatch.setattr(f"ssmrl.{name}", fake, raising=False)
    return fake


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("interrupted", 130), ("terminated", 143)])
def test_exit_codes_follow_the_run(status, code, training, capsys):
    training.status = status
    saved_run()
    assert typed(capsys, "train", "seeds=2", "--quiet")[0] == code
    assert typed(capsys, "resume", "one", "total_steps=2e6", "wandb=off")[0] == code
    (trained, options), (path, overrides, _) = training.calls
    assert trained == resolve([], {"seeds": 2})
    assert options == {"quiet": True, "command": "ssmrl train seeds=2 --quiet"}
    assert (path, overrides) == (Path("runs/one"), {"total_steps": 2_000_000, "wandb": "off"})


def test_json_on_standard_output_and_nothing_else(training, capsys):
    saved_run()
    expected = {"dir": "runs/one", "status": "done", "return_mean": None, "episodes": 4}
    assert json.loads(typed(capsys, "train", "--json", "seed=1")[1]) == expected
    assert training.calls[-1][1]["quiet"] is True
    assert json.loads(typed(capsys, "resume", "one", "--json")[1]) == expected
    assert json.loads(typed(capsys, "eval", "one", "--json", "--step", "latest")[1]) == {"return_mean": 0.25}
    assert json.loads(typed(capsys, "plot", "one", "--json")[1]) == {"plot": "plot.png"}
    assert json.loads(typed(capsys, "train", "--dry-run", "--json")[1])["parameters"] == 569
    assert typed(capsys, "train", "--dry-run")[1].splitlines() == [
        "parameters  569",
        "minibatch   [4, 2]",
        "scale       0.3333",
    ]


def test_eval_and_plot_pass_their_options_on(training, capsys):
    saved_run("runs/one")
    saved_run("runs/two")
    argv = ["--episodes", "3", "--step=640", "--env", "POPGYM/repeatfirsteasy", "--greedy", "seed=4"]
    assert typed(capsys, "eval", "runs/one", *argv)[0] == 0
    typed(capsys, "eval", "runs/one")
    argv = ["--output", "x.png", "--statistic=iqm", "--x", "wall_s", "--metric=loss"]
    assert typed(capsys, "plot", "one", "runs/two", *argv) == (0, "plot.png\n", [])
    assert training.calls == [
        (Path("runs/one"), {"step": 640, "episodes": 3, "env": "popgym/RepeatFirstEasy", "greedy": True, "seed": 4}),
        (Path("runs/one"), {"step": "best", "episodes": 256, "env": None, "greedy": False, "seed": 0}),
        (
            [Path("runs/one"), Path("runs/two")],
            Path("x.png"),
            {"metric": "loss", "statistic": "iqm", "x": "wall_s"},
        ),
    ]


def test_an_evaluation_of_episodes_without_an_end_says_so(training, capsys):
    saved_run()
    training.evaluate_run = lambda *_, **__: {"return_mean": float("nan"), "episodes": 0}
    code, out, err = typed(capsys, "eval", "one")
    assert (code, out.split()) == (0, ["return_mean", "nan", "episodes", "0"])
    assert err == [
        "note: no episode ended within 100,000 steps, so that none has a return:"
        " train with env.max_steps=1000, which cuts episodes off"
    ]
    assert typed(capsys, "eval", "one", "--quiet")[2] == []


def test_steps_of_a_dream_need_a_dream(capsys):
    saved_run()
    code, _, err = typed(capsys, "play", "one", "--dream-steps", "5")
    assert (code, err) == (2, ["error: --dream-steps=5: nothing is dreamt; add --dream, or leave it out"])


def test_sinks_are_checked_before_anything_is_made(training, capsys):
    code, _, err = typed(capsys, "train", "wandb=online")
    assert (code, training.calls) == (2, [])
    assert err[0].startswith("error: wandb=online: no API key found")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("first\nsecond"), 2, ["error: first", "second"]),
        (ConfigError(["one", "two"]), 2, ["error: one", "error: two"]),
        (RuntimeError("it broke\nat length"), 1, ["error: RuntimeError: it broke (--debug shows where)"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_failures_are_one_error_each_unless_debugging(error, code, line, training, capsys):
    def fail(*args, **options):
        raise error

    training.train = fail
    assert typed(capsys, "train", "seed=1") == (code, "", line)
    if code != 130:
        found, _, err = typed(capsys, "train", "seed=1", "--debug")
        assert found == code
        assert err[0].startswith("Traceback")


def test_jax_is_told_where_to_run_before_it_is_imported(training, tmp_path, capsys):
    typed(capsys, "train", "platform=cpu")
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache" / "ssmrl" / "jax")
    typed(capsys, "train", "cache.dir=elsewhere")
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    typed(capsys, "train", "cache.dir=off")
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"


def test_the_users_own_jax_settings_stand(training, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu,cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    typed(capsys, "train", "seed=1")
    assert (os.environ["JAX_PLATFORMS"], os.environ["JAX_COMPILATION_CACHE_DIR"]) == ("cpu,cpu", "mine")


@pytest.mark.parametrize("argv", [["train"], ["eval", "one"], ["record"]])
def test_double_precision_is_refused(argv, training, monkeypatch, capsys):
    saved_run()
    monkeypatch.setenv("JAX_ENABLE_X64", "0")
    assert typed(capsys, "train")[0] == 0
    monkeypatch.setenv("JAX_ENABLE_X64", "True")
    code, _, err = typed(capsys, *argv)
    assert (code, err) == (2, ["error: ssmrl computes in float32: JAX_ENABLE_X64=True is set; unset it"])


def test_a_gpu_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    code, _, err = typed(capsys, "train", "platform=gpu", "--dry-run")
    assert (code, err) == (2, ["error: platform=gpu: jax finds no GPU; use platform=auto, or see ssmrl doctor"])
    assert "JAX_PLATFORMS" not in os.environ


def test_config_shows_yaml_that_makes_the_same_configuration(capsys):
    _, out, _ = typed(capsys, "config", "model=gru", "seeds=3")
    Path("c.yaml").write_text(out)
    assert resolve(["c.yaml"]) == resolve([], ["model=gru", "seeds=3"])
    assert settings(capsys, "c.yaml") == json.loads(json.dumps(to_flat(resolve(["c.yaml"]))))


def test_config_explains_where_a_value_comes_from(capsys):
    Path("p.yaml").write_text("agent.gamma: 0.9")
    _, out, _ = typed(capsys, "config", "p.yaml", "agent.gamma=0.5", "--explain", "agent.gamma")
    gamma = registry.agents.find("ppo").parameters()["gamma"]
    assert out.splitlines() == [
        "agent.gamma=0.5",
        f"  {gamma.doc}",
        "  number >= 0 and <= 1",
        f"  default: {gamma.default}",
        "  preset p.yaml: 0.9",
        "  command line: 0.5",
    ]


def test_help_shows_the_keys_of_what_is_chosen(capsys):
    _, out, _ = typed(capsys, "train", "model=gru", "agent.gamma=0.125", "--help")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert "model.d_state" not in lines
    assert "0.125" in lines["agent.gamma"]
    assert "(integer >= 1)" in lines["seeds"]
    assert "--dry-run" in lines
    assert len(typed(capsys, "--help")[1].splitlines()) <= 26
    _, out, _ = typed(capsys, "resume", "--help")
    assert "total_steps" in out
    assert "agent.gamma" not in out


def test_lists(capsys):
    _, out, _ = typed(capsys, "list", "envs", "popgym")
    families = {entry.family for entry in registry.envs.entries() if entry.name.startswith("popgym/")}
    assert all(family in out for family in families)
    assert out.count("RepeatPrevious") == 1
    _, out, _ = typed(capsys, "list", "env", "popgym/repeatpreviousHARD")
    assert out.splitlines()[0].startswith("popgym/RepeatPreviousHard: ")
    assert any(line.split()[:2] == ["k", "64"] for line in out.splitlines())
    for part in ("RepeatPreviousHa", "repeatprevious"):  # the only one, and the only family
        _, out, _ = typed(capsys, "list", "envs", part)
        assert any(line.split()[:1] == ["k"] for line in out.splitlines())
    _, out, _ = typed(capsys, "list", "models", "s5", "--json")
    (facts,) = json.loads(out)
    assert facts["parameters"]["d_model"]["type"] == "integer >= 1"
    _, out, _ = typed(capsys, "list", "models")
    assert [line.split()[0] for line in out.splitlines()] == [e.name for e in registry.models.entries()]
    _, out, _ = typed(capsys, "list", "presets", "--json")
    assert json.loads(out) == config.presets()


def test_list_runs(capsys):
    assert typed(capsys, "list", "runs")[1] == "no run in runs (--root=DIR looks elsewhere)\n"
    status = {
        "status": "running",
        "env_steps": 1000,
        "total_steps": 2000,
        "return_mean": 0.5,
        "updated": "noon",
        "reason": "",
    }
    Path(saved_run("runs/one"), "status.json").write_text(json.dumps(status))
    Path(saved_run("runs/sweep/two"), "status.json").write_text("{torn")
    Path(saved_run("runs/three"), "status.json").write_text('{"status": "failed", "reason": "not a number"}')
    lines = typed(capsys, "list", "runs")[1].splitlines()
    assert lines[0].split() == ["runs/one", "running", "1,000/2,000", "return", "0.500", "noon"]
    assert lines[1].split()[:2] == ["runs/sweep/two", "unreadable"]
    assert lines[2].endswith("not a number")
    (found,) = json.loads(typed(capsys, "list", "runs", "one", "--json")[1])
    assert found == {"dir": "runs/one", **status}


def test_without_arguments_train_takes_the_demo(training, monkeypatch, tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(config, "PRESETS", tmp_path / "configs")
    typed(capsys, "train")
    assert training.calls[-1][0] == resolve()
    (tmp_path / "configs" / "demo.yaml").write_text("seeds: 7")
    typed(capsys, "train", "--quiet")
    assert training.calls[-1][0].seeds == 7
    typed(capsys, "train", "seed=1")
    assert training.calls[-1][0].seeds == 1


def test_doctor(monkeypatch, capsys):
    from ssmrl import doctor

    code, out, _ = typed(capsys, "doctor", "--json")
    findings = {f["name"]: f for f in json.loads(out)}
    assert code == int(any(f["verdict"] == "broken" for f in findings.values()))
    assert findings["devices"]["verdict"] == "ok"
    assert findings["wandb=auto"]["detail"].startswith("offline (no API key)")
    assert "cache" in findings
    real = doctor.installed
    fakes = {"stable-gymnax": "0.1", "optax": None, "brax": "0.14.2", "jax": "0.10.2", "jaxlib": "0.9.0"}
    monkeypatch.setattr(
        doctor, "installed", lambda package: fakes.get(package, real(package)) if package in fakes else real(package)
    )
    code, out, _ = typed(capsys, "doctor")
    assert code == 1
    broken = [line.split()[1] for line in out.splitlines() if line.split()[0] == "broken"]
    assert sorted(broken) == ["gymnax", "jax", "optax"]
    assert "pip uninstall stable-gymnax" in out
    assert "note  brax/swimmer" in out


def test_every_command_has_help(capsys):
    for name in cli._COMMANDS:
        code, out, err = typed(capsys, name, "--help")
        assert (code, err) == (0, [])
        assert out.startswith(f"usage: ssmrl {name}")
