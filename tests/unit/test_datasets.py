"""What is recorded is read back bit for bit, and nothing else is taken for it."""

import json
import pickle
import zipfile
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import datasets, envs
from ssmrl.fields import UserError

NAME, SETTINGS = "memory/CueRecall", {"delay": 3}
SEQUENCES, FRAMES = 6, 5


@pytest.fixture(scope="module")
def data():
    return datasets.record_dataset(NAME, SETTINGS, SEQUENCES, seed=2)


@pytest.fixture
def path(data, tmp_path):
    datasets.save(data, tmp_path / "cues.npz")
    return tmp_path / "cues.npz"


def rewrite(path, **changes):
    """The same file with other arrays (None: without it)."""
    with np.load(path) as file:
        arrays = {k: file[k] for k in file.files} | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def facts_of(path, **changes):
    with np.load(path) as file:
        facts = json.loads(file["facts"].tobytes()) | changes
    return np.frombuffer(json.dumps(facts).encode(), np.uint8)


def test_sequences_are_whole_episodes_of_the_script(data):
    arrays = data.arrays
    assert {k: (v.dtype.name, v.shape) for k, v in arrays.items()} == {
        "obs": ("uint8", (FRAMES, SEQUENCES, 1)),
        "action": ("uint8", (FRAMES, SEQUENCES)),
        "reward": ("float32", (FRAMES, SEQUENCES)),
        "reset": ("bool", (FRAMES, SEQUENCES)),
        "terminated": ("bool", (FRAMES, SEQUENCES)),
    }
    np.testing.assert_array_equal(arrays["reset"].T, [[True] + [False] * 4] * SEQUENCES)
    np.testing.assert_array_equal(arrays["action"].T, [[0, 0, 0, 0, 1]] * SEQUENCES)  # asks at the end
    np.testing.assert_array_equal(arrays["obs"][0], arrays["obs"][-1])  # and is told the cue
    assert (arrays["obs"][1:-1] >= 4).all()
    assert len(np.unique(arrays["obs"])) > 3


def test_episodes_without_an_end_are_not_recorded(monkeypatch):
    endless = SimpleNamespace(longest_episode=lambda params: None)
    monkeypatch.setattr(envs, "make", lambda name, **_: (endless, None))
    with pytest.raises(UserError, match=r"my/Endless has no time limit; use env\.max_steps=1000"):
        datasets.record_dataset("my/Endless", {}, 2)


def test_batches_are_of_one_size_and_rows_are_left_out_evenly(monkeypatch):
    monkeypatch.setattr(datasets, "_BATCH", 4)
    opened = []

    def rows(env, params, stream, frames, key, policy):
        """Frames whose reward is the row's place in its batch."""
        one = jax.tree.map(lambda x: jnp.zeros((frames, stream, *x.shape), x.dtype), datasets.frame_shapes(env, params))
        return stream, one.replace(reward=jnp.tile(jnp.arange(stream, dtype=jnp.float32)[None], (frames, 1))), None

    monkeypatch.setattr(datasets, "open_stream", lambda env, params, size, *_: opened.append(size) or size)
    monkeypatch.setattr(datasets, "record", rows)
    assert datasets.record_dataset(NAME, SETTINGS, 6).arrays["reward"][0].tolist() == [0, 1, 2, 0, 1, 2]
    assert datasets.record_dataset(NAME, SETTINGS, 7).arrays["reward"][0].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert datasets.record_dataset(NAME, SETTINGS, 3).arrays["reward"][0].tolist() == [0, 1, 2]
    assert opened == [3, 4, 3]


def test_a_script_is_not_for_trials():
    with pytest.raises(UserError, match=r"script of CueRecall is for one episode.*use env\.trial_episodes=0"):
        datasets.record_dataset(NAME, {**SETTINGS, "trial_episodes": 2}, 2)


def test_a_file_is_what_was_recorded(data, path):
    read = datasets.load(path)
    assert read.facts == data.facts
    assert read.facts["env"] == NAME
    assert all(np.array_equal(read.arrays[k], v) and read.arrays[k].dtype == v.dtype for k, v in data.arrays.items())
    assert (read.sequences, read.frames) == (SEQUENCES, SEQUENCES * FRAMES)
    again = datasets.record_dataset(NAME, SETTINGS, SEQUENCES, seed=2)
    assert again.sha256 == data.sha256
    other = datasets.record_dataset(NAME, SETTINGS, SEQUENCES, seed=3)
    assert other.sha256 != data.sha256
    with pytest.raises(UserError, match=r"cues.npz exists: choose another name"):
        datasets.save(data, path)


def test_batches_are_drawn_from_all_sequences(data):
    env, params = envs.make(NAME, **SETTINGS)
    frames = jax.jit(lambda key: data.draw(env, params, 200, key))(jax.random.key(0))
    assert (frames.obs.dtype, frames.action.dtype, frames.obs.shape) == (jnp.int32, jnp.int32, (FRAMES, 200, 1))
    stored = [tuple(row) for row in data.arrays["obs"][..., 0].T.tolist()]
    drawn = {tuple(row) for row in np.asarray(frames.obs)[..., 0].T.tolist()}
    assert drawn == set(stored)
    np.testing.assert_array_equal(frames.reset, data.arrays["reset"][:, :1].repeat(200, 1))


def test_larger_integers_need_more_bytes():
    small, large, signed = (datasets._small(np.array([[0, n]], np.int32)) for n in (255, 256, -1))
    assert (small.dtype, large.dtype, signed.dtype) == (np.uint8, np.uint16, np.int32)
    assert [int(x[0, 1]) for x in (small, large, signed)] == [255, 256, -1]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        where = file.getinfo("obs.npy").header_offset + 60
    content[where] ^= 0xFF
    path.write_bytes(bytes(content))


def change_an_observation(path):
    with np.load(path) as file:
        obs = file["obs"].copy()
    obs[1, 0] += 1
    rewrite(path, obs=obs)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no data set '.*cues.npz': make one with `ssmrl record PRESET"),
        (cut_short, "cues.npz is cut short; copy it again"),
        (flip_a_byte, "cues.npz is damaged"),
        (change_an_observation, "cues.npz is damaged or was changed: its content does not have its sha256"),
        (lambda path: rewrite(path, facts=facts_of(path, seed=5)), "was changed: its content does not have its sha256"),
        (lambda path: rewrite(path, reward=None), "was changed: its content does not have its sha256"),
        (lambda path: rewrite(path, facts=None), "cues.npz is no data set of ssmrl: make one with"),
        (lambda path: rewrite(path, facts=facts_of(path, format=2)), "cues.npz has format 2, this version reads 1"),
        (lambda path: rewrite(path, obs=np.array([{}], object)), "cues.npz is damaged"),
        (lambda path: path.write_bytes(pickle.dumps({})), "cues.npz is no data set of ssmrl"),
        (lambda path: path.write_bytes(b""), "cues.npz is no data set of ssmrl"),
    ],
)
def test_other_files_are_refused(path, damage, message):
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        datasets.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (NAME, {"delay": 4}),
        (NAME, {"delay": 3, "colors": 5}),
        (NAME, {"delay": 3, "max_steps": 2}),
        ("memory/RingRecall", {"size": 4, "colors": 8, "context": 4, "query": 1}),
    ],
)
def test_another_environment_is_refused(path, name, settings):
    env, params = envs.make(NAME, **SETTINGS)
    assert datasets.load_for(path, env, params).sequences == SEQUENCES
    with pytest.raises(UserError, match=f"cues.npz: it was recorded in {NAME} env.delay=3, not in the environment of"):
        datasets.load_for(path, *envs.make(name, **settings))
