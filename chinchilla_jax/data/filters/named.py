"""The filters by their names in a config."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chinchilla_jax.data.filters.quality import quality
from chinchilla_jax.data.filters.repetition import repetition
from chinchilla_jax.data.filters.words import Text

FILTERS: dict[str, Callable[[Text], str]] = {"quality": quality, "repetition": repetition}


def verdict(text: str, names: Iterable[str]) -> str:
    """`FILTER.RULE`, the first rule of these filters that the text breaks; empty if it is to be kept."""
    document = Text(text)
    for name in names:
        if rule := FILTERS[name](document):
            return f"{name}.{rule}"
    return ""
