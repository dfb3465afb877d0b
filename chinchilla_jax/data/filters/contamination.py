"""Which documents are much like a text that is to be kept out of training, such as the questions of a benchmark.

Gopher (arXiv 2112.11446, appendix A.1) drops training documents by the 13-grams of words that they share with test
sets. Here a document goes if it shares half or more of the distinct 13-grams of the smaller of the two with one text
of a list: a document that holds a question is caught, and so is one that is a piece of a longer text.
"""

from __future__ import annotations

import functools
import json

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError
from chinchilla_jax.data.filters.words import Text
from chinchilla_jax.data.grams import REPEATED_SHARE, content_hash, grams


def contamination(document: Text, path: str) -> str:
    """`overlap` if the text is much like one of those in a file of JSON lines, `{"text": "..."}`; empty if like none.

    Raises `ConfigError` for a file that is not there or is no such file.
    """
    known, owners, sizes = _known(path)
    own = np.unique(grams(document.text))
    first, last = (np.searchsorted(known, own, side) for side in ("left", "right"))
    hits = [owners[a:b] for a, b in zip(first, last, strict=True) if a < b]
    if not hits:
        return ""
    which, shared = np.unique(np.concatenate(hits), return_counts=True)
    return "overlap" if (shared >= REPEATED_SHARE * np.minimum(sizes[which], len(own))).any() else ""


def fingerprint(path: str) -> str:
    """16 hexadecimal digits that name the content of such a file."""
    return f"{content_hash(_read(path)):016x}"


@functools.lru_cache(maxsize=4)
def _known(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(grams of all texts, sorted; which text each is of; how many each text has)."""
    try:
        texts = [json.loads(line)["text"] for line in _read(path).splitlines() if line.strip()]
        of_each = [np.unique(grams(text)) for text in texts]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = f'unlike={path}: not a file of JSON lines with a text each ({error}); write {{"text": "..."}} a line'
        raise ConfigError("data.filters", told) from None
    sizes = np.array([len(part) for part in of_each], np.int64)
    together = np.concatenate([np.zeros(0, np.uint64), *of_each])
    order = np.argsort(together, kind="stable")
    return together[order], np.repeat(np.arange(len(sizes)), sizes)[order], sizes


def _read(path: str) -> str:
    if not files.is_file(path):
        raise ConfigError("data.filters", f"unlike={path}: no such file; name one of JSON lines, or leave it out")
    return files.read_text(path)
