"""Rule understanding: is a rule that is told in words carried out to the letter?

Published: the three tasks, no examples for counting and four for the others, 148, 300 and 300 questions, one answer
that has to match. Our choice: every wording, the ranges of numbers, the words and the strings.
"""

from __future__ import annotations

import string
from random import Random

from chinchilla_jax.evaluation.iq.question import EXACT_MATCH, Question, Task, distinct

FAMILY = "rule_understanding"
SHOTS = 4
WORDS = tuple(
    "amber anchor apple arrow autumn basket bench bottle branch bread bridge bright bucket butter button candle carpet "
    "castle cheese circle clever cloud copper corner cotton cradle curtain desert dinner double early engine fabric "
    "farmer feather finger flower forest garden gentle golden hammer harbor honey island jacket kettle ladder lantern "
    "lemon letter marble meadow mirror morning mountain needle ocean orange paper pebble pencil pepper pillow planet "
    "pocket quiet rabbit ribbon river saddle sailor shadow silver simple spider spring stone summer table thunder "
    "ticket timber tunnel valley velvet village violin walnut water wheel window winter yellow".split()
)


def _count(random: Random) -> Question:
    """Count on between two numbers of five digits; the first three are there, which shows the form."""
    first = random.randint(10_000, 99_900)
    last = first + random.randint(10, 30)
    numbers = [str(number) for number in range(first, last + 1)]
    return Question(f"Count from {first} to {last}: {', '.join(numbers[:3])},", ", ".join(numbers[3:]))


def _replaced_word(random: Random) -> tuple[str, str]:
    old, new = ("".join(random.choices(string.ascii_uppercase, k=4)) for _ in range(2))
    words = random.sample(WORDS, random.randint(5, 9))
    for place in sorted(random.sample(range(len(words)), random.randint(1, 2))):
        words[place] = old
    sentence = " ".join(words)
    asked = f"Word: {old}\nNew word: {new}\nSentence: {sentence}\nNew sentence:"
    return asked, sentence.replace(old, new)


def _replace_word(random: Random) -> Question:
    """One word of a sentence, which means nothing and may stand there twice, becomes another."""
    asked, answer = _replaced_word(random)
    shots = tuple(_replaced_word(random) for _ in range(SHOTS))
    return Question(asked, answer, shots, "Write the sentence again, with the new word wherever the word stands in it.")


def _lowered(random: Random) -> tuple[str, str]:
    letters = random.choices(string.ascii_letters, k=random.randint(8, 16))
    letters[random.randrange(len(letters))] = random.choice(string.ascii_uppercase)  # there is something to do
    text = "".join(letters)
    return f"Text: {text}\nNew text:", text.lower()


def _replace_lowercase(random: Random) -> Question:
    """The upper-case letters of a random string become lower-case ones."""
    asked, answer = _lowered(random)
    shots = tuple(_lowered(random) for _ in range(SHOTS))
    return Question(asked, answer, shots, "Write the text again, with every upper-case letter as a lower-case one.")


TASKS = (
    Task("counting", FAMILY, 148, 0, EXACT_MATCH, 0.0, distinct(_count)),
    Task("replace_lowercase", FAMILY, 300, SHOTS, EXACT_MATCH, 0.0, distinct(_replace_lowercase)),
    Task("replace_word", FAMILY, 300, SHOTS, EXACT_MATCH, 0.0, distinct(_replace_word)),
)
