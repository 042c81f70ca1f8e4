"""What is built is complete, brings nothing else along, and works where it is installed."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "ssmrl" / "configs").rglob("*.yaml"))
MODULES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "ssmrl").rglob("*.py"))


def python(*argv, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of an sdist and of a wheel built from it, from a copy of what git tracks or would."""
    folder = tmp_path_factory.mktemp("package")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    names = [n for n in listed if n] or [p.relative_to(ROOT).as_posix() for p in (ROOT / "ssmrl").rglob("*")]
    for name in names:
        source, target = ROOT / name, folder / "source" / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.readlink(source)) if source.is_symlink() else target.write_bytes(source.read_bytes())
    python("-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), cwd=folder / "source")
    return folder / "dist"


def test_the_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0].split("-")[0] for n in names} == {"ssmrl"}
    assert {*CONFIGS, *MODULES, "ssmrl/py.typed"} <= set(names)
    assert not [n for n in names if "__pycache__" in n or "tests" in n]
    assert [n for n in names if n.endswith("licenses/LICENSE")]
    (entry_points,) = (n for n in names if n.endswith("entry_points.txt"))
    assert "ssmrl = ssmrl.cli:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_the_sdist_holds_what_it_takes_to_build(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert {*CONFIGS, *MODULES, "ssmrl/py.typed", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not {n for n in names if n.split("/")[0] in ("envs", "agents", "configs")}


def test_it_works_where_it_is_installed(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    python(*pip, "--target", str(site), str(wheel), cwd=elsewhere)
    here = {"PYTHONPATH": str(site), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    assert python("-c", "import ssmrl; print(ssmrl.__file__)", cwd=elsewhere, **here).startswith(str(site))
    listed = python("-m", "ssmrl", "list", "presets", cwd=elsewhere, **here)
    assert all(
        Path(c).relative_to("ssmrl/configs").with_suffix("").as_posix() in listed for c in CONFIGS if "sweeps" not in c
    )
    facts = python("-m", "ssmrl", "train", "demo", "--dry-run", cwd=elsewhere, **here)
    assert "popgym/RepeatPreviousEasy" in facts
    assert not list(elsewhere.iterdir())


def test_the_links_at_the_top_lead_to_the_package():
    for name in ("envs", "agents", "configs"):
        link = ROOT / name
        assert link.is_symlink()
        assert not os.path.isabs(os.readlink(link))
        assert link.resolve() == ROOT / "ssmrl" / name
