"""Small studies, one of them in a folder, and a `train` that only pretends."""

import json

import pytest

from chinchilla_jax.config import DataConfig, ModelConfig, RunConfig, StudyConfig, TrainConfig
from chinchilla_jax.study.folder import MANIFEST, write_manifest
from chinchilla_jax.study.plan import plan
from tests.study.cases import study_config


@pytest.fixture(scope="session")
def config():
    """A study of three budgets."""
    return study_config()


@pytest.fixture(scope="session")
def manifest(config):
    """Its plan."""
    return plan(config)


@pytest.fixture(scope="session")
def small_plan():
    """A plan of twelve runs."""
    return plan(
        RunConfig(
            model=ModelConfig(vocab_size=512),
            data=DataConfig(vocab_size=512, seq_len=64),
            train=TrainConfig(batch_size=4),
            study=StudyConfig(budgets=(2e11, 6e11), sizes=6, size_ratio=1.5, guess="D/N = 5", aspect_ratio=16.0),
        )
    )


@pytest.fixture
def study(tmp_path, small_plan):
    """A study folder with that plan and nothing trained."""
    write_manifest(tmp_path / MANIFEST, small_plan)
    return tmp_path


@pytest.fixture
def finish():
    """Writes the result of a run as `train` would."""

    def write(config, folder, facts, echo=print, **more):
        folder.mkdir(parents=True, exist_ok=True)
        usual = {"loss": 3.0, "bits_per_byte": 1.5, "seconds": 2.0, "diverged": False}
        result = facts | usual | {"time": {"step": 1.5, "compile": 0.25}} | more
        (folder / "result.json").write_text(json.dumps(result))
        return result

    return write
