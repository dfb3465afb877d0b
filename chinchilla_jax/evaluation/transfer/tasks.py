"""What are the rows of a task that is not of text? Symbols as a model's tokenizer writes them, and their class.

Each symbol is written by itself, in as many tokens as the tokenizer needs; the token that begins a text comes first.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from chinchilla_jax.config import ConfigError
from chinchilla_jax.evaluation.transfer import digits, listops
from chinchilla_jax.interop.trained import Trained


class Task(NamedTuple):
    """Examples of a number of classes: `draw` makes some, each as numbers of its symbols, with its class."""

    name: str
    symbols: tuple[str, ...]
    classes: int
    draw: Callable[[np.random.Generator, int], list[tuple[list[int], int]]]


TASKS = {
    "listops": Task("listops", listops.SYMBOLS, 10, listops.draw),
    "digits": Task("digits", digits.SYMBOLS, 10, digits.draw),
}


_BLOCK = 512  # examples that are drawn at once


class Rows(NamedTuple):
    """Examples as a model reads them.

    Attributes:
      tokens: int32 `[N, S]`, padded on the right; S is such that they can be laid out on the model's mesh.
      lengths: int32 `[N]`, how many of them are of the example.
      labels: int32 `[N]`.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    def of_width(self, width: int) -> Rows:
        """The same, of at least so many columns."""
        more = max(0, width - self.tokens.shape[1])
        return self._replace(tokens=np.pad(self.tokens, ((0, 0), (0, more))))

    def slice(self, start: int, stop: int) -> Rows:
        """Examples `start` to `stop - 1`, from the first again after the last."""
        return Rows(*(values[np.arange(start, stop) % len(self.labels)] for values in self))


def pieces_of(task: Task, model: Trained) -> list[list[int]]:
    """The tokens of each symbol. Raises ConfigError if the tokenizer does not tell two of them apart."""
    pieces = model.need_tokenizer().encode_all(task.symbols)
    seen: dict[tuple[int, ...], str] = {}
    for symbol, tokens in zip(task.symbols, pieces, strict=True):
        if not tokens or tuple(tokens) in seen:
            same = f"{symbol!r} and {seen[tuple(tokens)]!r} alike" if tokens else f"{symbol!r} as nothing"
            raise ConfigError("tokenizer", f"writes {same}, so it cannot say {task.name}; name one with byte pieces")
        seen[tuple(tokens)] = symbol
    return pieces


def make_rows(
    task: Task, model: Trained, count: int, *key: int, without: Collection[bytes] = ()
) -> tuple[Rows, set[bytes]]:
    """`count` examples and what identifies each; they depend on task, tokenizer and the numbers in `key` alone.

    Examples that the model has no room for, as its rows in training were shorter, are left out, and so are those in
    `without`.

    Raises:
      ConfigError: hardly any example fits, or the tokenizer cannot say them.
    """
    rng, pieces = np.random.default_rng([zlib.crc32(task.name.encode()), *key]), pieces_of(task, model)
    room, begin = model.config.data.seq_len, model.begin
    found: list[tuple[list[int], int]] = []
    identities: set[bytes] = set()
    drawn = 0
    while len(found) < count:
        if drawn > 4 * (len(found) + _BLOCK):
            told = (
                f"rows of {room} tokens, as the model was trained with, are too short for most examples of {task.name}"
            )
            raise ConfigError("data.seq_len", told)
        drawn += _BLOCK
        for symbols, label in task.draw(rng, _BLOCK):
            tokens = [begin, *(token for symbol in symbols for token in pieces[symbol])]
            if len(tokens) <= room and (identity := bytes(symbols)) not in without:
                found.append((tokens, label))
                identities.add(identity)
    del found[count:]
    lengths = np.array([len(tokens) for tokens, _ in found], np.int32)
    # On a mesh a row is split as in training, whose rows divide over it.
    step = 16 * model.config.mesh.context * model.config.mesh.tensor
    tokens_NxS = np.zeros((count, min(room, -(-int(lengths.max()) // step) * step)), np.int32)
    for row, (tokens, _) in zip(tokens_NxS, found, strict=True):
        row[: len(tokens)] = tokens
    return Rows(tokens_NxS, lengths, np.array([label for _, label in found], np.int32)), identities
