"""The same weights give the same numbers as independent implementations: Transformer-XL, LLaMA, GPT-2.

`fixtures/make_fixtures.py` wrote the files and describes them.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.interop.names import NAMES
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model.attention import Attention
from chinchilla_jax.model.positions import sinusoids
from chinchilla_jax.model.transformer import Transformer
from tests.interop.arrays import parameters_from

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def load(name):
    """The arrays of a fixture and its sizes."""
    arrays = dict(np.load(FIXTURES / f"{name}.npz", allow_pickle=False))
    return arrays, json.loads(str(arrays["config"]))


@pytest.fixture(scope="module")
def xl():
    """Transformer-XL attention with sizes n_heads * head_dim != d_model."""
    arrays, sizes = load("transformer_xl_attention")
    assert sizes["n_heads"] * sizes["head_dim"] != sizes["d_model"]
    return arrays, sizes


def test_the_sinusoids_are_those_of_transformer_xl(xl):
    arrays, sizes = xl
    for name, keys in (("sinusoid", sizes["memory"] + sizes["seq"]), ("sinusoid_no_memory", sizes["seq"])):
        np.testing.assert_allclose(sinusoids(jnp.arange(keys - 1, -1, -1), sizes["d_model"]), arrays[name], atol=1e-6)


def test_attention_is_that_of_transformer_xl(xl):
    arrays, sizes = xl
    shape = ModelConfig(n_layers=1, d_model=sizes["d_model"], n_heads=sizes["n_heads"], n_kv_heads=sizes["n_heads"],
                        head_dim=sizes["head_dim"], biases="none", position="relative")  # fmt: skip
    names = {"query": "w_q", "key": "w_k", "value": "w_v", "relative": "w_r", "output": "w_o", "u": "u", "v": "v"}
    weights = {"params": {ours: arrays[theirs] for ours, theirs in names.items()}}
    out, _ = Attention(shape, jnp.float32).apply(weights, arrays["x"])
    np.testing.assert_allclose(out, arrays["out_no_memory"], atol=5e-6)


def test_attention_over_a_memory_is_that_of_transformer_xl(xl):
    arrays, sizes = xl
    past = np.concatenate([arrays["memory"], arrays["x"]], axis=1)
    distances = jnp.arange(past.shape[1] - 1, -1, -1)

    def project(x, w):
        return jnp.einsum("...d,dhk->...hk", x, arrays[w])

    heads = attention(
        project(arrays["x"], "w_q"), project(past, "w_k"), project(past, "w_v"),
        content_bias_HxK=arrays["u"], position_bias_HxK=arrays["v"],
        r_NxHxK=project(sinusoids(distances, sizes["d_model"]), "w_r"),
    )  # fmt: skip
    out = jnp.einsum("bshk,hkd->bsd", heads, arrays["w_o"])
    np.testing.assert_allclose(out, arrays["out"], atol=5e-6)


@pytest.mark.parametrize("scan", [False, True], ids=["layers apart", "layers scanned"])
def test_the_logits_are_those_of_llama_with_grouped_queries(scan):
    arrays, sizes = load("llama")
    model = ModelConfig(
        n_layers=sizes["num_hidden_layers"], d_model=sizes["hidden_size"], n_heads=sizes["num_attention_heads"],
        n_kv_heads=sizes["num_key_value_heads"], head_dim=sizes["head_dim"], d_ff=sizes["intermediate_size"],
        vocab_size=sizes["vocab_size"], position="rope", rope_theta=sizes["rope_theta"], feed_forward="swiglu",
        norm_eps=sizes["rms_norm_eps"], biases="none", tie_embeddings=False, scan_layers=scan,
    )  # fmt: skip
    assert model.n_kv_heads < model.n_heads
    params = parameters_from(arrays, NAMES["llama"], model)
    logits, *_ = jax.jit(Transformer(model).apply)({"params": params}, arrays["input_ids"])
    np.testing.assert_allclose(logits, arrays["logits"], atol=2e-5)


def test_the_logits_are_those_of_gpt2():
    arrays, sizes = load("gpt2")
    model = ModelConfig(
        n_layers=sizes["n_layer"], d_model=sizes["n_embd"], n_heads=sizes["n_head"], n_kv_heads=sizes["n_head"],
        head_dim=sizes["n_embd"] // sizes["n_head"], d_ff=sizes["n_inner"], vocab_size=sizes["vocab_size"],
        max_position=sizes["n_positions"], position="learned", norm="layernorm", norm_eps=sizes["layer_norm_epsilon"],
        biases="all", scan_layers=False,
    )  # fmt: skip
    params = parameters_from(arrays, NAMES["gpt2"], model)
    logits, *_ = jax.jit(Transformer(model).apply)({"params": params}, arrays["input_ids"])
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-5)
