"""A planned study whose runs nobody trains, a job of it, and tools whose clock stands still."""

import dataclasses

import pytest

from chinchilla_jax.base import files
from chinchilla_jax.launch.backend import Job
from chinchilla_jax.launch.command import Tools
from chinchilla_jax.preflight.slices import parse_slice
from chinchilla_jax.study.folder import MANIFEST, RESULT, run_folder, write_manifest
from chinchilla_jax.study.plan import plan
from configs.isoflop import tiny


@pytest.fixture(scope="session")
def manifest():
    from chinchilla_jax.config import RunConfig

    return plan(RunConfig.from_dict(tiny().to_dict()))


@pytest.fixture
def study(tmp_path, manifest):
    """The folder of a study of three runs."""
    few = dataclasses.replace(manifest, runs=manifest.runs[:3])
    write_manifest(tmp_path / "study" / MANIFEST, few)
    return tmp_path / "study"


@pytest.fixture
def job(study):
    """Two slices of 16 chips."""
    return Job("cj-test", str(study), MANIFEST, 2, parse_slice("v5e-16"))


@pytest.fixture
def said():
    """Lines that the tools printed."""
    return []


@pytest.fixture
def tools(said):
    return Tools(said.append, sleep=lambda _: None)


@pytest.fixture
def finish(study):
    """Gives a run its result."""

    def finish(run):
        files.write_json(run_folder(study, run.name) / RESULT, run.facts() | {"loss": 1.0})

    return finish
