"""Compiles a run's programs before the run can start, by calling them on a batch of nothing."""

from __future__ import annotations

import jax
import numpy as np

from chinchilla_jax.config import RunConfig
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.machine import hardware
from chinchilla_jax.training.machine.ahead import train_step_arguments
from chinchilla_jax.training.step import make_program


def warm(config: RunConfig) -> None:
    """Has this process ready for the first step and the evaluation of the run `config`. Nothing is read or written.

    What is compiled goes into the compilation cache too, so other processes need not compile it either.

    Raises:
      ShardingError, AttentionError, ConfigError: the run cannot be laid out on this process's devices.
    """
    hardware.keep_freed_memory()
    mesh = make_mesh(config.mesh)
    program = make_program(config, mesh)
    _, shapes, _ = train_step_arguments(config, mesh)
    batch = {name: jax.device_put(np.zeros(a.shape, a.dtype), a.sharding) for name, a in shapes.items()}
    state, _ = program.step(program.init(jax.random.key(config.train.seed)), batch, np.float32(0.0))
    jax.block_until_ready(program.evaluate(state.params, batch))
