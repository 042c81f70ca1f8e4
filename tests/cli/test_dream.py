"""``ssmrl play --dream``: what is shown is what the world model imagines, from where and for what it says."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssmrl import checkpoint, dreams, film, playing, spaces
from ssmrl.agents import make_agent
from ssmrl.cli import main
from ssmrl.config import resolve, to_yaml
from ssmrl.dreams import Dreams
from ssmrl.envs import Environment
from ssmrl.envs.drawing import BLUE, GREEN, PAPER, RED, WHITE, blend
from ssmrl.fields import UserError
from ssmrl.film import Episode
from ssmrl.frames import Frames
from ssmrl.nn.observations import symexp, two_hot_mean
from ssmrl.policy import RunningStats

pytestmark = pytest.mark.usefixtures("shared_folder")

TINY = {
    "env": "gymnax/Pendulum-v1",
    "agent": "dreamer",
    "agent.num_envs": 2,
    "agent.num_steps": 4,
    "agent.batch_size": 2,
    "agent.batch_length": 4,
    "agent.dream_every": 4,
    "agent.replay_ratio": 1,
    "agent.replay_size": 100,
    "agent.hidden": [8],
    "agent.heads": [8],
    "agent.normalize_obs": True,
    "agent.reward_scale": 0.1,
    "model": "gru",
    "model.d_model": 8,
}
STEPS = 4  # of a dream


@pytest.fixture(scope="module")
def agent():
    return make_agent(resolve([], TINY))


@pytest.fixture(scope="module")
def state(agent):
    """Has learned nothing, but parameters are not zero anywhere, and observations have some mean and deviation."""
    state = jax.jit(agent.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(state.learner.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    stats = RunningStats(jnp.array([0.5, -0.2, 1.0]), jnp.array([0.3, 0.4, 2.0]), jnp.float32(9))
    return state.replace(learner=state.learner.replace(params=tree.unflatten(noisy)), obs_stats=stats)


@pytest.fixture(scope="module")
def run(state):
    folder = Path("run")
    checkpoint.save(folder / "checkpoints", jax.tree.map(lambda x: x[None], state), env_steps=0)
    (folder / "config.yaml").write_text(to_yaml(resolve([], TINY)))
    return folder


@pytest.fixture(scope="module")
def played(agent, state):
    """A policy and two episodes of different length, the first of which ends."""
    policy = agent.policy(state)
    first, second = (
        playing.run_episode(policy, agent.env, agent.env_params.replace(max_steps_in_episode=n), jax.random.key(n))
        for n in (11, 6)
    )
    assert (first.length, first.ending, second.length) == (11, "truncated", 6)
    return policy, [first, second]


def typed(capsys, *words):
    """Exit code, standard output as JSON, and standard error."""
    code = main(["play", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_a_dream_is_what_the_model_imagines_step_by_step(played):
    """Frame by frame, from the frame where each dream starts, under the actions that were taken."""
    policy, episodes = played
    world, params, stats = policy.network.world, {"params": policy.params["world"]}, policy.obs_stats
    none, one = jnp.zeros(1), jnp.ones(1, bool)

    @jax.jit
    def observe(state, obs, action, reset):
        frame = Frames(stats.normalize(obs[None, None]), action[None, None], none[None], reset[None], ~one[None])
        state, seen = world.apply(params, state, frame, jax.random.key(0), "mode", method="observe")
        return state, world.apply(params, seen.features, method="predict")

    @jax.jit
    def imagine(state, action):
        state, seen = world.apply(params, state, action[None, None], jax.random.key(0), "mode", method="imagine")
        return state, world.apply(params, seen.features, method="predict")

    def told(found):
        obs = symexp(found.obs[0, 0]) * jnp.sqrt(stats.var + 1e-8) + stats.mean
        return obs, two_hot_mean(found.reward)[0, 0] / 0.1, jax.nn.sigmoid(found.going_on)[0, 0]

    for e, d in zip(episodes, dreams.dream(policy, episodes, STEPS), strict=True):
        assert len(d.going_on) == -(-e.length // STEPS)
        np.testing.assert_array_equal(d.obs, [*e.obs, e.final_obs])
        np.testing.assert_array_equal(d.reward, [0, *e.rewards])
        actions = [jnp.zeros(1), *map(jnp.asarray, e.actions)]
        state = world.initial_state((1,))
        for t in range(e.length):
            state, found = observe(state, jnp.asarray(d.obs[t]), actions[t], one if t == 0 else ~one)
            if t % STEPS:
                continue
            dreamer, expected = state, [told(found)]
            for action in actions[t + 1 : t + 1 + STEPS]:
                dreamer, found = imagine(dreamer, action)
                expected.append(told(found))
            own = d.dreamt_obs, d.dreamt_reward, d.going_on
            for mine, theirs in zip(own, zip(*expected, strict=True), strict=True):
                np.testing.assert_allclose(mine[t // STEPS, : len(theirs)], np.stack(theirs), rtol=2e-4, atol=1e-4)
        assert np.ptp(d.dreamt_obs[:, 1:], 1).min() > 1e-3  # the future is not one frame


def test_frames_belong_to_dreams(played):
    d = dreams.dream(played[0], played[1][1:], STEPS)[0]
    assert [d.place(t) for t in range(7)] == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]
    assert [t for t in range(7) if d.begins(t)] == [0, 5]


def red_badge(frame):
    return (abs(frame[4:24, -120:].astype(int) - RED).sum(-1) < 60).sum() > 800


def test_a_film_marks_where_dreams_begin(run, capsys):
    words = ["--dream", "--dream-steps=4", "--episodes=1", "--max-steps=10"]
    code, facts, err = typed(capsys, run, *words)
    assert (code, err, facts["output"]) == (0, "", str(run / "media" / "0_seed_0_dream.gif"))
    assert (facts["lengths"], facts["endings"]) == ([10], ["still running"])
    with Image.open(facts["output"]) as gif:
        assert gif.n_frames == 11
        marked = []
        for t in range(gif.n_frames):
            gif.seek(t)
            marked.append(red_badge(np.asarray(gif.convert("RGB"))))
    assert np.flatnonzero(marked).tolist() == [0, 5, 9]


def test_a_table_has_the_real_beside_the_imagined(run, capsys):
    words = ["--dream", "--dream-steps=4", "--episodes=1", "--max-steps=10"]
    code, facts, _ = typed(capsys, run, *words, "--text")
    assert (code, facts["output"]) == (0, None)
    head, *lines, end = facts["table"].splitlines()
    assert " ".join(head.split()) == "t dream step action before observation dreamt reward dreamt goes on"
    assert [line.split()[:3] for line in lines if "DREAM" in line] == [
        ["0", "DREAM", "1"],
        ["5", "DREAM", "2"],
        ["9", "DREAM", "3"],
    ]
    assert end.strip() == "still running after 10 steps"
    real = [float(line.split()[-3]) for line in lines]
    assert sum(real) == pytest.approx(facts["returns"][0], abs=0.01)
    assert all(0 < float(line.split()[-1]) < 1 for line in lines)
    plain = typed(capsys, run, "--episodes=1", "--max-steps=10", "--text")[1]
    assert plain["returns"] == facts["returns"]  # the dreamer's episode is nobody else's
    assert typed(capsys, run, *words, "--output=dream.png")[0] == 0
    with Image.open("dream.png") as strip:
        assert strip.size[0] > 1000


def test_who_cannot_dream(run, capsys, monkeypatch):
    Path("ppo").mkdir()
    Path("ppo/config.yaml").write_text(to_yaml(resolve(["demo"])))
    monkeypatch.setattr("ssmrl.commands.prepare_jax", None)  # nothing comes this far
    code, _, err = typed(capsys, "ppo", "--dream", "--dream-steps=0", "--output=x.html")
    assert (code, err.splitlines()[0].startswith("error: --dream-steps=0: ")) == (2, True)
    code, _, err = typed(capsys, "ppo", "--dream", "--output=x.html")
    assert (code, err.splitlines()) == (
        2,
        [
            "error: --output=x.html: the suffix says what is written, one of .gif, .png, .txt",
            "error: --dream: ppo has no world model, its agent is ppo; train one with agent=dreamer",
        ],
    )


class Silent(Environment):
    """Has no picture of its own."""

    def __init__(self, space):
        self.space = space

    def observation_space(self, params):
        return self.space


def made_up(obs, dreamt, ending="terminated"):
    """Dreams of two steps in an episode of four."""
    zeros = np.zeros((2, 3))
    e = Episode([None] * 5, list(obs[:4]), [np.int32(0)] * 4, np.zeros(4), np.zeros(4), obs[4], ending)
    return Dreams(e, obs, np.zeros(5), dreamt, zeros, zeros + 1)


def count(picture, color):
    return (abs(picture.astype(int) - color).sum(-1) < 12).sum()


def test_numbers_are_green_where_they_are_right():
    obs, dreamt = np.array([0, 1, 2, 3, 4]), np.array([[0, 1, 7], [2, 3, 7]])
    [film_] = dreams.frames(Silent(spaces.Discrete(8)), None, "tokens", [made_up(obs, dreamt)])
    right, wrong = blend(GREEN, WHITE, 0.5), blend(RED, WHITE, 0.5)
    greens, reds = ([count(frame, color) > 500 for frame in film_] for color in (right, wrong))
    assert greens == [True] * 5  # each dream begins with what is right
    assert reds == [False, False, True, False, True]
    assert count(film_[1], right) > 1.8 * count(film_[0], right)
    assert [red_badge(frame) for frame in film_] == [True, False, False, True, False]


def test_curves_meet_where_the_dream_is_right():
    """A perfect dream's dots lie on the line, under it; those of another leave the line blue."""
    obs = np.linspace(-1, 1, 5)[:, None]
    perfect = np.stack([obs[0:3], obs[2:5]])
    space = spaces.Box(-2, 2, (1,))
    good, bad = (
        dreams.frames(Silent(space), None, "curve", [made_up(obs, dreamt)])[0] for dreamt in (perfect, perfect - 1)
    )
    assert all(frame.shape == good[0].shape for frame in good)
    assert (good[2] != bad[2]).any()
    area = slice(60, 100)
    ((red, _), (blue, _)) = (np.nonzero(abs(good[2][area].astype(int) - c).sum(-1) < 60) for c in (RED, BLUE))
    assert abs(red.mean() - blue.mean()) < 3
    ((red, _), (blue, _)) = (np.nonzero(abs(bad[2][area].astype(int) - c).sum(-1) < 60) for c in (RED, BLUE))
    assert red.mean() > blue.mean() + 5  # lower in the picture


