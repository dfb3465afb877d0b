"""What is a tokenizer? Ids of a text, the text of ids, at once or as they come, and which ids begin and end a text."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Callable, Mapping, Sequence

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

    def byte_lengths(self) -> np.ndarray:
        """int32[vocab_size]: UTF-8 bytes of text each piece stands for; 0 for control, unknown and unused pieces."""
        return self._lengths

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
        # The text of the tokens up to here was returned, or is that of `before`.
        given = self._given = self._first(range(end, end - 4, -1), lambda i: not self._text(0, i).endswith(_HALF))
        # Decoding begins a few tokens earlier, which give the context; not inside a character either.
        start = max(0, given - 8)
        self._start = self._first(range(start, start - 4, -1), lambda i: not self._text(i, given).startswith(_HALF))

    def push(self, token: int) -> str:
        """The text that this token makes certain; may be empty."""
        self._ids.append(int(token))
        new = self._new()
        return "" if new.endswith(_HALF) else self._give(new)

    def flush(self) -> str:
        """The rest, also if it is part of a character."""
        return self._give(self._new())

    def _first(self, places: range, fits: Callable[[int], bool]) -> int:
        """The first of these places that fits, else the first: no character is spread over more."""
        return next((i for i in places if i >= 0 and fits(i)), places[0])

    def _text(self, start: int, end: int) -> str:
        return self._decode(self._ids[start:end])

    def _new(self) -> str:
        before = self._text(self._start, self._given)
        return self._text(self._start, len(self._ids))[len(before) :]

    def _give(self, new: str) -> str:
        if new:  # tokens without a text stay: what follows may need them as its context
            self._start, self._given = self._given, len(self._ids)
        return new
