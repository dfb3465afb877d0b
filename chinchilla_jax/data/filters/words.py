"""A document as the filters see it, its words found once for all of them."""

from __future__ import annotations

import functools
import re
from collections import Counter

# A word may have an apostrophe, a point or an at sign inside (don't, 3.5, a@b.org). Each other sign is a word of its
# own, but points in a row are one, and so are dashes.
_WORD = re.compile(r"\w+(?:['’.@]\w+)*|\.{2,}|-{2,}|[^\w\s]")


class Text:
    """A text and its words, signs among them, in their order."""

    def __init__(self, text: str, words: list[str] | None = None):
        """`words` may come from another tokenizer; the usual ones are found when they are first asked for."""
        self.text = text
        if words is not None:
            self.words = words

    @functools.cached_property
    def words(self) -> list[str]:
        """Words and signs."""
        return _WORD.findall(self.text)

    @functools.cached_property
    def counts(self) -> Counter[str]:
        """How often each word occurs."""
        return Counter(self.words)


def has_letter(word: str) -> bool:
    """Whether there is a letter of any script in it."""
    return word.isalpha() or any(map(str.isalpha, word))


def is_sign(word: str) -> bool:
    """Whether there is neither a letter nor a digit in it."""
    return not (word.isalnum() or any(map(str.isalnum, word)))
