"""What files share whose tests share runs."""

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.runs import UPDATES, train


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """All tests of a file work in one folder and one environment: what commands set for jax ends with them."""
    saved, folder = os.environ.copy(), Path.cwd()
    os.chdir(tmp_path_factory.mktemp("shared"))
    yield
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A test in a folder, and with an environment, of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what commands set for jax ends with the test
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run that was never stopped."""
    return train(tmp_path_factory.mktemp("reference") / "run", UPDATES, checkpoint__every=UPDATES)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of three updates, with every checkpoint kept. Tests copy it before they change it."""
    return train(tmp_path_factory.mktemp("short") / "run", checkpoint__keep=9)


@pytest.fixture
def copy(short, tmp_path):
    return Path(shutil.copytree(short.dir, tmp_path / "copy"))
