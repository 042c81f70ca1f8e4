"""The program from end to end: train, evaluate, plot; and what it says when that cannot work."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import ssmrl
from ssmrl import checkpoint, config, evaluation, training
from ssmrl.evaluation import SCORE, load
from ssmrl.registry import UserError
from tests.cli.runs import PER_UPDATE, TINY, UPDATES, assert_same_state, final, lines, status, train, typed, words

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.optimised  # as users run it
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


def test_a_run_starts_with_what_another_has_learned(short, tmp_path):
    """Of its best checkpoint, or of the one that is named; each of two seeds starts with what one has learned."""
    first = checkpoint.available(short.dir / "checkpoints")[0]
    best = evaluation.find_checkpoint(short.dir, "best")
    assert first != best
    for number, path in enumerate((short.dir, first)):
        run = train(tmp_path / str(number), 1, seeds=2, init_from=str(path), agent__learning_rate=0.0)
        learned = load(short.dir, step=int((best if path == short.dir else first).name)).params
        assert_same_state(run.state.params, jax.tree.map(lambda x: np.stack([x, x]), learned))


def test_a_run_goes_on_without_what_it_started_from(short, copy, tmp_path):
    started = train(tmp_path / "run", 2, init_from=str(copy), agent__anneal="none")
    whole = train(tmp_path / "whole", 3, init_from=str(short.dir), agent__anneal="none")
    shutil.rmtree(copy)
    resumed = training.resume(started.dir, {"total_steps": 3 * PER_UPDATE}, quiet=True)
    assert_same_state(resumed.state.params, whole.state.params)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_from": "nowhere"}, "init_from=nowhere: nowhere is no run directory"),
        ({"model.d_model": 16}, "does not fit this configuration: params/"),
        ({"agent": "s4wm"}, "is float32"),
    ],
)
def test_what_another_run_has_learned_has_to_fit(settings, message, short, tmp_path):
    settings = {"init_from": str(short.dir), "run.dir": str(tmp_path / "run"), **settings}
    with pytest.raises(UserError, match=message):
        training.train("demo", quiet=True, **settings)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="make_train starts anew"):
        ssmrl.make_train(ssmrl.resolve(["demo"], {"init_from": str(short.dir)}))


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


def test_agents_do_not_compute_in_double_precision(short, tmp_path):
    resolved = config.resolve([], TINY | {"run.dir": str(tmp_path / "run")})
    with jax.enable_x64(True):
        for use in (ssmrl.make_train, ssmrl.train, lambda _: load(short.dir), lambda _: training.resume(short.dir)):
            with pytest.raises(UserError, match="computes in float32: jax_enable_x64 is on; turn it off"):
                use(resolved)
    assert not (tmp_path / "run").exists()


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
