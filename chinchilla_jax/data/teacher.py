"""What does a teacher say? Propositions that are true or false, as the rows of a token store of their own.

A teacher signal (FreeLM, Li et al. 2023, arXiv 2305.01616) in the form it has in FLM-101B (Li et al. 2023, arXiv
2309.03852): a label is a token of the vocabulary, the loss is that of the next token, and of a proposition only the
label counts. FLM-101B takes two emoji for labels; here they are two pieces that no text uses, or two that are named.

    row     SEP proposition LABEL SEP SEP ...       seq_len + 1 tokens, one proposition
    weight        0    ...    w    0   0

    DATA_DIR/teacher/KEY/    a token store whose one domain is `propositions`

A file of propositions has a JSON object in each line, {"text": "...", "label": true}. A text that comes twice counts
once. As with documents, the hash of a text says whether it is held out for validation; the rows are in the order of
these hashes, so that the first few are a fair sample of a file in any order.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import ConfigError, DataConfig
from chinchilla_jax.data.grams import content_hash
from chinchilla_jax.data.steps import DataError, content_key, read_description
from chinchilla_jax.data.store import SPLITS, TokenStore, finish_store, write_counts
from chinchilla_jax.data.tokenizers import Tokenizer

FORMAT = 1
DOMAIN = "propositions"


class Proposition(NamedTuple):
    """A text, and whether it is true."""

    text: str
    label: bool


def read_propositions(path: pathlib.Path) -> list[Proposition]:
    """The different propositions of a file, in its order.

    Raises:
      DataError: no file, none in it, a line that is no proposition, or a text that is both true and false; names the
        file and the line.
    """
    if not files.is_file(path):
        raise DataError(f"{path}: no such file; data.teacher is a file of propositions, one JSON object a line")
    labels: dict[str, tuple[bool, int]] = {}
    for number, line in enumerate(files.read_bytes(path).splitlines(), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            text, label = _proposition(line, where)
            before, at = labels.setdefault(text, (label, number))
            if before != label:
                raise DataError(f"{where}: calls {str(label).lower()} what line {at} calls {str(before).lower()}")
    if not labels:
        raise DataError(f"{path}: no propositions in it")
    return [Proposition(text, label) for text, (label, _) in labels.items()]


def _proposition(line: bytes, where: str) -> Proposition:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); fix or remove the line") from None
    form = 'write {"text": "...", "label": true} or false'
    if not isinstance(record, dict):
        raise DataError(f"{where}: no object; {form}")
    for key, kind, what in (("text", str, "text"), ("label", bool, "true or false")):
        if key not in record:
            raise DataError(f"{where}: no {key!r}, it has {', '.join(record) or 'nothing'}; {form}")
        if not isinstance(record[key], kind):
            raise DataError(f"{where}: {key!r} is {record[key]!r} and not {what}; {form}")
    text = record["text"]
    if not text.strip():
        raise DataError(f"{where}: an empty text; fix or remove the line")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{where}: 'text' has half a surrogate pair, which is no character")
    return Proposition(text, record["label"])


def label_pieces(tokenizer: Tokenizer, names: Sequence[str]) -> tuple[int, int]:
    """The pieces for true and false: those of these names, or the first two that are in no stream of tokens.

    Raises:
      ConfigError: there is no such piece, or there are no two; names the tokenizer.
    """
    key, pieces = "data.teacher_labels", tokenizer.spare_pieces()[:2]
    if names:
        named = {name: tokenizer.piece_id(name) for name in names}
        if absent := [name for name, piece in named.items() if piece is None]:
            raise ConfigError(key, f"{tokenizer.path} has no piece {absent[0]!r}")
        pieces = [piece for piece in named.values() if piece is not None]
        if tokenizer.separator in pieces:
            raise ConfigError(key, f"one of {', '.join(names)} separates the documents; name others")
    if len(pieces) < 2:
        spare = f"{tokenizer.path} has {len(pieces)} control pieces besides the one that separates documents"
        raise ConfigError(key, f"{spare}, and labels need two; name two of its pieces that texts do not use")
    true, false = pieces
    return true, false


def prepare_teacher(data: DataConfig, tokenizer: Tokenizer, echo: Echo) -> pathlib.Path:
    """Makes the store of `data.teacher` if there is none yet; returns its folder.

    Raises:
      ConfigError: no pieces for the labels, or not a proposition that fits into a row.
      DataError: see `read_propositions`; or nothing is left to train on.
    """
    labels = label_pieces(tokenizer, data.teacher_labels)
    propositions = read_propositions(files.path(data.teacher))
    path = _folder(data, tokenizer, labels)
    if not files.exists(path / "store.json"):
        _write_store(path, data, tokenizer, labels, propositions, echo)
    store = TokenStore(path, tokenizer)
    held_out, left_out = store.rows(DOMAIN, "validation"), store.source["too_long"]
    true = sum(p.label for p in propositions) / len(propositions)
    echo(f"teacher: {store.rows(DOMAIN):,} propositions, {held_out:,} held out, {true:.1%} of them true")
    if left_out:
        echo(f"teacher: note: {left_out:,} propositions do not fit into data.seq_len={data.seq_len} and are left out")
    return path


def _write_store(
    path: pathlib.Path,
    data: DataConfig,
    tokenizer: Tokenizer,
    labels: tuple[int, int],
    propositions: list[Proposition],
    echo: Echo,
) -> None:
    """Tokenises the propositions by the order of their hashes, and finishes the store."""
    files.remove(path)
    files.make_folder(path)
    echo(f"teacher: tokenising {len(propositions):,} propositions")
    hashes = {p.text: content_hash(p.text) for p in propositions}
    ordered = sorted(propositions, key=lambda p: (hashes[p.text], p.text))
    held_out = max(1, sum(number / 2**64 < data.validation_fraction for number in hashes.values()))
    if held_out == len(ordered):
        told = f"{len(ordered)} propositions, all of them held out; add some, or lower data.validation_fraction"
        raise DataError(f"{data.teacher}: {told}")
    parts = {"train": ordered[held_out:], "validation": ordered[:held_out]}
    too_long = sum(_write_rows(path, split, parts[split], tokenizer, labels, data) for split in SPLITS)
    source = _settings(data, tokenizer, labels) | {"content": _content(data), "too_long": too_long}
    finish_store(path, tokenizer, data.seq_len, source, [DOMAIN])


def _write_rows(
    path: pathlib.Path,
    split: str,
    propositions: list[Proposition],
    tokenizer: Tokenizer,
    labels: tuple[int, int],
    data: DataConfig,
) -> int:
    """Writes the rows of a split; returns how many propositions are too long for a row."""
    true, false = labels
    encoded = tokenizer.encode_all([p.text for p in propositions], threads=os.cpu_count() or 1)
    both = zip(propositions, encoded, strict=True)
    rows = [[tokenizer.separator, *tokens, true if p.label else false] for p, tokens in both]
    fitting = [row for row in rows if len(row) <= data.seq_len + 1]
    if not fitting:
        told = f"of {len(rows)} propositions for {split} none fits with its label into data.seq_len={data.seq_len}"
        raise ConfigError("data.teacher", f"{data.teacher}: {told} tokens; add some, or raise data.seq_len")
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    shape = (len(fitting), data.seq_len + 1)
    array = np.lib.format.open_memmap(path / f"{DOMAIN}.{split}.npy", mode="w+", dtype=dtype, shape=shape)
    array[:] = tokenizer.separator
    for filled, row in zip(array, fitting, strict=True):
        filled[: len(row)] = row
    array.flush()
    # The targets are the labels, which stand for no text.
    write_counts(path / f"{DOMAIN}.{split}.npy", np.zeros(len(fitting), np.int64), len(fitting))
    return len(rows) - len(fitting)


def _settings(data: DataConfig, tokenizer: Tokenizer, labels: tuple[int, int]) -> dict:
    made_of = {"format": FORMAT, "teacher": data.teacher, "labels": list(labels), "seq_len": data.seq_len}
    return made_of | {"tokenizer": tokenizer.fingerprint(), "validation_fraction": data.validation_fraction}


def _content(data: DataConfig) -> str:
    return hashlib.sha256(files.read_bytes(data.teacher)).hexdigest()[:12]


def _folder(data: DataConfig, tokenizer: Tokenizer, labels: tuple[int, int]) -> pathlib.Path:
    key = content_key(_settings(data, tokenizer, labels), _content(data))
    return files.path(data.data_dir) / "teacher" / key


def _find(data: DataConfig, tokenizer: Tokenizer, labels: tuple[int, int]) -> pathlib.Path:
    """The finished store; where the file of propositions is absent, the only one with these settings."""
    if files.exists(data.teacher):
        folders = [_folder(data, tokenizer, labels)]
    else:
        settings = _settings(data, tokenizer, labels)
        finished = files.glob(files.path(data.data_dir) / "teacher", "*/store.json")
        sources = {path.parent: read_description(path)["source"] for path in finished}
        folders = [folder for folder, source in sources.items() if source.items() >= settings.items()]
        if len(folders) > 1:
            raise DataError(f"{data.teacher}: not on this machine, and {len(folders)} versions of it were prepared")
    if not folders or not files.exists(folders[0] / "store.json"):
        hint = "(or it changed since); prepare it first: python -m chinchilla_jax data --config=..."
        raise DataError(f"{data.data_dir}: no data prepared for data.teacher={data.teacher} {hint}")
    return folders[0]


class Teacher:
    """The prepared propositions of `data`, and how much they count."""

    def __init__(self, data: DataConfig, tokenizer: Tokenizer):
        """Opens the store. Raises `DataError` if there is none, or one that is damaged; `ConfigError` as above."""
        self.labels = label_pieces(tokenizer, data.teacher_labels)
        self.store = TokenStore(_find(data, tokenizer, self.labels), tokenizer)
        self.share, self.weight = data.teacher_share, data.teacher_weight

    def array(self, split: str = "train") -> np.ndarray:
        """Read-only memory map, uint16 or uint32 [rows, seq_len + 1]."""
        return self.store.array(DOMAIN, split)

    def targets(self, tokens: np.ndarray) -> np.ndarray:
        """Targets in each of these rows `[n, S + 1]` up to the label: where it is, plus 1. int64 [n].

        The label is the last of its pieces: nothing but separators follows.
        """
        is_label = np.isin(tokens[:, 1:], self.labels)
        return is_label.shape[1] - np.argmax(is_label[:, ::-1], axis=1)

    def mark(self, batch: dict[str, np.ndarray], rows: np.ndarray, targets: np.ndarray) -> None:
        """Gives weight to nothing but the labels of the propositions in the `rows` of a batch, and adds other_labels.

        other_labels: int32 [n, S], where a target is a label the one that it is not; elsewhere -1.
        """
        batch["other_labels"] = np.full_like(batch["targets"], -1)
        at = rows, targets - 1
        batch["weights"][rows] = 0.0
        batch["weights"][at] = self.weight
        batch["other_labels"][at] = sum(self.labels) - batch["targets"][at]
