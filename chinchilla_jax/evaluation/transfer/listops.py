"""ListOps (Nangia and Bowman 2018, arXiv 1804.06028): what is the value of a nested list of operations on digits?

    [MAX 2 9 [MIN 4 7 ] 0 ]   is 9

The operations are MAX, MIN, MED (the median, of an even number the lower whole number between the middle two) and SM
(the sum modulo 10). Trees are drawn as theirs are: an argument is another list with probability 1/4, a list has 2 to 5
arguments. Those without a nested list are left out, and so are those above `LONGEST` symbols.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

import numpy as np

OPERATIONS = ("[MAX", "[MIN", "[MED", "[SM")
SYMBOLS = (*"0123456789", *OPERATIONS, "]")
LONGEST = 32  # symbols
_END = len(SYMBOLS) - 1
_OF: dict[str, Callable[[list[int]], int]] = {
    "[MAX": max,
    "[MIN": min,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
_NESTED, _MOST_ARGUMENTS, _DEEPEST = 0.25, 5, 20


def draw(rng: np.random.Generator, count: int) -> list[tuple[list[int], int]]:
    """Random lists: the symbols of each, as numbers of `SYMBOLS`, and its value."""
    quick = random.Random(int(rng.integers(2**63)))  # a number at a time costs numpy twenty times as much
    found: list[tuple[list[int], int]] = []
    while len(found) < count:
        symbols = _list(quick, 1)
        if sum(10 <= symbol < _END for symbol in symbols) > 1 and len(symbols) <= LONGEST:
            found.append((symbols, value(symbols)))
    return found


def value(symbols: Sequence[int]) -> int:
    """The value of a list, 0 to 9."""
    waiting: list[int] = []
    for symbol in symbols:
        if symbol != _END:
            waiting.append(symbol)
            continue
        arguments = []
        while waiting[-1] < 10:
            arguments.append(waiting.pop())
        waiting.append(_OF[OPERATIONS[waiting.pop() - 10]](arguments))
    return waiting[0]


def _list(rng: random.Random, depth: int) -> list[int]:
    symbols = [10 + int(len(OPERATIONS) * rng.random())]
    for _ in range(2 + int((_MOST_ARGUMENTS - 1) * rng.random())):
        if depth < _DEEPEST and rng.random() < _NESTED:
            symbols += _list(rng, depth + 1)
        else:
            symbols.append(int(10 * rng.random()))
    return [*symbols, _END]
