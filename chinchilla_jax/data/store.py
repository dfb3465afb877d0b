"""The token store: tokenised documents as fixed rows on disk, ready to be memory-mapped.

The documents of a domain and split form one stream, `SEP doc SEP doc ... SEP`. Row i holds tokens i*S .. i*S + S of
it: S inputs and their S targets, so rows overlap by one token and every token but the first separator is predicted
exactly once. The separator comes first so that a document's first token is predicted from it, inside the document's
own segment. The last row is filled up with separators that are no targets.

    STORE/store.json                 written last: a folder without it is unfinished
    STORE/tokenizer.model            or tokenizer.json, and what says which of its pieces ends a text
    STORE/DOMAIN.SPLIT.npy           uint16 or uint32 [rows, seq_len + 1]
    STORE/DOMAIN.SPLIT-NUMBER.npy    or, with STORE/shards.json, uint16 or uint32 [tokens]: the stream in parts
    STORE/DOMAIN.SPLIT.bytes.npy     uint32 [rows]: UTF-8 bytes of text that the targets of each row stand for

Bytes are those of the documents as they were read, however the tokenizer changes text: over all rows they add up to the
documents. What of a document no token stands for (spaces at its end) counts with the separator that ends it.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.data.sharded.rows import ShardedRows
from chinchilla_jax.data.steps import DataError, Progress, read_description
from chinchilla_jax.data.tokenizers import Tokenizer, open_tokenizer

FORMAT = 2
SPLITS = ("train", "validation")


def segment_ids(tokens: np.ndarray, separator: int) -> np.ndarray:
    """int32, the shape of `tokens`: which document of its row (last axis) each token is in, from 1; 0 is for padding.

    A separator belongs to the document it opens.
    """
    opens = tokens == separator
    opens[..., 0] = True
    return np.cumsum(opens, axis=-1, dtype=np.int32)


def write_rows(
    path: pathlib.Path, texts: Iterable[list[str]], tokenizer: Tokenizer, seq_len: int, progress: Progress
) -> None:
    """Tokenises batches of documents into the rows of `path` (.npy) and its counts, `path` with the suffix .json.

    The counts are rows, tokens (targets in the rows) and bytes (of the documents); beside them are those of each row.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    stream, sizes = np.array([tokenizer.separator], dtype), np.zeros(1, np.int64)
    parts, tokens = [], 0
    with open(partial, "wb") as handle:
        # numpy pads the header so that the number of rows may grow in place; it is filled in below.
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(handle, header | {"shape": (0, seq_len + 1)})
        start = handle.tell()
        for batch in texts:
            new, new_sizes = tokenised(batch, tokenizer, dtype, os.cpu_count() or 1)
            stream, sizes = np.append(stream, new), np.append(sizes, new_sizes)
            whole = (len(stream) - 1) // seq_len
            handle.write(_rows(stream, whole, seq_len).tobytes())
            parts.append(_sums(sizes, whole, seq_len))
            stream, sizes, tokens = stream[whole * seq_len :], sizes[whole * seq_len :], tokens + whole * seq_len
            progress.add(int(new_sizes.sum()))
        left = len(stream) - 1
        last = -(-left // seq_len)
        filling = last * seq_len - left
        handle.write(_rows(np.pad(stream, (0, filling), constant_values=tokenizer.separator), last, seq_len).tobytes())
        row_bytes = np.concatenate([*parts, _sums(np.pad(sizes, (0, filling)), last, seq_len)])
        handle.seek(0)
        np.lib.format.write_array_header_1_0(handle, header | {"shape": (len(row_bytes), seq_len + 1)})
        assert handle.tell() == start, "numpy's header grew"
    files.rename(partial, path)
    write_counts(path, row_bytes, tokens + left)


def tokenised(texts: list[str], tokenizer: Tokenizer, dtype: type, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of these documents, a separator after each, and the bytes that each token stands for."""
    encoded = tokenizer.encode_all(texts, threads=threads)
    ids = itertools.chain.from_iterable([*document, tokenizer.separator] for document in encoded)
    sizes = [tokenizer.byte_counts(text, document) for text, document in zip(texts, encoded, strict=True)]
    return np.fromiter(ids, dtype), np.concatenate([np.zeros(0, np.int64), *sizes])


def write_counts(path: pathlib.Path, row_bytes: np.ndarray, tokens: int) -> None:
    """Writes what is beside the rows of `path` (.npy): the bytes of each, and how many targets they have together."""
    content = io.BytesIO()
    np.save(content, row_bytes.astype(np.uint32))
    files.write_bytes(path.with_suffix(".bytes.npy"), content.getvalue())
    counts = {"rows": len(row_bytes), "tokens": tokens, "bytes": int(row_bytes.sum())}
    files.write_json(path.with_suffix(".json"), counts, sort_keys=True)


def _sums(sizes: np.ndarray, rows: int, seq_len: int) -> np.ndarray:
    """int64 [rows]: the bytes of the targets of each row."""
    return sizes[1 : rows * seq_len + 1].reshape(rows, seq_len).sum(1)


def _rows(stream: np.ndarray, rows: int, seq_len: int) -> np.ndarray:
    """[rows, seq_len + 1] view whose rows overlap by one."""
    return np.lib.stride_tricks.sliding_window_view(stream, seq_len + 1)[::seq_len][:rows] if rows else stream[:0]


def finish_store(path: pathlib.Path, tokenizer: Tokenizer, seq_len: int, source: dict, domains: Iterable[str]) -> None:
    """Gathers what `write_rows` left in `path` into store.json, which makes the folder a store."""
    counts = {d: {s: read_description(path / f"{d}.{s}.json") for s in SPLITS} for d in domains}
    made_with = {"tokenizer": tokenizer.fingerprint(), "separator": tokenizer.separator}
    made_with |= {"vocab_size": tokenizer.vocab_size, "seq_len": seq_len}
    description = {"format": FORMAT, "source": source, "domains": counts} | made_with
    for name, file in tokenizer.files().items():
        files.write_bytes(path / name, files.read_bytes(file))
    files.write_json(path / "store.json", description, sort_keys=True)
    for domain, split in itertools.product(counts, SPLITS):
        files.remove(path / f"{domain}.{split}.json")


class TokenStore:
    """A finished token store. Its arrays are mapped into memory; one in a bucket is first copied to this machine."""

    def __init__(self, path: str | pathlib.Path, tokenizer: Tokenizer | None = None, check_tokenizer: bool = False):
        """Opens and checks the store in the folder `path`.

        Args:
          tokenizer: if given, the one the store must have been made with.
          check_tokenizer: whether the model file kept in the store must be that one as well.

        Raises:
          DataError: unfinished, of another format, cut off, or made with another tokenizer; names the file.
        """
        self.path = files.fetched(path)
        file, fix = self.path / "store.json", "delete the folder and prepare the data again"
        description = read_description(file)
        version = description.get("format") if isinstance(description, dict) else None
        if version != FORMAT:
            raise DataError(f"{file}: format {version!r}, this version reads {FORMAT}; {fix}")
        if damage := _damage(description):
            raise DataError(f"{file}: damaged, {damage}; {fix}")
        self._description: dict = description
        self.seq_len: int = description["seq_len"]
        self.vocab_size: int = description["vocab_size"]
        self.separator: int = description["separator"]
        self.tokenizer_fingerprint: str = description["tokenizer"]
        self.source: dict = description["source"]
        self._counts: dict = description["domains"]
        tokenizer = self.tokenizer() if check_tokenizer else tokenizer
        if tokenizer is not None and tokenizer.fingerprint() != self.tokenizer_fingerprint:
            made_with = f"{path}: made with tokenizer {self.tokenizer_fingerprint}"
            other = f"{tokenizer.path} is {tokenizer.fingerprint()}; prepare the data again with that tokenizer"
            raise DataError(f"{made_with}, but {other}")
        self._arrays: dict[tuple[str, str], np.ndarray | ShardedRows] = {}
        in_shards = files.exists(self.path / "shards.json")
        self._shards: dict = read_description(self.path / "shards.json") if in_shards else {}
        self._row_bytes: dict[tuple[str, str], np.ndarray] = {}
        for domain, split in itertools.product(self.domains, SPLITS):
            rows = self.rows(domain, split)
            self._arrays[domain, split] = self._open(domain, split, rows)
            self._row_bytes[domain, split] = _load(self.path / f"{domain}.{split}.bytes.npy", (rows,))

    def _open(self, domain: str, split: str, rows: int) -> np.ndarray | ShardedRows:
        name = f"{domain}.{split}"
        if name not in self._shards:
            return _load(self.path / f"{name}.npy", (rows, self.seq_len + 1))
        sizes = self._shards[name]
        paths = [self.path / f"{name}-{number:05}.npy" for number in range(len(sizes))]
        return ShardedRows(paths, sizes, self.seq_len, self.separator)

    def content_hash(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of store.json: tokenizer, source and counts."""
        return hashlib.sha256(json.dumps(self._description, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order the mixture numbers them."""
        return tuple(sorted(self._counts))

    def rows(self, domain: str, split: str = "train") -> int:
        """Number of rows (sequences)."""
        return self._counts[domain][split]["rows"]

    def tokens(self, domain: str, split: str = "train") -> int:
        """Number of targets: each token of the stream but the first."""
        return self._counts[domain][split]["tokens"]

    def text_bytes(self, domain: str, split: str = "train") -> int:
        """UTF-8 bytes of the documents, which are those that the targets stand for."""
        return self._counts[domain][split]["bytes"]

    def row_bytes(self, domain: str, split: str = "train") -> np.ndarray:
        """How many of them the targets of each row stand for: read-only memory map, uint32 [rows]."""
        return self._row_bytes[domain, split]

    def array(self, domain: str, split: str = "train") -> np.ndarray | ShardedRows:
        """Read-only memory map, uint16 or uint32 [rows, seq_len + 1], or what reads as one."""
        if domain not in self._counts:
            raise DataError(f"{self.path}: no domain {domain!r}; it has {', '.join(self.domains)}")
        return self._arrays[domain, split]

    def targets_in_last_row(self, domain: str, split: str = "train") -> int:
        """How many targets of the last row are real, 1..seq_len."""
        return self.tokens(domain, split) - (self.rows(domain, split) - 1) * self.seq_len

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the store was made with; raises `DataError` if its file was replaced by another."""
        tokenizer = open_tokenizer(self.path)
        if tokenizer.fingerprint() != self.tokenizer_fingerprint:
            made_with = f"the store was made with {self.tokenizer_fingerprint}; prepare the data again"
            raise DataError(f"{tokenizer.path}: is tokenizer {tokenizer.fingerprint()}, {made_with}")
        return tokenizer


def _damage(description: dict) -> str:
    """What a store.json of this format lacks, or empty."""
    kinds = {"seq_len": int, "vocab_size": int, "separator": int, "tokenizer": str, "source": dict, "domains": dict}
    for key, kind in kinds.items():
        if not isinstance(description.get(key), kind):
            return f"{key!r} is {f'{description[key]!r}' if key in description else 'missing'}"
    for domain, splits in description["domains"].items():
        for split, count in itertools.product(SPLITS, ("rows", "tokens", "bytes")):
            counts = splits.get(split) if isinstance(splits, dict) else None
            if not isinstance(counts, dict) or not isinstance(counts.get(count), int):
                return f"no count {count!r} of {domain}.{split}"
    return "" if description["domains"] else "it has no domains"


def _load(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    fix = "delete its folder and prepare the data again"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: missing or cut off ({error}); {fix}") from None
    if array.shape != shape:
        raise DataError(f"{path}: has shape {array.shape}, store.json says {shape}; {fix}")
    return array
