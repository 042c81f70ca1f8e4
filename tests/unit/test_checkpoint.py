"""Checkpoints come back bit for bit, or say what is wrong with them."""

import errno
import json
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import checkpoint
from ssmrl.checkpoint import CheckpointError


class Optimiser(NamedTuple):
    count: jax.Array
    mu: dict


@pytest.fixture
def state():
    return {
        "key": jax.random.split(jax.random.key(7), 2),
        "other_key": jax.random.key(3, impl="rbg"),
        "bool": jnp.array([True, False]),
        "complex": jnp.array([1 + 2j, -0.0 + 1e-30j], jnp.complex64),
        "int": jnp.array([[2**31 - 1, -1]], jnp.int32),
        "bf16": jnp.array([1.0, 3.140625, jnp.inf], jnp.bfloat16),
        "float": jnp.array([np.nan, -0.0, 1e-45, 0.1]),
        "scalar": jnp.int32(5),
        "empty": jnp.zeros((0, 3)),
        "opt": Optimiser(jnp.int32(1), {"w": jnp.ones((2, 3))}),
        "none": None,
    }


def bits(leaf):
    raw = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.asarray(raw).tobytes(), raw.shape, str(leaf.dtype)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    return [bits(x) for x in jax.tree.leaves(one)] == [bits(x) for x in jax.tree.leaves(other)]


def test_round_trip_is_bit_for_bit(tmp_path, state):
    path = checkpoint.save(tmp_path, state, env_steps=64, updates=2, return_mean=0.5)
    assert path == tmp_path / f"{64:012d}"
    restored = checkpoint.restore(path, jax.eval_shape(lambda: state))
    assert same(restored, state)
    assert not any(getattr(x, "weak_type", False) for x in jax.tree.leaves(restored))
    assert jax.random.normal(restored["other_key"]) == jax.random.normal(state["other_key"])
    manifest = checkpoint.read_manifest(path)
    assert (manifest["env_steps"], manifest["updates"], manifest["return_mean"]) == (64, 2, 0.5)
    assert manifest["tree"]["opt/mu/w"] == [[2, 3], "float32"]
    assert manifest["keys"] == {"key": "threefry2x32", "other_key": "rbg"}
    assert {"ssmrl", "jax"} <= manifest["versions"].keys()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_parts_of_a_checkpoint_replace_those_of_a_state(tmp_path):
    """The others stay; what one seed learned is every seed's."""
    none = jnp.zeros((2, 0))  # what has no entries is not saved
    w = jnp.arange(6.0).reshape(2, 3)
    saved = {"params": {"none": none, "w": w}, "params_old": jnp.ones((2, 1)), "key": jnp.zeros(2)}
    path = checkpoint.save(tmp_path, saved, env_steps=1)
    new = {"params": {"none": none, "w": jnp.zeros((2, 3))}, "params_old": jnp.zeros((2, 5)), "key": jnp.ones(2)}
    assert same(checkpoint.restore_parts(path, new, ["params"]), new | {"params": saved["params"]})
    path = checkpoint.save(tmp_path, jax.tree.map(lambda x: x[:1], saved), env_steps=2)
    found = checkpoint.restore_parts(path, new, ["params"])
    assert same(found, new | {"params": {"none": none, "w": jnp.array([[0.0, 1, 2], [0, 1, 2]])}})
    for other in ({"w": jnp.zeros((2, 4))}, {"w": jnp.zeros((2, 3), int)}, {"v": jnp.zeros((2, 3))}):
        with pytest.raises(CheckpointError, match=r"does not fit this configuration: params/"):
            checkpoint.restore_parts(path, new | {"params": other}, ["params"])


def test_parts_of_two_seeds_are_not_those_of_three(tmp_path):
    path = checkpoint.save(tmp_path, {"params": {"w": jnp.zeros((2, 3))}}, env_steps=1)
    with pytest.raises(CheckpointError, match=r"float32\[2, 3\] there, float32\[3, 3\] here; .*as many seeds, or one"):
        checkpoint.restore_parts(path, {"params": {"w": jnp.zeros((3, 3))}}, ["params"])


def test_saving_again_replaces(tmp_path, state):
    checkpoint.save(tmp_path, state, env_steps=1)
    path = checkpoint.save(tmp_path, state | {"scalar": jnp.int32(6)}, env_steps=1)
    assert checkpoint.restore(path, state)["scalar"] == 6


