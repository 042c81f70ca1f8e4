"""Strict numerics for every test, and a compilation cache that outlives the run (git-ignored)."""

import gc
import os
from pathlib import Path

import jax
import pytest

if jax.__version_info__ < (0, 11):
    # XLA's older code generator, which is gone since, compiles twice as fast, and its programs run a quarter slower;
    # and to split a program among threads costs a little, where another process of tests has the other core.
    flags = " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_platforms", "cpu")
gc.set_threshold(50_000, 20, 20)  # tracing makes many objects that live: looking for garbage was a tenth of all time


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Most tests compile for seconds what runs for milliseconds: they, and programs they start, do not optimise."""
    optimised = item.get_closest_marker("optimised") or item.get_closest_marker("slow")
    jax.config.update("jax_disable_most_optimizations", not optimised)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(not optimised))


@pytest.fixture(autouse=True, scope="module")
def _few_mappings():
    """Every compiled program is mapped into memory, and a process of Linux that has 65,530 mappings crashes."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _strict_numerics():
    with jax.numpy_rank_promotion("raise"):
        yield
