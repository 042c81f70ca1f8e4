"""``ssmrl play`` as typed: what it writes is what the policy did."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssmrl import config, envs, evaluation, film, playing, training
from ssmrl.cli import main
from ssmrl.envs import Environment
from ssmrl.envs.popgym.repeat_previous import RepeatPrevious

LENGTH = 51  # steps of an episode
STEPS = 22_848  # 7 updates of 64 environments x 51 steps


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("play") / "run"
    training.train("demo", total_steps=20_000, quiet=True, **{"run.dir": str(folder), "wandb": "off"})  # as in docs/
    return folder


@pytest.fixture(scope="module")
def policy(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "policy"
    evaluation.export(run, folder)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what commands set for jax ends with the test


def typed(capsys, *words):
    """Exit code, standard output as JSON, and standard error."""
    code = main(["play", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_a_film_has_a_frame_for_every_state(run, capsys):
    code, facts, err = typed(capsys, run)
    assert (code, err) == (0, "")
    assert facts["output"] == str(run / "media" / f"{STEPS}_seed_0.gif")
    assert (facts["lengths"], facts["endings"]) == ([LENGTH, LENGTH], ["terminated", "terminated"])
    with Image.open(facts["output"]) as gif:
        durations, reset = [], []
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
            picture = np.asarray(gif.convert("RGB"), int)
            assert picture.shape == (240, 520, 3)
            reset.append((abs(picture[20:40, 400:] - film.RED).sum(-1) < 60).sum() > 500)
    assert durations == [190] * LENGTH + [1500] + [190] * LENGTH + [1500]
    assert np.flatnonzero(reset).tolist() == [0, LENGTH + 1]


def test_what_is_shown_is_what_the_network_does_in_training(run):
    """Values from one parallel pass over the recorded episode: wrong inputs or a late reset would change them."""
    policy = evaluation.load(run)
    env, params = envs.make("popgym/RepeatPreviousEasy")
    episode = playing.run_episode(policy, env, params, jax.random.key(3))
    assert episode.length == LENGTH
    obs, actions = (jnp.array(x)[:, None] for x in (episode.obs, episode.actions))
    reset = jnp.zeros((LENGTH, 1), bool).at[0].set(True)
    before = jnp.concatenate([jnp.zeros((1, 1), actions.dtype), actions[:-1]])
    reward = jnp.concatenate([jnp.zeros((1, 1)), jnp.array(episode.rewards, jnp.float32)[:-1, None]])
    _, _, value = policy.sequence(policy.initial_carry(1).memory, obs, reset, before, reward)
    np.testing.assert_allclose(episode.values, value[:, 0], atol=1e-5)
    assert np.ptp(episode.values) > 1e-4
    # the rewards are those of the game: +-1/48 for naming the card of three steps ago
    right = np.array([t >= 3 and episode.actions[t] == episode.obs[t - 3] for t in range(LENGTH)])
    expected = np.where(np.arange(LENGTH) < 3, 0, np.where(right, 1, -1) / 48)
    np.testing.assert_allclose(episode.rewards, expected, atol=1e-6)
    assert [int(s.time) for s in episode.states] == [*range(LENGTH + 1)]


def test_a_table_adds_up(run, capsys):
    assert main(["play", str(run), "--text", "--episodes=1", "--seed=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["t", "reset", "observation", "action", "reward", "value", "return"]
    assert [line.split()[0] for line in lines if "RESET" in line] == ["0"]
    steps = lines[1 : LENGTH + 1]
    assert lines[LENGTH + 1].strip() == f"terminated after {LENGTH} steps"
    rewards = [float(line.split()[-3]) for line in steps]
    total = float(steps[-1].split()[-1])
    assert sum(rewards) == pytest.approx(total, abs=5e-4 * LENGTH)
    facts = dict(line.split(maxsplit=1) for line in lines[LENGTH + 2 :])
    assert json.loads(facts["returns"]) == pytest.approx([total], abs=1e-3)
    assert "hearts" in "".join(steps)
    assert not (run / "media" / f"{STEPS}_seed_0.txt").exists()


def test_seeds_and_greed_choose_what_happens(run, capsys):
    first, again, other, greedy = (
        typed(capsys, run, "--text", "--episodes=1", *more)[1]["table"]
        for more in ((), (), ("--seed=1",), ("--greedy",))
    )
    assert first == again
    assert len({first, other, greedy}) == 3


def test_files_other_than_films(run, capsys):
    code, facts, _ = typed(capsys, run, "--output=new/strip.png", "--episodes=1", "--max-steps=20")
    assert (code, facts["lengths"], facts["endings"]) == (0, [20], ["still running"])
    with Image.open("new/strip.png") as strip:
        assert strip.size == (1040, 720)
    code, facts, _ = typed(capsys, run, "--output=steps.txt", "--episodes=1", "--env=popgym/RepeatPrevious")
    assert code == 0
    assert Path("steps.txt").read_text() == facts["table"] + "\n"


def test_an_exported_policy_plays_as_its_run_does_and_stays_as_it_is(run, policy, capsys, monkeypatch):
    own, exported = (typed(capsys, path, "--text", "--episodes=1")[1] for path in (run, policy))
    assert exported == own
    code, facts, err = typed(capsys, policy, "--episodes=1", "--max-steps=3", "--greedy", "--env=popgym/RepeatPrevious")
    assert (code, err, facts["output"]) == (0, "", "policy_popgym_RepeatPrevious_greedy.gif")
    assert Path(facts["output"]).stat().st_size > 1000
    monkeypatch.chdir(policy)
    facts = typed(capsys, ".", "--episodes=1", "--max-steps=3")[1]
    assert facts["output"] == str(policy.parent / "policy.gif")
    assert sorted(p.name for p in policy.iterdir()) == ["arrays.npz", "policy.json"]


def test_what_only_a_run_can_choose(policy, capsys):
    code, _, err = typed(capsys, policy, "--step=7", "--seed-index=1", "--fps=1", "--output=x.mp4")
    assert code == 2
    assert err.splitlines() == [
        "error: --output=x.mp4: the suffix says what is written, one of .gif, .png, .txt, .html",
        f"error: --step=7: {policy} is an exported policy; leave it out",
        f"error: --seed-index=1: {policy} is an exported policy; leave it out",
    ]
    code, _, err = typed(capsys, policy, "--env=bsuite/MemoryLen/3")
    assert (code, err.startswith("error: the policy was trained with observations in Discrete(n=4")) == (2, True)


def test_an_environment_without_a_picture_is_a_table(run, capsys, monkeypatch):
    monkeypatch.setattr(RepeatPrevious, "render", Environment.render)
    code, facts, _ = typed(capsys, run, "--episodes=1")
    assert (code, Path(facts["output"]).name) == (0, f"{STEPS}_seed_0.txt")
    code, _, err = typed(capsys, run, "--output=x.gif")
    assert (code, err) == (2, "error: output=x.gif: RepeatPrevious can be shown as .txt\n")


@pytest.mark.parametrize(
    ("words", "errors"),
    [
        (["--output=x.html"], ["output=x.html: RepeatPrevious can be shown as .gif, .png, .txt"]),
        (
            ["--output=x.mp4", "--seed-index=1", "--env=popgym/RepeatPreviousEas"],
            [
                "--output=x.mp4: the suffix says what is written, one of .gif, .png, .txt, .html",
                "--seed-index=1: RUN has 1 seed(s), counted from 0",
                "unknown env 'popgym/RepeatPreviousEas': did you mean popgym/RepeatPreviousEasy",
            ],
        ),
        (["--output=file/x.gif"], ["--output=file/x.gif: cannot be written; name a file in a folder of yours"]),
        (["--text", "--output=x.gif"], ["--text, --output=x.gif: a table or a picture; leave one out"]),
        (["--fps=0", "--episodes=0"], ["--fps=0: ", "--episodes=0: "]),
        (["--text", "--fps=3"], ["--fps=3: a .txt has no frames per second; write a film"]),
        (["--step=7"], ["RUN has no checkpoint '7': use best, latest or one of"]),
        (["--env=bsuite/MemoryLen/3"], ["the policy was trained with observations in Discrete(n=4"]),
    ],
)
def test_errors(run, capsys, words, errors):
    Path("file").touch()
    code, out, err = typed(capsys, run, *words)
    assert (code, out) == (2, None)
    lines = err.replace(str(run), "RUN").splitlines()
    assert len(lines) == len(errors)
    for line, expected in zip(lines, errors, strict=True):
        assert line.startswith("error: " + expected)


def test_an_unknown_run(capsys):
    assert typed(capsys, "nowhere")[2] == "error: 'nowhere' is no run: it has no config.yaml (ssmrl list runs)\n"


def test_words_are_short():
    assert film.words(np.int32(2), ("a", "b", "c")) == "2 c"
    assert film.words((np.int32(1), np.array([0.5, -1.0]))) == "1, [0.50 -1.00]"
    assert film.words({"x": np.float32(0.25)}) == "x: 0.25"
    assert film.words(np.zeros((10, 10, 4))) == "10x10x4 numbers"


@pytest.mark.slow
def test_robots_play_on_their_own_page(tmp_path, capsys):
    small = {"agent.num_envs": 4, "agent.num_steps": 16, "agent.num_minibatches": 2, "eval.episodes": 4}
    settings = {"env": "brax/inverted_pendulum", "total_steps": 64, "run.dir": str(tmp_path / "run"), "wandb": "off"}
    training.train(config.resolve([], settings | small), quiet=True)
    code, facts, _ = typed(capsys, tmp_path / "run", "--episodes=1", "--max-steps=5")
    assert (code, Path(facts["output"]).suffix) == (0, ".html")
    assert "brax" in Path(facts["output"]).read_text()
    assert typed(capsys, tmp_path / "run", "--output=x.gif", "--episodes=1", "--max-steps=5")[0] == 0