def largest(path):
    return max((p for p in (path / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
    content = bytearray(largest(path).read_bytes())
    content[-1] ^= 1
    largest(path).write_bytes(content)


DAMAGES = {
    "is torn: .* is missing": lambda path: largest(path).unlink(),
    "is corrupted: .* does not have the checksum in its manifest": flip,
    "is corrupted: state/": lambda path: os.truncate(largest(path), 10),
    "has no readable manifest.json .*No such file": lambda path: (path / "manifest.json").unlink(),
    "has no readable manifest.json .*Unterminated|Expecting": lambda path: os.truncate(path / "manifest.json", 99),
    "was written in format 0; this version reads 1": lambda path: (path / "manifest.json").write_text('{"format": 0}'),
    "was written in format None": lambda path: (path / "manifest.json").write_text("[]"),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_found_before_anything_is_read(tmp_path, state, message):
    path = checkpoint.save(tmp_path, state, env_steps=1)
    DAMAGES[message](path)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.restore(path, state)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scalar": jnp.float32(5)}, r"does not fit this configuration: scalar is int32\[\] there, float32\[\] here"),
        (
            {"opt": Optimiser(jnp.int32(1), {"w": jnp.ones((2, 4))})},
            r"opt/mu/w is float32\[2, 3\] there, float32\[2, 4\]",
        ),
        ({"none": jnp.ones(1)}, r"none is absent there, float32\[1\] here"),
        (
            {"bool": None, "int": None, "bf16": None, "complex": None},
            r"bf16 is .*; bool is .*; complex is .* \(and 1 more\)",
        ),
        ({"other_key": jax.random.key(3)}, r"other_key is key<rbg>\[\] there, key<fry>\[\] here"),
    ],
)
def test_another_architecture_is_refused_by_its_first_leaf(tmp_path, state, change, message):
    path = checkpoint.save(tmp_path, state, env_steps=1)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.restore(path, state | change)


@pytest.mark.parametrize("where", ["arrays", "manifest", "rename"])
def test_a_failed_save_leaves_what_was_there(tmp_path, state, where, monkeypatch):
    before = checkpoint.save(tmp_path, state, env_steps=1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if where == "arrays":
            import orbax.checkpoint as ocp

            patch.setattr(ocp.StandardCheckpointer, "save", full)
        else:
            patch.setattr(
                *((checkpoint, "_write_synced", full) if where == "manifest" else (type(tmp_path), "rename", full))
            )
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(tmp_path, state, env_steps=2)
    assert checkpoint.available(tmp_path) == [before]
    assert same(checkpoint.restore(before, state), state)
    after = checkpoint.save(tmp_path, state, env_steps=2)
    assert checkpoint.available(tmp_path) == [before, after]
    assert sorted(tmp_path.iterdir()) == [before, after]


def pretend(folder, **scores):
    for name, score in scores.items():
        path = folder / name.removeprefix("at").zfill(12)
        path.mkdir(parents=True)
        manifest = {"format": checkpoint.FORMAT, "files": {}} | ({} if score is None else {"score": score})
        (path / "manifest.json").write_text(json.dumps(manifest))


def steps(folder):
    return [int(p.name) for p in checkpoint.available(folder)]


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    pretend(tmp_path, at1=0.1, at2=0.9, at3=None, at4=-2.0, at10=0.5)
    checkpoint.prune(tmp_path, 2, "score")
    assert steps(tmp_path) == [2, 4, 10]
    checkpoint.prune(tmp_path, 1, "score")
    assert steps(tmp_path) == [2, 10]
    checkpoint.prune(tmp_path, 9, "score")
    assert steps(tmp_path) == [2, 10]


def test_best_is_the_newest_without_scores_and_of_equal_ones(tmp_path):
    assert checkpoint.best_of(tmp_path, "score") is None
    pretend(tmp_path, at1=None, at2=None)
    assert checkpoint.best_of(tmp_path, "score").name.endswith("2")
    pretend(tmp_path, at3=1.0, at4=1.0, at5=None)
    assert checkpoint.best_of(tmp_path, "score").name.endswith("4")


def test_a_damaged_manifest_is_not_the_best_and_stops_nothing(tmp_path):
    pretend(tmp_path, at1=0.1, at2=0.9, at3=0.2)
    (tmp_path / "2".zfill(12) / "manifest.json").write_text("{")
    assert checkpoint.best_of(tmp_path, "score").name.endswith("3")
    checkpoint.prune(tmp_path, 1, "score")
    assert steps(tmp_path) == [3]


def test_truncating_forgets_what_comes_after(tmp_path):
    pretend(tmp_path, at1=0.1, at2=0.9, at30=0.2)
    checkpoint.truncate(tmp_path, 2)
    assert steps(tmp_path) == [1, 2]
    checkpoint.truncate(tmp_path / "nowhere", 0)


def test_unfinished_folders_are_ignored(tmp_path, state):
    assert checkpoint.available(tmp_path / "nowhere") == []
    path = checkpoint.save(tmp_path, state, env_steps=5)
    (tmp_path / ".partial-000000000009").mkdir()
    (tmp_path / ".partial-000000000009" / "manifest.json").write_text("{}")
    (tmp_path / "000000000008").mkdir()
    (tmp_path / "notes").mkdir()
    assert checkpoint.available(tmp_path) == [path]


def test_a_full_folder_is_noticed_before_anything_is_written(tmp_path, state, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(OSError, match=r"No space left on device: a checkpoint takes .* make room, then `ssmrl resume`"):
        checkpoint.save(tmp_path, state, env_steps=1)
    assert checkpoint.available(tmp_path) == []
