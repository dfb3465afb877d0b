"""The files between the stages: documents in their order, then by domain and hash with an index.

read/NUMBER.jsonl     [domain, split or null, text] a line; NUMBER is that of its first document
dealt/NUMBER.text     what is kept of those, in UTF-8, one text after the other
dealt/NUMBER.npy      their index, sorted by domain, hash and number of the document
dealt/NUMBER.json     {"domains": {domain: [first, last + 1 in the index]}, "lowest": ..., counts}
"""

from __future__ import annotations

import bisect
import io
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.data.sources.registry import Document

KEYS = np.dtype([("high", "<u8"), ("low", "<u8"), ("id", "<u8")])
INDEX = np.dtype([("hash", "<u8"), ("id", "<u8"), ("at", "<u8"), ("size", "<u8"), ("held_out", "?")])


def save(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an array under its name at once."""
    content = io.BytesIO()
    np.save(content, array)
    files.write_bytes(path, content.getvalue())


def load(path: pathlib.Path) -> np.ndarray:
    """The array of a file, mapped."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def write_shards(folder: pathlib.Path, documents: Iterable[Document], shard_bytes: int) -> Iterator[int]:
    """Writes documents that are not empty into shards of about so many characters; yields those of each document.

    A shard that is there, of an earlier try, is left as it is: the source gives its documents in the same order.
    """
    lines: list[str] = []
    first = size = 0
    for document in documents:
        if not document.text.strip():
            continue
        lines.append(json.dumps([document.domain, document.split, document.text], ensure_ascii=True))
        size += len(document.text)
        yield len(document.text)
        if size >= shard_bytes:
            _write_lines(folder / f"{first:015}.jsonl", lines)
            first, lines, size = first + len(lines), [], 0
    if lines:
        _write_lines(folder / f"{first:015}.jsonl", lines)


def _write_lines(path: pathlib.Path, lines: list[str]) -> None:
    if not files.exists(path):
        files.write_text(path, "\n".join(lines) + "\n")


def read_shard(folder: pathlib.Path, shard: str) -> Iterator[tuple[int, Document]]:
    """The documents of a shard and their numbers."""
    with open(folder / "read" / f"{shard}.jsonl", encoding="utf-8") as handle:
        for number, line in enumerate(handle, int(shard)):
            domain, split, text = json.loads(line)
            yield number, Document(domain, text, split)


def edges(parts: int) -> list[int]:
    """Where the hashes of each of so many buckets begin, and where the last one ends."""
    return [part * (1 << 64) // parts for part in range(parts + 1)]


def between(hashes: np.ndarray, low: int, high: int) -> slice:
    """Where in sorted hashes those from `low` on and below `high` (which may be 2^64) are."""
    first, last = (bisect.bisect_left(hashes, edge) for edge in (low, high))
    return slice(first, last)


def of_shard(folder: pathlib.Path, kind: str, first: int, last: int) -> np.ndarray:
    """uint64, sorted: of the numbers of documents in `folder/KIND.*.npy`, each file sorted, those in a range."""
    parts = [(numbers := load(path))[between(numbers, first, last)] for path in files.glob(folder, f"{kind}.*.npy")]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))


def read_index(folder: pathlib.Path, shard: str, domain: str, lowest: int | None) -> np.ndarray:
    """The index of the documents of a domain in a shard; document `lowest` is held out in any case."""
    first, last = files.read_json(folder / "dealt" / f"{shard}.json")["domains"].get(domain, (0, 0))
    index = np.array(load(folder / "dealt" / f"{shard}.npy")[first:last])
    if lowest is not None:
        index["held_out"] |= index["id"] == lowest
    return index


def read_texts(folder: pathlib.Path, shard: str, index: np.ndarray) -> Iterator[str]:
    """The texts of these entries of the index of a shard, in their order."""
    with open(folder / "dealt" / f"{shard}.text", "rb") as handle:
        for entry in index:
            handle.seek(int(entry["at"]))
            yield handle.read(int(entry["size"])).decode()


def read_bucket(folder: pathlib.Path, domain: str, split: str, part: Sequence[int]) -> list[str]:
    """The texts of a domain and split whose hashes lie in [part[0], part[1]), by hash, then number, from all shards."""
    facts = files.read_json(folder / "kept.json")
    lowest = facts["lowest"].get(domain)
    indexes, texts = [], list[str]()
    for shard in facts["shards"]:
        index = read_index(folder, shard, domain, lowest)
        index = index[between(index["hash"], *part)]
        index = index[index["held_out"] == (split == "validation")]
        if split == "validation":
            index = index[~np.isin(index["id"], load(folder / "repeated" / f"{shard}.npy"))]
        indexes.append(index)
        texts.extend(read_texts(folder, shard, index))
    together = np.concatenate(indexes)
    return [texts[at] for at in np.lexsort((together["id"], together["hash"]))]
