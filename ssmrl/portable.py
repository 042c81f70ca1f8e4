"""A trained policy as one folder that can be copied anywhere: ``policy.json`` and ``arrays.npz``.

The JSON holds the format version, the spaces, what builds the network, the run's configuration and where the policy is
from; the arrays are parameters and normaliser under their tree paths. Reading needs neither the run nor the
environment's package, runs nothing that is stored (no pickle), and checks every byte first.
"""

import dataclasses
import json
import math
import os
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl import nn, spaces
from ssmrl.fields import UserError
from ssmrl.nn.actor_critic import ActorCritic
from ssmrl.planning import PlanningPolicy
from ssmrl.policy import Policy, RunningStats
from ssmrl.registry import UnknownNameError
from ssmrl.world_model import WorldModel
from ssmrl.world_policy import WorldActorCritic

FORMAT = 2
_READS = (1, FORMAT)  # in 1, every network is an ActorCritic and does not say so
_KIND = "ssmrl policy"
_FACTS, _ARRAYS = "policy.json", "arrays.npz"
_CLASSES: dict[str, Any] = {c.__name__: c for c in (ActorCritic, PlanningPolicy, WorldActorCritic, WorldModel)}
_APART = ("observation_space", "action_space", "memory")  # parts of a network that are told for all of it


def is_exported(folder: str | Path) -> bool:
    """Whether ``folder`` looks like an exported policy, intact or not."""
    return (Path(folder) / _FACTS).exists() or (Path(folder) / _ARRAYS).exists()


def write(policy: Policy, config: Mapping[str, Any], source: Mapping[str, Any], folder: Path) -> None:
    """Write a policy to a new folder, which appears when it is complete.

    ``config`` are the settings of its run, by flat keys; ``source`` says where it is from, for people. Raises
    ``UserError`` if the folder exists with something in it or cannot be written, and for a network of a foreign class.
    """
    check_free(folder)
    outline = _outline(policy.network)
    network, arrays = policy.network, dict(zip(_paths(policy), map(_to_numpy, jax.tree.leaves(policy)), strict=True))
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        np.savez(partial / _ARRAYS, **arrays)  # type: ignore[arg-type]
        facts = {
            "kind": _KIND,
            "format": FORMAT,
            "source": source,
            "observation_space": spaces.to_json(network.observation_space),
            "action_space": spaces.to_json(network.action_space),
            "network": outline,
            "normalizes_obs": policy.obs_stats is not None,
            "arrays": {name: _describe(array) for name, array in arrays.items()},
            "arrays_crc32": _crc((partial / _ARRAYS).read_bytes()),
            "config": config,
            "versions": {name: version(name) for name in ("ssmrl", "jax", "flax", "numpy")},
        }
        facts = _finite(facts)
        text = json.dumps(facts | {"crc32": _checksum(facts)}, indent=1, allow_nan=False)
        (partial / _FACTS).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Raise ``UserError`` if there is something at ``folder`` already, or if it cannot be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: choose another folder, or delete it")
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {folder}: {parent} is read-only; choose another folder")


def read(folder: str | Path) -> tuple[Policy, dict[str, Any]]:
    """Read an exported policy, bit for bit, and what its ``policy.json`` says.

    Raises ``UserError`` if a file is missing, damaged, foreign or of a newer format, or if its sequence model is not
    known here.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    like = _shapes(folder, facts)
    shapes = dict(zip(_paths(like), jax.tree.leaves(like), strict=True))
    expected = {name: _describe(x) for name, x in shapes.items()}
    if expected != facts["arrays"]:
        differing = sorted(p for p in expected | facts["arrays"] if expected.get(p) != facts["arrays"].get(p))
        raise UserError(
            f"{folder} does not fit the network that this version ({version('ssmrl')}) builds for it: it has another "
            f"{', '.join(differing[:3])}; use ssmrl {facts['versions']['ssmrl']}, which wrote it"
        )
    path = folder / _ARRAYS
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the folder again, or export it again")
    if _crc(path.read_bytes()) != facts["arrays_crc32"]:
        raise UserError(f"{path} is damaged or cut short; copy the folder again, or export it again")
    try:
        with np.load(path, allow_pickle=False) as arrays:  # numpy stores bfloat16 as nameless bytes: hence the view
            leaves = [jax.device_put(arrays[name].view(x.dtype).reshape(x.shape)) for name, x in shapes.items()]
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} does not hold the arrays that policy.json lists ({error}); export it again") from error
    return jax.tree.unflatten(jax.tree.structure(like), leaves), facts


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``policy.json`` says. Raises ``UserError`` if it is missing, damaged, foreign or of a newer format."""
    path = folder / _FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; copy the folder again, or export it again") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: it cannot be read as JSON; export it again") from error
    if not isinstance(facts, dict) or facts.get("kind") != _KIND:
        raise UserError(f"{path} is not a policy of ssmrl: make one with `ssmrl export RUN FOLDER`")
    if facts.get("format") not in _READS:
        raise UserError(
            f"{path} has format {facts.get('format')}, this version ({version('ssmrl')}) reads up to {FORMAT}: "
            "pip install --upgrade ssmrl, or export it again"
        )
    if facts.pop("crc32", None) != _checksum(facts):
        raise UserError(f"{path} is damaged or was edited: its checksum does not fit; copy or export it again")
    return facts


