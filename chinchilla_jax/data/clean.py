"""Which documents are kept, and which are held out for validation.

Rules, in this order:

1. A document whose exact text came before is dropped, whatever its domain.
2. A document is held out if the hash of its text, as a number in [0, 1), is below `validation_fraction`: no other
   document has a say, so a growing corpus never moves a document from one side to the other. The lowest hash of each
   domain is held out in any case, so that every domain has a validation set.
3. A held-out document is dropped if half or more of its distinct word 13-grams occur in training documents of any
   domain, all taken together. Case and punctuation do not count; a text under 13 words is one gram.

Rule 3 costs one hash per word: only the held-out documents' grams are kept in memory, and training text streams past.
"""

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np

from chinchilla_jax.data.corpora import Document, Source
from chinchilla_jax.data.errors import DataError
from chinchilla_jax.data.files import Progress, write_json

GRAM_WORDS = 13
REPEATED_SHARE = 0.5
_SPLITS = ("train", "validation")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def clean(source: Source, validation_fraction: float, folder: pathlib.Path, echo: Callable[[str], None]) -> dict:
    """Writes the documents to keep as `folder/DOMAIN.SPLIT.jsonl`, then `folder/cleaned.json`, which is returned.

    Returns:
      {"domains": {domain: {split: {"documents": n, "bytes": n}}}, "duplicates": n, "repeated_in_training": n}.

    Raises:
      DataError: no text at all, or a domain too small to hold anything out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jsonl"):
        old.unlink()
    domains, duplicates = _deal(source, validation_fraction, folder, echo)
    dropped = _drop_repeated(folder, domains, echo)
    counts = {domain: {split: _count(folder, domain, split) for split in _SPLITS} for domain in domains}
    for domain, splits in counts.items():
        if not splits["validation"]["documents"]:
            raise DataError(f"domain {domain!r}: every held-out document repeats training text; raise "
                            "data.validation_fraction or add text")  # fmt: skip
    result = {"domains": counts, "duplicates": duplicates, "repeated_in_training": dropped}
    write_json(folder / "cleaned.json", result)
    return result


def read_cleaned(folder: pathlib.Path, domain: str, split: str) -> Iterator[str]:
    """Yields the texts that `clean` kept."""
    with open(folder / f"{domain}.{split}.jsonl", encoding="utf-8") as handle:
        for line in handle:
            yield json.loads(line)


def content_hash(text: str) -> int:
    """The first 64 bits of the SHA-256 of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _deal(source: Source, fraction: float, folder: pathlib.Path, echo: Callable[[str], None]) -> tuple[list[str], int]:
    """Rules 1 and 2; returns the domains in alphabetical order and the number of duplicates."""
    files: dict[tuple[str, str], IO[str]] = {}
    seen: set[bytes] = set()
    lowest: dict[str, tuple[int, Document]] = {}
    duplicates = 0
    progress = Progress(echo, "reading text", total=0)

    def write(document: Document, split: str) -> None:
        key = (document.domain, split)
        if key not in files:
            files[key] = open(folder / f"{document.domain}.{split}.jsonl", "w", encoding="utf-8")
        files[key].write(json.dumps(document.text) + "\n")

    try:
        for document in source.documents():
            if not document.text.strip():
                continue
            progress.add(len(document.text))
            digest = hashlib.sha256(document.text.encode()).digest()[:16]
            if digest in seen:
                duplicates += 1
                continue
            seen.add(digest)
            number = content_hash(document.text)
            if document.split is not None:
                write(document, document.split)
                continue
            # The lowest hash so far waits; what it displaces goes where its own hash says.
            if document.domain not in lowest or number < lowest[document.domain][0]:
                waiting = lowest.get(document.domain)
                lowest[document.domain] = (number, document)
                if waiting is None:
                    continue
                number, document = waiting
            write(document, "validation" if number / 2**64 < fraction else "train")
        for _, document in lowest.values():
            write(document, "validation")
    finally:
        for handle in files.values():
            handle.close()
    domains = sorted({domain for domain, _ in files})
    if not domains:
        raise DataError(f"source {source.name}: no text in it; every document is empty")
    for domain in domains:
        for split in _SPLITS:
            if (domain, split) not in files:
                raise DataError(f"domain {domain!r} of {source.name}: no {split} document; it needs at least two "
                                "different documents (a file is cut every 4000 characters or so)")  # fmt: skip
    return domains, duplicates


def _drop_repeated(folder: pathlib.Path, domains: list[str], echo: Callable[[str], None]) -> int:
    """Rule 3, rewriting the validation files; returns the number of documents dropped."""
    grams = _Grams()
    held_out = {domain: [(text, grams.of(text)) for text in read_cleaned(folder, domain, "validation")]
                for domain in domains}  # fmt: skip
    known = np.unique(np.concatenate([g for documents in held_out.values() for _, g in documents]))
    in_training = np.zeros(len(known), bool)
    total = sum((folder / f"{domain}.train.jsonl").stat().st_size for domain in domains)
    progress = Progress(echo, "comparing training text with what is held out", total)
    for domain in domains:
        for text in read_cleaned(folder, domain, "train"):
            found = grams.of(text)
            at = np.minimum(np.searchsorted(known, found), len(known) - 1)
            in_training[at[known[at] == found]] = True
            progress.add(len(text))
    dropped = 0
    for domain, documents in held_out.items():
        kept = [text for text, g in documents if np.mean(in_training[np.searchsorted(known, g)]) < REPEATED_SHARE]
        dropped += len(documents) - len(kept)
        lines = "".join(json.dumps(text) + "\n" for text in kept)
        (folder / f"{domain}.validation.jsonl").write_text(lines, encoding="utf-8")
    return dropped


def _count(folder: pathlib.Path, domain: str, split: str) -> dict[str, int]:
    totals = collections.Counter(documents=0, bytes=0)
    for text in read_cleaned(folder, domain, split):
        totals.update(documents=1, bytes=len(text.encode()))
    return dict(totals)


class _Grams:
    """Hashes of a text's word 13-grams; remembers the hash of every word it met."""

    def __init__(self):
        self._words = _WordHashes()

    def of(self, text: str) -> np.ndarray:
        """uint64[distinct grams], sorted; never empty."""
        words = re.findall(r"\w+", text.lower()) or [text]
        hashes = np.fromiter(map(self._words.__getitem__, words), np.uint64, len(words))
        size = min(GRAM_WORDS, len(hashes))
        count = len(hashes) - size + 1
        result = np.zeros(count, np.uint64)
        for offset in range(size):
            result = result * _MULTIPLIER + hashes[offset : offset + count]
        return np.unique(result)


class _WordHashes(dict):
    def __missing__(self, word: str) -> int:
        if len(self) > 4_000_000:
            self.clear()
        self[word] = number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        return number
