"""A trained model that has a tokenizer: that of the tiny run, with weights large enough that every term matters."""

import dataclasses

import jax
import numpy as np
import pytest

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.interop.trained import Trained, for_use, tokenizer_of
from chinchilla_jax.parallel.mesh import make_mesh

SHAPE = {"n_layers": 2, "d_model": 32, "n_heads": 8, "n_kv_heads": 8, "head_dim": 8, "d_ff": 48, "vocab_size": 512}


def drawn(name, x):
    """Matrices and biases of a deviation near 0.2, gains near 1."""
    rng = np.random.default_rng(sum(map(ord, name)))
    mean, deviation = (1.0, 0.2) if name.endswith("'gain']") else (0.0, 0.3 if x.ndim > 1 else 0.2)
    return jax.device_put((mean + deviation * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding)


@pytest.fixture(scope="session")
def talking(tiny_run):
    """A function that makes a model of one kind of position, on a mesh; the same numbers on every mesh."""

    def make(position="rope", mesh=None, seq_len=64, **changes):
        model = ModelConfig(**(SHAPE | {"max_position": seq_len, "position": position} | changes))
        data = dataclasses.replace(tiny_run.data, seq_len=seq_len)
        config = for_use(dataclasses.replace(tiny_run, model=model, data=data), mesh, "float32")
        tokenizer = tokenizer_of(tiny_run)
        made = Trained(config, {}, make_mesh(config.mesh), tokenizer, "here")
        abstract = made.program.abstract.params
        params = jax.tree_util.tree_map_with_path(lambda path, x: drawn(jax.tree_util.keystr(path), x), abstract)
        return dataclasses.replace(made, params=params)

    return make
