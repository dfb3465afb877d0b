"""The filters by their names in a config."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chinchilla_jax.data.filters.contamination import contamination, fingerprint
from chinchilla_jax.data.filters.language import language
from chinchilla_jax.data.filters.quality import quality
from chinchilla_jax.data.filters.repetition import repetition
from chinchilla_jax.data.filters.words import Text

FILTERS: dict[str, Callable[[Text], str]] = {"quality": quality, "repetition": repetition}
# Those of a value, `NAME=VALUE`.
WITH_VALUE: dict[str, Callable[[Text, str], str]] = {"language": language, "unlike": contamination}


def verdict(text: str, names: Iterable[str]) -> str:
    """`FILTER.RULE`, the first rule of these filters that the text breaks; empty if it is to be kept."""
    document = Text(text)
    for name in names:
        kind, equals, value = name.partition("=")
        if rule := WITH_VALUE[kind](document, value) if equals else FILTERS[name](document):
            return f"{kind}.{rule}"
    return ""


def check_filters(names: Iterable[str]) -> None:
    """Raises `ConfigError` where a package or a file that a filter needs is not there."""
    for kind, _, value in (name.partition("=") for name in names):
        if value:
            WITH_VALUE[kind](Text("a text"), value)


def identity(name: str) -> str:
    """The filter as it counts in the name of a corpus: a file by its content, not by its path."""
    kind, _, path = name.partition("=")
    return f"{kind}={fingerprint(path)}" if kind == "unlike" else name
