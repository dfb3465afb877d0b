"""The token store: tokenised documents as fixed rows on disk, ready to be memory-mapped.

The documents of a domain and split form one stream, `SEP doc SEP doc ... SEP`. Row i holds tokens i*S .. i*S + S of
it: S inputs and their S targets, so rows overlap by one token and every token but the first separator is predicted
exactly once. The separator comes first so that a document's first token is predicted from it, inside the document's
own segment. The last row is filled up with separators that are no targets.

    STORE/store.json                 written last: a folder without it is unfinished
    STORE/tokenizer.model            or tokenizer.json, and what says which of its pieces ends a text
    STORE/byte_lengths.npy           int32 [vocab]
    STORE/DOMAIN.SPLIT.npy           uint16 or uint32 [rows, seq_len + 1]
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
from chinchilla_jax.data.steps import DataError, Progress, read_description
from chinchilla_jax.data.tokenizers import Tokenizer, open_tokenizer

FORMAT = 1
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

    The counts are rows, tokens (targets in the rows), bytes (of those targets) and text_bytes (of the documents).
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    lengths = tokenizer.byte_lengths()
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    stream, rows, tokens, token_bytes, text_bytes = np.zeros(0, dtype), 0, 0, 0, 0
    with open(partial, "wb") as handle:
        # numpy pads the header so that the number of rows may grow in place; it is filled in below.
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(handle, header | {"shape": (0, seq_len + 1)})
        start = handle.tell()
        for batch in texts:
            encoded = tokenizer.encode_all(batch, threads=os.cpu_count() or 1)
            ids = [np.asarray([tokenizer.separator, *document], dtype) for document in encoded]
            stream = np.concatenate([stream, *ids])
            token_bytes += sum(int(lengths[document].sum()) for document in ids)
            text_bytes += (size := sum(len(text.encode()) for text in batch))
            whole = max(len(stream) - 1, 0) // seq_len
            handle.write(_rows(stream, whole, seq_len).tobytes())
            stream, rows, tokens = stream[whole * seq_len :], rows + whole, tokens + whole * seq_len
            progress.add(size)
        stream = np.append(stream, np.asarray([tokenizer.separator], dtype))
        left = len(stream) - 1
        last = -(-left // seq_len)
        filled = np.full(last * seq_len + 1, tokenizer.separator, dtype)
        filled[: len(stream)] = stream
        handle.write(_rows(filled, last, seq_len).tobytes())
        rows, tokens = rows + last, tokens + left
        handle.seek(0)
        np.lib.format.write_array_header_1_0(handle, header | {"shape": (rows, seq_len + 1)})
        assert handle.tell() == start, "numpy's header grew"
    files.rename(partial, path)
    counts = {"rows": rows, "tokens": tokens, "bytes": token_bytes, "text_bytes": text_bytes}
    files.write_json(path.with_suffix(".json"), counts, sort_keys=True)


def _rows(stream: np.ndarray, rows: int, seq_len: int) -> np.ndarray:
    """[rows, seq_len + 1] view whose rows overlap by one."""
    return np.lib.stride_tricks.sliding_window_view(stream, seq_len + 1)[::seq_len][:rows] if rows else stream[:0]


def finish_store(path: pathlib.Path, tokenizer: Tokenizer, seq_len: int, source: dict, domains: Iterable[str]) -> None:
    """Gathers what `write_rows` left in `path` into store.json, which makes the folder a store."""
    counts = {d: {s: read_description(path / f"{d}.{s}.json") for s in SPLITS} for d in domains}
    made_with = {"tokenizer": tokenizer.fingerprint(), "separator": tokenizer.separator}
    made_with |= {"vocab_size": tokenizer.vocab_size, "seq_len": seq_len}
    description = {"format": FORMAT, "source": source, "domains": counts} | made_with
    byte_lengths = io.BytesIO()
    np.save(byte_lengths, tokenizer.byte_lengths())
    for name, file in tokenizer.files().items():
        files.write_bytes(path / name, files.read_bytes(file))
    files.write_bytes(path / "byte_lengths.npy", byte_lengths.getvalue())
    files.write_json(path / "store.json", description, sort_keys=True)
    for domain, split in itertools.product(counts, SPLITS):
        files.remove(path / f"{domain}.{split}.json")


class TokenStore:
    """A finished token store. Its arrays are mapped into memory."""

    def __init__(self, path: str | pathlib.Path, tokenizer: Tokenizer | None = None, check_tokenizer: bool = False):
        """Opens and checks the store in the folder `path`.

        Args:
          tokenizer: if given, the one the store must have been made with.
          check_tokenizer: whether the model file kept in the store must be that one as well.

        Raises:
          DataError: unfinished, of another format, cut off, or made with another tokenizer; names the file.
        """
        self.path = pathlib.Path(path)
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
        self.byte_lengths = _load(self.path / "byte_lengths.npy", (self.vocab_size,))
        tokenizer = self.tokenizer() if check_tokenizer else tokenizer
        if tokenizer is not None and tokenizer.fingerprint() != self.tokenizer_fingerprint:
            made_with = f"{path}: made with tokenizer {self.tokenizer_fingerprint}"
            other = f"{tokenizer.path} is {tokenizer.fingerprint()}; prepare the data again with that tokenizer"
            raise DataError(f"{made_with}, but {other}")
        self._arrays: dict[tuple[str, str], np.ndarray] = {}
        for domain, split in itertools.product(self.domains, SPLITS):
            shape = (self.rows(domain, split), self.seq_len + 1)
            self._arrays[domain, split] = _load(self.path / f"{domain}.{split}.npy", shape)

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

    def bytes(self, domain: str, split: str = "train") -> int:
        """Bytes of text those targets stand for, by `byte_lengths`."""
        return self._counts[domain][split]["bytes"]

    def text_bytes(self, domain: str, split: str = "train") -> int:
        """UTF-8 bytes of the documents; equal to `bytes` unless the tokenizer changes text."""
        return self._counts[domain][split]["text_bytes"]

    def array(self, domain: str, split: str = "train") -> np.ndarray:
        """Read-only memory map, uint16 or uint32 [rows, seq_len + 1]."""
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
        for split, count in itertools.product(SPLITS, ("rows", "tokens", "bytes", "text_bytes")):
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
