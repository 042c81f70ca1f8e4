"""What files share whose tests share runs."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """All tests of a file work in one folder and one environment: what commands set for jax ends with them."""
    saved, folder = os.environ.copy(), Path.cwd()
    os.chdir(tmp_path_factory.mktemp("shared"))
    yield
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(saved)
