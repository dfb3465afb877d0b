"""Which documents are kept, and which are held out for validation.

Rules, in this order:

0. A document that a filter refuses is dropped, if filters are named (`filters/`).
1. A document whose exact text came before is dropped, whatever its domain.
2. A document is held out if the hash of its text, as a number in [0, 1), is below `validation_fraction`: no other
   document has a say, so a growing corpus never moves a document from one side to the other. The lowest hash of each
   domain is held out in any case, so that every domain has a validation set.
3. A held-out document is dropped if half or more of its distinct word 13-grams occur in training documents of any
   domain, all taken together. Case and punctuation do not count; a text under 13 words is one gram.

Rule 3 costs one hash per word: only the held-out documents' grams are kept in memory, and training text streams past.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.data.filters import verdict
from chinchilla_jax.data.grams import REPEATED_SHARE, grams
from chinchilla_jax.data.sources.registry import Document, Source
from chinchilla_jax.data.steps import DataError, Progress

_SPLITS = ("train", "validation")
_TABLE_BITS = 22
_TABLE_SHIFT = np.uint64(64 - _TABLE_BITS)


def clean(
    source: Source, validation_fraction: float, folder: pathlib.Path, echo: Echo, filters: Sequence[str] = ()
) -> dict:
    """Writes the documents to keep as `folder/DOMAIN.SPLIT.jsonl`, then `folder/cleaned.json`, which is returned:

        {"domains": {domain: {split: {"documents": n, "bytes": n}}}, "duplicates": n, "repeated_in_training": n}

    and, with `filters`, `"filtered": {"FILTER.RULE": n}`.

    Raises:
      DataError: no text at all, or a domain too small to hold anything out.
    """
    files.make_folder(folder)
    for path in files.glob(folder, "*.jsonl"):
        files.remove(path)
    filtered: Counter[str] = Counter()
    original = source.documents
    source = source._replace(documents=lambda: _filtered(original(), filters, filtered))
    domains, duplicates = _deal(source, validation_fraction, folder, echo)
    dropped = _drop_repeated(folder, domains, echo)
    counts = {domain: {split: _count(folder, domain, split) for split in _SPLITS} for domain in domains}
    for domain, splits in counts.items():
        if not splits["validation"]["documents"]:
            fix = "raise data.validation_fraction or add text"
            raise DataError(f"domain {domain!r}: every held-out document repeats training text; {fix}")
    result = {"domains": counts, "duplicates": duplicates, "repeated_in_training": dropped}
    result |= {"filtered": dict(filtered)} if filters else {}
    files.write_json(folder / "cleaned.json", result, sort_keys=True)
    return result


def _filtered(documents: Iterator[Document], filters: Sequence[str], refused: Counter[str]) -> Iterator[Document]:
    """Rule 0; counts by which rule documents were refused."""
    for document in documents:
        if filters and (rule := verdict(document.text, filters)):
            refused[rule] += 1
        else:
            yield document


def read_cleaned(folder: pathlib.Path, domain: str, split: str) -> Iterator[str]:
    """Yields the texts that `clean` kept."""
    with open(folder / f"{domain}.{split}.jsonl", encoding="utf-8") as handle:
        for line in handle:
            yield json.loads(line)


def _deal(source: Source, fraction: float, folder: pathlib.Path, echo: Echo) -> tuple[list[str], int]:
    """Rules 1 and 2; returns the domains in alphabetical order and the number of duplicates."""
    seen: set[bytes] = set()
    lowest: dict[str, tuple[int, Document]] = {}
    duplicates = 0
    progress = Progress(echo, "reading text")
    handles: dict[tuple[str, str], IO[str]] = {}
    with contextlib.ExitStack() as stack:

        def write(document: Document, split: str) -> None:
            key = (document.domain, split)
            if key not in handles:
                path = folder / f"{document.domain}.{split}.jsonl"
                handles[key] = stack.enter_context(open(path, "w", encoding="utf-8"))
            handles[key].write(json.dumps(document.text) + "\n")

        for document in source.documents():
            if not document.text.strip():
                continue
            progress.add(len(document.text))
            digest = hashlib.sha256(document.text.encode()).digest()
            if digest[:16] in seen:
                duplicates += 1
                continue
            seen.add(digest[:16])
            if document.split is not None:
                write(document, document.split)
                continue
            # The lowest hash so far waits; what it displaces goes where its own hash says.
            number = int.from_bytes(digest[:8], "big")
            if document.domain not in lowest or number < lowest[document.domain][0]:
                waiting = lowest.get(document.domain)
                lowest[document.domain] = (number, document)
                if waiting is None:
                    continue
                number, document = waiting
            write(document, "validation" if number / 2**64 < fraction else "train")
        for _, document in lowest.values():
            write(document, "validation")
    domains = sorted({domain for domain, _ in handles})
    if not domains:
        raise DataError(f"source {source.name}: no text in it; every document is empty or filtered out")
    for domain, split in itertools.product(domains, _SPLITS):
        if (domain, split) not in handles:
            need = "it needs at least two different documents (a file is cut every 4000 characters or so)"
            raise DataError(f"domain {domain!r} of {source.name}: no {split} document; {need}")
    return domains, duplicates


def _drop_repeated(folder: pathlib.Path, domains: list[str], echo: Echo) -> int:
    """Rule 3, rewriting the validation files; returns the number of documents dropped."""
    held_out = {
        domain: [(text, np.unique(grams(text))) for text in read_cleaned(folder, domain, "validation")]
        for domain in domains
    }
    known = np.unique(np.concatenate([g for documents in held_out.values() for _, g in documents]))
    in_training = np.zeros(len(known), bool)
    # A table small enough for the processor's cache passes over nearly every gram that is not known.
    may_be_known = np.zeros(1 << _TABLE_BITS, bool)
    may_be_known[known >> _TABLE_SHIFT] = True
    total = sum(files.stamp(folder / f"{domain}.train.jsonl")[0] for domain in domains)
    progress = Progress(echo, "comparing training text with what is held out", total)
    for domain in domains:
        for text in read_cleaned(folder, domain, "train"):
            trained = grams(text)
            trained = trained[may_be_known[trained >> _TABLE_SHIFT]]
            at = np.minimum(np.searchsorted(known, trained), len(known) - 1)
            in_training[at[known[at] == trained]] = True
            progress.add(len(text))
    dropped = 0
    for domain, documents in held_out.items():
        kept = [text for text, g in documents if np.mean(in_training[np.searchsorted(known, g)]) < REPEATED_SHARE]
        dropped += len(documents) - len(kept)
        files.write_text(folder / f"{domain}.validation.jsonl", "".join(json.dumps(text) + "\n" for text in kept))
    return dropped


def _count(folder: pathlib.Path, domain: str, split: str) -> dict[str, int]:
    documents = size = 0
    for text in read_cleaned(folder, domain, split):
        documents, size = documents + 1, size + len(text.encode())
    return {"documents": documents, "bytes": size}
