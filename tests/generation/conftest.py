"""Models with random weights, large enough that every term matters."""

import dataclasses

import jax
import numpy as np
import pytest

from chinchilla_jax.config import ModelConfig, RunConfig
from chinchilla_jax.interop.trained import Trained, for_use
from chinchilla_jax.parallel.mesh import make_mesh

SHAPE = {"n_layers": 2, "d_model": 32, "n_heads": 8, "n_kv_heads": 4, "head_dim": 8, "d_ff": 48, "vocab_size": 320}


def drawn(name, x):
    """Matrices and biases of a deviation near 0.2, gains near 1."""
    rng = np.random.default_rng(sum(map(ord, name)))
    mean, deviation = (1.0, 0.2) if name.endswith("'gain']") else (0.0, 0.5 if x.ndim > 1 else 0.2)
    return jax.device_put((mean + deviation * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding)


@pytest.fixture(scope="session")
def trained():
    """A function that makes a model of one kind of position, on a mesh; the same numbers on every mesh."""

    def make(position, mesh=None, **changes):
        shape = SHAPE | ({"n_kv_heads": 8} if position == "relative" else {})
        model = ModelConfig(**(shape | {"max_position": 64, "position": position} | changes))
        data = dataclasses.replace(RunConfig().data, vocab_size=320, seq_len=32)
        config = for_use(RunConfig(model=model, data=data), mesh)
        made = Trained(config, {}, make_mesh(config.mesh), None, "here")
        abstract = made.program.abstract.params
        params = jax.tree_util.tree_map_with_path(lambda path, x: drawn(jax.tree_util.keystr(path), x), abstract)
        return dataclasses.replace(made, params=params)

    return make
