"""Does a Hugging Face config say anything that is not read? What is not known may change what the model computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_jax.config import ConfigError

# What changes neither weights nor logits: bookkeeping, training, generation, and heads of other tasks.
HARMLESS = frozenset(
    "_attn_implementation_autoset _commit_hash _name_or_path architectures attention_dropout attn_implementation "
    "attn_pdrop bos_token_id chunk_size_feed_forward dtype embd_pdrop eos_token_id finetuning_task id2label "
    "initializer_range is_decoder is_encoder_decoder label2id max_sequence_length model_type n_ctx name_or_path "
    "output_attentions output_hidden_states output_router_logits pad_token_id prefix pretraining_tp problem_type "
    "reorder_and_upcast_attn resid_pdrop return_dict router_aux_loss_coef router_jitter_noise summary_activation "
    "summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params tokenizer_class "
    "torch_dtype torchscript transformers_version use_cache use_return_dict".split()
)
_MISSING = object()


class Fields:
    """The fields of a config, of which each must be read, be harmless, or be refused by its name."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self._where, self._read = values, where, set[str]()

    def take(self, name: str, kind: type, default: Any = _MISSING) -> Any:
        """A field of this kind; null is as good as missing. Raises ConfigError if it is neither there nor optional."""
        self._read.add(name)
        value = self._values.get(name)
        if value is None:
            if default is _MISSING:
                raise self.refused(name, "is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refused(name, f"{value!r} is no {kind.__name__}")
        return value

    def must(self, name: str, *allowed: Any, default: Any) -> None:
        """Refuses a field that says what this code cannot do."""
        self._read.add(name)
        value = self._values.get(name, default)
        if value not in allowed:
            raise self.refused(name, f"{value!r} is not supported; only {' or '.join(map(repr, allowed))}")

    def done(self) -> None:
        """Raises ConfigError if there is a field that nobody read and that may matter."""
        unknown = sorted(name for name, value in self._values.items() if name not in self._read | HARMLESS)
        if unknown:
            raise self.refused(unknown[0], f"{self._values[unknown[0]]!r}: unknown, it may change what is computed")

    def refused(self, name: str, why: str) -> ConfigError:
        """The error about a field."""
        return ConfigError(name, f"{why} (in {self._where})")


def stored_dtype(values: Mapping[str, Any]) -> str:
    """The type that a config says its weights have: as version 5 spells it, or version 4; float32 if not at all."""
    return str(values.get("dtype") or values.get("torch_dtype") or "float32").removeprefix("torch.")
