"""The repetition filter of MassiveText (Gopher, arXiv 2112.11446, table A1): documents that repeat themselves.

All shares are of the characters of the text, but those of lines and paragraphs, of which there are two each. As
huggingface/datatrove counts, whose decisions on the same words are the reference of the tests:

- the most frequent n-gram counts even if it occurs once, so a text of few words falls for it; of n-grams equally
  frequent the first one counts;
- an n-gram that came before counts once and its words are passed over, so characters are counted at most once.

Here two n-grams are the same if their words are; there, if their words run together are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from chinchilla_jax.data.filters.words import Text

PARAGRAPHS = LINES = 0.3
PARAGRAPH_CHARACTERS = LINE_CHARACTERS = 0.2
TOP = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def repetition(document: Text) -> str:
    """The first rule that the text breaks, empty if none.

    `paragraphs`, `paragraph_characters`, `lines`, `line_characters`, `top_2_gram` to `top_4_gram`,
    `duplicate_5_grams` to `duplicate_10_grams`; `empty` for no text at all.
    """
    if not document.text:
        return "empty"
    return next((rule for rule, broken in _rules(document) if broken), "")


def _rules(document: Text) -> Iterator[tuple[str, bool]]:
    """Each rule and whether it is broken, computed when it is asked for."""
    text = document.text
    share, characters = _repeated(re.split(r"\n{2,}", text.strip()))
    yield "paragraphs", share > PARAGRAPHS
    yield "paragraph_characters", characters / len(text) > PARAGRAPH_CHARACTERS
    share, characters = _repeated(re.split(r"\n+", text))
    yield "lines", share > LINES
    yield "line_characters", characters / len(text) > LINE_CHARACTERS
    yield from _grams(document)


def _repeated(parts: list[str]) -> tuple[float, int]:
    """(share of the parts that came before, their characters)."""
    if len(seen := set(parts)) == len(parts):
        return 0.0, 0
    repeated = sum(map(len, parts)) - sum(map(len, seen))
    return (len(parts) - len(seen)) / len(parts), repeated


def _grams(document: Text) -> Iterator[tuple[str, bool]]:
    words, size = document.words, len(document.text)
    number_of = {word: number for number, word in enumerate(document.counts)}
    numbers = np.fromiter(map(number_of.__getitem__, words), np.int64, len(words))
    ends = np.cumsum([0, *map(len, words)])  # characters before each word, and of all
    grams = numbers
    for n in range(2, max(DUPLICATE) + 1):
        if len(words) < n:
            return
        # A gram is that of one word less and its last word: numbers below 2^63 as long as texts have below 2^31 words.
        pairs = grams[: len(words) - n + 1] * len(number_of) + numbers[n - 1 :]
        _, first, grams, counts = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
        if n in TOP:
            at = first[counts == (often := counts.max())].min()
            length = ends[at + n] - ends[at] + n - 1  # with a space between words
            yield f"top_{n}_gram", length * often / size > TOP[n]
        if n not in DUPLICATE:
            continue
        if len(counts) == len(grams):
            return  # no gram occurs twice, so no longer one does
        yield f"duplicate_{n}_grams", _duplicate(grams, first, ends, n) / size > DUPLICATE[n]


def _duplicate(grams: np.ndarray, first: np.ndarray, ends: np.ndarray, n: int) -> int:
    """Characters of the n-grams that came before, left to right, passing over the words of each.

    Of every gram only the places after its first can count; `first` [distinct grams] are those.
    """
    again = np.flatnonzero(first[grams] != np.arange(len(grams)))
    passed_over = np.zeros(len(grams), bool)
    met: set[int] = set()  # at a place other than the first
    total = free = 0
    for place, gram in zip(again.tolist(), grams[again].tolist(), strict=True):
        if place < free:
            continue
        if gram in met or not passed_over[first[gram]]:
            total += int(ends[place + n] - ends[place])
            free = place + n
            passed_over[place + 1 : free] = True
        met.add(gram)
    return total
