"""Hashes of a text: of all of it, and of its word 13-grams, by which texts that share passages are found."""

from __future__ import annotations

import functools
import hashlib
import re

import numpy as np

GRAM_WORDS = 13
REPEATED_SHARE = 0.5  # of the grams of a text; from there on it counts as repeated
_MULTIPLIER, _BASE = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # both odd
_WORD_BYTES = np.array(
    [ord(chr(i).lower()) if i < 128 and re.match(r"\w", chr(i)) else 0 for i in range(256)], np.uint8
)


def content_hash(text: str) -> int:
    """The first 64 bits of the SHA-256 of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def grams(text: str) -> np.ndarray:
    """uint64[grams]: hashes of the word 13-grams of `text`, in its order; never empty.

    That of the words i to i + 12 is the sum over k of hashes[i + k] * M^(12 - k), modulo 2^64.
    """
    hashes = _word_hashes(text)
    size = min(GRAM_WORDS, len(hashes))
    count = len(hashes) - size + 1
    result = np.zeros(count, np.uint64)
    for k in range(size):
        result = result * np.uint64(_MULTIPLIER) + hashes[k : k + count]
    return result


def _word_hashes(text: str) -> np.ndarray:
    """uint64[words]: the sum of byte k of a word times B^k, modulo 2^64, mixed; without words, that of all of it.

    All words at once, as differences of running sums over the text: a Python object for each word would take longer
    than anything else in the preparation.
    """
    if text.isascii():
        content = _WORD_BYTES[np.frombuffer(text.encode(), np.uint8)]
    else:
        content = np.frombuffer("\0".join(re.findall(r"\w+", text.lower())).encode(), np.uint8)
    edges = np.flatnonzero(np.diff(content != 0, prepend=False, append=False))
    if not len(edges):
        content = np.frombuffer(text.encode(), np.uint8)
        edges = np.array([0, len(content)])
    powers, inverses = _powers(1 << len(content).bit_length())
    sums = np.zeros(len(content) + 1, np.uint64)
    np.cumsum(content * powers[: len(content)], out=sums[1:])
    starts, ends = edges[::2], edges[1::2]
    hashes = (sums[ends] - sums[starts]) * inverses[starts]
    return (hashes ^ (hashes >> np.uint64(32))) * np.uint64(_MULTIPLIER)


@functools.lru_cache(maxsize=4)
def _powers(count: int) -> list[np.ndarray]:
    """uint64[count]: B^k and B^-k modulo 2^64."""
    bases = (_BASE, pow(_BASE, -1, 1 << 64))
    return [np.cumprod(np.r_[np.uint64(1), np.full(count - 1, base, np.uint64)]) for base in bases]
