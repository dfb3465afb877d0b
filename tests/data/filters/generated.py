"""Documents that lie on both sides of every rule of the filters: a pure function of a number."""

import random

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_SYLLABLES = ("ba", "co", "di", "fu", "gel", "han", "ir", "jos", "kap", "lem", "mi", "nor", "op", "qua", "rus", "set")


def _vocabulary(rng: random.Random, syllables: int, size: int = 400) -> list[str]:
    return ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, syllables))) for _ in range(size)]


def _prose(rng: random.Random, words: int, vocabulary: list[str], stop: float = 0.2) -> list[str]:
    """Words, some of them stop words, with a full stop or a comma here and there."""
    chosen = [rng.choice(STOP_WORDS if rng.random() < stop else vocabulary) for _ in range(words)]
    return [word + rng.choices(("", ".", ",", "!"), (0.85, 0.07, 0.06, 0.02))[0] for word in chosen]


def _lines(rng: random.Random, words: list[str], length: int = 9) -> list[str]:
    return [" ".join(words[at : at + length]) for at in range(0, len(words), length)]


def document(number: int) -> str:
    """A text whose kind is `number` modulo the number of kinds; how far it goes is drawn."""
    rng = random.Random(number)
    words = _prose(rng, rng.randint(60, 300), _vocabulary(rng, 3))
    lines = _lines(rng, words)
    kind = number % 14
    share = rng.random()
    if kind == 0:  # few words
        return " ".join(words[: rng.randint(1, 90)])
    if kind == 1:  # words of another length
        return " ".join(_prose(rng, 200, _vocabulary(rng, rng.randint(1, 7)), stop=rng.choice((0.05, 0.8))))
    if kind in (2, 3):  # signs
        sign = ("#", "...", "…")[number // 14 % 3]
        return " ".join(f"{sign}{word}" if rng.random() < 0.3 * share else word for word in words)
    if kind == 4:  # lists
        return "\n".join(f"{rng.choice('-•')} {line}" if rng.random() < 0.8 + 0.2 * share else line for line in lines)
    if kind == 5:  # lines cut off
        return "\n".join(f"{line}{rng.choice(('...', '…'))}" if rng.random() < 0.6 * share else line for line in lines)
    if kind == 6:  # numbers
        return " ".join(str(rng.randint(0, 99)) if rng.random() < 0.4 * share else word for word in words)
    if kind == 7:  # few stop words
        plain = _prose(rng, 120, _vocabulary(rng, 3), stop=0.0)
        return " ".join([*plain, *rng.choices(STOP_WORDS, k=rng.randint(0, 3))])
    if kind == 8:  # lines again
        return "\n".join(rng.choice(lines[:3]) if rng.random() < 0.5 * share else line for line in lines)
    if kind == 9:  # paragraphs again
        return "\n\n".join(rng.choice(lines[:3]) if rng.random() < 0.5 * share else line for line in lines)
    if kind in (10, 11):  # a phrase again and again
        phrase = " ".join(words[: rng.randint(2, 12)])
        return " ".join(f"{phrase} {word}" if rng.random() < 0.06 * share else word for word in words)
    if kind == 12:  # long stretches again
        at, size = rng.randrange(len(words) // 2), rng.randint(6, 40)
        return " ".join([*words, *words[at : at + size]])
    return "\n\n".join("\n".join(lines[at : at + 4]) for at in range(0, len(lines), 4))
