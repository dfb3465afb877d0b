"""Symbolic mapping: are labels learnt from examples when they are symbols that mean nothing?

Published: the tasks of SuperGLUE and CLUE whose labels are replaced, that symbols are random, examples of every label,
and the sizes of `PUBLISHED_SIZES`. Our choice: the wording, symbols of eight characters in angle brackets that are
drawn anew for each question, two examples a label in random order, that the options are compared by their likelihood.
As each symbol comes equally often, a model that copies what it saw gains nothing by it.

A question shows text in named fields. What is asked of it, the `question` of a form, may be told; which symbol means
what, only the examples tell.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from chinchilla_jax.evaluation.iq.question import ACCURACY, Question, Task, distinct

FAMILY = "symbolic_mapping"
SHOTS_A_LABEL = 2
# Questions a task in the paper's scores: the fractions that its percentages are.
PUBLISHED_SIZES = {
    "boolq": 299, "wic": 300, "rte": 277, "wsc": 103, "afqmc": 300, "csl": 208, "ocnli": 300, "cluewsc2020": 300,
}  # fmt: skip
USUAL_SIZE = 300  # of tables of other names
_ALPHABET = string.ascii_letters + string.digits + "!#$%&*+=?@^~"
_LENGTH = 8


class Row(NamedTuple):
    """A labelled text: what it shows, by field, and its label."""

    fields: Mapping[str, str]
    label: str

    @property
    def text(self) -> str:
        """One field a line, as `Passage: ...`."""
        return "\n".join(f"{name.capitalize()}: {value}" for name, value in self.fields.items())


def symbols(random: Random, labels: Sequence[str]) -> dict[str, str]:
    """A symbol for each label, as `<30mFC%4Z>`: all differ, and none holds a label of two or more characters."""
    words = [label.lower() for label in labels if len(label) > 1]
    found: dict[str, str] = {}
    while len(found) < len(labels):
        symbol = f"<{''.join(random.choices(_ALPHABET, k=_LENGTH))}>"
        if symbol not in found and not any(word in symbol.lower() for word in words):
            found[symbol] = labels[len(found)]
    return {label: symbol for symbol, label in found.items()}


def _question(random: Random, asked: Row, shots: list[Row], labels: Sequence[str]) -> Question:
    symbol = symbols(random, labels)
    random.shuffle(shots)
    options = random.sample(sorted(symbol.values()), len(labels))
    told = f"The label of each text is {' or '.join(options)}. The examples show which."
    lines = [(f"{row.text}\nLabel:", symbol[row.label]) for row in (asked, *shots)]
    return Question(*lines[0], tuple(lines[1:]), told, tuple(options))


def drawn(name: str, size: int, labels: Sequence[str], draw: Callable[[Random, str], Mapping[str, str]]) -> Task:
    """A task whose texts are drawn for a label, as often for each."""

    def row(random: Random, label: str) -> Row:
        return Row(draw(random, label), label)

    def question(random: Random) -> Question:
        shots = [row(random, label) for label in labels for _ in range(SHOTS_A_LABEL)]
        return _question(random, row(random, random.choice(labels)), shots, labels)

    return _task(name, size, labels, distinct(question))


def of_rows(name: str, rows: Sequence[Row], size: int | None = None) -> Task:
    """A task of labelled rows, each asked at most once; the examples of a question are other rows.

    `size` is by default the published one of that name, and never more than there are rows.

    Raises:
      ValueError: fewer than two labels, or a label with too few rows for its examples.
    """
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    labels = sorted(by_label)
    if len(labels) < 2:
        raise ValueError(f"all rows have the label {labels[0]!r}" if labels else "it has no rows")
    for label, of_label in by_label.items():
        if len(of_label) <= SHOTS_A_LABEL:
            least = f"of a label at least {SHOTS_A_LABEL + 1} are needed, for a question and its examples"
            raise ValueError(f"only {len(of_label)} different rows have the label {label!r}; {least}")

    def make(random: Random, size: int) -> list[Question]:
        questions = []
        for asked in random.sample(rows, size):
            others = {label: [row for row in by_label[label] if row is not asked] for label in labels}
            shots = [row for label in labels for row in random.sample(others[label], SHOTS_A_LABEL)]
            questions.append(_question(random, asked, shots, labels))
        return questions

    return _task(name, min(size or PUBLISHED_SIZES.get(name, USUAL_SIZE), len(rows)), labels, make)


def _task(name: str, size: int, labels: Sequence[str], make: Callable[[Random, int], list[Question]]) -> Task:
    shots = SHOTS_A_LABEL * len(labels)
    return Task(f"symbolic_{name}", FAMILY, size, shots, ACCURACY, 1 / len(labels), make)
