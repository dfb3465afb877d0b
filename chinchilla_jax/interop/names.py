"""What does a family of models call its weights elsewhere? One table each."""

from __future__ import annotations

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.interop.layout import Name, weights_by_path


def _linear(tensor: str) -> Name:
    return Name(f"{tensor}.weight", transposed=True)


_LAYER = "model.layers.{layer}."
_MIXED = _LAYER + "block_sparse_moe."
_H = "transformer.h.{layer}."
_META = "layers.{layer}."
_QKV = list(enumerate(("query", "key", "value")))
_LLAMA = {
    "embedding": Name("model.embed_tokens.weight"),
    "final_norm/gain": Name("model.norm.weight"),
    "output": _linear("lm_head"),
    "attention_norm/gain": Name(_LAYER + "input_layernorm.weight"),
    "attention/query": _linear(_LAYER + "self_attn.q_proj"),
    "attention/key": _linear(_LAYER + "self_attn.k_proj"),
    "attention/value": _linear(_LAYER + "self_attn.v_proj"),
    "attention/output": _linear(_LAYER + "self_attn.o_proj"),
    "feed_forward_norm/gain": Name(_LAYER + "post_attention_layernorm.weight"),
    "feed_forward/gate": _linear(_LAYER + "mlp.gate_proj"),
    "feed_forward/up": _linear(_LAYER + "mlp.up_proj"),
    "feed_forward/down": _linear(_LAYER + "mlp.down_proj"),
}
# By family: from the path of a weight here, that of a layer without its number. Rotary positions are in the half-split
# layout here and at Hugging Face; the files of the LLaMA release (`meta`) have them interleaved (`positions.rotary`).
NAMES: dict[str, dict[str, Name]] = {
    "llama": _LLAMA,
    "mixtral": _LLAMA
    | {
        "feed_forward/router": _linear(_MIXED + "gate"),
        "feed_forward/gate": _linear(_MIXED + "experts.{expert}.w1"),
        "feed_forward/up": _linear(_MIXED + "experts.{expert}.w3"),
        "feed_forward/down": _linear(_MIXED + "experts.{expert}.w2"),
    },
    "gpt2": {
        "embedding": Name("transformer.wte.weight"),
        "position": Name("transformer.wpe.weight"),
        "final_norm/gain": Name("transformer.ln_f.weight"),
        "final_norm/bias": Name("transformer.ln_f.bias"),
        "attention_norm/gain": Name(_H + "ln_1.weight"),
        "attention_norm/bias": Name(_H + "ln_1.bias"),
        **{f"attention/{name}": Name(_H + "attn.c_attn.weight", part=i) for i, name in _QKV},
        **{f"attention/{name}_bias": Name(_H + "attn.c_attn.bias", part=i) for i, name in _QKV},
        "attention/output": Name(_H + "attn.c_proj.weight"),
        "attention/output_bias": Name(_H + "attn.c_proj.bias"),
        "feed_forward_norm/gain": Name(_H + "ln_2.weight"),
        "feed_forward_norm/bias": Name(_H + "ln_2.bias"),
        "feed_forward/up": Name(_H + "mlp.c_fc.weight"),
        "feed_forward/up_bias": Name(_H + "mlp.c_fc.bias"),
        "feed_forward/down": Name(_H + "mlp.c_proj.weight"),
        "feed_forward/down_bias": Name(_H + "mlp.c_proj.bias"),
    },
    "meta": {
        "embedding": Name("tok_embeddings.weight"),
        "final_norm/gain": Name("norm.weight"),
        "output": _linear("output"),
        "attention_norm/gain": Name(_META + "attention_norm.weight"),
        "attention/query": _linear(_META + "attention.wq")._replace(interleaved=True),
        "attention/key": _linear(_META + "attention.wk")._replace(interleaved=True),
        "attention/value": _linear(_META + "attention.wv"),
        "attention/output": _linear(_META + "attention.wo"),
        "feed_forward_norm/gain": Name(_META + "ffn_norm.weight"),
        "feed_forward/gate": _linear(_META + "feed_forward.w1"),
        "feed_forward/up": _linear(_META + "feed_forward.w3"),
        "feed_forward/down": _linear(_META + "feed_forward.w2"),
    },
}


def names_of(family: str, model: ModelConfig) -> dict[str, Name]:
    """The names of a model's weights. Biases of projections are called as their matrices, where no table says it."""
    table, names = NAMES[family], dict[str, Name]()
    for path in weights_by_path(model):
        matrix = table.get(path.removesuffix("_bias"))
        if path in table:
            names[path] = table[path]
        elif path.endswith("_bias") and matrix is not None and "/" in path:
            names[path] = matrix._replace(tensor=matrix.tensor.removesuffix("weight") + "bias", transposed=False)
    return names


def own_names(model: ModelConfig) -> dict[str, Name]:
    """Names and shapes as they are here, layer by layer: `layers.3.attention.query`."""
    names = {}
    for path in weights_by_path(model):
        module = path.split("/")[0]
        before = "layers.{layer}." if "/" in path and module != "final_norm" else ""
        names[path] = Name(before + path.replace("/", "."), whole=True)
    return names
