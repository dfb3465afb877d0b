"""The shape of a chinchilla_jax model, as transformers reads it: `config.json` beside this file.

Copied here by `python -m chinchilla_jax export`, with `modeling_chinchilla_jax.py`; no installation is needed but those
of torch and transformers, 4.57 or later. `model` holds the settings of the model by the names of `ModelConfig` there;
`format` is the version of the layout of its tensors.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

# What transformers asks of any config, and what it is called in `model`.
_KNOWN_AS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "d_ff",
    "max_position_embeddings": "max_position",
}


class ChinchillaJaxConfig(PretrainedConfig):
    """Settings of a `ChinchillaJaxForCausalLM`. Raises ValueError for a layout that the code beside it cannot read."""

    model_type = "chinchilla_jax"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]

    def __init__(self, format: int = 1, model: dict[str, Any] | None = None, **kwargs: Any):
        if format != 1:
            raise ValueError(f"format {format}: this code reads format 1; export the weights again")
        self.format, self.model = format, dict(model or {})
        for name, ours in _KNOWN_AS.items():
            kwargs.pop(name, None)
            setattr(self, name, self.model.get(ours))
        # A tied output is no tensor of its own in the files or in the model: there is nothing to tie.
        super().__init__(**{**kwargs, "tie_word_embeddings": False})
