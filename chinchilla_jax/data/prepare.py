"""From a `DataConfig` to a token store: fetch, clean, build, train the tokenizer, tokenise.

    DATA_DIR/downloads/...           fetched packages
    DATA_DIR/corpus/auto.json        what `source=auto` turned out to be, and why
    DATA_DIR/corpus/KEY/             the text as a TFDS dataset; corpus.json is written last
    DATA_DIR/tokenizer/KEY.model
    DATA_DIR/store/KEY/              the token store; store.json is written last
    DATA_DIR/teacher/KEY/            that of the propositions of a teacher, if there is one (`teacher.py`)

Every KEY is a hash of what the result depends on, so another seq_len shares the corpus and the tokenizer, and what is
finished is never made again. An interrupted preparation goes on with the first thing that is missing.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import time
from collections.abc import Iterator

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import ConfigError, DataConfig
from chinchilla_jax.config_data import NEAR_DUPLICATES
from chinchilla_jax.data import store
from chinchilla_jax.data.clean import clean
from chinchilla_jax.data.filters import check_filters, identity
from chinchilla_jax.data.sharded.engine import Engine, local
from chinchilla_jax.data.sharded.pipeline import clean_in_shards, read_in_order, write_token_shards
from chinchilla_jax.data.sources import registry
from chinchilla_jax.data.steps import DataError, Progress, content_key, one_at_a_time, read_description
from chinchilla_jax.data.teacher import prepare_teacher
from chinchilla_jax.data.tokenizers import TRAINER_VERSION, Tokenizer, open_tokenizer, train_tokenizer

CORPUS_FORMAT = 1
# Enough for stable merges, few enough seconds; shared among domains by size.
TOKENIZER_SAMPLE_BYTES = 20_000_000


def prepare(data: DataConfig, echo: Echo = print, engine: Engine | None = None) -> pathlib.Path:
    """Makes whatever of the token store of `data` does not exist yet.

    Nothing is made in a bucket: it was copied there. `echo` is called with a line for each step, and during long ones
    every few seconds. `engine` runs the tasks of `data.sharded` (`sharded/engine.py`), by default on every core of this
    machine. Returns the store's folder.

    Raises:
      ConfigError: a setting that does not fit what was found.
      DataError: text that cannot be fetched or used; names the file.
    """
    _check_paths(data)
    if files.in_bucket(data.data_dir):
        return store_path(data)
    with one_at_a_time(files.path(data.data_dir) / ".lock", echo):
        start = time.monotonic()
        with contextlib.nullcontext(engine) if engine or not data.sharded else local() as engine:
            corpus = _prepare_corpus(data, echo, engine)
            tokenizer = _prepare_tokenizer(data, corpus, echo)
            path = _prepare_store(data, corpus, tokenizer, echo, engine)
        if data.has_teacher:
            prepare_teacher(data, tokenizer, echo)
        echo(f"data ready in {time.monotonic() - start:.0f} s: {path}")
    return path


def store_path(data: DataConfig) -> pathlib.Path:
    """The prepared store of `data`, or a `DataError` that says how to prepare it. Needs neither network nor source."""
    _check_paths(data)
    hint = "prepare it first: python -m chinchilla_jax data --config=..."
    if files.in_bucket(data.data_dir):
        hint = "prepare it on a disk and copy the whole folder: gcloud storage cp --recursive FOLDER gs://BUCKET/..."
    auto = _auto_file(data)
    if data.source == "auto" and not files.exists(auto):
        raise DataError(f"{data.data_dir}: no data prepared for data.source=auto; {hint}")
    name = read_description(auto)["source"] if data.source == "auto" else data.source
    corpus = _find_corpus(data, name)
    if corpus is None:
        changed = "(or its files changed since)"
        raise DataError(f"{data.data_dir}: no data prepared for data.source={data.source} {changed}; {hint}")
    model = _tokenizer_path(data, corpus)
    path = _store_folder(data, corpus, open_tokenizer(model)) if files.exists(model) else None
    if path is None or not files.exists(path / "store.json"):
        settings = f"data.tokenizer={data.tokenizer}, vocab_size={data.vocab_size}, seq_len={data.seq_len}"
        raise DataError(f"{data.data_dir}: the text is there, but no token store for {settings}; {hint}")
    return path


def _check_paths(data: DataConfig) -> None:
    """Raises `StorageError` for a path that cannot be used, before anything is made."""
    files.path(data.data_dir)
    for text in (data.tokenizer, data.teacher, data.source.partition(":")[2]):
        files.here(text)


def _prepare_corpus(data: DataConfig, echo: Echo, engine: Engine | None) -> pathlib.Path:
    name, reasons = _resolve_source(data, echo)
    corpus = _corpus_folder(data, name, registry.fingerprint(name) or [])
    if files.exists(corpus / "corpus.json"):
        echo(f"corpus: {corpus} is there")
        return corpus
    check_filters(data.filters)
    source = registry.open_source(name, data, echo)
    if engine:
        echo(f"corpus: reading {name}, removing duplicates, holding out {data.validation_fraction:.1%}")
        result = clean_in_shards(source, data.validation_fraction, corpus, echo, data.filters, engine)
    else:
        result = _clean_whole(data, source, corpus, echo)
    description = {"format": CORPUS_FORMAT, "source": name, "requested": data.source, "passed_over": reasons}
    description |= {"details": source.details, "settings": _corpus_settings(data, name)}
    files.write_json(corpus / "corpus.json", description | result, sort_keys=True)
    files.remove(corpus / "cleaned")
    _tell(result, echo)
    return corpus


def _clean_whole(data: DataConfig, source: registry.Source, corpus: pathlib.Path, echo: Echo) -> dict:
    """Cleans the source in this process and leaves it in `corpus` as a TFDS dataset."""
    from chinchilla_jax.data import builder  # TFDS takes a second to import, and a finished store needs none of it.

    cleaned = corpus / "cleaned"
    if not files.exists(cleaned / "cleaned.json"):
        echo(f"corpus: reading {source.name}, removing duplicates, holding out {data.validation_fraction:.1%}")
        clean(source, data.validation_fraction, cleaned, echo, data.filters)
    result = read_description(cleaned / "cleaned.json")
    for domain, counts in result["domains"].items():
        size = sum(split["bytes"] for split in counts.values())
        documents = f"{counts['train']['documents']} + {counts['validation']['documents']} documents"
        echo(f"corpus: writing domain {domain}: {size / 1e6:.1f} MB of text, {documents}")
        builder.build_domain(corpus, cleaned, domain)
    for abandoned in files.glob(corpus, f"{builder.NAME}/*/incomplete.*"):
        files.remove(abandoned)
    return result


def _tell(result: dict, echo: Echo) -> None:
    """What was removed."""
    repeated = f"{result['repeated_in_training']} held-out documents that training text repeats"
    echo(f"corpus: removed {result['duplicates']} duplicates, and {repeated}")
    if NEAR_DUPLICATES in result:
        echo(f"corpus: removed {result[NEAR_DUPLICATES]} near duplicates")
    if filtered := result.get("filtered"):
        rules = ", ".join(f"{rule} {count}" for rule, count in sorted(filtered.items(), key=lambda item: -item[1]))
        echo(f"corpus: filtered out {sum(filtered.values())} documents: {rules}")


def _resolve_source(data: DataConfig, echo: Echo) -> tuple[str, list[str]]:
    """(source, reasons against earlier ones). `auto` is decided once per data_dir: reruns should see the same text."""
    if data.source != "auto":
        return data.source, []
    decided = _auto_file(data)
    if not files.exists(decided):
        name, reasons = registry.first_source_that_works(data, echo)
        files.write_json(decided, {"source": name, "passed_over": reasons}, sort_keys=True)
    choice = read_description(decided)
    echo(f"source=auto: using {choice['source']} (delete {decided} to choose again)")
    return choice["source"], choice["passed_over"]


def _prepare_tokenizer(data: DataConfig, corpus: pathlib.Path, echo: Echo) -> Tokenizer:
    path = _tokenizer_path(data, corpus)
    if data.tokenizer == "train" and not files.exists(path):
        echo(f"tokenizer: training {data.vocab_size} pieces")
        train_tokenizer(_sample(corpus), data.vocab_size, path)
    tokenizer = open_tokenizer(path)
    if (size := tokenizer.vocab_size) > data.vocab_size:
        few = f"tokenizer {path} has {size} pieces, vocab_size={data.vocab_size} is too few"
        raise ConfigError("data.vocab_size", f"{few}; set data.vocab_size (and model.vocab_size) to at least {size}")
    echo(f"tokenizer: {path}, {size} pieces")
    return tokenizer


def _sample(corpus: pathlib.Path) -> Iterator[str]:
    """Training text of every domain, up to `TOKENIZER_SAMPLE_BYTES` in all, from the start of its hashed order."""
    domains = read_description(corpus / "corpus.json")["domains"]
    sizes = {domain: counts["train"]["bytes"] for domain, counts in domains.items()}
    share = min(1.0, TOKENIZER_SAMPLE_BYTES / sum(sizes.values()))
    for domain, size in sizes.items():
        taken = 0
        for text in _training_texts(corpus, domain, size):
            if taken >= share * size:
                break
            taken += len(text.encode())
            yield text


def _training_texts(corpus: pathlib.Path, domain: str, size: int) -> Iterator[str]:
    """The training documents of a domain, `size` bytes, in the order of their hashes."""
    if files.exists(corpus / "kept.json"):
        return read_in_order(corpus, domain, "train", size)
    from chinchilla_jax.data import builder

    return itertools.chain.from_iterable(builder.read_domain(corpus, domain, "train"))


def _prepare_store(
    data: DataConfig, corpus: pathlib.Path, tokenizer: Tokenizer, echo: Echo, engine: Engine | None
) -> pathlib.Path:
    path = _store_folder(data, corpus, tokenizer)
    if not files.exists(path / "store.json"):
        _write_store(path, data, corpus, tokenizer, echo, engine)
    finished = store.TokenStore(path, tokenizer)
    for domain in finished.domains:
        tokens, size = finished.tokens(domain), finished.text_bytes(domain)
        held_out = f"{finished.tokens(domain, 'validation'):,} held out"
        echo(f"store: {domain}: {tokens:,} training tokens, {size / tokens:.2f} bytes each; {held_out}")
    return path


def _write_store(
    path: pathlib.Path, data: DataConfig, corpus: pathlib.Path, tokenizer: Tokenizer, echo: Echo, engine: Engine | None
) -> None:
    """Tokenises what is not tokenised yet, and finishes the store."""
    files.make_folder(path)
    for leftover in [*files.glob(path, "*.partial-*"), *files.glob(path, ".*.tmp")]:
        files.remove(leftover)
    description = read_description(corpus / "corpus.json")
    domains = description.pop("domains")
    if engine:
        write_token_shards(path, corpus, domains, tokenizer, data.seq_len, engine, echo)
        store.finish_store(path, tokenizer, data.seq_len, description, domains)
        for leftover in files.glob(path, "*.sizes.npy"):
            files.remove(leftover)
        return
    from chinchilla_jax.data import builder

    parts = {(d, s): path / f"{d}.{s}.npy" for d in domains for s in store.SPLITS}
    todo = {key: part for key, part in parts.items() if not files.exists(part.with_suffix(".json"))}
    progress = Progress(echo, "store: tokenising", sum(domains[d][s]["bytes"] for d, s in todo))
    for key, part in todo.items():
        store.write_rows(part, builder.read_domain(corpus, *key), tokenizer, data.seq_len, progress)
    store.finish_store(path, tokenizer, data.seq_len, description, domains)


def _auto_file(data: DataConfig) -> pathlib.Path:
    return files.path(data.data_dir) / "corpus" / "auto.json"


def _corpus_settings(data: DataConfig, name: str) -> dict:
    field = data.text_field if registry.reads_field(name) else None
    fraction = data.validation_fraction
    settings = {"format": CORPUS_FORMAT, "source": name, "validation_fraction": fraction, "text_field": field}
    # Left out where there are none: a corpus keeps the name it had before there were filters.
    settings |= {"filters": [identity(name) for name in data.filters]} if data.filters else {}
    return settings | ({"sharded": True} if data.sharded else {})


def _corpus_folder(data: DataConfig, name: str, fingerprint: list) -> pathlib.Path:
    key = content_key(_corpus_settings(data, name), fingerprint)
    return files.path(data.data_dir) / "corpus" / f"{registry.domain_name(name)[:40]}-{key}"


def _find_corpus(data: DataConfig, name: str) -> pathlib.Path | None:
    """The finished corpus of these settings; where the original files are absent, the only one there is."""
    fingerprint = registry.fingerprint(name)
    if fingerprint is not None:
        folder = _corpus_folder(data, name, fingerprint)
        return folder if files.exists(folder / "corpus.json") else None
    settings = _corpus_settings(data, name)
    finished = files.glob(files.path(data.data_dir) / "corpus", "*/corpus.json")
    folders = [path.parent for path in finished if read_description(path)["settings"] == settings]
    if len(folders) > 1:
        versions = f"{len(folders)} versions of it were prepared: {', '.join(folder.name for folder in folders)}"
        raise DataError(f"{name} is not on this machine and {versions}; delete all but one")
    return folders[0] if folders else None


def _tokenizer_path(data: DataConfig, corpus: pathlib.Path) -> pathlib.Path:
    if data.tokenizer != "train":
        return files.path(data.tokenizer)
    key = content_key(corpus.name, data.vocab_size, TRAINER_VERSION, TOKENIZER_SAMPLE_BYTES)
    return files.path(data.data_dir) / "tokenizer" / f"{key}.model"


def _store_folder(data: DataConfig, corpus: pathlib.Path, tokenizer: Tokenizer) -> pathlib.Path:
    key = content_key(corpus.name, tokenizer.fingerprint(), data.seq_len, store.FORMAT)
    return files.path(data.data_dir) / "store" / key
