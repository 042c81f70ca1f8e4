"""Whether this machine and its packages can run ssmrl: what ``ssmrl doctor`` shows."""

import dataclasses
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ssmrl import registry
from ssmrl.tracking import wandb_mode

_REQUIRED = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "gymnax",
    "gymnasium",
    "brax",
    "orbax-checkpoint",
    "pydantic",
    "pillow",
    "wandb",
)
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin")
_OPTIONAL = {  # what each is for, and how to install it
    "tensorboardX": ("TensorBoard files (tensorboard=true)", "ssmrl[tensorboard]"),
    "optuna": ("Bayesian sweeps (method: bayes)", "ssmrl[sweep]"),
    "stable-baselines3": ("other people's agents in our environments", "stable-baselines3"),
}
_SUITES = {  # the environments that a package brings, where there is an adapter for it
    "playground": ("dmc", "ssmrl[dmc]"),
    "xminigrid": ("xminigrid", "ssmrl[xminigrid]"),
    "craftax": ("craftax", "ssmrl[craftax]"),
    "navix": ("navix", "navix>=4"),
    "jumanji": ("jumanji", "ssmrl[jumanji]"),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    verdict: Literal["ok", "note", "broken"]
    name: str
    detail: str


def examine(cache_dir: Path) -> list[Finding]:
    """Look at versions, known bad combinations, devices, wandb and the compilation cache; imports jax."""
    return [*_packages(), *_combinations(), *_devices(), _wandb(), _cache(cache_dir)]


def installed(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    for package in ("ssmrl", *_REQUIRED):
        found = installed(package)
        yield Finding("ok" if found else "broken", package, found or f"not installed: pip install {package}")
    for package in _PLUGINS:
        if found := installed(package):
            yield Finding("ok", package, found)
    families = {entry.name.split("/")[0] for entry in registry.envs.entries()}
    suites = {p: (f"environments {family}/", s) for p, (family, s) in _SUITES.items() if family in families}
    for package, (use, source) in {**_OPTIONAL, **suites}.items():
        if found := installed(package):
            yield Finding("ok", package, f"{found}, for {use}")
        else:
            yield Finding("note", package, f"not installed; for {use}: pip install '{source}'")


def _combinations() -> Iterator[Finding]:
    jax, jaxlib, gymnax, brax = (_numbers(p) for p in ("jax", "jaxlib", "gymnax", "brax"))
    if jax and jaxlib and jax[:2] != jaxlib[:2]:
        yield Finding("broken", "jax", "jax and jaxlib differ in version: pip install --upgrade jax jaxlib")
    if installed("stable-gymnax"):
        fix = "pip uninstall stable-gymnax && pip install --force-reinstall --no-deps 'gymnax>=1.0.1,<2'"
        yield Finding("broken", "gymnax", f"stable-gymnax has overwritten it with an older protocol: {fix}")
    elif gymnax and not (1, 0, 1) <= gymnax < (2,):
        yield Finding("broken", "gymnax", "its step returns other values: pip install 'gymnax>=1.0.1,<2'")
    if brax and brax <= (0, 14, 2) and jax and jax >= (0, 10):
        yield Finding("note", "brax/swimmer", "its step fails with this jax, the other brax environments work")


def _numbers(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in (installed(package) or "").split(".") if part.isdecimal())


def _devices() -> Iterator[Finding]:
    try:
        import jax

        devices = jax.devices()
        jax.block_until_ready(jax.jit(lambda x: x + 1)(0))
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        yield Finding("broken", "devices", f"jax does not run: {first}")
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "devices", f"{', '.join(f'{d} ({d.device_kind})' for d in devices)}; {cores} CPU cores")
    if all(d.platform == "cpu" for d in devices):
        if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
            pinned = os.environ.get("JAX_PLATFORMS")
            fix = f"unset JAX_PLATFORMS (it is {pinned})" if pinned else "pip install 'ssmrl[cuda12]' (or cuda13)"
            yield Finding("note", "gpu", f"there is an NVIDIA GPU, and jax does not use it: {fix}")
    else:
        yield Finding("note", "gpu", "TF32 matmuls are fast and inexact: JAX_DEFAULT_MATMUL_PRECISION=highest is exact")
        yield Finding(
            "note", "gpu", "jax takes 75% of its memory at once: XLA_PYTHON_CLIENT_PREALLOCATE=false does not"
        )


def _wandb() -> Finding:
    mode, reason = wandb_mode("auto")
    fix = "" if mode == "online" else "; `wandb login` or WANDB_API_KEY make it online"
    return Finding("ok" if mode == "online" else "note", "wandb=auto", f"{mode} ({reason}){fix}")


def _cache(default: Path) -> Finding:
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return Finding("note", "cache", f"{folder} cannot be written ({error.strerror}): set cache.dir")
    if not os.access(folder, os.W_OK):
        return Finding("note", "cache", f"{folder} cannot be written: set cache.dir")
    files = [p for p in folder.iterdir() if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    return Finding("ok", "cache", f"{folder}: {len(files)} files, {size / 2**20:.0f} MiB (delete it to free them)")
