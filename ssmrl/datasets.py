"""Data sets: recorded episodes of one environment in one file, for world models to learn from, and to imitate.

The file is an ``.npz`` of the arrays of :class:`~ssmrl.frames.Frames` ``[T, N, ...]`` under their tree paths, integers
in as few bytes as they need, and of ``facts``, JSON in bytes: which environment it is of, and a hash of all that the
file holds. Reading runs nothing that is stored (no pickle), and checks every byte first.
"""

import dataclasses
import functools
import hashlib
import json
import secrets
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl import envs, registry, spaces
from ssmrl.fields import UserError, show
from ssmrl.frames import Frames, open_stream, record
from ssmrl.policy import Policy, check_spaces
from ssmrl.registry import UnknownNameError

FORMAT = 1
_KIND = "ssmrl frames"
_BATCH = 256  # sequences recorded at a time


@dataclasses.dataclass(frozen=True)
class DataSet:
    """``N`` recorded sequences: ``arrays`` are those of ``Frames``, ``[T, N, ...]``; ``facts`` what the file says."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """The hash of the content, whatever the layout of the file."""
        return str(self.facts["sha256"])

    @property
    def sequences(self) -> int:
        """``N``."""
        return int(self.arrays["reset"].shape[1])

    @property
    def length(self) -> int:
        """``T``."""
        return int(self.arrays["reset"].shape[0])

    @property
    def frames(self) -> int:
        """All frames, ``T N``."""
        return self.length * self.sequences

    def draw(self, env: Any, env_params: Any, count: int, key: jax.Array) -> Frames:
        """Draw whole sequences with replacement: frames ``[T, count, ...]``; ``key`` is consumed.

        Under ``jit`` the data set is a constant of the program, and stays on the device.
        """
        chosen = jax.random.randint(key, (count,), 0, self.sequences)
        like = frame_shapes(env, env_params)
        leaves = [jnp.asarray(self.arrays[name])[:, chosen].astype(leaf.dtype) for name, leaf in _leaves(like).items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def frame_shapes(env: Any, env_params: Any) -> Frames:
    """Shapes and types of one frame."""

    def one() -> Frames:
        obs, action = (spaces.zeros(s) for s in (env.observation_space(env_params), env.action_space(env_params)))
        return Frames(obs, action, jnp.float32(0), jnp.bool_(False), jnp.bool_(False))

    return jax.eval_shape(one)


def record_dataset(
    name: str, parameters: Mapping[str, Any], sequences: int, seed: int = 0, policy: Policy | None = None
) -> DataSet:
    """Record sequences as long as the longest episode of ``policy``, or of the environment's script.

    Actions are random where there is neither. Raises ``UserError`` if the policy does not fit the environment, or if
    episodes have no time limit.
    """
    env, env_params = envs.make(name, **parameters)
    longest = env.longest_episode(env_params)
    if longest is None:
        raise UserError(f"sequences are whole episodes: {name} has no time limit; use env.max_steps=1000")
    batches = -(-sequences // _BATCH)
    size, frames = -(-sequences // batches), longest + 1
    if policy is not None:
        check_spaces(policy, env, env_params)

    @jax.jit
    def batch(key: jax.Array) -> Frames:
        key_open, key_record = jax.random.split(key)
        stream = open_stream(env, env_params, size, key_open, policy)
        return record(env, env_params, stream, frames, key_record, policy)[1]

    keys = jax.random.split(jax.random.key(seed), batches)
    parts = [{k: _small(np.asarray(v)) for k, v in _leaves(batch(key)).items()} for key in keys]
    kept = np.arange(sequences) * (batches * size) // sequences  # of a mixture's kinds, which are in order, as many
    arrays = {k: np.concatenate([part[k] for part in parts], axis=1)[:, kept] for k in parts[0]}
    facts = {"kind": _KIND, "format": FORMAT, "env": name, "parameters": dict(parameters), "seed": seed}
    return DataSet(arrays, facts | {"sha256": _hash(arrays, facts)})


def save(data: DataSet, path: str | Path) -> None:
    """Write a data set to a new file, which appears when it is complete.

    Raises ``UserError`` if there is one already, or if it cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists: choose another name, or delete it")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    facts = np.frombuffer(json.dumps(data.facts).encode(), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez_compressed(file, facts=facts, **data.arrays)  # type: ignore[arg-type]
        partial.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another name") from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | Path) -> DataSet:
    """Read a data set. Raises ``UserError`` if it is missing, cut short, changed, foreign or of another format."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no data set '{path}': make one with `ssmrl record PRESET --output {path}`")
    status = path.stat()
    return _load(path, (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=2)  # a program is traced several times
def _load(path: Path, stamp: tuple[int, ...]) -> DataSet:
    foreign = f"{path} is no data set of ssmrl: make one with `ssmrl record PRESET --output FILE.npz`"
    if not zipfile.is_zipfile(path):
        cut_short = path.read_bytes()[:2] == b"PK"
        raise UserError(f"{path} is cut short; copy it again, or record it again" if cut_short else foreign)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again, or record it again") from error
    try:
        facts = json.loads(arrays.pop("facts").tobytes())
    except (KeyError, ValueError):
        facts = None
    if not isinstance(facts, dict) or facts.get("kind") != _KIND:
        raise UserError(foreign)
    if facts.get("format") != FORMAT:
        raise UserError(f"{path} has format {facts.get('format')}, this version reads {FORMAT}: record it again")
    if facts.get("sha256") != _hash(arrays, facts):
        raise UserError(f"{path} is damaged or was changed: its content does not have its sha256; record it again")
    return DataSet(arrays, facts)


def load_for(path: str | Path, env: Any, env_params: Any, key: str = "agent.data") -> DataSet:
    """As :func:`load`; raises ``UserError`` also for a data set of another environment than ``env``.

    ``key`` is the setting that named it.
    """
    data = load(path)
    name = data.facts["env"]
    parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in data.facts["parameters"].items()}
    try:
        own, own_params = envs.make(name, **parameters)
        defaults = {k: field.default for k, field in registry.envs.find(name).parameters().items()}
    except (UnknownNameError, TypeError, ValueError) as error:
        raise UserError(f"{key}={path}: its environment cannot be made here ({error}); record it again") from error
    shapes = {k: tuple(leaf.shape) for k, leaf in _leaves(frame_shapes(env, env_params)).items()}
    recorded = {k: tuple(array.shape[2:]) for k, array in data.arrays.items()}
    longest = env.longest_episode(env_params)
    if (own, own.longest_episode(own_params), shapes) != (env, longest, recorded) or data.length != longest + 1:
        own_settings = "".join(f" env.{k}={show(v)}" for k, v in parameters.items() if v != defaults[k])
        raise UserError(
            f"{key}={path}: it was recorded in {name}{own_settings}, not in the environment of this run; record "
            "one with the preset and settings that you train with"
        )
    return data


def _leaves(frames: Frames) -> dict[str, Any]:
    named = jax.tree_util.tree_leaves_with_path(frames)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in named}


def _small(array: np.ndarray) -> np.ndarray:
    """Integers in the smallest unsigned type that holds them, other arrays as they are."""
    if not np.issubdtype(array.dtype, np.integer) or array.min(initial=0) < 0:
        return array
    return array.astype(np.min_scalar_type(array.max(initial=0)))


def _hash(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    """Of everything but the hash itself."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in facts.items() if k != "sha256"}, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
