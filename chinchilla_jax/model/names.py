"""How does a family of models name its weights elsewhere? One table each, in the names of Hugging Face checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.model.parts import NORMS, Weight, Weights, block_weights, end_weights


class Name(NamedTuple):
    """What a weight is called elsewhere; `{layer}` stands for the number of its layer."""

    tensor: str
    transposed: bool = False
    part: int | None = None


def _linear(tensor: str) -> Name:
    return Name(f"{tensor}.weight", transposed=True)


_LAYER = "model.layers.{layer}."
_H = "transformer.h.{layer}."
_QKV = list(enumerate(("query", "key", "value")))
# By family: from the path of a weight here, that of a layer without its number. Rotary positions are in the half-split
# layout on both sides; the weights of the LLaMA release itself are interleaved (`positions.rotary`).
NAMES: dict[str, dict[str, Name]] = {
    "llama": {
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
}


def parameters_from(tensors: Mapping[str, np.ndarray], names: Mapping[str, Name], model: ModelConfig) -> dict[str, Any]:
    """The parameters of `model` as its `init` would lay them out, from the tensors of a checkpoint.

    A `KeyError` names a weight that the family has no name for, or a tensor that the checkpoint has not.
    """

    def read(path: str, weight: Weight, layer: int | None = None) -> np.ndarray:
        name = names[path]
        array = np.asarray(tensors[name.tensor.format(layer=layer)])
        array = array.T if name.transposed else array
        array = array if name.part is None else np.split(array, 3, axis=-1)[name.part]
        return array.reshape(weight.shape)

    def module(path: str, weights: Weights, layer: int | None = None) -> dict[str, np.ndarray]:
        return {name: read(f"{path}/{name}", weight, layer) for name, weight in weights.items()}

    params = {name: read(name, weight) for name, weight in end_weights(model).items()}
    params["final_norm"] = module("final_norm", NORMS[model.norm].weights(model))
    block = block_weights(model).items()
    layers = [{path: module(path, weights, i) for path, weights in block} for i in range(model.n_layers)]
    if model.scan_layers:
        return {**params, "layers": jax.tree.map(lambda *arrays: np.stack(arrays), *layers)}
    return {**params, **{f"layer_{i}": layer for i, layer in enumerate(layers)}}
