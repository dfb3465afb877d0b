"""The four families, small, and their random weights."""

import flax
import jax
import numpy as np
import pytest

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.transformer import Transformer

_COMMON = {"n_layers": 2, "d_model": 24, "head_dim": 6, "d_ff": 40, "vocab_size": 48, "max_position": 16}
FAMILIES = {
    # n_heads * head_dim differs from d_model in the first two
    "gopher": ModelConfig(**_COMMON, n_heads=3, n_kv_heads=3),
    "chinchilla": ModelConfig(**_COMMON, n_heads=5, n_kv_heads=5),
    "gpt3": ModelConfig(**_COMMON, n_heads=4, n_kv_heads=4, position="learned", norm="layernorm", biases="all"),
    "llama": ModelConfig(
        **_COMMON, n_heads=4, n_kv_heads=2, position="rope", feed_forward="swiglu", biases="none", tie_embeddings=False
    ),  # fmt: skip
}


@pytest.fixture(params=FAMILIES)
def family(request):
    """The shape of a small model of each family."""
    return FAMILIES[request.param]


@pytest.fixture(params=[name for name in FAMILIES if name != "chinchilla"])
def kind(request):
    """The same without Chinchilla, which differs from Gopher in its numbers alone."""
    return FAMILIES[request.param]


@pytest.fixture(scope="session")
def weights():
    """A function: weights for a shape, all of them random, so that no bias is zero and no gain one."""

    def draw(model: ModelConfig, seed: int = 0):
        tokens = jax.ShapeDtypeStruct((1, 4), np.int32)
        shapes = flax.linen.meta.unbox(jax.eval_shape(Transformer(model).init, jax.random.key(0), tokens))
        leaves, tree = jax.tree.flatten(shapes)
        rng = np.random.default_rng(seed)
        return jax.tree.unflatten(tree, [0.3 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])

    return draw
