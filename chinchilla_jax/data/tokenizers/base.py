"""What is a tokenizer? Ids of a text, the text of ids, at once or as they come, and which ids begin and end a text."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from chinchilla_jax.data.steps import DataError

SPACE = "\u2581"  # the picture of a space inside a piece
_HALF = "\ufffd"  # what the bytes of a part of a character are decoded to


class Tokenizer(abc.ABC):
    """Cuts texts into pieces that have numbers. No text, whatever is written in it, gives a control piece.

    Attributes:
      path: the file it was read from.
      vocab_size: one more than the largest id.
      bos: the piece that begins a text; None if it has none.
      eos: the piece that ends a text; None if it has none.
      separator: the piece that separates texts: that which ends one, else that which begins one.
    """

    def __init__(self, path: pathlib.Path, pieces: Sequence[bytes], bos: int | None, eos: int | None):
        """`pieces`: the bytes of text that each id stands for where nothing was normalised; none of control pieces.

        Raises DataError if there is neither an end nor a beginning.
        """
        self.path, self.vocab_size, self.bos, self.eos = path, len(pieces), bos, eos
        self._pieces, self._lengths = pieces, np.array([len(piece) for piece in pieces], np.int32)
        separator = bos if eos is None else eos
        if separator is None:
            raise DataError(f"{path}: has neither an end-of-text nor a beginning-of-text piece to separate documents")
        self.separator: int = separator

    @abc.abstractmethod
    def encode_all(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each text, without any before or after it; the result does not depend on `threads`."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control pieces give nothing."""

    @abc.abstractmethod
    def control_pieces(self) -> list[int]:
        """The ids that no text gives, in their order."""

    @abc.abstractmethod
    def piece_id(self, piece: str) -> int | None:
        """The id of the piece with this name, None if there is none."""

    @abc.abstractmethod
    def piece_name(self, i: int) -> str:
        """What the piece with this id is called."""

    @abc.abstractmethod
    def files(self) -> Mapping[str, pathlib.Path]:
        """What has to lie in a folder for `open_tokenizer(folder)` to open this tokenizer: names, and where from."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """12 hexadecimal digits of a hash over whatever says how text is cut."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without any before or after it."""
        return self.encode_all([text])[0]

    def decode_stream(self, before: Sequence[int] = ()) -> DecodeStream:
        """Decodes tokens that arrive one by one after those of `before`."""
        return DecodeStream(self, before)

    def byte_counts(self, text: str, ids: Sequence[int]) -> np.ndarray:
        """How many UTF-8 bytes of `text` each of its tokens stands for. int64 [len(ids) + 1], never negative.

        The last number is of bytes after all tokens, and belongs to whatever ends the text; together they are those of
        `text`, however it was normalised. Where pieces add up to the text their bytes are counted. Otherwise a token
        reaches from the end of the one before it to its own, in whole characters: it has the text that was left out
        before it, and of tokens that share a character one has it.
        """
        raw, found = text.encode(), np.asarray(ids, np.int64)
        said = b"".join([self._pieces[i] for i in ids])
        if said == raw:
            return np.append(self._lengths[found], 0).astype(np.int64)
        if said == b" " + raw:  # the space that many models put before a text
            counts = np.append(self._lengths[found], 0).astype(np.int64)
            counts[np.argmax(counts > 0)] -= 1
            return counts
        ends = self._ends(text)
        assert len(ends) == len(ids), f"{len(ids)} tokens are not those of this text, which has {len(ends)}"
        return np.diff(np.maximum.accumulate([0, *ends, len(raw)]))

    @abc.abstractmethod
    def _ends(self, text: str) -> Sequence[int]:
        """After which byte of `text` each of its tokens ends."""

    def spare_pieces(self) -> list[int]:
        """Control pieces that are in no stream of tokens: no text gives them, and they separate no documents."""
        return [i for i in self.control_pieces() if i != self.separator]


class DecodeStream:
    """The text of tokens that arrive one at a time, as soon as it is certain.

    A character may take several tokens, and a token's text may depend on those before it, if only in its space: the
    pieces of text are what each token adds to the text of all, and part of a character is held back until it is whole.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()):
        """`before` is known already; if it ends inside a character, the whole of that comes with what follows."""
        self._decode = tokenizer.decode
        self._ids = [int(token) for token in before]
        end = len(self._ids)
        # The text of the tokens up to here was returned, or is that of `before`; no character has more than four.
        places = range(end, max(end - 4, -1), -1)
        given = self._given = next((i for i in places if not self._text(0, i).endswith(_HALF)), end)
        # Decoding begins a few tokens earlier, for their context: where they have a text, and not inside a character.
        places = range(max(given - 8, 0), max(given - 40, -1), -1)
        self._start = next((i for i in places if self._text(i, given)[:1] not in ("", _HALF)), 0)

    def push(self, token: int) -> str:
        """The text that this token makes certain; may be empty."""
        self._ids.append(int(token))
        new = self._new()
        return "" if new.endswith(_HALF) else self._give(new)

    def flush(self) -> str:
        """The rest, also if it is part of a character."""
        return self._give(self._new())

    def _text(self, start: int, end: int) -> str:
        return self._decode(self._ids[start:end])

    def _new(self) -> str:
        before = self._text(self._start, self._given)
        return self._text(self._start, len(self._ids))[len(before) :]

    def _give(self, new: str) -> str:
        if new:  # tokens without a text stay: what follows may need them as its context
            self._start, self._given = self._given, len(self._ids)
        return new
