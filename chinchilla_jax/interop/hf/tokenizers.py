"""Which tokenizer lies beside weights?"""

from __future__ import annotations

from pathlib import Path

from chinchilla_jax.base import files

FILES = ("tokenizer.model", "tokenizer.json")
# What is copied with weights, as far as it is there.
COMPANIONS = (
    *FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
)


def tokenizer_file(folder: Path) -> Path | None:
    """The file that its text is cut with: a SentencePiece model, else a `tokenizer.json`; None if it has neither."""
    return next((folder / name for name in FILES if files.is_file(folder / name)), None)
