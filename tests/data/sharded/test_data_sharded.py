"""A store made in shards is the same whatever the shards, workers and interruptions, and reads as one array."""

import dataclasses
import hashlib
import json
import time

import numpy as np
import pytest

from chinchilla_jax.config import DataConfig
from chinchilla_jax.data import Batches, DataError, TokenStore, clean, grams, prepare, store_path
from chinchilla_jax.data.sharded import engine, pipeline, spill
from chinchilla_jax.data.sharded.rows import ShardedRows
from chinchilla_jax.data.sources import registry


def quiet(_):
    """An `echo` that says nothing."""


WORDS = ["".join(letters) for letters in np.random.default_rng(1).choice(list("abcdefghijklmnop"), (3000, 5))]


def _texts(seed, count):
    """Prose of which every fifth is an exact copy of an earlier one, and every seventh nearly one."""
    rng = np.random.default_rng(seed)
    texts = []
    for n in range(count):
        if n % 5 == 4:
            texts.append(texts[rng.integers(len(texts))])
        elif n % 7 == 6:
            texts.append(texts[rng.integers(len(texts))] + " an ending")
        else:
            texts.append(" ".join(rng.choice(WORDS, rng.integers(60, 300))) + " the and")
    return texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the domains a and b."""
    path = tmp_path_factory.mktemp("texts")
    for seed, domain in enumerate("ab"):
        lines = [json.dumps({"text": text}) for text in _texts(seed, 240)]
        (path / f"{domain}.jsonl").write_text("\n".join(lines))
    return path


@pytest.fixture
def config(folder, tmp_path):
    """The config of a store in shards of that folder."""
    return DataConfig(source=f"jsonl:{folder}", data_dir=str(tmp_path), vocab_size=330, seq_len=24, sharded=True,
                      validation_fraction=0.1, filters=("quality", "near_duplicates"))  # fmt: skip


@pytest.fixture
def cut(monkeypatch):
    """`cut(shard, bucket, keys)` sets how much a task takes."""

    def set_sizes(shard, bucket, keys):
        monkeypatch.setattr(pipeline, "SHARD_BYTES", shard)
        monkeypatch.setattr(pipeline, "BUCKET_BYTES", bucket)
        monkeypatch.setattr(pipeline, "KEYS_AT_ONCE", keys)

    return set_sizes


def _digest(path):
    """Of all that training reads from a store."""
    store, found = TokenStore(path), hashlib.sha256()
    found.update(store.content_hash().encode())
    for domain in store.domains:
        for split in ("train", "validation"):
            found.update(np.asarray(store.array(domain, split)).astype(np.int32).tobytes())
            found.update(np.asarray(store.row_bytes(domain, split)).tobytes())
    return found.hexdigest()


def _prepared(config, tmp_path, name, **settings):
    here = dataclasses.replace(config, data_dir=str(tmp_path / name))
    with engine.local(settings.pop("workers", 1)) as run:
        path = prepare(here, quiet, engine=run)
    assert store_path(here) == path
    return path


def test_the_store_is_the_same_to_the_bit_whatever_shards_buckets_and_workers(config, tmp_path, cut):
    whole = _prepared(config, tmp_path, "whole")
    assert len(list(whole.glob("*.train-*.npy"))) == 2
    cut(20_000, 15_000, 100)
    many = _prepared(config, tmp_path, "many")
    assert len(list(many.glob("*.train-*.npy"))) > 15
    cut(50_000, 7_000, 999)
    workers = _prepared(config, tmp_path, "workers", workers=2)
    assert _digest(whole) == _digest(many) == _digest(workers)
    assert many.name == whole.name


def test_an_interrupted_preparation_goes_on_to_the_same_store(config, tmp_path, cut):
    cut(30_000, 30_000, 2000)
    expected = _digest(_prepared(config, tmp_path, "whole"))
    done = []

    def breaks_off(todo):
        """Is stopped at every twentieth task, so once or twice in each stage."""
        for task in todo:
            if len(done) % 20 == 19:
                done.append(None)
                raise KeyboardInterrupt
            engine.call(task)
            done.append(task.output)

    for _ in range(20):
        try:
            path = prepare(config, quiet, engine=breaks_off)
            break
        except KeyboardInterrupt:
            continue
    outputs = [output for output in done if output]
    assert len(done) - len(outputs) >= 5
    assert len(set(outputs)) == len(outputs)  # nothing was done twice
    assert _digest(path) == expected


def test_it_keeps_what_cleaning_in_one_piece_keeps(folder, tmp_path, cut):
    cut(20_000, 15_000, 100)
    documents = [registry.Document(d, t) for n, d in enumerate("ab") for t in _texts(n, 240)]
    splits = ("train", "validation") * 15
    documents += [registry.Document("c", text, split) for text, split in zip(_texts(3, 30), splits, strict=True)]
    source = registry.Source("test", lambda: iter(documents), {})
    whole = clean.clean(source, 0.1, tmp_path / "whole", quiet, ("quality",))
    with engine.local(1) as run:
        parts = pipeline.clean_in_shards(source, 0.1, tmp_path / "parts", quiet, ("quality",), run)
    assert parts == whole and whole["repeated_in_training"] and whole["duplicates"]
    for domain, split in [(domain, split) for domain in "abc" for split in ("train", "validation")]:
        size = parts["domains"][domain][split]["bytes"]
        texts = list(pipeline.read_in_order(tmp_path / "parts", domain, split, size))
        assert sorted(texts) == sorted(clean.read_cleaned(tmp_path / "whole", domain, split))
        hashes = [grams.content_hash(text) for text in texts]
        assert hashes == sorted(hashes)


def test_near_duplicates_go_and_the_first_stays(folder, tmp_path):
    documents = [registry.Document("a", text) for text in _texts(0, 240)]
    source = registry.Source("test", lambda: iter(documents), {})
    with engine.local(1) as run:
        result = pipeline.clean_in_shards(source, 0.1, tmp_path, quiet, ("near_duplicates",), run)
    assert result["near_duplicates"] > 15
    counts = result["domains"]["a"]
    kept = {text for split in counts for text in
            pipeline.read_in_order(tmp_path, "a", split, counts[split]["bytes"])}  # fmt: skip
    originals = {text for text in _texts(0, 240) if not text.endswith(" an ending")}
    assert kept == originals


@pytest.mark.parametrize(
    ("documents", "message"),
    [([], "no text in it"), ([("a", "  \n")], "no text in it"), ([("a", "one")], "at least two different documents"),
     ([("a", "The same."), ("a", "the same")], "every held-out document repeats training text")],
)  # fmt: skip
def test_corpora_too_small_to_use_are_explained(tmp_path, documents, message):
    source = registry.Source("test", lambda: (registry.Document(*d) for d in documents), {})
    with engine.local(1) as run, pytest.raises(DataError, match=message):
        pipeline.clean_in_shards(source, 0.1, tmp_path, quiet, (), run)


def _shards(path, tokens, sizes):
    paths = [path / f"{n:05}.npy" for n in range(len(sizes))]
    for out, part in zip(paths, np.split(tokens, np.cumsum(sizes)[:-1]), strict=True):
        spill.save(out, part)
    return paths


@pytest.mark.parametrize("seq_len", [1, 3, 8, 50])
def test_rows_of_shards_are_those_of_the_stream(tmp_path, seq_len):
    rng = np.random.default_rng(seq_len)
    sizes = [*rng.integers(0, 9, 20).tolist(), 0]
    tokens = rng.integers(0, 1000, sum(sizes)).astype(np.uint16)
    rows = ShardedRows(_shards(tmp_path, tokens, sizes), sizes, seq_len, 7)
    count = -(-len(tokens) // seq_len)
    stream = np.append(7, np.pad(tokens, (0, count * seq_len - len(tokens)), constant_values=7))
    expected = np.lib.stride_tricks.sliding_window_view(stream, seq_len + 1)[::seq_len]
    assert rows.shape == expected.shape == np.asarray(rows).shape
    assert (np.asarray(rows) == expected).all() and (np.array(list(rows)) == expected).all()
    assert (rows[1:9:2] == expected[1:9:2]).all() and (rows[-1] == expected[-1]).all()
    chosen = rng.integers(0, count, 5)
    assert (rows[chosen] == expected[chosen]).all() and rows[chosen[:0]].shape == (0, seq_len + 1)
    with pytest.raises(IndexError):
        rows[count]


def test_training_order_depends_on_seed_and_step_alone(config, tmp_path, cut):
    few = Batches(TokenStore(_prepared(config, tmp_path, "few")), "a=1,b=3", seed=5)
    cut(20_000, 5_000, 100)
    many = Batches(TokenStore(_prepared(config, tmp_path, "many")), "a=1,b=3", seed=5)
    for step in (3, 0, 900):
        a, b = few.batch(step * 8, 8), many.batch(step * 8, 8)
        assert all((a[key] == b[key]).all() for key in a)
        halves = [many.batch(step * 8, 8, slice(at, at + 4))["inputs"] for at in (0, 4)]
        assert (np.concatenate(halves) == a["inputs"]).all()
    other = Batches(many.store, "a=1,b=3", seed=6).batch(0, 8)["inputs"]
    assert (other != few.batch(0, 8)["inputs"]).any()


def test_thousands_of_shards_open_in_under_a_second(tmp_path):
    sizes = [20] * 4000
    paths = _shards(tmp_path, np.arange(80_000).astype(np.uint32), sizes)
    start = time.monotonic()
    rows = ShardedRows(paths, sizes, 128, 0)
    assert rows[300][5] == 300 * 128 + 4
    assert time.monotonic() - start < 1.0


def test_a_shard_that_is_cut_off_or_gone_is_named(tmp_path):
    paths = _shards(tmp_path, np.arange(3000, dtype=np.uint16), [1000, 1000, 1000])
    paths[1].write_bytes(paths[1].read_bytes()[:1000])
    with pytest.raises(DataError, match="00001.npy: missing or cut off; delete its folder"):
        ShardedRows(paths, [1000] * 3, 16, 0)
    paths[1].unlink()
    with pytest.raises(DataError, match="00001.npy: missing or cut off"):
        ShardedRows(paths, [1000] * 3, 16, 0)
    with pytest.raises(DataError, match="00000.npy: has shape"):
        ShardedRows(paths[:1], [999], 16, 0)[0]
