"""What is done with a shard or a bucket: functions of their arguments and of files, whose result is a file.

The rules are those of `clean.py`; only near duplicates are one more. A stage needs the files of the one before, of all
shards. No result depends on how the documents were cut into shards, nor hashes into buckets.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.data.duplicates import band_keys, later_copies
from chinchilla_jax.data.filters import verdict
from chinchilla_jax.data.grams import REPEATED_SHARE, grams
from chinchilla_jax.data.sharded import spill
from chinchilla_jax.data.sources.registry import Document
from chinchilla_jax.data.store import SPLITS, tokenised
from chinchilla_jax.data.tokenizers import open_tokenizer

KINDS = ("exact", "near")


def judge(folder: pathlib.Path, shard: str, filters: Sequence[str], near: bool) -> None:
    """Applies the filters to a shard; of the documents that pass writes the keys by which copies are found."""
    exact, bands, passed = [], [], []
    refused: Counter[str] = Counter()
    for number, document in spill.read_shard(folder, shard):
        if filters and (rule := verdict(document.text, filters)):
            refused[rule] += 1
            continue
        passed.append(number)
        digest = hashlib.sha256(document.text.encode()).digest()
        exact.append((int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big"), number))
        if near:
            bands += [(key, 0, number) for key in band_keys(document.text).tolist()]
    for kind, keys in zip(KINDS, (exact, bands), strict=True):
        spill.save(folder / "judged" / f"{shard}.{kind}.npy", np.sort(np.array(keys, spill.KEYS), order=["high", "id"]))
    spill.save(folder / "judged" / f"{shard}.passed.npy", np.array(passed, np.uint64))
    files.write_json(folder / "judged" / f"{shard}.json", {"filtered": refused})


def find_copies(folder: pathlib.Path, kind: str, bucket: int, buckets: int) -> None:
    """Of the documents whose keys are in a bucket writes those that repeat an earlier one."""
    low, high = spill.edges(buckets)[bucket : bucket + 2]
    parts = [np.zeros(0, spill.KEYS)]
    for path in files.glob(folder / "judged", f"*.{kind}.npy"):
        keys = spill.load(path)
        parts.append(keys[spill.between(keys["high"], low, high)])
    spill.save(folder / "copies" / f"{kind}.{bucket:05}.npy", later_copies(np.concatenate(parts)))


def deal(folder: pathlib.Path, shard: str, fraction: float) -> None:
    """Writes what is kept of a shard, by domain and hash, and which of it is held out."""
    passed = spill.load(folder / "judged" / f"{shard}.passed.npy")
    ends = (int(passed[0]), int(passed[-1]) + 1) if len(passed) else (0, 0)
    exact, near = (spill.of_shard(folder / "copies", kind, *ends) for kind in KINDS)
    kept = set(np.setdiff1d(passed, np.union1d(exact, near)).tolist())
    of_domain: dict[str, list[tuple[int, int, Document]]] = defaultdict(list)
    for number, document in spill.read_shard(folder, shard):
        if number in kept:
            digest = hashlib.sha256(document.text.encode()).digest()
            of_domain[document.domain].append((int.from_bytes(digest[:8], "big"), number, document))
    texts, index, at = list[bytes](), list[tuple](), 0
    domains, lowest = dict[str, list[int]](), dict[str, list[int]]()
    for domain, documents in sorted(of_domain.items()):
        domains[domain] = [len(index), len(index) + len(documents)]
        for number, place, document in sorted(documents, key=lambda item: item[:2]):
            if document.split is None and domain not in lowest:
                lowest[domain] = [number, place]
            held_out = number / 2**64 < fraction if document.split is None else document.split == "validation"
            texts.append(document.text.encode())
            index.append((number, place, at, len(texts[-1]), held_out))
            at += len(texts[-1])
    files.write_bytes(folder / "dealt" / f"{shard}.text", b"".join(texts))
    spill.save(folder / "dealt" / f"{shard}.npy", np.array(index, spill.INDEX))
    facts = {"domains": domains, "lowest": lowest, "duplicates": len(exact)}
    facts |= {"near_duplicates": len(np.setdiff1d(near, exact)), "bytes": at}
    files.write_json(folder / "dealt" / f"{shard}.json", facts)


def held_out_grams(folder: pathlib.Path, shard: str) -> None:
    """Writes the distinct grams of what a shard holds out."""
    known = [np.zeros(0, np.uint64)]
    for domain, lowest in _domains(folder):
        index = spill.read_index(folder, shard, domain, lowest)
        known += [np.unique(grams(text)) for text in spill.read_texts(folder, shard, index[index["held_out"]])]
    spill.save(folder / "held_out" / f"{shard}.npy", np.unique(np.concatenate(known)))


def find_held_out(folder: pathlib.Path, shard: str) -> None:
    """Writes which held-out grams, by their place among all, occur in the training documents of a shard."""
    known = spill.load(folder / "known.npy")
    may_be_known = _table(folder)
    found = [np.zeros(0, np.int64)]
    for domain, lowest in _domains(folder):
        index = spill.read_index(folder, shard, domain, lowest)
        for text in spill.read_texts(folder, shard, index[~index["held_out"]]):
            trained = grams(text)
            trained = trained[may_be_known[trained >> _SHIFT]]
            at = np.minimum(np.searchsorted(known, trained), len(known) - 1)
            if len(at := np.unique(at[known[at] == trained])):
                found.append(at)
    spill.save(folder / "found" / f"{shard}.npy", np.unique(np.concatenate(found)))


def drop_repeated(folder: pathlib.Path, shard: str) -> None:
    """Writes which held-out documents of a shard training repeats, and counts what is left of the shard."""
    known, repeats = spill.load(folder / "known.npy"), spill.load(folder / "in_training.npy")
    repeated, counts = [], {}
    for domain, lowest in _domains(folder):
        index = spill.read_index(folder, shard, domain, lowest)
        held_out = index["held_out"]
        keep = np.ones(len(index), bool)
        for at, text in zip(np.flatnonzero(held_out), spill.read_texts(folder, shard, index[held_out]), strict=True):
            places = np.searchsorted(known, np.unique(grams(text)))
            keep[at] = np.mean(repeats[places]) < REPEATED_SHARE
        repeated += index["id"][~keep].tolist()
        for split, chosen in zip(SPLITS, (~held_out, held_out & keep), strict=True):
            counts[f"{domain}/{split}"] = [int(chosen.sum()), int(index["size"][chosen].sum())]
    spill.save(folder / "repeated" / f"{shard}.npy", np.array(sorted(repeated), np.uint64))
    files.write_json(folder / "repeated" / f"{shard}.json", counts)


def tokenise(
    folder: pathlib.Path, path: pathlib.Path, model: pathlib.Path, domain: str, split: str, part: Sequence[int]
) -> None:
    """Writes the tokens of the documents whose hashes are in [part[0], part[1]), and the bytes of each token."""
    texts, tokenizer = spill.read_bucket(folder, domain, split, part), _open(model)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    batches = (texts[at : at + 256] for at in range(0, len(texts), 256))
    pairs = [tokenised(batch, tokenizer, dtype, threads=1) for batch in batches] or [([], [])]
    tokens, sizes = zip(*pairs, strict=True)
    spill.save(path, np.concatenate(tokens).astype(dtype))
    spill.save(path.with_suffix(".sizes.npy"), np.concatenate(sizes).astype(np.uint32))


_BITS = 22
_SHIFT = np.uint64(64 - _BITS)


def _table(folder: pathlib.Path) -> np.ndarray:
    """bool: for the first bits of a hash whether there may be a known gram; fits a processor's cache."""
    may_be_known = np.zeros(1 << _BITS, bool)
    may_be_known[spill.load(folder / "known.npy") >> _SHIFT] = True
    return may_be_known


def _domains(folder: pathlib.Path) -> list[tuple[str, int | None]]:
    """The domains of the corpus, and of each the document that is held out in any case."""
    facts = files.read_json(folder / "kept.json")
    return [(domain, facts["lowest"].get(domain)) for domain in facts["domains"]]


_open = functools.lru_cache(maxsize=1)(open_tokenizer)  # a process does many buckets
