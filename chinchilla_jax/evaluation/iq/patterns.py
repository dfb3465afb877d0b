"""Pattern mining: is a rule that nobody tells found in its examples, and applied to a string never seen?

Published: the three tasks, five examples, 100 questions each, one answer that has to match. Our choice: the wording,
the alphabet and the lengths. Each question has a pattern of its own; the examples leave only one.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from random import Random

from chinchilla_jax.evaluation.iq.question import EXACT_MATCH, Question, Task, distinct

FAMILY = "pattern_mining"
SHOTS = 5
_SHORTEST, _LONGEST = 4, 8


def _letters(random: Random, shortest: int, longest: int) -> str:
    return "".join(random.choices(string.ascii_letters, k=random.randint(shortest, longest)))


def _strings(random: Random, shortest: int) -> list[str]:
    """Distinct strings for a question and its examples; these differ in length, in the first and in the last letter.

    Otherwise a letter that all have in common could belong to the pattern, or slicing be the loss of a tail.
    """
    while True:
        drawn = [_letters(random, shortest, _LONGEST) for _ in range(SHOTS + 1)]
        shown = drawn[1:]
        lengths, firsts, lasts = ({len(t) for t in shown}, {t[0] for t in shown}, {t[-1] for t in shown})
        if len(set(drawn)) == len(drawn) and min(len(lengths), len(firsts), len(lasts)) > 1:
            return drawn


def _question(strings: list[str], pattern: Callable[[str], str]) -> Question:
    (asked, answer), *shots = [(f"Input: {text}\nOutput:", pattern(text)) for text in strings]
    return Question(asked, answer, tuple(shots))


def _head_tail(random: Random) -> Question:
    """A head and a tail, the same in all examples, are put around the input."""
    head, tail = _letters(random, 2, 5), _letters(random, 2, 5)
    return _question(_strings(random, _SHORTEST), lambda text: head + text + tail)


def _full_repeating(random: Random) -> Question:
    """The input comes twice."""
    return _question(_strings(random, _SHORTEST), lambda text: text + text)


def _head_slicing(random: Random) -> Question:
    """The first letters of the input, as many as in all examples, are returned; it is longer than that."""
    kept = random.randint(2, 4)
    return _question(_strings(random, kept + 1), lambda text: text[:kept])


TASKS = (
    Task("head_tail", FAMILY, 100, SHOTS, EXACT_MATCH, 0.0, distinct(_head_tail)),
    Task("full_repeating", FAMILY, 100, SHOTS, EXACT_MATCH, 0.0, distinct(_full_repeating)),
    Task("head_slicing", FAMILY, 100, SHOTS, EXACT_MATCH, 0.0, distinct(_head_slicing)),
)
