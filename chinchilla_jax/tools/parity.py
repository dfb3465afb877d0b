"""Propositions for a teacher, made here: are an even number of these letters in the first half of the alphabet?

    python -m chinchilla_jax.tools.parity FILE [--letters=2] [--count=676] [--seed=0]

writes lines such as {"text": "an even number before n: k t", "label": false}, all different. Half of them are true, and
all letters but one say nothing: a model has learned the parity, or it guesses. It is the smallest example of the form
that `data/teacher.py` reads.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.base import files

ALPHABET = np.array(list(string.ascii_lowercase))
MOST_LETTERS = 5  # of which there are 26^5 = 12 million words


def parity_propositions(count: int, letters: int, seed: int) -> list[dict[str, str | bool]]:
    """So many different propositions about so many letters. Raises ValueError if there are not as many."""
    if not 0 < letters <= MOST_LETTERS:
        raise ValueError(f"from 1 to {MOST_LETTERS} letters, got {letters}")
    words = len(ALPHABET) ** letters
    if not 0 < count <= words:
        raise ValueError(f"there are {words:,} words of {letters} letters, got count={count}")
    numbers = np.random.default_rng(seed).choice(words, count, replace=False)
    places = numbers[:, None] // len(ALPHABET) ** np.arange(letters) % len(ALPHABET)
    before_n = (places < len(ALPHABET) // 2).sum(axis=1)
    return [
        {"text": f"an even number before n: {' '.join(ALPHABET[word])}", "label": bool(n % 2 == 0)}
        for word, n in zip(places, before_n, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the file that the command line names."""
    parser = argparse.ArgumentParser(description="Writes propositions about the parity of letters.")
    parser.add_argument("file")
    for name, default, what in (
        ("letters", 2, f"letters in each, {MOST_LETTERS} at most"),
        ("count", 676, "propositions; there are 26^LETTERS different ones"),
        ("seed", 0, "of the random letters"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    given = parser.parse_args(arguments)
    try:
        propositions = parity_propositions(given.count, given.letters, given.seed)
    except ValueError as error:
        parser.error(str(error))
    lines = [json.dumps(proposition) for proposition in propositions]
    files.write_text(given.file, "\n".join(lines) + "\n")
    print(f"{given.file}: {len(lines):,} propositions")


if __name__ == "__main__":
    main()
