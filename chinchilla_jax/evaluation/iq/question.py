"""What is a question, how is it put to a model, and when is an answer right?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random

ACCURACY, EXACT_MATCH = "acc", "exact_match"
_MOST_TRIES = 1000  # draws for a question that is not there yet


@dataclasses.dataclass(frozen=True)
class Question:
    """One question, after examples that are answered.

    `shots` are (asked, answer) pairs. `options` are what a comparing task scores, the answer among them; empty where
    the answer is written freely. `asked` and each shot end where an answer follows after a space.
    """

    asked: str
    answer: str
    shots: tuple[tuple[str, str], ...] = ()
    instruction: str = ""
    options: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """All that the model is given: the instruction, the examples, what is asked; an empty line between them."""
        examples = [f"{asked} {answer}" for asked, answer in self.shots]
        return "\n\n".join([*([self.instruction] if self.instruction else []), *examples, self.asked])

    def grade(self, written: str) -> bool:
        """Whether a text that continues the prompt answers it: its first line, without spaces around, is the answer."""
        lines = written.strip().splitlines()
        return bool(lines) and lines[0].strip() == self.answer


@dataclasses.dataclass(frozen=True)
class Task:
    """Questions of one kind.

    `make` gives the first so many of them. `metric` says how they are scored: `acc`, the likeliest of the options, or
    `exact_match`, a text that is written. `chance` is what guessing among the possible answers scores; 0 where these
    are too many to count. `shots` is how many examples precede a question.
    """

    name: str
    family: str
    size: int
    shots: int
    metric: str
    chance: float
    make: Callable[[Random, int], list[Question]]

    def questions(self, seed: int = 0, size: int | None = None) -> list[Question]:
        """The first `size` questions of this seed, by default all: a pure function, fewer are the first of more."""
        wanted = self.size if size is None else min(size, self.size)
        return self.make(Random(f"{seed}/{self.name}"), self.size)[:wanted]


def distinct(draw: Callable[[Random], Question]) -> Callable[[Random, int], list[Question]]:
    """Makes questions with a function that draws one; none is asked twice, and none is its own example."""

    def make(random: Random, size: int) -> list[Question]:
        found: dict[str, Question] = {}
        for _ in range(size * _MOST_TRIES):
            if len(found) == size:
                return list(found.values())
            question = draw(random)
            if question.asked not in dict(question.shots):
                found.setdefault(question.asked, question)
        raise ValueError(f"{size} distinct questions were wanted, only {len(found)} found")

    return make
