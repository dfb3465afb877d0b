"""The stages in their order: from a source to the documents to keep, and from those to the files of a store.

Killed at any point it goes on with the tasks whose files are missing. Memory is that of a shard or a bucket for each
worker, and one byte for each distinct 13-gram of what is held out.
"""

from __future__ import annotations

import itertools
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config_data import NEAR_DUPLICATES as NEAR
from chinchilla_jax.data.sharded import spill, stages
from chinchilla_jax.data.sharded.engine import Engine, Task, run
from chinchilla_jax.data.sources.registry import Source
from chinchilla_jax.data.steps import DataError, Progress
from chinchilla_jax.data.store import SPLITS, write_counts
from chinchilla_jax.data.tokenizers import Tokenizer

# What a worker has in memory at a time; no result depends on these.
SHARD_BYTES = 16_000_000
BUCKET_BYTES = 16_000_000
KEYS_AT_ONCE = 1 << 20
_OF_THE_WAY = ("read", "judged", "copies", "held_out", "found", "known.npy", "in_training.npy")


def clean_in_shards(
    source: Source, fraction: float, folder: pathlib.Path, echo: Echo, filters: Sequence[str], engine: Engine
) -> dict:
    """As `clean.clean`, by the same rules, but the documents stay in `folder`, for `read_in_order`.

    With `near_duplicates` among the `filters` a document that is nearly the same as an earlier one is dropped as well
    (`duplicates/minhash.py`), and the result says how many were.

    Raises:
      DataError: no text at all, or a domain too small to hold anything out.
    """
    if not files.exists(folder / "cleaned.json"):
        result = _clean(source, fraction, folder, echo, filters, engine)
        files.write_json(folder / "cleaned.json", result, sort_keys=True)
    for name in _OF_THE_WAY:
        files.remove(folder / name)
    return files.read_json(folder / "cleaned.json")


def _clean(
    source: Source, fraction: float, folder: pathlib.Path, echo: Echo, filters: Sequence[str], engine: Engine
) -> dict:
    """Goes through the stages that are not done yet, for what `clean_in_shards` returns."""
    shards = _read(source, folder, echo)
    each = [name for name in filters if name != NEAR]

    def stage(what: str, function: Callable[..., None], out: str, *arguments: Any, end: str = "npy") -> None:
        echo(f"corpus: {what}, {len(shards)} shards")
        run(engine, [Task(function, (folder, s, *arguments), folder / out / f"{s}.{end}") for s in shards])

    stage("filtering and hashing", stages.judge, "judged", each, NEAR in filters, end="json")
    run(engine, itertools.chain.from_iterable(_copies(folder, kind) for kind in stages.KINDS))
    stage("dropping what comes twice", stages.deal, "dealt", fraction, end="json")
    facts = [files.read_json(folder / "dealt" / f"{shard}.json") for shard in shards]
    _write_kept(source, folder, shards, facts)
    stage("looking up what is held out", stages.held_out_grams, "held_out")
    _merge_grams(folder)
    stage("comparing training text with it", stages.find_held_out, "found")
    _merge_found(folder)
    stage("dropping what training repeats", stages.drop_repeated, "repeated", end="json")
    return _result(source, folder, shards, facts, filters)


def read_in_order(folder: pathlib.Path, domain: str, split: str, size: int) -> Iterator[str]:
    """The texts of a domain by their hash, an order that any cut into shards has in common; `size` are their bytes."""
    for part in itertools.pairwise(spill.edges(_buckets(size))):
        yield from spill.read_bucket(folder, domain, split, part)


def write_token_shards(
    path: pathlib.Path,
    folder: pathlib.Path,
    domains: dict,
    tokenizer: Tokenizer,
    seq_len: int,
    engine: Engine,
    echo: Echo,
) -> None:
    """Tokenises what `clean_in_shards` left in `folder` into the store at `path`, all but its description."""
    streams, tasks = {}, []
    for domain, split in itertools.product(domains, SPLITS):
        parts = list(itertools.pairwise(spill.edges(_buckets(domains[domain][split]["bytes"]))))
        paths = [path / f"{domain}.{split}-{number:05}.npy" for number in range(len(parts))]
        streams[domain, split] = paths
        arguments = ((folder, out, tokenizer.path, domain, split, part) for out, part in zip(paths, parts, strict=True))
        outputs = (out.with_suffix(".sizes.npy") for out in paths)
        tasks += [Task(stages.tokenise, a, out) for a, out in zip(arguments, outputs, strict=True)]
    echo(f"store: tokenising, {len(tasks)} shards")
    run(engine, tasks)
    sizes = {}
    for (domain, split), paths in streams.items():
        sizes[f"{domain}.{split}"] = [len(spill.load(out)) for out in paths]
        row_bytes = _row_bytes([out.with_suffix(".sizes.npy") for out in paths], seq_len)
        write_counts(path / f"{domain}.{split}.npy", row_bytes, sum(sizes[f"{domain}.{split}"]))
    files.write_json(path / "shards.json", sizes)


