"""A run that is stopped, killed or damaged, and goes on; one that cannot."""

import errno
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

import ssmrl
from ssmrl import checkpoint, config, training
from ssmrl.evaluation import load
from tests.cli.runs import (
    DREAMER,
    PER_UPDATE,
    UPDATES,
    assert_same_run,
    assert_same_state,
    final,
    lines,
    status,
    stop_by,
    train,
    typed,
    words,
)

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.optimised  # as users run it
def test_killed_and_resumed_it_ends_bit_for_bit_as_if_never_stopped(reference, tmp_path):
    code, err = stop_by(signal.SIGKILL, tmp_path / "run")
    assert code == -signal.SIGKILL, err
    done = int(checkpoint.available(tmp_path / "run" / "checkpoints")[-1].name) // PER_UPDATE
    assert 0 < done < UPDATES
    assert status(tmp_path / "run")["status"] == "running"
    assert_same_run(training.resume(tmp_path / "run", quiet=True), reference)
    assert status(tmp_path / "run")["status"] == "done"


def test_a_killed_dreamer_goes_on_with_its_replay(tmp_path):
    """And is exported as it is: the parts that acting does not need, too."""
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


@pytest.mark.optimised
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
