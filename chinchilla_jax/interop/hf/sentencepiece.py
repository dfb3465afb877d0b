"""How is a SentencePiece model said as a `tokenizer.json`? As byte-pair merges in the order of the pieces' scores.

A piece is made by every pair of pieces that gives it, and of several merges the one of the best score goes first; the
order of the vocabulary is another one, with which spaces merge wrongly. What was made is tried on texts before it is
used: a model of another kind (unigram, with a normaliser) gives other ids, and is not converted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece

from chinchilla_jax.base import files

_SPACE = "\u2581"
_TRIED = (
    "The quick brown fox jumps over the lazy dog, 1234 times.",
    "  two spaces before,  two   within, two after  ",
    "def f(x):\n\treturn x  # tab\n\n    indented",
    "Größe, naïve, 你好，世界 🙂 \u0440\u0443\u0441\u0441\u043a\u0438\u0439",
    "to be, or not to be: that is the question:\nwhether 'tis nobler in the mind to suffer",
    "",
    " ",
    "\n",
    "UPPER lower MiXeD a.b.c e-mail@example.org 3.14159 $%&/()=?",
)


class NotConverted(Exception):
    """A model that cannot be said so; the message tells why."""


def tokenizer_json(path: Path) -> dict[str, Any]:
    """The content of a `tokenizer.json` that gives the same ids as the SentencePiece model in a file.

    Raises NotConverted if it would not, or if the library that tries it is missing.
    """
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise NotConverted("it is tried with the package tokenizers: pip install tokenizers") from None
    model = sentencepiece.SentencePieceProcessor()
    model.Load(model_proto=files.read_bytes(path))
    said = _said(model)
    made = tokenizers.Tokenizer.from_str(json.dumps(said))
    for text in _TRIED:
        ids = model.encode(text)
        if made.encode(text, add_special_tokens=False).ids != ids:
            raise NotConverted(f"{path.name} cuts {text[:20]!r} otherwise than byte-pair merges by score")
    return said


def _said(model: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    size = model.vocab_size()
    pieces = [model.id_to_piece(i) for i in range(size)]
    ids = {piece: i for i, piece in enumerate(pieces)}
    control = [i for i in range(size) if model.is_control(i) or model.is_unknown(i)]
    prefixed = bool(model.encode_as_pieces("a")) and model.encode_as_pieces("a")[0].startswith(_SPACE)
    to_spaces = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefixed else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": pieces[i], **flags, "special": True} for i in control],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [to_spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.id_to_piece(model.unk_id()) if model.unk_id() >= 0 else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": _merges(model, ids, set(control)),
        },
    }


def _merges(
    model: sentencepiece.SentencePieceProcessor, ids: dict[str, int], control: set[int]
) -> list[tuple[str, str]]:
    found = []
    for piece, i in ids.items():
        if i in control or model.is_byte(i) or len(piece) < 2:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append(((model.get_score(i), len(left), len(right)), (left, right)))
    return [pair for _, pair in sorted(found, key=lambda item: item[0], reverse=True)]
