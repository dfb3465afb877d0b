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
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model.attention import Attention
from chinchilla_jax.model.positions import sinusoids
from chinchilla_jax.model.transformer import Transformer

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
    out = Attention(shape, jnp.float32).apply(weights, arrays["x"])
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


def llama_weights(arrays, sizes):
    """Our parameters from the tensors of LlamaForCausalLM."""
    d, size = sizes["hidden_size"], sizes["head_dim"]

    def heads(name):
        return arrays[name].T.reshape(d, -1, size)

    params = {
        "embedding": arrays["model.embed_tokens.weight"],
        "final_norm": {"gain": arrays["model.norm.weight"]},
        "output": arrays["lm_head.weight"].T,
    }
    for i in range(sizes["num_hidden_layers"]):
        theirs = f"model.layers.{i}"
        params[f"layer_{i}"] = {
            "attention_norm": {"gain": arrays[f"{theirs}.input_layernorm.weight"]},
            "attention": {
                "query": heads(f"{theirs}.self_attn.q_proj.weight"),
                "key": heads(f"{theirs}.self_attn.k_proj.weight"),
                "value": heads(f"{theirs}.self_attn.v_proj.weight"),
                "output": arrays[f"{theirs}.self_attn.o_proj.weight"].T.reshape(-1, size, d),
            },
            "feed_forward_norm": {"gain": arrays[f"{theirs}.post_attention_layernorm.weight"]},
            "feed_forward": {
                name: arrays[f"{theirs}.mlp.{name}_proj.weight"].T for name in ("gate", "up", "down")
            },
        }  # fmt: skip
    return {"params": params}


def test_the_logits_are_those_of_llama_with_grouped_queries():
    arrays, sizes = load("llama")
    model = ModelConfig(
        n_layers=sizes["num_hidden_layers"], d_model=sizes["hidden_size"], n_heads=sizes["num_attention_heads"],
        n_kv_heads=sizes["num_key_value_heads"], head_dim=sizes["head_dim"], d_ff=sizes["intermediate_size"],
        vocab_size=sizes["vocab_size"], position="rope", rope_theta=sizes["rope_theta"], feed_forward="swiglu",
        norm_eps=sizes["rms_norm_eps"], biases="none", tie_embeddings=False, scan_layers=False,
    )  # fmt: skip
    assert model.n_kv_heads < model.n_heads
    logits = jax.jit(Transformer(model).apply)(llama_weights(arrays, sizes), arrays["input_ids"])
    np.testing.assert_allclose(logits, arrays["logits"], atol=2e-5)


def gpt2_weights(arrays, sizes):
    """Our parameters from the tensors of GPT2LMHeadModel."""
    d, heads = sizes["n_embd"], sizes["n_head"]

    def norm(name):
        return {"gain": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]}

    params = {
        "embedding": arrays["transformer.wte.weight"],
        "position": arrays["transformer.wpe.weight"],
        "final_norm": norm("transformer.ln_f"),
    }
    for i in range(sizes["n_layer"]):
        theirs = f"transformer.h.{i}"
        attention = {
            "output": arrays[f"{theirs}.attn.c_proj.weight"].reshape(heads, -1, d),
            "output_bias": arrays[f"{theirs}.attn.c_proj.bias"],
        }
        parts = zip(("query", "key", "value"), np.split(arrays[f"{theirs}.attn.c_attn.weight"], 3, axis=1),
                    np.split(arrays[f"{theirs}.attn.c_attn.bias"], 3), strict=True)  # fmt: skip
        for name, matrix, bias in parts:
            attention |= {name: matrix.reshape(d, heads, -1), f"{name}_bias": bias.reshape(heads, -1)}
        params[f"layer_{i}"] = {
            "attention_norm": norm(f"{theirs}.ln_1"),
            "attention": attention,
            "feed_forward_norm": norm(f"{theirs}.ln_2"),
            "feed_forward": {
                "up": arrays[f"{theirs}.mlp.c_fc.weight"], "up_bias": arrays[f"{theirs}.mlp.c_fc.bias"],
                "down": arrays[f"{theirs}.mlp.c_proj.weight"], "down_bias": arrays[f"{theirs}.mlp.c_proj.bias"],
            },
        }  # fmt: skip
    return {"params": params}


def test_the_logits_are_those_of_gpt2():
    arrays, sizes = load("gpt2")
    model = ModelConfig(
        n_layers=sizes["n_layer"], d_model=sizes["n_embd"], n_heads=sizes["n_head"], n_kv_heads=sizes["n_head"],
        head_dim=sizes["n_embd"] // sizes["n_head"], d_ff=sizes["n_inner"], vocab_size=sizes["vocab_size"],
        max_position=sizes["n_positions"], position="learned", norm="layernorm", norm_eps=sizes["layer_norm_epsilon"],
        biases="all", scan_layers=False,
    )  # fmt: skip
    logits = jax.jit(Transformer(model).apply)(gpt2_weights(arrays, sizes), arrays["input_ids"])
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-5)
