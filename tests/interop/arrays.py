"""Tensors in memory, to be read as those of files are, and parameters made of them on one device."""

import jax
import numpy as np

from chinchilla_jax.config import DataConfig, MeshConfig, RunConfig, TrainConfig
from chinchilla_jax.interop.load import load_params
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.step import make_program


class Arrays(dict):
    """`safetensors.Tensors` of arrays by name."""

    @property
    def shapes(self):
        return {name: array.shape for name, array in self.items()}

    def dtype(self, name):
        return self[name].dtype

    def rows(self, name, start=0, stop=None):
        return self[name][start:stop].copy()


def parameters_from(arrays, names, model):
    """Parameters of `model` as its `init` would lay them out."""
    data = DataConfig(tokenizer="none", vocab_size=model.vocab_size, seq_len=8)
    config = RunConfig(model, data=data, train=TrainConfig(batch_size=1))
    abstract = make_program(config, make_mesh(MeshConfig())).abstract.params
    return jax.tree.map(np.asarray, load_params(Arrays(arrays), names, model, abstract))
