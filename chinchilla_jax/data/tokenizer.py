"""Text to token ids and back: SentencePiece, trained here or any ready model."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece

from chinchilla_jax.base import files
from chinchilla_jax.data.steps import DataError, content_key

# Enters the keys of trained models: change it with any setting below.
TRAINER_VERSION = 1
_SPACE = "\u2581"  # SentencePiece's picture of a space inside a piece.


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: pathlib.Path) -> Tokenizer:
    """Trains a byte-pair model on `texts` and writes it to `path`; the same texts always give the same pieces.

    Nothing is normalised and every byte has a piece, so any text survives encode and decode. One thread, because the
    result should not depend on the machine.

    Raises:
      DataError: `vocab_size` is more pieces than the text gives, or fewer than its characters need.
    """
    model = io.BytesIO()
    unchanged = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False}
    pieces: dict[str, Any] = {"byte_fallback": True, "split_digits": True, "allow_whitespace_only_pieces": True}
    pieces |= {"model_type": "bpe", "vocab_size": vocab_size, "user_defined_symbols": ["\n"]}
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": 3}
    settings = {"character_coverage": 0.9995, "num_threads": 1, "minloglevel": 2} | unchanged | pieces | ids
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=_lines(texts), model_writer=model, **settings)
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1]  # Before that: SentencePiece's own file and line.
        raise DataError(f"data.vocab_size={vocab_size} does not suit this text: {reason}") from None
    files.write_bytes(path, model.getvalue())
    return Tokenizer(path)


def _lines(texts: Iterable[str]) -> Iterable[str]:
    # The trainer drops lines above 4192 bytes without a word, and a line end is a piece of its own.
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), 1000):
                yield line[start : start + 1000].replace("\0", " ")


def open_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """The tokenizer in a file. Raises DataError if there is none."""
    return Tokenizer(path)


class Tokenizer:
    """A SentencePiece model file. Ids, also those of the control pieces, are whatever the model says."""

    def __init__(self, path: str | pathlib.Path):
        """Loads the model at `path`.

        Raises:
          DataError: no such file, no SentencePiece model, or one with neither an end nor a beginning piece.
        """
        self.path = pathlib.Path(path)
        if not files.is_file(self.path):
            raise DataError(f"{path}: no such tokenizer; data.tokenizer is `train` or a SentencePiece .model file")
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.Load(model_proto=files.read_bytes(self.path))
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{path}: not a SentencePiece model ({error})") from None
        self.vocab_size: int = self._model.vocab_size()
        separator = self._model.eos_id() if self._model.eos_id() >= 0 else self._model.bos_id()
        if separator < 0:
            raise DataError(f"{path}: has neither an end-of-text nor a beginning-of-text piece to separate documents")
        self.separator: int = separator
        # Spaces are stored as U+2581, so the character itself has to travel as its three bytes.
        pieces = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        self._space_bytes = pieces if all(self._model.is_byte(piece) for piece in pieces) else None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without separators."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each text; the result does not depend on `threads`."""
        if self._space_bytes is None or not any(_SPACE in text for text in texts):
            return self._model.encode(list(texts), num_threads=threads)
        encoded = []
        for text in texts:
            first, *rest = self._model.encode(text.split(_SPACE))
            encoded.append(first + [piece for part in rest for piece in (*self._space_bytes, *part)])
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control pieces give nothing."""
        return self._model.decode([int(i) for i in ids])

    def byte_lengths(self) -> np.ndarray:
        """int32[vocab_size]: UTF-8 bytes of text each piece stands for; 0 for control, unknown and unused pieces."""
        lengths = np.zeros(self.vocab_size, np.int32)
        for i in range(self.vocab_size):
            if self._model.is_byte(i):
                lengths[i] = 1
            elif not (self._model.is_control(i) or self._model.is_unknown(i) or self._model.is_unused(i)):
                lengths[i] = len(self._model.id_to_piece(i).replace(_SPACE, " ").encode())
        return lengths

    def spare_pieces(self) -> list[int]:
        """Control pieces that are in no stream of tokens: no text gives them, and they separate no documents."""
        return [i for i in range(self.vocab_size) if self._model.is_control(i) and i != self.separator]

    def piece_id(self, piece: str) -> int | None:
        """The id of the piece with this name, None if there is none."""
        i = self._model.piece_to_id(piece)
        return i if self._model.id_to_piece(i) == piece else None

    def fingerprint(self) -> str:
        """12 hexadecimal digits of a hash over all pieces in order, and the separator.

        Not over the file: models that cut text alike may differ in the trainer's notes inside.
        """
        return content_key(self.separator, [self._model.id_to_piece(i) for i in range(self.vocab_size)])
