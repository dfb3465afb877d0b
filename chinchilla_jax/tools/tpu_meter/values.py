"""What does a scalar instruction give, when some of what it reads is not known?

A word is an int in [0, 2**32), a predicate a bool, and None either of them where the meter cannot know it: it depends
on data that is an argument of the compiled program. None spreads, except where the rest decides: `unknown or True`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

Value = int | bool | None

_WORD = 0xFFFFFFFF


def signed(word: int) -> int:
    """The two's complement reading of a 32-bit word."""
    word &= _WORD
    return word - (1 << 32) if word >> 31 else word


def unsigned(word: int) -> int:
    """The low 32 bits."""
    return word & _WORD


def negation(a: Value) -> Value:
    """not a"""
    return None if a is None else not a


def either(a: Value, b: Value) -> Value:
    """a or b"""
    if a is True or b is True:
        return True
    return None if a is None or b is None else False


def both(a: Value, b: Value) -> Value:
    """a and b"""
    return negation(either(negation(a), negation(b)))


def neither(a: Value, b: Value) -> Value:
    """not (a or b)"""
    return negation(either(a, b))


def not_both(a: Value, b: Value) -> Value:
    """not (a and b)"""
    return either(negation(a), negation(b))


def same(a: Value) -> Value:
    """a"""
    return a


def select(predicate: Value, on_true: Value, on_false: Value) -> Value:
    """One of two values; known without the predicate when they are equal."""
    if predicate is None:
        return on_true if on_true == on_false else None
    return on_true if predicate else on_false


def address_sum(*terms: Value) -> Value:
    """Base and offsets of an address."""
    known = [term for term in terms if term is not None]
    return sum(known) & _WORD if len(known) == len(terms) else None


def _shift_left(a: int, b: int) -> int:
    return a << b if 0 <= b < 32 else 0


def _shift_right(a: int, b: int) -> int:
    return unsigned(a) >> b if 0 <= b < 32 else 0


def _shift_right_signed(a: int, b: int) -> int:
    return signed(a) >> (b if 0 <= b < 32 else 31)


_PREDICATES: dict[str, tuple[Callable[..., Value], int]] = {
    "por": (either, 2),
    "pand": (both, 2),
    "pnor": (neither, 2),
    "pnand": (not_both, 2),
    "pneg": (negation, 1),
    "pmov": (same, 1),
    "smov": (same, 1),
    "scalar_select": (select, 3),
}
_WORDS: dict[str, Callable[[int, int], int]] = {
    "sadd": operator.add,
    "ssub": operator.sub,
    "smul": operator.mul,
    "sand": operator.and_,
    "sor": operator.or_,
    "sxor": operator.xor,
    "sshll": _shift_left,
    "sshrl": _shift_right,
    "sshra": _shift_right_signed,
    "smin": min,
    "smax": max,
}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_READINGS = {"s32": signed, "u32": unsigned}


def scalar_function(opcode: str, operands: int) -> Callable[..., Value] | None:
    """What the instruction computes, or None if the meter does not model it with so many operands.

    Opcodes carry the type they read their operands as: `sadd.s32`, `scmp.lt.u32.totalorder`.
    """
    name, *rest = opcode.split(".")
    if name in ("int_to_ptr", "scalar_lea"):
        return address_sum
    if name in _PREDICATES:
        predicate, arity = _PREDICATES[name]
        return predicate if operands == arity else None
    compares = name == "scmp" and len(rest) >= 2
    function: Callable[[int, int], int | bool] | None = _COMPARISONS.get(rest[0]) if compares else _WORDS.get(name)
    kind = rest[1] if compares else "".join(rest[:1])
    if function is None or kind not in _READINGS or operands != 2:
        return None
    return _on_words(function, _READINGS[kind])


def _on_words(function: Callable[[int, int], int | bool], read: Callable[[int], int]) -> Callable[..., Value]:
    """Reads words, gives a bool as it is and an int as a word."""

    def run(a: Value, b: Value) -> Value:
        if a is None or b is None:
            return None
        result = function(read(a), read(b))
        return result if isinstance(result, bool) else result & _WORD

    return run
