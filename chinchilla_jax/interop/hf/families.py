"""Which Hugging Face model is one of ours? From its `config.json` to a `ModelConfig`, and back where it can be said."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.interop.hf.fields import Fields
from chinchilla_jax.interop.hf.rope import read_rope, write_rope
from chinchilla_jax.interop.layout import Name
from chinchilla_jax.interop.names import names_of


@dataclasses.dataclass(frozen=True)
class Family:
    """A `model_type`.

    Attributes:
      read: the model that its fields describe; reads all fields that matter.
      write: fields of a model that `cannot_say` finds nothing in.
      cannot_say: why a model is none of this family, by our keys; empty if it is one.
      buffers: a pattern of tensors in old files that are no weights.
    """

    model_type: str
    architecture: str
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    cannot_say: Callable[[ModelConfig], list[str]]
    buffers: re.Pattern[str]

    def names(self, model: ModelConfig) -> dict[str, Name]:
        """What its files call the weights of a model."""
        return names_of(self.model_type, model)

    def model_of(self, values: Mapping[str, Any], where: str) -> ModelConfig:
        """The model of a parsed `config.json`. Raises ConfigError by the name of a field that cannot be followed."""
        fields = Fields(values, where)
        model = self.read(fields)
        fields.done()
        return model


_BIASES = {(False, False): "none", (True, False): "attention", (False, True): "feed_forward", (True, True): "all"}


def _decoder(fields: Fields, theta: float) -> dict[str, Any]:
    """What LLaMA and Mixtral have in common."""
    d_model, heads = fields.take("hidden_size", int), fields.take("num_attention_heads", int)
    head_dim = fields.take("head_dim", int, 0)
    if not head_dim and d_model % heads:
        raise fields.refused("num_attention_heads", f"{heads} does not divide hidden_size={d_model}; no head_dim")
    fields.must("hidden_act", "silu", default="silu")
    fields.must("sliding_window", None, default=None)
    layers = fields.take("num_hidden_layers", int)
    fields.must("layer_types", None, ["full_attention"] * layers, default=None)
    return {
        "n_layers": layers,
        "d_model": d_model,
        "n_heads": heads,
        "n_kv_heads": fields.take("num_key_value_heads", int, heads),
        "head_dim": head_dim or d_model // heads,
        "vocab_size": fields.take("vocab_size", int),
        "max_position": fields.take("max_position_embeddings", int, 2048),
        "position": "rope",
        "norm": "rmsnorm",
        "tie_embeddings": fields.take("tie_word_embeddings", bool, False),
        **read_rope(fields, theta),
    }


def _read_llama(fields: Fields) -> ModelConfig:
    biases = tuple(fields.take(name, bool, False) for name in ("attention_bias", "mlp_bias"))
    return ModelConfig(
        **_decoder(fields, 10000.0),
        d_ff=fields.take("intermediate_size", int),
        norm_eps=fields.take("rms_norm_eps", float, 1e-6),
        feed_forward="swiglu",
        biases=_BIASES[biases],
    )


def _read_mixtral(fields: Fields) -> ModelConfig:
    experts = fields.take("num_local_experts", int, 8)
    return ModelConfig(
        **_decoder(fields, 1e6),
        d_ff=fields.take("intermediate_size", int) * experts,
        norm_eps=fields.take("rms_norm_eps", float, 1e-5),
        feed_forward="top_k_swiglu",
        experts=experts,
        active_experts=fields.take("num_experts_per_tok", int, 2),
        biases="none",
    )


def _read_gpt2(fields: Fields) -> ModelConfig:
    d_model, heads = fields.take("n_embd", int), fields.take("n_head", int)
    fields.must("activation_function", "gelu_new", "gelu_pytorch_tanh", default="gelu_new")
    fields.must("scale_attn_weights", True, default=True)
    fields.must("scale_attn_by_inverse_layer_idx", False, default=False)
    fields.must("add_cross_attention", False, default=False)
    fields.must("tie_word_embeddings", True, default=True)
    if d_model % heads:
        raise fields.refused("n_head", f"{heads} does not divide n_embd={d_model}")
    return ModelConfig(
        n_layers=fields.take("n_layer", int),
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=d_model // heads,
        d_ff=fields.take("n_inner", int, 4 * d_model),
        vocab_size=fields.take("vocab_size", int),
        max_position=fields.take("n_positions", int, 1024),
        position="learned",
        norm="layernorm",
        norm_eps=fields.take("layer_norm_epsilon", float, 1e-5),
        feed_forward="gelu",
        biases="all",
        tie_embeddings=True,
    )


def _differences(model: ModelConfig, **needed: Any) -> list[str]:
    """Which keys of the model are not as they must be; one value, or one of a tuple."""
    told = []
    for key, value in {**needed, "attention_experts": 1, "router_width": 0, "output_scale": 1.0}.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if (found := getattr(model, key)) not in allowed:
            told.append(f"model.{key}={found} (must be {' or '.join(map(str, allowed))})")
    if model.widening != 1.0 or model.attention_scale is not None:
        told.append(f"model.base_width={model.base_width} (its factors have no place there)")
    return told


def _decoder_needs(model: ModelConfig, **needed: Any) -> list[str]:
    told = _differences(model, position="rope", norm="rmsnorm", **needed)
    if model.d_model % model.n_heads:
        told.append(f"model.n_heads={model.n_heads} (must divide d_model={model.d_model} there)")
    return told


def _llama_cannot(model: ModelConfig) -> list[str]:
    return _decoder_needs(model, feed_forward="swiglu", biases=tuple(_BIASES.values()))


def _mixtral_cannot(model: ModelConfig) -> list[str]:
    return _decoder_needs(model, feed_forward="top_k_swiglu", biases="none")


def _gpt2_cannot(model: ModelConfig) -> list[str]:
    told = _differences(
        model,
        position="learned",
        norm="layernorm",
        feed_forward="gelu",
        biases="all",
        tie_embeddings=True,
        n_kv_heads=model.n_heads,
    )
    if model.d_attn != model.d_model:
        width = f"{model.n_heads} heads of {model.head_dim} are {model.d_attn} wide"
        told.append(f"model.head_dim={model.head_dim} ({width}, must be d_model={model.d_model})")
    return told


def _write_decoder(model: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "max_position_embeddings": model.max_position,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tie_embeddings,
        **write_rope(model),
    }


def _write_llama(model: ModelConfig) -> dict[str, Any]:
    attention, mlp = next(flags for flags, word in _BIASES.items() if word == model.biases)
    return {
        **_write_decoder(model),
        "intermediate_size": model.d_ff,
        "attention_bias": attention,
        "mlp_bias": mlp,
    }


def _write_mixtral(model: ModelConfig) -> dict[str, Any]:
    return {
        **_write_decoder(model),
        "intermediate_size": model.d_ff // model.experts,
        "num_local_experts": model.experts,
        "num_experts_per_tok": model.active_experts or model.experts,
        "sliding_window": None,
    }


def _write_gpt2(model: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": model.d_model,
        "n_layer": model.n_layers,
        "n_head": model.n_heads,
        "n_inner": model.d_ff,
        "n_positions": model.max_position,
        "vocab_size": model.vocab_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": True,
    }


_INV_FREQ = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", _read_llama, _write_llama, _llama_cannot, _INV_FREQ),
        Family("mixtral", "MixtralForCausalLM", _read_mixtral, _write_mixtral, _mixtral_cannot, _INV_FREQ),
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            _read_gpt2,
            _write_gpt2,
            _gpt2_cannot,
            re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"),
        ),
    )
}


def buffers(family: Family, names: Iterable[str]) -> set[str]:
    """Which of these tensors are no weights."""
    return {name for name in names if family.buffers.fullmatch(name)}
