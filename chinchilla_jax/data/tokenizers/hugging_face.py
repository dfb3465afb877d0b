"""Hugging Face: a `tokenizer.json`, read with the package `tokenizers` and no other.

The file tells how text is cut, but not which of its pieces ends a text: that is in `tokenizer_config.json` or
`special_tokens_map.json` beside it, or known by its name. What the file says about padding, cutting off and pieces that
are added around a text (its post-processor) concerns batches of other programs, and is left out.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.data.steps import DataError, content_key
from chinchilla_jax.data.tokenizers.base import SPACE, Tokenizer

BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
_NAMES = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>"),
}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class HuggingFace(Tokenizer):
    """A `tokenizer.json`. Control pieces are those the file calls special, besides the unknown one."""

    def __init__(self, path: str | pathlib.Path):
        """Loads the file at `path`.

        Raises:
          DataError: not such a file, or nothing says what ends or begins a text; names the file and the fix.
        """
        path = files.path(path)
        said = self._said = _read(path)
        tokenizer = self._tokenizer = _load(path, said)
        ids = self._ids = tokenizer.get_vocab(with_added_tokens=True)
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        bos, eos = (_control(path, name, ids, added) for name in _NAMES)
        # What begins or ends a text is a special piece, also where the file forgets to say so.
        tokenizer.add_special_tokens([piece for piece, i in ids.items() if i in (bos, eos)])
        unknown = said["model"].get("unk_id", said["model"].get("unk_token"))  # a Unigram model has its number
        self._unknown: int | None = ids.get(unknown) if isinstance(unknown, str) else unknown
        special = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._control = {i: piece for i, piece in special.items() if i != self._unknown}
        try:
            super().__init__(path, self._bytes(), bos, eos)
        except DataError as error:
            named = '{"eos_token": "..."}'
            raise DataError(f"{error}; name it in {path.with_name(BESIDE[0])}: {named}") from None

    def _bytes(self) -> list[bytes]:
        """The bytes that each id stands for if its text was not normalised; ids may have gaps."""
        pieces = [b""] * (max(self._ids.values(), default=-1) + 1)
        by_bytes = '"ByteLevel"' in json.dumps([self._said.get("decoder"), self._said.get("pre_tokenizer")])
        characters = _byte_characters() if by_bytes else {}
        for piece, i in self._ids.items():
            if by_bytes and all(c in characters for c in piece):
                pieces[i] = bytes(characters[c] for c in piece)
            else:
                pieces[i] = bytes.fromhex(piece[3:5]) if _BYTE.fullmatch(piece) else piece.replace(SPACE, " ").encode()
        for i, token in self._tokenizer.get_added_tokens_decoder().items():
            pieces[i] = b"" if token.special else token.content.encode()
        return pieces

    def encode_all(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each text, those of the library; what is written like a control piece is text."""
        del threads  # the library takes what RAYON_NUM_THREADS says, or all; the result is the same
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._as_text(found.ids) for found in encoded]

    def _as_text(self, ids: list[int]) -> list[int]:
        """Spells the control pieces that the model itself found in a text, by their characters."""
        if self._control.keys().isdisjoint(ids):
            return ids
        return [i for token in ids for i in self._spelled(token)]

    def _spelled(self, token: int) -> list[int]:
        if token not in self._control:
            return [token]
        found = [self._ids.get(character, self._unknown) for character in self._control[token]]
        return [i for i in found if i is not None]

    def _ends(self, text: str) -> list[int]:
        found = self._tokenizer.encode(text, add_special_tokens=False)
        characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        sizes = 1 + (characters > 0x7F) + (characters > 0x7FF) + (characters > 0xFFFF)
        byte = np.append(0, np.cumsum(sizes))
        tokens = zip(found.ids, found.offsets, strict=True)
        return [int(byte[end]) for token, (_, end) in tokens for _ in self._spelled(token)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control pieces give nothing."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def control_pieces(self) -> list[int]:
        """The ids that no text gives, in their order."""
        return sorted(self._control)

    def piece_id(self, piece: str) -> int | None:
        """The id of the piece with this name, None if there is none."""
        return self._ids.get(piece)

    def piece_name(self, i: int) -> str:
        """What the piece with this id is called; nothing in a gap of the ids."""
        return self._tokenizer.id_to_token(i) or ""

    def files(self) -> dict[str, pathlib.Path]:
        """The file, under the name that a folder has it by, and what says which piece ends a text."""
        beside = {name: self.path.with_name(name) for name in BESIDE}
        return {"tokenizer.json": self.path} | {name: path for name, path in beside.items() if files.is_file(path)}

    def fingerprint(self) -> str:
        """12 hexadecimal digits of a hash over what the file says of cutting text, and the separator."""
        return content_key(self.separator, self._said)


def _read(path: pathlib.Path) -> dict[str, Any]:
    """What the file says of cutting text: of a batch, and of pieces around a text, nothing."""
    try:
        said = files.read_json(path)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    model = said.get("model") if isinstance(said, dict) else None
    if not isinstance(model, dict):
        told = "it has no `model`; vocab.json and merges.txt alone do not say how text is cut"
        raise DataError(f"{path}: not a tokenizer.json: {told}")
    return said | dict.fromkeys(("truncation", "padding", "post_processor"))


def _load(path: pathlib.Path, said: dict[str, Any]) -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise DataError(f"{path}: is read with the package tokenizers: pip install tokenizers") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(said))
    except Exception as error:  # the library has no class of its own for it
        raise DataError(f"{path}: not a tokenizer.json that can be read ({error})") from None
    # A document in which somebody wrote `</s>` does not end there.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _control(path: pathlib.Path, name: str, ids: dict[str, int], added: set[str]) -> int | None:
    """The id of `bos_token` or `eos_token`: what a file beside says, else an added piece with a usual name of one."""
    for beside in map(path.with_name, BESIDE):
        token = _beside(beside).get(name)
        piece = token.get("content") if isinstance(token, dict) else token
        if piece is not None:
            if piece not in ids:
                raise DataError(f"{beside}: {name} {piece!r} is no piece of {path.name}; correct either")
            return ids[piece]
    return next((ids[piece] for piece in _NAMES[name] if piece in added), None)


def _beside(path: pathlib.Path) -> dict[str, Any]:
    try:
        said = files.read_json(path) if files.is_file(path) else {}
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(said, dict):
        raise DataError(f"{path}: holds no object")
    return said


def _byte_characters() -> dict[str, int]:
    """The character that byte-level pieces write for each byte: itself where it can be seen, else from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(unseen)}
