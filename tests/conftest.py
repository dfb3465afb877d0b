"""Eight emulated CPU devices for every test, set before JAX first looks for devices; programs that compile quickly."""

import gc
import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the time of most tests, and shapes this small gain nothing from optimised machine code. In the
# environment, so that processes which tests start do the same. The TPU compiler makes the same program with it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import pytest

from chinchilla_jax.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from chinchilla_jax.data import prepare

if jax.__version_info__[:2] == (0, 10):
    # The older of two code generators, which takes half the time; jax 0.12 no longer has it.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
jax.config.update("jax_num_cpu_devices", 8)
# Tracing makes many objects that stay: looking through them for garbage took a tenth of the time.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The config of a run of four steps on a prepared store of the shipped text."""
    data = DataConfig(source="shipped", data_dir=str(tmp_path_factory.mktemp("tiny")), vocab_size=512, seq_len=32)
    prepare(data, lambda line: None)
    train = TrainConfig(train_tokens=4 * 8 * 32, batch_size=8, log_every=2, eval_sequences=16)
    model = ModelConfig(d_model=16, head_dim=8, d_ff=32, vocab_size=512)
    return RunConfig(model=model, data=data, train=train, optimizer=OptimizerConfig(peak_lr=1e-2))
