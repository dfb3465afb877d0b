"""Propositions for a teacher, made here: does a word have an even number of vowels?

    python -m chinchilla_jax.tools.parity FILE [--count=20000] [--letters=4] [--seed=0]

writes lines such as {"text": "an even number of vowels: k o e r", "label": true}. Nothing but the label says which it
is, half of them are true, and no letter alone says anything: a model has learned the parity or guesses. It is the
smallest example of the form that `data/teacher.py` reads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.base import files

VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"


def parity_propositions(count: int, letters: int, seed: int) -> list[dict[str, str | bool]]:
    """So many propositions about random letters, half of which are vowels; some may come twice."""
    rng = np.random.default_rng(seed)
    is_vowel = rng.random((count, letters)) < 0.5
    words = np.where(is_vowel, rng.choice(list(VOWELS), is_vowel.shape), rng.choice(list(CONSONANTS), is_vowel.shape))
    return [
        {"text": f"an even number of vowels: {' '.join(word)}", "label": bool(vowels % 2 == 0)}
        for word, vowels in zip(words, is_vowel.sum(axis=1), strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the file that the command line names."""
    parser = argparse.ArgumentParser(description="Writes propositions about the number of vowels among letters.")
    parser.add_argument("file")
    for name, default, what in (
        ("count", 20_000, "propositions"),
        ("letters", 4, "letters in each"),
        ("seed", 0, "of the random letters"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    given = parser.parse_args(arguments)
    lines = [json.dumps(proposition) for proposition in parity_propositions(given.count, given.letters, given.seed)]
    files.write_text(given.file, "\n".join(lines) + "\n")
    print(f"{given.file}: {len(lines):,} propositions")


if __name__ == "__main__":
    main()
