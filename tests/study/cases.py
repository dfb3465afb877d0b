"""Small studies and helpers that several test modules share."""

import time

from chinchilla_jax.config import DataConfig, MeshConfig, ModelConfig, RunConfig, StudyConfig, TrainConfig

SHAPE = ModelConfig(n_layers=4, d_model=64, n_heads=2, n_kv_heads=2, head_dim=32, d_ff=256, vocab_size=512)
SMALL = ModelConfig(n_layers=2, d_model=64, n_heads=2, n_kv_heads=2, head_dim=32, d_ff=256, vocab_size=512)
LARGE = ModelConfig(n_layers=12, d_model=1024, n_heads=16, n_kv_heads=16, head_dim=64, d_ff=4096, vocab_size=32000)


def quiet(_):
    """An `echo` that says nothing."""


def until(condition, seconds=60.0):
    """Waits for something that another thread or process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def study_config(model=SHAPE, batch_size=4, **study):
    """A small study of three budgets; keyword arguments change its study section."""
    values = {"budgets": (1e11, 3e11, 9e11), "size_ratio": 1.5, "guess": "D/N = 5", "aspect_ratio": 16.0} | study
    data = DataConfig(vocab_size=model.vocab_size, seq_len=64)
    return RunConfig(model=model, data=data, train=TrainConfig(batch_size=batch_size), study=StudyConfig(**values))


def width_config(model=SMALL, batch_size=8, microbatches=2, seq_len=64, mesh=None, **study):
    """A study of two budgets in which only the width varies; keyword arguments change its study section."""
    values = {"budgets": (1e12, 4e12), "size_ratio": 1.5, "guess": "D/N = 5", "ladder": "width"} | study
    return RunConfig(
        model=model,
        data=DataConfig(vocab_size=model.vocab_size, seq_len=seq_len),
        mesh=mesh or MeshConfig(),
        train=TrainConfig(batch_size=batch_size, microbatches=microbatches),
        study=StudyConfig(**values),
    )


def paper_config(**study):
    """The paper's budgets and shapes."""
    values = {
        "budgets": (6e18, 1e20, 3e21),
        "convention": "table_a4",
        "sizes": 9,
        "size_ratio": 1.35,
        "ladder": "chinchilla",
        "guess": "D/N = 20",
    }
    return width_config(LARGE, 256, 1, 2048, **values | study)
