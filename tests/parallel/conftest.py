"""Small runs of two architectures on any mesh of the emulated devices."""

import pytest

from chinchilla_jax.config import DataConfig, MeshConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig

CHINCHILLA = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=64, vocab_size=320,
                         position="relative", feed_forward="gelu", biases="gopher", tie_embeddings=True)  # fmt: skip
LLAMA = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=320,
                    position="rope", feed_forward="swiglu", biases="none", tie_embeddings=False)  # fmt: skip


@pytest.fixture(scope="session")
def sharded_config():
    """`sharded_config("llama", 1, 8, 1)`: a run of that architecture on that mesh."""

    def make(architecture: str, *mesh: int) -> RunConfig:
        return RunConfig({"chinchilla": CHINCHILLA, "llama": LLAMA}[architecture], OptimizerConfig(peak_lr=3e-3),
                         DataConfig(vocab_size=320, seq_len=16), MeshConfig(*mesh),
                         TrainConfig(train_tokens=20 * 16 * 16, batch_size=16, microbatches=2))  # fmt: skip

    return make
