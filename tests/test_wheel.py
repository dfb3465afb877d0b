"""Without the checkout: a wheel, installed elsewhere, has the configs by name, the tables and the shipped text."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel, unpacked where nothing else is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for folder_name in ("chinchilla_jax", "configs"):
        shutil.copytree(
            ROOT / folder_name, source / folder_name, ignore=shutil.ignore_patterns("__pycache__", "results")
        )
    for name in ("setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    ]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    zipfile.ZipFile(file).extractall(folder / "installed")
    return folder / "installed"


def run(wheel, cwd, *words):
    environment = {**os.environ, "PYTHONPATH": str(wheel), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "chinchilla_jax", *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configs_are_reached_by_name_from_anywhere(wheel, tmp_path):
    assert "24 runs" in run(wheel, tmp_path, "plan", "--config=isoflop.py:cpu", "--dry_run")
    assert "24 runs" in run(wheel, tmp_path, "plan", "--config=configs/isoflop.py:tiny", "--dry_run")


def test_tables_and_text_are_inside(wheel, tmp_path):
    assert "chinchilla-70b" in run(wheel, tmp_path, "presets")
    assert "training tokens" in run(wheel, tmp_path, "data", "--config=isoflop.py:tiny")


def test_what_goes_beside_exported_weights_is_inside(wheel):
    from chinchilla_jax.interop.hf.own import CODE

    assert {path.name for path in wheel.glob("chinchilla_jax/interop/hf/templates/*")} == set(CODE)


@pytest.mark.long
def test_the_main_job_runs_without_the_checkout(wheel, tmp_path):
    printed = run(wheel, tmp_path, "study", "--config=isoflop.py:tiny", "--study=tiny")
    assert "report: tiny/report.html" in printed
    assert (tmp_path / "tiny" / "report.html").is_file()
