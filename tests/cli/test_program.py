"""The program from end to end: train, stop, kill, resume, evaluate, plot; and what it says when that cannot work."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import ssmrl
from ssmrl import checkpoint, config, evaluation, training
from ssmrl.agents import make_agent
from ssmrl.cli import main
from ssmrl.console import Console
from ssmrl.envs import Wrapper
from ssmrl.evaluation import SCORE, load
from ssmrl.registry import UserError

CACHE = Path(__file__).parents[2] / ".cache" / "jax"
UPDATES, PER_UPDATE = 60, 32
TINY = {
    "env": "popgym/RepeatPreviousEasy",
    "env.max_steps": 6,  # truncates: final values are computed
    "agent.num_envs": 4,
    "agent.num_steps": 8,
    "agent.num_minibatches": 2,
    "agent.epochs": 2,
    "agent.heads": (8,),
    "agent.anneal": "linear",
    "model.d_model": 8,
    "model.d_state": 8,
    "eval.episodes": 8,
    "log.every": 1,
    "wandb": "off",
    "cache.dir": str(CACHE),
}
DREAMER = {
    k: v for k, v in TINY.items() if k.split(".")[-1] not in ("num_minibatches", "epochs", "anneal", "d_state")
} | {
    "agent": "dreamer",
    "agent.batch_size": 4,
    "agent.batch_length": 16,
    "agent.replay_ratio": 4,
    "agent.replay_size": 10 * PER_UPDATE,  # written over several times
    "agent.prefill": 2 * PER_UPDATE,
    "agent.priority": 0.5,
    "agent.dream_every": 4,
    "agent.horizon": 3,
    "agent.hidden": (8,),
    "agent.groups": 2,
    "agent.classes": 3,
    "agent.bins": 5,
    "model": "gru",
}
WALL_CLOCK = {"steps_per_s", "wall_s", "compile_s"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what commands set for jax ends with the test
    monkeypatch.setenv("HOME", str(tmp_path))


def words(updates=UPDATES, base=TINY, **more):
    settings = {**base, "total_steps": updates * PER_UPDATE, **{k.replace("__", "."): v for k, v in more.items()}}
    return [f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in settings.items()]


def train(run_dir, updates=3, base=TINY, **more):
    settings = {**base, "total_steps": updates * PER_UPDATE, "run.dir": str(run_dir)}
    return training.train(config.resolve([], settings | {k.replace("__", "."): v for k, v in more.items()}), quiet=True)


def lines(run_dir):
    """The metrics of a run, without those that the clock makes."""
    read = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in read]


def status(run_dir):
    return json.loads((Path(run_dir) / "status.json").read_text())


def final(run_dir):
    facts = json.loads((Path(run_dir) / "eval" / "final.json").read_text())
    return {k: v for k, v in facts.items() if k not in WALL_CLOCK}


def assert_same_state(one, other):
    raw = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(np.asarray(raw(a)), np.asarray(raw(b)), err_msg=str(path))


def assert_same_run(run, reference):
    assert lines(run.dir) == lines(reference.dir)
    assert final(run.dir) == final(reference.dir)
    assert_same_state(run.state, reference.state)


def typed(capsys, *argv):
    capsys.readouterr()
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run that was never stopped."""
    return train(tmp_path_factory.mktemp("reference") / "run", UPDATES, checkpoint__every=UPDATES)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of three updates, with every checkpoint kept. Tests copy it before they change it."""
    return train(tmp_path_factory.mktemp("short") / "run", checkpoint__keep=9)


@pytest.fixture
def copy(short, tmp_path):
    return Path(shutil.copytree(short.dir, tmp_path / "copy"))


def stop_by(signum, run_dir, updates=UPDATES, base=TINY):
    """Train as a program and send it a signal when its first checkpoint is there; returns the exit code and stderr."""
    command = [sys.executable, "-W", "error", "-m", "ssmrl", "train", *words(updates, base, platform="cpu")]
    command.append(f"run.dir={run_dir}")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 240
    while not checkpoint.available(run_dir / "checkpoints") and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.005)
    process.send_signal(signum)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def test_killed_and_resumed_it_ends_bit_for_bit_as_if_never_stopped(reference, tmp_path):
    code, err = stop_by(signal.SIGKILL, tmp_path / "run")
    assert code == -signal.SIGKILL, err
    done = int(checkpoint.available(tmp_path / "run" / "checkpoints")[-1].name) // PER_UPDATE
    assert 0 < done < UPDATES
    assert status(tmp_path / "run")["status"] == "running"
    assert_same_run(training.resume(tmp_path / "run", quiet=True), reference)
    assert status(tmp_path / "run")["status"] == "done"


@pytest.mark.unoptimised
def test_a_killed_dreamer_goes_on_with_its_replay(tmp_path, monkeypatch):
    """And is exported as it is: the parts that acting does not need, too."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # in the program too: else it rounds otherwise
    updates = UPDATES // 2
    reference = train(tmp_path / "reference", updates, DREAMER, checkpoint__every=updates)
    code, err = stop_by(signal.SIGKILL, tmp_path / "run", updates, DREAMER)
    assert code == -signal.SIGKILL, err
    assert 0 < len(lines(tmp_path / "run")) < updates
    run = training.resume(tmp_path / "run", quiet=True)
    assert_same_run(run, reference)
    learner = jax.tree.map(lambda x: np.asarray(x[0]), run.state.learner)
    assert (learner.replay.size, learner.replay.head, learner.steps) == (10, updates % 10, 2 * (updates - 1))
    assert len(np.unique(learner.replay.priority)) > 10
    assert learner.replay.frames.obs.dtype == np.uint8
    ssmrl.export(run.dir, "out", "latest")
    own, exported = load(run.dir, "latest"), load("out")
    assert exported.network == own.network
    assert_same_state(exported.params, own.params)