def _shapes(folder: Path, facts: Mapping[str, Any]) -> Policy:
    """The policy with shapes for arrays."""
    config = facts["config"]
    parameters = {k.removeprefix("model."): v for k, v in config.items() if k.startswith("model.")}
    try:
        memory = nn.make_model(config["model"], **{k: _tuples(v) for k, v in parameters.items()})
    except UnknownNameError as error:
        raise UserError(
            f"{folder} uses the sequence model '{config['model']}', which is not registered here: import the module "
            f"that registers it, then load again ({error})"
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{folder} cannot be read by this version ({version('ssmrl')}), which has another '{config['model']}': "
            f"{error}; use ssmrl {facts['versions']['ssmrl']}"
        ) from error
    observation_space, action_space = (spaces.from_json(facts[f"{x}_space"]) for x in ("observation", "action"))
    apart = dict(zip(_APART, (observation_space, action_space, memory), strict=True))
    try:
        network = _build({"class": ActorCritic.__name__} | facts["network"], apart)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds a network that this version ({version('ssmrl')}) cannot build: {error}; "
            f"use ssmrl {facts['versions']['ssmrl']}, which wrote it"
        ) from error

    def init() -> Any:
        obs, action = spaces.zeros(observation_space, (1, 1)), spaces.zeros(action_space, (1, 1))
        carry = network.initialize_carry((1,))
        return network.init(jax.random.key(0), carry, obs, jnp.zeros((1, 1), bool), action, jnp.zeros((1, 1)))["params"]

    stats = None
    if facts["normalizes_obs"]:
        stats = jax.eval_shape(lambda: RunningStats.create(observation_space.shape))  # type: ignore[union-attr]
    return Policy(jax.eval_shape(init), stats, jax.ShapeDtypeStruct((), jnp.float32), network)


def _outline(part: Any) -> dict[str, Any]:
    """The class and the fields of a network, or of a network in it, but for those that are told apart."""
    name = type(part).__name__
    if _CLASSES.get(name) is not type(part):
        raise UserError(f"a network of the class {name} cannot be exported: {', '.join(_CLASSES)} can")
    names = [f.name for f in dataclasses.fields(part) if f.name not in (*_APART, "parent", "name")]
    fields = {name: getattr(part, name) for name in names}
    return {"class": name} | {k: _outline(v) if dataclasses.is_dataclass(v) else v for k, v in fields.items()}


def _build(outline: Mapping[str, Any], apart: Mapping[str, Any]) -> Any:
    """What :func:`_outline` described."""
    cls = _CLASSES[outline["class"]]
    fields = {k: _build(v, apart) if isinstance(v, dict) else _tuples(v) for k, v in outline.items() if k != "class"}
    return cls(**fields, **{f.name: apart[f.name] for f in dataclasses.fields(cls) if f.name in apart})


def _paths(policy: Policy) -> list[str]:
    named = jax.tree_util.tree_leaves_with_path(policy)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named]


def _describe(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, None if hasattr(leaf, "dtype") else np.float32)  # a hyper-parameter may be a plain number


def _finite(value: Any) -> Any:
    """JSON knows no infinities: write them as text."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _crc(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


def _checksum(facts: Mapping[str, Any]) -> str:
    """Checksum of everything that a ``policy.json`` says, whatever its layout."""
    return _crc(json.dumps(facts, sort_keys=True).encode())
