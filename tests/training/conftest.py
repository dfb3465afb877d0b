"""A small run on the shipped text, and compiled programs that the processes of a test session share."""

import dataclasses
import io
import itertools
import os
import signal

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from chinchilla_jax.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from chinchilla_jax.data import prepare
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training import loop
from chinchilla_jax.training.checkpoint import Checkpoints
from chinchilla_jax.training.step import make_program

MODEL = ModelConfig(n_layers=2, d_model=16, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32, vocab_size=512)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The config of a prepared store of the shipped text."""
    config = DataConfig(source="shipped", data_dir=str(tmp_path_factory.mktemp("data")), vocab_size=512, seq_len=32)
    prepare(config, lambda line: None)
    return config


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A folder of compiled programs: a child process starts in a second instead of ten."""
    folder = tmp_path_factory.mktemp("compiled")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # whether there is one is decided at the first compilation
    yield settings
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def small(data, compiled):
    """24 steps; logs every 4, evaluates every 6, saves every 5; the batch doubles at step 16."""
    train = TrainConfig(
        train_tokens=32 * 8 * 32,
        batch_size=8,
        microbatches=2,
        double_batch_at=0.5,
        log_every=4,
        eval_every=6,
        eval_sequences=24,
        checkpoint_every=5,
    )
    return RunConfig(MODEL, OptimizerConfig(peak_lr=1e-2, warmup_steps=3, z_loss=1e-4), data, train=train)


@pytest.fixture(scope="session")
def changed():
    """`changed(config, train={"seed": 1})`: the config with those values."""

    def change(config: RunConfig, **sections: dict) -> RunConfig:
        parts = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
        return dataclasses.replace(config, **parts)

    return change


@pytest.fixture
def said():
    """An `echo`, and in `.text` what it was told."""

    class Said:
        def __init__(self):
            self._buffer = io.StringIO()

        def __call__(self, line: str) -> None:
            self._buffer.write(line + "\n")

        @property
        def text(self) -> str:
            return self._buffer.getvalue()

    return Said()


@pytest.fixture
def stop_at(monkeypatch):
    """`stop_at(step)`: SIGTERM arrives once, when `step` steps are done."""

    def arm(stop):
        rate, left = loop.learning_rate, [stop]

        def with_signal(optimizer, steps, step):
            if left == [step + 1]:
                left.clear()
                os.kill(os.getpid(), signal.SIGTERM)
            return rate(optimizer, steps, step)

        monkeypatch.setattr(loop, "learning_rate", with_signal)

    return arm


@pytest.fixture
def stop_after(monkeypatch):
    """`stop_after(n)`: SIGTERM arrives once, when `n` more steps are done, whatever stages they belong to."""

    def arm(stop):
        rate, calls = loop.learning_rate, itertools.count(1)

        def with_signal(optimizer, steps, step):
            if next(calls) == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return rate(optimizer, steps, step)

        monkeypatch.setattr(loop, "learning_rate", with_signal)

    return arm


@pytest.fixture(scope="session")
def saved():
    """`saved(config, workdir)`: state as numpy arrays, and position, of the newest checkpoint."""

    def read(config: RunConfig, workdir):
        checkpoints = Checkpoints(workdir / "checkpoints")
        program = make_program(config, make_mesh(config.mesh))
        state, position = checkpoints.restore(lambda step: program.abstract, pytest.fail)
        checkpoints.close()
        return jax.tree.map(np.asarray, state), position

    return read