@pytest.mark.parametrize(
    ("signum", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_the_chunk_saves_and_can_be_resumed(signum, code, word, reference, tmp_path, capsys):
    run = tmp_path / "run"
    returned, err = stop_by(signum, run)
    assert returned == code, err
    assert "Traceback" not in err
    assert f"ssmrl resume {run}" in err
    facts = status(run)
    assert facts["status"] == word
    assert 0 < facts["env_steps"] < facts["total_steps"]
    assert int(checkpoint.available(run / "checkpoints")[-1].name) == facts["env_steps"] == lines(run)[-1]["env_steps"]
    if signum == signal.SIGINT:
        assert typed(capsys, "resume", str(run), "--quiet")[0] == 0
        assert lines(run) == lines(reference.dir)
        assert final(run) == final(reference.dir)


def test_chunks_of_any_length_make_the_same_run(reference, tmp_path):
    run = train(tmp_path / "run", UPDATES, log__every=7, checkpoint__every=100)
    assert_same_state(run.state, reference.state)
    assert final(run.dir) == final(reference.dir)
    logged = lines(run.dir)
    assert [line["updates"] for line in logged] == [*range(7, UPDATES, 7), UPDATES]
    fine = lines(reference.dir)[:7]
    np.testing.assert_allclose(logged[0]["loss"], np.mean([x["loss"] for x in fine], 0), rtol=1e-5)
    episodes = np.array([x["episodes"] for x in fine])
    np.testing.assert_allclose(logged[0]["episodes"], episodes.sum(0))
    returns = np.array([[y or 0 for y in x["return_mean"]] for x in fine])
    np.testing.assert_allclose(logged[0]["return_mean"], (returns * episodes).sum(0) / episodes.sum(0), rtol=1e-4)


def test_the_run_directory_is_as_documented(short):
    there = {p.relative_to(short.dir).as_posix() for p in short.dir.rglob("*") if "checkpoints/" not in str(p)}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "status.json",
        "env.json",
        "checkpoints",
        "eval/final.json",
        "plots/learning_curve.png",
        "plots/learning_curve.csv",
    } <= there
    assert not [p for p in there if ".partial" in p or ".probe" in p]
    assert [int(p.name) for p in checkpoint.available(short.dir / "checkpoints")] == [32, 64, 96]
    facts = json.loads((short.dir / "eval" / "final.json").read_text())
    assert {"return_mean", "return_std", "episodes", "env_steps", "wall_s", "compile_s", "steps_per_s"} <= facts.keys()
    assert (facts["episodes"], facts["env_steps"], facts["length_mean"]) == (8, 96, 6.0)
    assert facts == short.summary
    env = json.loads((short.dir / "env.json").read_text())
    assert {"versions", "devices", "argv", "git_commit"} <= env.keys()
    assert status(short.dir) | {"updated": 0} == {
        "status": "done",
        "env_steps": 96,
        "total_steps": 96,
        "reason": "",
        "score": "return_mean",
        SCORE: facts[SCORE],
        "updated": 0,
    }
    assert [line["env_steps"] for line in lines(short.dir)] == [32, 64, 96]
    assert all(len(line["loss"]) == 1 for line in lines(short.dir))
    assert short.metrics["loss"].shape == (3, 1)
    assert (short.dir / "plots" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_training_from_its_configuration_repeats_the_run(short, tmp_path, capsys):
    code, out, err = typed(capsys, "train", str(short.dir / "config.yaml"), f"run.dir={tmp_path / 'again'}", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)  # one object and nothing else
    assert facts["dir"] == str(tmp_path / "again")
    assert (facts["status"], facts["return_mean"]) == ("done", short.summary["return_mean"])
    assert lines(tmp_path / "again") == lines(short.dir)
    assert (tmp_path / "again" / "command.txt").read_text().startswith("ssmrl train ")


def test_seeds_are_trained_at_once_and_measured_apart(short, tmp_path):
    run = train(tmp_path / "run", seeds=2, eval__every=1)
    two, one = run.metrics, short.metrics
    assert two["loss"].shape == (3, 2)
    np.testing.assert_allclose(two["loss"][:, 0], one["loss"][:, 0], rtol=1e-3)
    np.testing.assert_allclose(two["entropy"][:, 0], one["entropy"][:, 0], rtol=1e-3)
    assert (two["loss"][:, 0] != two["loss"][:, 1]).all()
    assert np.isfinite(two["eval/return_mean"][:-1]).all(), "evaluations during training are metrics too"
    assert (run.summary["episodes"], run.summary["seeds"]) == (16, 2)
    means = [run.summary[f"return_mean/seed_{i}"] for i in range(2)]
    np.testing.assert_allclose(run.summary["return_std"], np.std(means))
    np.testing.assert_allclose(run.summary["return_mean"], np.mean(means))
    apart = [load(run.dir, "latest", i).params for i in range(2)]
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *apart))
    with pytest.raises(UserError, match=r"2 seed\(s\): seed_index=2; use 0 to 1"):
        load(run.dir, seed_index=2)