@pytest.mark.parametrize(("real", "error"), [(0.0, 0.003), (200.0, 0.3)])
def test_a_dream_that_is_nearly_right_looks_so(real, error):
    d = made_up(np.full((5, 1), real), np.full((2, 3, 1), real + error))
    frame = dreams.frames(Silent(spaces.Box(-500, 500, (1,))), None, "x", [d])[0][2][62:97]
    (red, _), (blue, _) = (np.nonzero(abs(frame.astype(int) - c).sum(-1) < 60) for c in (RED, BLUE))
    assert abs(red.mean() - blue.mean()) < 3


def test_a_wrong_dream_of_what_never_changes_is_in_the_picture():
    """So far as the episode lasts: here the second dream is shown up to its first step."""
    track = dreams.Track("x", np.zeros(4), np.array([[0.0, 2.0, 5.0], [0.0, -1.0, 99.0]]))
    assert track.scale() == pytest.approx((-2.2, 6.2))


def test_wrong_tiles_are_framed():
    tiles = SimpleNamespace(
        kinds=(("wall", 1), ("floor", 0)),
        num_tiles=25,
        lay_out=lambda seen: seen.reshape(5, 5),
        render=Silent(None).render,
        observation_space=lambda params: spaces.MultiDiscrete((2,) * 25),
    )
    obs = np.ones((5, 25), np.int32)
    dreamt = np.ones((2, 3, 25), np.int32)
    dreamt[0, 2, 7] = 0
    tiles.name = "tiles"
    [film_] = dreams.frames(tiles, None, "tiles", [made_up(obs, dreamt)])
    found = [count(frame[60:225, 180:], RED) > 100 for frame in film_]
    assert found == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), (8, 8, 3), np.uint8),
        (spaces.Box(-1, 1, (40,)), (40,), np.float32),
        (spaces.MultiDiscrete((3,) * 13), (13,), np.int32),
        (spaces.MultiDiscrete((12, 3)), (2,), np.int32),
    ],
)
def test_everything_can_be_shown(space, shape, dtype):
    rng = np.random.default_rng(0)
    obs, dreamt = rng.integers(0, 3, (5, *shape)).astype(dtype), rng.integers(0, 3, (2, 3, *shape)).astype(dtype)
    d = made_up(obs, dreamt)
    [film_] = dreams.frames(Silent(space), None, "x", [d])
    assert {frame.shape for frame in film_} == {film_[0].shape}
    assert (film_[1] != PAPER).any()
    assert (film_[1] != film_[2]).any()
    line = dreams.table([d]).splitlines()[2]
    if len(shape) == 3 or dtype == np.float32:
        assert f"off by {abs(dreamt[0, 1].astype(float) - obs[1]).mean():.2f}" in line
    elif shape == (13,):
        assert f"{(dreamt[0, 1] != obs[1]).sum()} wrong" in line
    else:
        assert film.words(dreamt[0, 1]) in line


def test_a_policy_without_a_world_model_does_not_dream(played):
    other = played[0].replace(network=SimpleNamespace())
    with pytest.raises(UserError, match="this policy has no world model"):
        dreams.dream(other, played[1], STEPS)
