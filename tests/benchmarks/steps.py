"""Train steps on random tokens, for the benchmarks to time."""

import statistics
import time

import jax
import numpy as np

from chinchilla_jax.config import DataConfig, MeshConfig, ModelConfig, RunConfig, TrainConfig
from chinchilla_jax.ledger import train_flops_per_token
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.machine import hardware
from chinchilla_jax.training.step import make_program


class Steps:
    """One compiled train step with its state and a batch, ready to be run again and again."""

    def __init__(
        self, model: ModelConfig, seq_len: int, batch_size: int, microbatches: int, data_parallel: int = 1, **train: str
    ):
        """`train`: other settings of that section."""
        hardware.keep_freed_memory()
        self.config = RunConfig(
            model=model, data=DataConfig(seq_len=seq_len, vocab_size=model.vocab_size),
            mesh=MeshConfig(data=data_parallel),
            train=TrainConfig(batch_size=batch_size, microbatches=microbatches, train_tokens=batch_size * seq_len,
                              **train),
        )  # fmt: skip
        self.program = make_program(self.config, make_mesh(self.config.mesh))
        self.state = self.program.init(jax.random.key(0))
        shape = (microbatches, batch_size // microbatches, seq_len)
        tokens = np.random.default_rng(0).integers(0, model.vocab_size, (2, *shape), dtype=np.int32)
        batch = {"inputs": tokens[0], "targets": tokens[1], "weights": np.ones(shape, np.float32)}
        self.batch = jax.device_put(batch, self.program.batch_sharding)
        self.tokens = batch_size * seq_len
        self.flops = self.tokens * train_flops_per_token(model, seq_len, "executed", batch_size // microbatches)
        self.seconds(1)

    def seconds(self, n: int) -> float:
        """Median seconds of `n` steps, each waited for."""
        taken = []
        for _ in range(n):
            start = time.perf_counter()
            self.state, metrics = self.program.step(self.state, self.batch, np.float32(1e-3))
            jax.block_until_ready(metrics)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)
