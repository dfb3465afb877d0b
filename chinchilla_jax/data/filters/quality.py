"""The quality filter of MassiveText (Gopher, arXiv 2112.11446, appendix A.1.1): documents that look like text.

Thresholds and the order of rules as in the paper, and as huggingface/datatrove applies them, whose decisions on the
same words are the reference of the tests. What the paper leaves open: signs count as words in the shares (of `#`, of
ellipses, of words with a letter), but not in the number of words and their mean length.
"""

from __future__ import annotations

from collections.abc import Iterator

from chinchilla_jax.data.filters.words import Text, has_letter, is_sign

WORDS = (50, 100_000)
MEAN_LENGTH = (3, 10)
SIGNS_PER_WORD = 0.1
BULLET_LINES = 0.9
ELLIPSIS_LINES = 0.3
WORDS_WITH_LETTER = 0.8
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
DISTINCT_STOP_WORDS = 2
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


def quality(document: Text) -> str:
    """The first rule that the text breaks, empty if none:

    `few_words`, `many_words`, `short_words`, `long_words`, `hashes`, `ellipses`, `bullet_lines`, `ellipsis_lines`,
    `few_letters`, `few_stop_words`.
    """
    return next((rule for rule, broken in _rules(document) if broken), "")


def _rules(document: Text) -> Iterator[tuple[str, bool]]:
    """Each rule and whether it is broken, computed when it is asked for."""
    text, counts = document.text, document.counts
    words = {word: count for word, count in counts.items() if not is_sign(word)}
    number, everything = sum(words.values()), len(document.words)
    yield "few_words", number < WORDS[0]
    yield "many_words", number > WORDS[1]
    mean = sum(len(word) * count for word, count in words.items()) / number
    yield "short_words", mean < MEAN_LENGTH[0]
    yield "long_words", mean > MEAN_LENGTH[1]
    yield "hashes", text.count("#") / everything > SIGNS_PER_WORD
    yield "ellipses", sum(map(text.count, _ELLIPSES)) / everything > SIGNS_PER_WORD
    lines = text.splitlines()
    yield "bullet_lines", sum(line.lstrip().startswith(_BULLETS) for line in lines) / len(lines) > BULLET_LINES
    yield "ellipsis_lines", sum(line.rstrip().endswith(_ELLIPSES) for line in lines) / len(lines) > ELLIPSIS_LINES
    lettered = sum(count for word, count in counts.items() if has_letter(word))
    yield "few_letters", lettered / everything < WORDS_WITH_LETTER
    yield "few_stop_words", len(STOP_WORDS & counts.keys()) < DISTINCT_STOP_WORDS
