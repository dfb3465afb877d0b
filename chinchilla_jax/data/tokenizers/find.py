"""Which kind of tokenizer is at a path?"""

from __future__ import annotations

import pathlib
import re

from chinchilla_jax.base import files
from chinchilla_jax.data.steps import DataError
from chinchilla_jax.data.tokenizers.base import Tokenizer
from chinchilla_jax.data.tokenizers.hugging_face import HuggingFace
from chinchilla_jax.data.tokenizers.sentence_piece import SentencePiece

MODEL, JSON = ("tokenizer.model", "tokenizer.json")
_RANK = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")  # a line of the tables that LLaMA 3 calls tokenizer.model


def open_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """The tokenizer of a SentencePiece `.model` file, of a `tokenizer.json`, or of a folder with one of them.

    Raises:
      DataError: there is none, it is of another kind, or it cannot be used; names the file and the fix.
    """
    path = files.path(path)
    if files.is_folder(path):
        found = find_tokenizer(path)
        if found is None:
            raise DataError(f"{path}: has no tokenizer: neither a {MODEL} of SentencePiece nor a {JSON}")
        path = found
    if not files.is_file(path):
        known = "`train`, a SentencePiece .model file, a tokenizer.json, or a folder with one of them"
        raise DataError(f"{path}: no such tokenizer; data.tokenizer is {known}")
    if path.suffix == ".json":
        return HuggingFace(path)
    if _is_ranks(path):
        told = "a table of ranks (as of LLaMA 3) and no SentencePiece model"
        raise DataError(f"{path}: {told}; name the {JSON} that is published beside it")
    return SentencePiece(path)


def find_tokenizer(folder: pathlib.Path) -> pathlib.Path | None:
    """The file in a folder that text is cut with: a SentencePiece model, else a `tokenizer.json`; None without either.

    The model comes first, because what is beside it was converted from it, and conversions have been wrong. A table of
    ranks under its name is none.
    """
    there = (folder / name for name in (MODEL, JSON) if files.is_file(folder / name))
    return next((path for path in there if not _is_ranks(path)), None)


def _is_ranks(path: pathlib.Path) -> bool:
    return bool(_RANK.match(files.read_bytes(path)[:4096]))
