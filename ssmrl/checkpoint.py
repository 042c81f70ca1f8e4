"""Checkpoints: orbax arrays beside a manifest that is checked before anything is restored.

``checkpoints/<env_steps>/state`` holds the arrays of a pytree under their tree paths, ``manifest.json`` says what they
must be: shapes, data types, key implementations, and a checksum of each file. A checkpoint appears under its name only
when it is complete, so a killed process leaves the previous one untouched.
"""

import contextlib
import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl.registry import UserError

FORMAT = 1


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message says why and what would do."""


def save(folder: Path, state: Any, *, env_steps: int, **facts: Any) -> Path:
    """Write ``state`` (a pytree of arrays and typed keys) to ``folder/<env_steps>``; ``facts`` go into the manifest.

    Raises ``OSError`` if the folder cannot be written; what was there before is then unchanged.
    """
    import orbax.checkpoint as ocp

    final = folder / f"{env_steps:012d}"
    partial = folder / f".partial-{env_steps:012d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays = {path: _to_numpy(leaf) for path, leaf in _leaves(state) if leaf.size}  # orbax refuses empty ones
    _check_room(folder, sum(array.nbytes for array in arrays.values()))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((partial / "state").absolute(), arrays)
    manifest = {
        "format": FORMAT,
        "env_steps": env_steps,
        **facts,
        "versions": {name: version(name) for name in ("ssmrl", "jax", "flax", "optax", "orbax-checkpoint")},
        "tree": {path: _describe(leaf) for path, leaf in _leaves(state)},
        "keys": {path: str(jax.random.key_impl(leaf)) for path, leaf in _leaves(state) if _is_key(leaf)},
        "files": {name: _checksum(partial / name) for name in _files(partial)},
    }
    _write_synced(partial / "manifest.json", json.dumps(manifest, indent=1))
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    return final


def restore(path: Path, like: Any) -> Any:
    """Read the checkpoint at ``path`` into the structure of ``like`` (arrays or shapes), bit for bit.

    Raises :class:`CheckpointError` if it is torn or corrupted, or if its arrays are not those of ``like``.
    """
    manifest = read_manifest(path)
    expected = {name: _describe(leaf) for name, leaf in _leaves(like)}
    if expected != manifest["tree"]:
        difference = _difference(manifest["tree"], expected)
        remedy = "Use `ssmrl resume`, which keeps the saved configuration, or set the same model and agent keys"
        raise CheckpointError(f"{path} does not fit this configuration: {difference}. {remedy}")
    arrays = _read(path, manifest)
    leaves = [
        _from_numpy(arrays[name], manifest["keys"].get(name)) if leaf.size else jnp.zeros(leaf.shape, leaf.dtype)
        for name, leaf in _leaves(like)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def restore_parts(path: Path, state: Any, parts: Sequence[str]) -> Any:
    """Return ``state`` with what the checkpoint at ``path`` has under ``parts`` of its tree; the rest stays.

    Leaves are ``[seeds, ...]``; of a checkpoint of one seed, each seed of ``state`` gets the same. Raises
    :class:`CheckpointError` if it is torn or corrupted, or if these leaves are not those of ``state``.
    """
    within = tuple(f"{part}/" for part in parts)
    manifest = read_manifest(path)
    saved = {name: what for name, what in manifest["tree"].items() if name.startswith(within)}
    expected = {name: _describe(leaf) for name, leaf in _leaves(state) if name.startswith(within)}
    of_one_seed = {name: [[1, *shape[1:]], dtype] for name, (shape, dtype) in expected.items()}
    if saved not in (expected, of_one_seed):
        difference = _difference(saved, expected)
        remedy = "it needs the same model and agent keys, and as many seeds, or one"
        raise CheckpointError(f"{path} does not fit this configuration: {difference}; {remedy}")
    arrays = _read(path, manifest)
    leaves = [
        jnp.broadcast_to(arrays[name], leaf.shape) if name in expected and leaf.size else leaf
        for name, leaf in _leaves(state)
    ]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def available(folder: Path) -> list[Path]:
    """The complete-looking checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.isdigit() and (p / "manifest.json").exists())


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises :class:`CheckpointError` if it is missing or not readable."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} has no readable manifest.json ({error})") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path} was written in format {found}; this version reads {FORMAT}")
    return manifest


