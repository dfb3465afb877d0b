"""The verbs that bring trained models in and out: `import`, `export`."""

from __future__ import annotations

import functools

from absl import flags

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import UsageError

IMPORT: tuple[str, ...] = ()
EXPORT = ("step", "format", "dtype")

echo = functools.partial(print, flush=True)


def import_(values: flags.FlagValues, words: list[str]) -> None:
    """Brings other people's weights into a new folder TO, in this code's own layout, in the type they are stored in.

    FROM is a folder of a LLaMA, GPT-2 or Mixtral as Hugging Face has it (config.json, safetensors), or of the LLaMA
    release (params.json, consolidated.NN.pth). One tensor at a time is in memory. Folders need not be imported to be
    used: whatever takes a run takes them too.
    """
    from chinchilla_jax.interop.convert import import_model

    if len(words) != 2:
        raise UsageError("give the folder of the weights and a new one, as import llama-7b models/llama-7b")
    import_model(files.path(words[0]), files.path(words[1]), echo)


def export(values: flags.FlagValues, words: list[str]) -> None:
    """Writes the weights of a run, or of a folder of weights, into a new folder that transformers loads.

    --format names how: llama, gpt2, mixtral, or chinchilla_jax, our own layout for what no other format can say (its
    code lies beside the weights: trust_remote_code=True). By default the first that can say the model. With them come
    the tokenizer, in both forms if it can be said, and a model card. --step is of a run's checkpoint.
    """
    from chinchilla_jax.interop.convert import export_model

    if len(words) != 2:
        raise UsageError("give a run, or a folder of weights, and a new folder, as export runs/large models/large")
    export_model(files.path(words[0]), files.path(words[1]), values.format, values.dtype, values.step, echo)
