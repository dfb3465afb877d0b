"""The language of a document, by py3langid, whose model lies in its package."""

from __future__ import annotations

import functools
from collections.abc import Callable

from chinchilla_jax.config import ConfigError
from chinchilla_jax.data.filters.words import Text

# Enough to be sure of a language, and little of a book.
_CHARACTERS = 2000


def language(document: Text, wanted: str) -> str:
    """`other` unless the beginning of the text is in the language of this code (ISO 639-1); empty if it is.

    Raises `ConfigError` where the package is not installed, or knows no such language.
    """
    found, _ = _classifier(wanted)(document.text[:_CHARACTERS])
    return "" if found == wanted else "other"


@functools.cache
def _classifier(wanted: str) -> Callable[[str], tuple[str, float]]:
    key, fix = "data.filters", "pip install 'chinchilla_jax[language]'"
    try:
        import py3langid
    except ImportError:
        raise ConfigError(key, f"language={wanted} needs py3langid; {fix}, or leave it out") from None
    if wanted not in (known := sorted(code for code, _ in py3langid.rank("a text"))):
        raise ConfigError(key, f"language={wanted}: py3langid knows no such language; one of {', '.join(known)}")
    return py3langid.classify
