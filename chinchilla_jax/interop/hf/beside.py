"""What goes beside weights? The tokenizer, in both forms, and the ids of its beginning and its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.interop.checkpoint import RunWeights
from chinchilla_jax.interop.folder import WeightsFolder
from chinchilla_jax.interop.hf.sentencepiece import NotConverted, tokenizer_json
from chinchilla_jax.interop.hf.tokenizers import COMPANIONS
from chinchilla_jax.interop.trained import tokenizer_of

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write(weights: RunWeights | WeightsFolder, folder: Path, echo: Echo) -> dict[str, Any]:
    """Copies, or makes, what belongs to the tokenizer; returns the ids for `config.json`."""
    if isinstance(weights, WeightsFolder):
        for name in COMPANIONS:
            if files.is_file(weights.path / name):
                files.write_bytes(folder / name, files.read_bytes(weights.path / name))
        return {name: weights.config[name] for name in _IDS if name in weights.config}
    tokenizer = tokenizer_of(weights.config)
    if tokenizer is None:
        echo("no tokenizer: that of the run, or its token store, is gone")
        return {}
    # In training a text began behind the separator, so that is its beginning too, whatever else the tokenizer has.
    ids = {"bos_token_id": tokenizer.separator, "eos_token_id": tokenizer.separator}
    named = tokenizer.files()
    for name, path in named.items():
        files.write_bytes(folder / name, files.read_bytes(path))
    if "tokenizer.json" not in named and not _converted(tokenizer.path, folder, echo):
        return ids
    if "tokenizer_config.json" not in named:
        # Version 5's own class name is unknown to version 4; this one is known to both, and keeps the file as it is.
        described = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        known = {"unk_token": "<unk>"} if tokenizer.piece_id("<unk>") is not None else {}
        known |= dict.fromkeys(("bos_token", "eos_token"), tokenizer.piece_name(tokenizer.separator))
        files.write_json(folder / "tokenizer_config.json", described | known)
    return ids


def _converted(model: Path, folder: Path, echo: Echo) -> bool:
    """Whether a SentencePiece model could be said, and was written, as a `tokenizer.json`."""
    try:
        files.write_json(folder / "tokenizer.json", tokenizer_json(model))
    except NotConverted as error:
        echo(f"no tokenizer.json: {error}")
        return False
    return True