def test_a_finished_run_says_how_to_go_on(copy, capsys):
    code, _, err = typed(capsys, "resume", str(copy))
    assert code == 2, err
    assert "is finished (96 steps): to go on, raise total_steps" in err
    assert "total_steps=192)" in typed(capsys, "resume", str(copy), "total_steps=40")[2], "twice what it has"
    code, _, err = typed(capsys, "resume", str(copy), f"total_steps={5 * PER_UPDATE}")
    assert code == 0, err
    assert [line["env_steps"] for line in lines(copy)] == [32, 64, 96, 128, 160]
    assert final(copy)["env_steps"] == 160
    assert config.resolve([str(copy / "config.yaml")]).total_steps == 160


def damage_state(path):
    file = max((p for p in (path / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damage_manifest(path):
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])


@pytest.mark.parametrize("damage", [damage_state, damage_manifest])
def test_damaged_checkpoints_are_passed_over_and_removed(damage, short, copy, capsys):
    """The two newest; the resumed run saves the later one anew, and not the earlier one."""
    for path in checkpoint.available(copy / "checkpoints")[-2:]:
        damage(path)
    (copy / "eval" / "final.json").unlink()
    code, _, err = typed(capsys, "resume", str(copy), "log.every=2")
    assert code == 0, err
    assert err.count("falling back to the checkpoint before it") == 2
    saved = checkpoint.available(copy / "checkpoints")
    assert [int(p.name) for p in saved] == [32, 96]
    assert_same_state(checkpoint.restore(saved[-1], short.state), short.state)
    assert final(copy) == final(short.dir)


@pytest.mark.parametrize("damage", [damage_state, damage_manifest])
def test_a_damaged_checkpoint_is_not_measured_and_the_intact_ones_are_named(damage, copy, capsys):
    first, second, third = checkpoint.available(copy / "checkpoints")
    damage(second)
    code, _, err = typed(capsys, "eval", str(copy), "--step=64")
    assert (code, err.startswith(f"error: {second} ")) == (2, True), err
    assert err.endswith("; intact: --step=32, 96\n")
    damage(first)
    damage(third)
    with pytest.raises(checkpoint.CheckpointError, match=r"; no other is intact$"):
        load(copy, "latest")


def test_agents_do_not_compute_in_double_precision(short, tmp_path):
    resolved = config.resolve([], TINY | {"run.dir": str(tmp_path / "run")})
    with jax.enable_x64(True):
        for use in (ssmrl.make_train, ssmrl.train, lambda _: load(short.dir), lambda _: training.resume(short.dir)):
            with pytest.raises(UserError, match="computes in float32: jax_enable_x64 is on; turn it off"):
                use(resolved)
    assert not (tmp_path / "run").exists()


@dataclasses.dataclass(frozen=True)
class Endless(Wrapper):
    """Nothing limits its episodes."""

    def longest_episode(self, params):
        return None


def shown(capsys, settings, *, endless=False, episodes=8):
    """What the console prints of a run from its beginning to its end, line by line."""
    resolved, names = config.resolve([], settings), ("return_mean", "return_mean/seed_0", "env_steps", "steps_per_s")
    agent = make_agent(resolved)
    agent = agent.replace(env=Endless(agent.env)) if endless else agent
    with Console(Path("run"), resolved, agent, False, 9) as console:
        console.done(
            dict.fromkeys(names, 1) | {"seeds": 1, "episodes": episodes, "wall_s": 1, "compile_s": 1}, Path("x")
        )
    return capsys.readouterr().err.splitlines()


def test_without_a_time_limit_the_console_says_what_would_do(capsys):
    plain, endless = shown(capsys, TINY), shown(capsys, TINY, endless=True, episodes=0)
    note, final = (line for line in endless if line not in plain)
    assert note == (
        "note: popgym/RepeatPreviousEasy has no time limit, and an episode that does not end has no return:"
        " env.max_steps=1000 cuts episodes off"
    )
    assert final.startswith("no final return: no episode ended within 100,000 steps, train with env.max_steps=1000; tr")
    assert any(line.startswith("final return 1.000 (8 episodes); trained 1 steps in 1.0 s") for line in plain)


def test_what_to_type_next(capsys):
    steps = config.resolve([], TINY).total_steps
    commands = ["  ssmrl eval run", f"  ssmrl resume run total_steps={2 * steps}", "  ssmrl play run"]
    assert shown(capsys, TINY)[-3:] == commands
    assert shown(capsys, DREAMER)[-4:] == [*commands, "  ssmrl play run --dream"]


def test_without_an_intact_checkpoint_it_starts_again(short, copy, capsys):
    for path in checkpoint.available(copy / "checkpoints"):
        damage_state(path)
    code, _, err = typed(capsys, "resume", str(copy))
    assert code == 0, err
    assert "no intact checkpoint: starting again from the beginning" in err
    assert lines(copy) == lines(short.dir)


def test_a_resumed_run_keeps_what_it_learns(copy, capsys):
    code, _, err = typed(capsys, "resume", str(copy), "agent.learning_rate=1", "model=gru")
    assert code == 2
    assert "agent.learning_rate=1: a resumed run keeps" in err
    assert "model=gru: a resumed run keeps s5" in err


def test_not_a_number_stops_the_run_where_it_was_good(tmp_path, capsys):
    wild = {"agent__learning_rate": 1e30, "agent__epochs": 1, "agent__num_minibatches": 1}
    code, _, err = typed(capsys, "train", *words(9, **wild), "run.dir=run", "--quiet")
    assert code == 2
    assert "Traceback" not in err
    assert "not a number in " in err
    assert "loss" in err
    assert "in update 2, env step 64: the last good checkpoint is run/checkpoints/000000000032" in err
    assert (status("run")["status"], status("run")["env_steps"]) == ("failed", 32)
    assert "not a number" in status("run")["reason"]
    assert [int(p.name) for p in checkpoint.available(Path("run/checkpoints"))] == [32]
    code, _, err = typed(capsys, "train", *words(9, **wild, debug__nans=True), "run.dir=found", "--debug")
    assert code == 1
    assert "FloatingPointError: invalid value (nan) encountered in " in err
    assert "ssmrl/nn/actor_critic.py" in err, "the line that makes it is not told"
    assert not jax.config.jax_debug_nans


def test_a_full_disk_leaves_the_checkpoint_before(short, tmp_path, monkeypatch, capsys):
    save, calls = checkpoint._write_synced, []

    def full(path, text):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(path, text)

    monkeypatch.setattr(checkpoint, "_write_synced", full)
    code, _, err = typed(capsys, "train", *words(3), f"run.dir={tmp_path / 'run'}")
    assert code == 1
    assert "No space left on device" in err
    assert "Traceback" not in err
    facts = status(tmp_path / "run")
    assert facts["status"] == "failed"
    assert "No space left" in facts["reason"]
    monkeypatch.undo()
    assert [int(p.name) for p in checkpoint.available(tmp_path / "run" / "checkpoints")] == [32, 64]
    run = training.resume(tmp_path / "run", quiet=True)
    assert_same_state(run.state, short.state)
    assert lines(run.dir) == lines(short.dir)


def test_a_folder_that_cannot_be_written_is_refused_before_compiling(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training._Loop, "run", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    code, _, err = typed(capsys, "train", *words(3), "run.root=file/runs")
    assert code == 2
    assert "cannot write to the run directory file/runs/" in err
    assert "set run.dir or run.root" in err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    code, _, err = typed(capsys, "train", *words(3), "run.dir=full")
    assert code == 2
    assert "run.dir=full exists and is not empty: choose another, or `ssmrl resume full`" in err
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]

    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    code, _, err = typed(capsys, "train", *words(3), "run.dir=elsewhere")
    assert (code, "Permission denied" in err) == (2, True), err


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    code, out, err = typed(capsys, "train", *words(3), "run.dir=run", "--dry-run", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert (facts["updates"], facts["env_steps"], facts["minibatch"]) == (3, 96, "[8, 2]")
    assert facts["parameters"] > 100
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_a_replay_costs(capsys):
    settings = {"num_envs": 4, "batch_size": 2, "batch_length": 32, "replay_ratio": 2, "replay_size": 256}
    argv = ["env=gymnax/Pendulum-v1", "agent=dreamer", "model=gru", "model.d_model=8", "seeds=2", "--dry-run", "--json"]
    code, out, err = typed(capsys, "train", *argv, *(f"agent.{k}={v}" for k, v in settings.items()))
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert (facts["minibatch"], facts["gradient_steps"]) == ("[32, 2]", 2)
    frame = 4 * (3 + 1 + 1) + 2  # observation, action, reward; two flags
    start = 4 * (64 + 8)  # of a block of 16 frames: latent and memory
    ring = 256 * frame + 16 * (start + 4) + 8  # 4 blocks of 4 environments with priorities; head and size
    assert facts["replay_bytes"] == 2 * ring
    assert facts["state_bytes"] > facts["replay_bytes"]
    imagined = 64 // 8 * 15
    assert facts["activation_bytes_estimate"] == 2 * 4 * (64 + imagined) * 8 * 12


def test_eval_measures_any_checkpoint(copy, capsys):
    code, out, _ = typed(capsys, "eval", str(copy), "--episodes=8", "--json")
    best = json.loads(out)
    assert (code, best["episodes"], best["seeds"]) == (0, 8, 1)
    code, out, _ = typed(capsys, "eval", str(copy), "--episodes=8", "--step=64", "--json")
    assert (code, json.loads(out)["env_steps"]) == (0, 64)
    code, out, _ = typed(capsys, "eval", str(copy), "--episodes=8", "--step=latest", "--greedy", "--json")
    assert (code, json.loads(out)["greedy"], json.loads(out)["env_steps"]) == (0, 1, 96)
    assert (copy / "eval" / f"{96:012d}_greedy.json").exists()
    code, out, _ = typed(capsys, "eval", str(copy), "--episodes=8", "--step=latest", "--greedy")
    assert (code, out.startswith("return_mean ")) == (0, True)
    code, out, _ = typed(capsys, "eval", str(copy), "--episodes=8", "--env=popgym/RepeatPreviousHard", "--json")
    assert (code, json.loads(out)["length_mean"]) == (0, 155.0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--step=40"], "has no checkpoint '40': use best, latest or one of 32, 64, 96"),
        (["--env=popgym/HigherLowerEasy"], "the policy was trained with observations in Discrete(n=4"),
        (["--env=popgym/RepeatPreviousEasi"], "did you mean popgym/RepeatPreviousEasy"),
    ],
)
def test_eval_says_what_does_not_fit(argv, message, short, capsys):
    code, _, err = typed(capsys, "eval", str(short.dir), *argv)
    assert code == 2
    assert message in err


def test_the_loaded_policy_is_the_runs_own(short):
    policy = load(short.dir, "latest")
    assert_same_state(policy.params, jax.tree.map(lambda x: x[0], short.state.params))
    agent = ssmrl.make_agent(short.config)
    own = agent.policy(jax.tree.map(lambda x: x[0], short.state))
    env = SimpleNamespace(env=agent.env, episodes=8, seed=3)
    measured = ssmrl.evaluate(policy, **vars(env))
    compiled = evaluation._run_episodes._cache_size()
    assert ssmrl.evaluate(own, **vars(env)) == measured
    assert evaluation._run_episodes._cache_size() == compiled, "an equal policy was compiled again"
    assert ssmrl.evaluate(own, agent.env, 8, seed=4) != measured


def test_best_is_the_highest_return(copy):
    for path, score in zip(checkpoint.available(copy / "checkpoints"), (0.1, 0.9, 0.5), strict=True):
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | {SCORE: score}))
    best = load(copy, "best").params
    assert_same_state(best, load(copy, 64).params)
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), best, load(copy, "latest").params))


