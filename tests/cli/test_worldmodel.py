"""``ssmrl worldmodel`` as typed: a world model is trained, measured, watched, and fed from a file."""

import csv
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssmrl import checkpoint, datasets, evaluation, film, imagining, spaces, world_report
from ssmrl.agents import make_agent
from ssmrl.cli import main
from ssmrl.config import resolve, to_yaml
from ssmrl.envs import make as make_env
from ssmrl.nn import latents
from ssmrl.world_model import Latents, Predictions

pytestmark = pytest.mark.usefixtures("shared_folder")

TINY = {
    "env.delay": 4,
    "agent.num_envs": 4,
    "agent.hidden": [8],
    "model.d_model": 8,
    "model.memories": 1,
    "eval.episodes": 8,
    "log.every": 1,
    "checkpoint.keep": 9,
}
FRAMES = 6  # the cue, four distractors, the answer
UPDATE = 4 * FRAMES


def settings(values):
    return [f"{k}={json.dumps(v)}" for k, v in values.items()]


def typed(capsys, *words):
    """Exit code, standard output as JSON, and standard error."""
    group = [] if words[0] == "record" else ["worldmodel"]
    code = main([*group, *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.fixture(scope="module")
def data(shared_folder):
    words = ["record", "worldmodel/cue_recall", "env.delay=4", "--output=cues.npz", "--sequences=32", "--quiet"]
    assert main(words) == 0
    return Path("cues.npz")


@pytest.fixture(scope="module")
def run(data):
    """Two updates from a data set."""
    words = ["worldmodel/cue_recall", *settings(TINY), "agent.data=cues.npz", "run.dir=run"]
    assert main(["worldmodel", "train", *words, f"total_steps={2 * UPDATE}", "--quiet"]) == 0
    return Path("run")


def untrained(folder, **changes):
    """A run that has not begun to learn."""
    config = resolve(["worldmodel/cue_recall"], TINY | changes)
    state = jax.jit(jax.vmap(make_agent(config).init))(jax.random.split(jax.random.key(0), config.seeds))
    checkpoint.save(Path(folder) / "checkpoints", state, env_steps=0)
    Path(folder, "config.yaml").write_text(to_yaml(config))
    return Path(folder)


@pytest.fixture(scope="module")
def control(shared_folder):
    return untrained("control", model="none", **{"model.d_model": 8})


@pytest.fixture(scope="module")
def measured(control):
    """Two seeds that have not begun to learn."""
    return world_report.evaluate_run(untrained("pair", seeds=2), control=control, episodes=96, seed=1)


def test_what_is_measured_is_written(measured):
    written = json.loads(Path("pair", "eval", f"{0:012d}_full.json").read_text())
    assert written == {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in measured.items()}
    assert (measured["env"], measured["env_steps"], measured["seeds"]) == ("memory/CueRecall-64", 0, 2)
    assert {"reward_acc_imagine", "gen_r2"}.isdisjoint(measured)  # the task has no reward, and no pixels
    assert measured["tile_acc_seen"] == measured["tile_acc"]  # the one tile of the query, the answer, was seen
    assert np.isnan(measured["tile_acc_unseen"])
    assert 0.2 < measured["chance"] < 0.5
    assert 0 < measured["predictive_entropy"] < np.log(8)
    assert measured["episodes"] == 128  # of 96 asked for: whole batches of 64


def test_intervals_are_over_seeds_or_over_episodes(measured):
    pair = [measured["recon_mse/seed_0"], measured["recon_mse/seed_1"]]
    assert measured["recon_mse"] == pytest.approx(np.mean(pair))
    assert measured["recon_mse/std"] == pytest.approx(np.std(pair))
    assert (measured["recon_mse/low"], measured["recon_mse/high"]) == pytest.approx((min(pair), max(pair)))
    alone = [measured[f"control/tile_acc_seen{k}"] for k in ("", "/low", "/high")]
    n = 128  # whole batches of 64
    assert measured["control/tile_acc_seen/se"] == pytest.approx(np.sqrt(alone[0] * (1 - alone[0]) / n), rel=1e-3)
    assert np.diff(alone)[0] < 0 < alone[2] - alone[0]
    assert alone[2] - alone[1] == pytest.approx(2 * 1.96 * measured["control/tile_acc_seen/se"])


def test_the_control_is_the_floor(measured):
    gap = measured["tile_acc_seen"] - measured["control/tile_acc_seen"]
    assert measured["memory_gap"] == pytest.approx(gap)
    assert measured["memory_gap/low"] < gap < measured["memory_gap/high"]  # the control is a single seed
    single = {"tile_acc_seen": 0.9, "tile_acc_seen/low": 0.87, "tile_acc_seen/high": 0.93}
    other = {"control/tile_acc_seen": 0.3, "control/tile_acc_seen/low": 0.26, "control/tile_acc_seen/high": 0.34}
    found = world_report._gap(single | other)
    assert [found[f"memory_gap{k}"] for k in ("", "/low", "/high")] == pytest.approx([0.6, 0.55, 0.65])
    names = [k.removesuffix("/se") for k in measured if k.startswith("control/") and k.endswith("/se")]
    unknown = {k for k in names if np.isfinite(measured[k]) and not np.isfinite(measured[f"{k}/low"])}
    assert unknown == {"control/chance"}
    assert {"/" in k or f"control/{k}" in measured for k in measured if k.endswith("/se")} == {True}
    assert "control/probe_cue_x_linear" not in measured  # it carries nothing
    assert "control/probe_cue_h_linear" in measured


def test_probes_find_the_cue_where_it_is(measured):
    """A memory that has not learned keeps what it was told; without a memory the cue is nowhere."""
    assert measured["probe_cue_x_mlp"] > measured["probe_cue_majority"] + 0.15
    assert measured["control/probe_cue_h_mlp"] < measured["control/probe_cue_majority"] + 0.1


def test_curves_are_those_of_the_numbers(measured):
    assert measured["plot"] == "pair/plots/horizon.png"
    with Image.open(measured["plot"]) as picture:
        assert picture.size == (1800, 600)
    [row] = csv.DictReader(Path("pair/plots/horizon.csv").read_text().splitlines())  # the query is one frame
    assert row["horizon"] == "1.0"
    for name in ("tile_acc_seen", "tile_acc_seen_shuffled", "gen_mse", "control/tile_acc_seen", "gen_mse/low"):
        assert float(row[name]) == pytest.approx(measured[name], rel=1e-5, abs=1e-5)
    assert row["tile_acc_unseen"] == ""


def test_the_table_has_the_controls_beside_the_metrics(measured):
    lines = [line.split("  ") for line in world_report.render(measured).splitlines() if line]
    assert lines[0] == ["memory/CueRecall-64 env.delay=4: 2 seed(s), 128 episodes each, 0 frames trained"]
    rows = {line[0]: [cell.strip() for cell in line[1:] if cell] for line in lines}
    assert rows[""] == ["mean [95 %]", "std", "sampled", "shuffled", "next", "recon", "control"]
    ends = [f"{measured[f'tile_acc_seen{k}']:.3f}" for k in ("", "/low", "/high")]
    names = ("tile_acc_seen/std", *(f"tile_acc_seen_{k}" for k in ("sampled", "shuffled", "next", "recon")))
    others = [f"{measured[k]:.3f}" for k in (*names, "control/tile_acc_seen")]
    assert rows["tile_acc_seen"] == [f"{ends[0]} [{ends[1]}, {ends[2]}]", *others]
    assert rows["probe"] == ["majority", "h linear", "h mlp", "x linear", "x mlp"]
    assert rows["cue"][0] == f"{measured['probe_cue_majority']:.3f}"
    assert not any("unseen" in name for name in rows)  # there are none


class HalfBlind:
    """A model that knows the second tile and takes the first for noise."""

    observation_space = spaces.MultiDiscrete((4, 4))

    def initial_state(self, batch_shape):
        return ()

    def apply(self, variables, *args, method):
        if method == "predict":
            [features] = args
            known = jnp.broadcast_to(100 * jnp.eye(4)[2], features.shape)
            return Predictions(jnp.stack([100 * features, known], -2), None, None)
        shape = args[1].reset.shape
        prior = latents.CategoricalLatent(jnp.zeros((*shape, 1, 4)), 0.5)
        return (), Latents(jnp.zeros((*shape, 0)), jnp.zeros((*shape, 4)), prior)


def test_noise_is_known_to_be_noise():
    env, params = make_env("memory/NoisyTile", context=2, query=3)
    found = jax.jit(lambda key: world_report._entropies(HalfBlind(), {}, env, params, key))(jax.random.key(0))
    assert found["predictive_entropy_constant"] == pytest.approx(0, abs=1e-6)
    assert np.log(4) - 0.04 < found["predictive_entropy_noise"] < np.log(4)
    assert found["predictive_entropy"] == pytest.approx(float(found["predictive_entropy_noise"]) / 2)
    assert 0 <= found["predictive_entropy_noise_se"] < 0.01


def test_the_accuracy_of_a_probe_comes_with_its_error_over_episodes():
    """Half of the episodes say what the fact is, in all frames, and the features of the others nothing."""
    facts = jnp.broadcast_to(jax.random.randint(jax.random.key(0), (64, 1), 0, 2), (5, 64, 1))
    features = jnp.where(jnp.arange(64)[:, None] % 2 == 0, 2.0 * facts - 1, 0.0)
    found = world_report._probes({"h": features}, {"side": facts}, {"side": 2}, jax.random.key(1))
    accuracy = float(found["probe_side_h_linear"])
    assert 0.5 < accuracy < 1
    assert found["probe_side_h_linear_se"] == pytest.approx((accuracy * (1 - accuracy) / 32) ** 0.5, rel=1e-3)


def test_a_film_marks_what_is_imagined(run, capsys):
    code, facts, err = typed(capsys, "imagine", run, "--episodes=2", "--fps=5")
    assert (code, err, facts["context"], facts["frames"]) == (0, "", [5, 5], [6, 6])
    assert facts["output"] == str(run / "media" / f"{2 * UPDATE}_seed_0_imagined_mode.gif")
    with Image.open(facts["output"]) as gif:
        red = []
        for i in range(gif.n_frames):
            gif.seek(i)
            badge = np.asarray(gif.convert("RGB"), int)[5:22, -104:-12]
            red.append(bool((abs(badge - film.RED).sum(-1) < 60).mean() > 0.3))
    assert red == [False] * 5 + [True] + [False] * 5 + [True]


def test_a_table_is_of_the_same_episodes(run, capsys):
    code, facts, _ = typed(capsys, "imagine", run, "--output=new/steps.txt", "--episodes=2")
    assert code == 0
    assert Path("new/steps.txt").read_text() == facts["table"] + "\n"
    lines = facts["table"].splitlines()
    assert lines[0].split()[:5] == ["t", "action", "truth", "imagined", "reconstructed"]
    for episode in (lines[1:7], lines[7:]):
        assert [line.split()[1] for line in episode] == ["context"] * 5 + ["IMAGINED"]
        assert [line.split()[2:4] for line in episode[1:]] == [["0", "wait"]] * 4 + [["1", "ask"]]
        truth = [line[lines[0].index("truth") :].split()[0] for line in episode]
        assert truth[0] == truth[-1]
    code, facts, _ = typed(capsys, "imagine", run, "--output=x.png", "--episodes=2", "--max-frames=3")
    assert (facts["context"], facts["frames"]) == ([2, 2], [3, 3])
    with Image.open("x.png") as sheet:
        assert sheet.size == (2 * 528, 3 * 268)


def test_wrong_tiles_are_framed(control):
    agent = make_agent(evaluation.read_config(control))
    tile, rewards = np.zeros((2, 1), np.int32), dict.fromkeys(imagining._PARTS, np.zeros(2))
    obs = {"truth": tile, "imagined": np.array([[0], [1]]), "reconstructed": tile}
    episode = imagining.Imagined(obs, rewards, np.zeros(2, np.int32), 1)
    right, wrong = (imagining._frame(agent, "", episode, t)[45:47, :] for t in (0, 1))  # the pictures' upper edges
    is_red = [(abs(x.astype(int) - film.RED).sum(-1) < 60).mean(0) > 0.5 for x in (right, wrong)]
    assert not is_red[0].any()
    assert np.flatnonzero(is_red[1])[[0, -1]].tolist() == pytest.approx([185, 343], abs=2)


def test_a_world_of_pictures(shared_folder, capsys):
    """Two updates, measured and watched; with Gaussian latents."""
    tiny = TINY | {"env.delay": 1, "env.pixels": True, "agent.channels": 1, "agent.num_envs": 2, "eval.episodes": 65}
    words = ["worldmodel/cue_recall", *settings(tiny), f"total_steps={2 * 2 * 3}", "run.dir=pictures"]
    words += ["agent.latent=gaussian"]
    assert main(["worldmodel", "train", *words, "--quiet"]) == 0
    facts = json.loads(Path("pictures", "eval", "final.json").read_text())
    assert 0 <= facts["tile_acc_seen"] <= 1
    assert facts["gen_mse"] > 0
    assert facts["gen_r2"] < 1
    assert facts["episodes"] == 128  # whole batches of 64
    code, facts, _ = typed(capsys, "imagine", "pictures", "--episodes=1", "--output=pictures.png")
    assert (code, facts["context"], facts["frames"]) == (0, [2], [3])
    with Image.open("pictures.png") as sheet:
        assert sheet.size == (2 * 528, 2 * 268)


def test_what_is_imagined_of_an_episode_is_its_second_half():
    """CartPole has no context of its own, and few episodes that last for half of the time limit."""
    words = {
        "env": "gymnax/CartPole-v1",
        "env.delay": None,
        "env.max_steps": 60,
        "agent.hidden": [8],
        "model.d_model": 8,
    }
    words = {k: v for k, v in (TINY | words).items() if v is not None}
    agent = make_agent(resolve(["worldmodel/cue_recall", "worldmodel/backbones/gru"], words))
    params = jax.jit(agent.init)(jax.random.key(0)).params
    for episode in imagining._imagine(agent, params, jax.random.key(0), 4, "mode"):
        assert 8 < episode.length < 61
        assert episode.context == episode.length // 2
        assert not episode.reward["truth"][0]
        assert (episode.reward["truth"][1:] == 1).all()


def test_a_run_goes_on_with_its_data_bit_for_bit(run, data):
    sha256 = datasets.load(data).sha256
    assert json.loads((run / "inputs.json").read_text()) == {"data_sha256": sha256}
    shutil.copytree(run, "again")
    shutil.rmtree(Path("again", "checkpoints", f"{2 * UPDATE:012d}"))
    Path("again", "eval", "final.json").unlink()
    assert main(["resume", "again", "--quiet"]) == 0
    states = [evaluation.restore(Path(name), evaluation.read_config(name), "latest")[1] for name in ("run", "again")]
    assert states[0].stream == ()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *states))
    first = evaluation.restore(run, evaluation.read_config(run), UPDATE)[1]
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first.params, states[0].params))