def check_files(path: Path, manifest: dict[str, Any]) -> None:
    """Raise :class:`CheckpointError` unless every file is there with the checksum that the manifest holds."""
    for name, checksum in manifest["files"].items():
        if not (path / name).exists():
            raise CheckpointError(f"{path} is torn: {name} is missing")
        if _checksum(path / name) != checksum:
            raise CheckpointError(f"{path} is corrupted: {name} does not have the checksum in its manifest")


def intact(folder: Path) -> list[Path]:
    """The checkpoints in a folder whose files are as their manifests say, oldest first."""
    found = []
    for path in available(folder):
        with contextlib.suppress(CheckpointError):
            check_files(path, read_manifest(path))
            found.append(path)
    return found


def prune(folder: Path, keep: int, score: str) -> None:
    """Delete all but the latest ``keep`` checkpoints and the one whose manifest has the highest ``score``."""
    paths = available(folder)
    best = best_of(folder, score)
    for path in paths[:-keep]:
        if path != best:
            shutil.rmtree(path)


def truncate(folder: Path, env_steps: int) -> None:
    """Delete the checkpoints after ``env_steps``: a run that continues from there makes its own."""
    for path in available(folder):
        if int(path.name) > env_steps:
            shutil.rmtree(path)


def best_of(folder: Path, score: str) -> Path | None:
    """The checkpoint with the highest number under ``score`` in its manifest; the latest if none has one."""
    readable = {}
    for path in available(folder):
        with contextlib.suppress(CheckpointError):
            readable[path] = read_manifest(path)
    scored = [(manifest[score], path) for path, manifest in readable.items() if manifest.get(score) is not None]
    return max(scored)[1] if scored else max(readable, default=None)


def _read(path: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by their paths in its tree."""
    import orbax.checkpoint as ocp

    check_files(path, manifest)
    with ocp.StandardCheckpointer() as checkpointer:
        arrays: dict[str, np.ndarray] = checkpointer.restore((path / "state").absolute())
        return arrays


def _check_room(folder: Path, size: int) -> None:
    """Raise ``OSError`` if ``size`` bytes have no room: orbax, in a full folder, fails under pages of tracebacks."""
    free = shutil.disk_usage(folder).free
    if free < size + 2**20:
        text = f"{os.strerror(errno.ENOSPC)}: a checkpoint takes {size / 2**20:.1f} MiB and {free / 2**20:.1f} are free"
        raise OSError(errno.ENOSPC, f"{text}; what was saved before is intact: make room, then `ssmrl resume`")


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(leaf: Any) -> list[Any]:
    return [list(leaf.shape), str(leaf.dtype)]


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _from_numpy(array: np.ndarray, key_impl: str | None) -> jax.Array:
    leaf = jax.device_put(array)  # jnp.asarray would compile something for every shape
    return leaf if key_impl is None else jax.random.wrap_key_data(leaf, impl=key_impl)


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _checksum(path: Path) -> str:
    return f"{zlib.crc32(path.read_bytes()):08x}"


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _difference(saved: dict[str, Any], expected: dict[str, Any]) -> str:
    """Name the first few leaves that differ."""
    differing = sorted(p for p in saved.keys() | expected.keys() if saved.get(p) != expected.get(p))

    def say(tree: dict[str, Any], path: str) -> str:
        return "absent" if path not in tree else f"{tree[path][1]}{tree[path][0]}"

    shown = "; ".join(f"{p} is {say(saved, p)} there, {say(expected, p)} here" for p in differing[:3])
    more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
    return f"{shown}{more}"