def test_plot_compares_runs(short, reference, tmp_path, capsys):
    code, out, _ = typed(capsys, "plot", str(short.dir), str(reference.dir), f"--output={tmp_path / 'both.png'}")
    assert (code, out.strip()) == (0, str(tmp_path / "both.png"))
    rows = (tmp_path / "both.csv").read_text().splitlines()
    assert rows[0].startswith("experiment,env,env_steps,wall_s,mean,low,high,seed_0")
    assert {row.split(",")[0] for row in rows[1:]} == {
        f"total_steps={r.config.total_steps}" for r in (short, reference)
    }
    assert typed(capsys, "compare", str(short.dir), f"--output={tmp_path / 'x.jpg'}")[0] == 2
    code, out, _ = typed(capsys, "compare", str(short.dir), str(reference.dir), "--json")
    facts = json.loads(out)
    assert (code, facts["overall"]) == (0, [])
    assert [r["final"] for r in facts["experiments"]] == pytest.approx(
        [r.summary["return_mean"] for r in (short, reference)]
    )


def test_gymnax_overwritten_by_its_old_fork_is_told(monkeypatch, capsys):
    from gymnax.environments.environment import Environment

    from ssmrl.envs import gymnax

    monkeypatch.delattr(Environment, "is_truncated")
    gymnax._upstream.cache_clear()
    code, _, err = typed(capsys, "train", "env=gymnax/CartPole-v1", "total_steps=10", "wandb=off", "--dry-run")
    gymnax._upstream.cache_clear()
    assert code == 2, err
    assert "stable-gymnax overwrote it" in err
    assert "--force-reinstall" in err
    assert "Traceback" not in err


def test_a_wrong_environment_is_a_line_not_a_traceback(tmp_path, capsys):
    code, _, err = typed(capsys, "train", "env=popgym/RepeatPreviousEasy", "env.k=60", "--dry-run")
    assert code == 2
    assert err.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_overrides_of_a_resolved_configuration_are_refused(tmp_path):
    with pytest.raises(TypeError, match="resolved"):
        training.train(config.resolve([], TINY), seeds=2, quiet=True)