def test_a_run_does_not_go_on_with_other_data(run, data, capsys):
    kept = data.read_bytes()
    data.unlink()
    assert main(["record", "worldmodel/cue_recall", "env.delay=4", "seed=1", f"--output={data}"]) == 0
    capsys.readouterr()
    try:
        assert main(["resume", str(run), f"total_steps={3 * UPDATE}", "--quiet"]) == 2
        assert capsys.readouterr().err.startswith("error: run has learned from another file: data_sha256 was ")
    finally:
        data.write_bytes(kept)


@pytest.mark.parametrize("words", [["eval"], ["play"], ["export", "policy"]])
def test_a_world_model_has_no_policy(control, capsys, words):
    assert main([words[0], str(control), *words[1:]]) == 2
    expected = "error: control has no policy, it is a world model: use ssmrl worldmodel eval control\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("words", "errors"),
    [
        (["evil", "x"], ["unknown command 'worldmodel evil': did you mean ssmrl worldmodel eval? (ssmrl worldmodel -"]),
        (["eval"], ["ssmrl worldmodel eval needs RUN: 0 given (ssmrl worldmodel eval --help)"]),
        (["eval", "demo"], ["demo has a policy, its agent is ppo: use ssmrl eval demo"]),
        (["imagine", "demo"], ["demo has a policy, its agent is ppo: use ssmrl eval demo"]),
        (["eval", "control", "--episodes=1", "--sed=1"], ["--episodes=1: expected", "unknown option 'sed': did you"]),
        (["eval", "control", "--step=7"], ["control has no checkpoint '7': use best, latest or one of 0"]),
        (["eval", "control", "--control=other"], ["--control=other: it has another env.delay; train one: ssmrl"]),
        (
            ["eval", "control", "--control=gru"],
            [
                "--control=gru: its model is gru, which remembers; train one: ssmrl worldmodel train"
                " control/config.yaml model=none agent.posterior=obs"
            ],
        ),
        (["eval", "control", "--control=rssm"], ["--control=rssm: it has agent.posterior=rssm, whose latent rememb"]),
        (["eval", "control", "--control=demo"], ["demo has a policy, its agent is ppo"]),
        (
            ["imagine", "control", "--output=x.html", "--seed-index=1"],
            ["--output=x.html: the suffix says what is written, one of .gif, .png, .txt", "--seed-index=1: control"],
        ),
        (
            ["imagine", "control", "--output=x.png", "--fps=2"],
            ["--fps=2: a .png has no frames per second; write a film"],
        ),
        (["train", "demo"], ["agent=ppo: a world model is agent=s4wm; name a preset of one"]),
        (["train", "worldmodel/cue_recal"], ["unknown preset 'worldmodel/cue_recal': did you mean"]),
        (["train", "worldmodel/cue_recall", "agent.data=no.npz"], ["no data set 'no.npz': make one with"]),
        (
            ["train", "worldmodel/cue_recall", "agent.data=cues.npz", "env.delay=5", "run.dir=never"],
            ["agent.data=cues.npz: it was recorded in memory/CueRecall-64 env.delay=4"],
        ),
        (
            ["train", "worldmodel/cue_recall", "agent.data=cues.npz", "agent.num_steps=3"],
            ["agent.data=cues.npz, agent.num_steps=3: sequences of a data set are whole episodes"],
        ),
        (["record", "worldmodel/cue_recall", "--output=x.txt"], ["--output=x.txt: the suffix says what is written, o"]),
        (["record", "worldmodel/cue_recall", "--output=cues.npz"], ["--output=cues.npz: it exists; choose another"]),
        (
            ["record", "--sequences=0", "env=memory/CueReca"],
            ["--sequences=0: expected", "unknown env 'memory/CueReca'"],
        ),
    ],
)
def test_errors(control, data, capsys, words, errors):
    for name, preset in (("demo", ["demo"]), ("other", []), ("gru", []), ("rssm", [])):
        Path(name).mkdir(exist_ok=True)
        changes = TINY | {"model": name if name == "gru" else "none", "env.delay": 5 if name == "other" else 4}
        changes |= {"agent.posterior": "rssm" if name == "rssm" else "obs"}
        config = resolve(preset or ["worldmodel/cue_recall"], {} if preset else changes | {"model.d_model": 8})
        Path(name, "config.yaml").write_text(to_yaml(config))
    code, out, err = typed(capsys, *words)
    assert (code, out) == (2, None)
    lines = err.splitlines()
    assert len(lines) == len(errors)
    for line, expected in zip(lines, errors, strict=True):
        assert line.startswith("error: " + expected)
    assert not Path("never").exists()


def test_help_of_the_group_and_of_its_commands(capsys):
    assert main(["worldmodel"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[4:7]] == [*("train", "eval", "imagine")]
    for name in ("train", "eval", "imagine"):
        assert main(["worldmodel", name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: ssmrl worldmodel {name} ")
