"""Two small trained runs of different widths that kept every checkpoint of their way."""

import dataclasses

import pytest

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.training.loop import train


@pytest.fixture(scope="session")
def kept_runs(tiny_run, tmp_path_factory):
    """The folders of a small and a large run, which evaluate and keep each of their six steps."""
    folders = []
    for name, width in (("small", 16), ("large", 32)):
        model = ModelConfig(d_model=width, head_dim=width // 2, d_ff=2 * width, vocab_size=512)
        train_of = {"train_tokens": 6 * 8 * 32, "keep_checkpoints": 6, "eval_every": 1, "log_every": 6}
        config = dataclasses.replace(tiny_run, model=model, train=dataclasses.replace(tiny_run.train, **train_of))
        folder = tmp_path_factory.mktemp("kept") / name
        train(config, folder, echo=lambda line: None)
        folders.append(folder)
    return folders
