"""SentencePiece: models trained here, and any ready `.model` file, unigram or byte-pair."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import sentencepiece

from chinchilla_jax.base import files
from chinchilla_jax.data.steps import DataError, content_key
from chinchilla_jax.data.tokenizers.base import SPACE, Tokenizer

# Enters the keys of trained models: change it with any setting below.
TRAINER_VERSION = 1
# Models with the same pieces that treat spaces, case or compatible characters otherwise cut one of these otherwise.
_PROBES = ("a", " A  b\tc\n ", "ﬁ ½ Å e\u0301 \u3000 ①")


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: pathlib.Path) -> SentencePiece:
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
    return SentencePiece(path)


def _lines(texts: Iterable[str]) -> Iterable[str]:
    # The trainer drops lines above 4192 bytes without a word, and a line end is a piece of its own.
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), 1000):
                yield line[start : start + 1000].replace("\0", " ")


class SentencePiece(Tokenizer):
    """A SentencePiece model file. Ids, also those of the control pieces, are whatever the model says."""

    def __init__(self, path: str | pathlib.Path):
        """Loads the model at `path`, which must be a file.

        Raises:
          DataError: no SentencePiece model, or one with neither an end nor a beginning piece.
        """
        model = self._model = sentencepiece.SentencePieceProcessor()
        try:
            model.Load(model_proto=files.read_bytes(path))
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{path}: not a SentencePiece model ({error})") from None
        pieces = [_bytes_of(model, i) for i in range(model.vocab_size())]
        bos, eos = (i if i >= 0 else None for i in (model.bos_id(), model.eos_id()))
        super().__init__(files.path(path), pieces, bos, eos)
        # Spaces are stored as U+2581, so the character itself has to travel as its three bytes.
        space = [model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._space_bytes = space if all(model.is_byte(i) for i in space) else None

    def encode_all(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each text; those of the library, but for a U+2581 of the text, if that can be kept."""
        encoded = self._model.encode(list(texts), num_threads=threads)
        if self._space_bytes is not None:
            for n, text in enumerate(texts):
                if SPACE in text:
                    encoded[n] = self._with_the_picture(text) or encoded[n]
        return encoded

    def _with_the_picture(self, text: str) -> list[int] | None:
        """Ids that keep U+2581; None where the model changes the parts between, if only by a space before each."""
        first, *rest = self._model.encode(text.split(SPACE))
        ids = first + [i for part in rest for i in (*(self._space_bytes or ()), *part)]
        return ids if b"".join(self._pieces[i] for i in ids) == text.encode() else None

    def _ends(self, text: str) -> list[int]:
        found = self._model.encode(text, return_type="offset_mapping", return_bytes=True)
        return [end for _, end in found["offsets"]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control pieces give nothing."""
        return self._model.decode([int(i) for i in ids])

    def control_pieces(self) -> list[int]:
        """The ids that no text gives, in their order."""
        return [i for i in range(self.vocab_size) if self._model.is_control(i)]

    def piece_id(self, piece: str) -> int | None:
        """The id of the piece with this name, None if there is none."""
        i = self._model.piece_to_id(piece)
        return i if self._model.id_to_piece(i) == piece else None

    def piece_name(self, i: int) -> str:
        """What the piece with this id is called."""
        return self._model.id_to_piece(i)

    def files(self) -> dict[str, pathlib.Path]:
        """The model, under the name that a folder has it by."""
        return {"tokenizer.model": self.path}

    def fingerprint(self) -> str:
        """12 hexadecimal digits of a hash over all pieces in order, how good they are, the separator, and probes.

        Not over the file: models that cut text alike may differ in the trainer's notes inside.
        """
        pieces = [[self._model.id_to_piece(i), self._model.get_score(i)] for i in range(self.vocab_size)]
        return content_key(self.separator, pieces, [self._model.encode(text) for text in _PROBES])


def _bytes_of(model: sentencepiece.SentencePieceProcessor, i: int) -> bytes:
    if model.is_byte(i):
        return bytes.fromhex(model.id_to_piece(i)[3:5])
    if model.is_control(i) or model.is_unknown(i) or model.is_unused(i):
        return b""
    return model.id_to_piece(i).replace(SPACE, " ").encode()