def _read(source: Source, folder: pathlib.Path, echo: Echo) -> list[str]:
    """Cuts the source into shards and returns their names."""
    done = folder / "read" / "read.json"
    if not files.exists(done):
        progress = Progress(echo, "reading text")
        for size in spill.write_shards(folder / "read", source.documents(), SHARD_BYTES):
            progress.add(size)
        files.write_json(done, [path.stem for path in files.glob(folder / "read", "*.jsonl")])
    return files.read_json(done)


def _copies(folder: pathlib.Path, kind: str) -> list[Task]:
    keys = sum(len(spill.load(path)) for path in files.glob(folder / "judged", f"*.{kind}.npy"))
    buckets = 1 + keys // KEYS_AT_ONCE
    outputs = (folder / "copies" / f"{kind}.{bucket:05}.npy" for bucket in range(buckets))
    return [Task(stages.find_copies, (folder, kind, b, buckets), out) for b, out in enumerate(outputs)]


def _write_kept(source: Source, folder: pathlib.Path, shards: list[str], facts: list[dict]) -> None:
    """Gathers which domains there are, and of each the document of the lowest hash, which is held out in any case."""
    lowest: dict[str, list[int]] = {}
    for fact in facts:
        for domain, candidate in fact["lowest"].items():
            lowest[domain] = min(candidate, lowest.get(domain, candidate))
    domains = sorted({domain for fact in facts for domain in fact["domains"]})
    if not domains:
        raise DataError(f"source {source.name}: no text in it; every document is empty or filtered out")
    chosen = {domain: number for domain, (_, number) in lowest.items()}
    files.write_json(folder / "kept.json", {"shards": shards, "domains": domains, "lowest": chosen})


def _merge_grams(folder: pathlib.Path) -> None:
    """known.npy: the held-out grams of all shards, each once, sorted; the largest number fills it up."""
    target, partial = folder / "known.npy", folder / "known.partial"
    if files.exists(target):
        return
    parts = [spill.load(path) for path in files.glob(folder / "held_out", "*.npy")]
    total = sum(map(len, parts))
    merged = np.lib.format.open_memmap(partial, "w+", np.uint64, (total,))
    filled = 0
    for part in itertools.pairwise(spill.edges(1 + total // KEYS_AT_ONCE)):
        grams = np.unique(np.concatenate([grams[spill.between(grams, *part)] for grams in parts]))
        merged[filled : filled + len(grams)] = grams
        filled += len(grams)
    merged[filled:] = np.iinfo(np.uint64).max
    merged.flush()
    files.rename(partial, target)


def _merge_found(folder: pathlib.Path) -> None:
    """in_training.npy: for each of those grams whether training text has it."""
    found = np.zeros(len(spill.load(folder / "known.npy")), bool)
    for path in files.glob(folder / "found", "*.npy"):
        found[spill.load(path)] = True
    spill.save(folder / "in_training.npy", found)


def _result(source: Source, folder: pathlib.Path, shards: list[str], facts: list[dict], filters: Sequence[str]) -> dict:
    """What `clean` returns; raises `DataError` for a domain without one of the two splits."""
    domains = files.read_json(folder / "kept.json")["domains"]
    counts = {domain: {split: {"documents": 0, "bytes": 0} for split in SPLITS} for domain in domains}
    refused: Counter[str] = Counter()
    for shard in shards:
        for key, (documents, size) in files.read_json(folder / "repeated" / f"{shard}.json").items():
            domain, split = key.rsplit("/", 1)
            counts[domain][split]["documents"] += documents
            counts[domain][split]["bytes"] += size
        refused.update(files.read_json(folder / "judged" / f"{shard}.json")["filtered"])
    for domain, splits in counts.items():
        if not splits["train"]["documents"]:
            need = "it needs at least two different documents (a file is cut every 4000 characters or so)"
            raise DataError(f"domain {domain!r} of {source.name}: no train document; {need}")
        if not splits["validation"]["documents"]:
            fix = "raise data.validation_fraction or add text"
            raise DataError(f"domain {domain!r}: every held-out document repeats training text; {fix}")
    repeated = sum(len(spill.load(folder / "repeated" / f"{shard}.npy")) for shard in shards)
    result = {"domains": counts, "duplicates": sum(fact["duplicates"] for fact in facts)}
    result |= {"repeated_in_training": repeated, "filtered": dict(refused)}
    return result | ({NEAR: sum(fact[NEAR] for fact in facts)} if NEAR in filters else {})


def _buckets(size: int) -> int:
    return 1 + size // BUCKET_BYTES


def _row_bytes(paths: Sequence[pathlib.Path], seq_len: int) -> np.ndarray:
    """int64 [rows]: the bytes that the targets of each row of a stream stand for, from those of its tokens."""
    sums, left = [], np.zeros(0, np.int64)
    for path in paths:
        sizes = np.concatenate([left, spill.load(path)])
        whole = len(sizes) // seq_len * seq_len
        sums.append(sizes[:whole].reshape(-1, seq_len).sum(1))
        left = sizes[whole:]
    return np.concatenate([*sums, [left.sum()]] if len(left) else sums)
