"""A model with random weights, and the tokenizer of a small corpus."""

import dataclasses

import jax
import pytest

from chinchilla_jax.interop.trained import Trained, for_use, tokenizer_of
from chinchilla_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="session")
def make_model(tiny_run):
    """A function that makes one with these changes of its shape, on a mesh; the same numbers on every mesh."""

    def make(mesh=None, **changes):
        shape = {"position": "learned", "tie_embeddings": False, "max_position": 96} | changes
        config = dataclasses.replace(
            tiny_run,
            model=dataclasses.replace(tiny_run.model, **shape),
            data=dataclasses.replace(tiny_run.data, seq_len=96),
            train=dataclasses.replace(tiny_run.train, train_tokens=96 * 8),
        )
        config = for_use(config, mesh)
        made = Trained(config, {}, make_mesh(config.mesh), tokenizer_of(tiny_run), "here")
        return dataclasses.replace(made, params=made.program.init(jax.random.key(9)).params)

    return make


@pytest.fixture(scope="session")
def model(make_model):
    """One with learned positions and an output matrix of its own."""
    return make_model()
