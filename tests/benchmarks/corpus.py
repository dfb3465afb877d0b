"""How fast text is cleaned and tokenised, and in how much memory: `python -m tests.benchmarks.corpus`.

Speed: megabytes of generated text a second of one core, stage by stage. `--peer PYTHON` times the same stages of
huggingface/datatrove with that interpreter, on the same documents (`pip install 'datatrove==0.10.1' regex 'xxhash<4'
nltk spacy tokenizers` in an environment of its own).

Memory: `data.sharded` over `--megabytes` of generated text, each in a process of its own. `own` is the largest sum of
the anonymous memory of it and its workers at a time, which is what the machine must have; pages of mapped files are not
in it, as the system may take them back. Expected: the same from 100 MB to 2 GB.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from chinchilla_jax.data import grams
from chinchilla_jax.data.duplicates import band_keys
from chinchilla_jax.data.filters import verdict
from chinchilla_jax.data.store import tokenised
from chinchilla_jax.data.tokenizers import open_tokenizer, train_tokenizer

CHILD = """
import os, pathlib, sys, threading, time
from chinchilla_jax.config import DataConfig
from chinchilla_jax.data import prepare

def own(process):
    try:
        status = dict(line.split(":", 1) for line in open(f"/proc/{process}/status"))
        children = open(f"/proc/{process}/task/{process}/children").read().split()
    except (OSError, ValueError):
        return 0.0
    return int(status.get("RssAnon", "0").split()[0]) / 1024 + sum(map(own, children))

def watch():
    while True:
        peak[0] = max(peak[0], own(os.getpid()))
        time.sleep(0.05)

if __name__ == "__main__":
    peak = [own(os.getpid())]
    threading.Thread(target=watch, daemon=True).start()
    folder, *filters = sys.argv[1:]
    data = DataConfig(source=f"jsonl:{folder}/texts", data_dir=f"{folder}/data", vocab_size=1024, sharded=True,
                      filters=tuple(filters), validation_fraction=0.005)
    began = time.perf_counter()
    prepare(data, lambda line: print(f"{time.perf_counter() - began:6.1f} s {line}", file=sys.stderr))
    print(peak[0], time.perf_counter() - began)
"""
PEER = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.text import split_into_parts

texts = json.load(sys.stdin)
config = MinhashConfig(n_grams=13, num_buckets=16, hashes_per_bucket=12)
signer = MinhashDedupSignature("/tmp/unused", config=config)
stages = {"quality": GopherQualityFilter().filter, "repetition": GopherRepetitionFilter().filter,
          "near duplicates": lambda document: signer.get_signature(signer.get_shingles(document.text))}
stages["quality"](Document(text=texts[0], id="0"))
for name, stage in stages.items():
    split_into_parts.cache_clear()
    began = time.process_time()
    for text in texts:
        stage(Document(text=text, id="0"))
    print(name, sum(map(len, texts)) / 1e6 / (time.process_time() - began), sep="\\t")
"""


def texts(megabytes: float, seed: int = 0) -> list[str]:
    """Documents of about 3000 characters in lines, words by Zipf's law; every tenth repeats an earlier one, nearly."""
    rng = np.random.default_rng(seed)
    letters = np.random.default_rng(1).choice(list("etaoinshrdlu"), (20_000, 12))
    lengths = np.random.default_rng(2).integers(2, 10, 20_000)
    words = np.array(["the", "of", "and", *("".join(row[:n]) for row, n in zip(letters, lengths, strict=True))], object)
    found: list[str] = []
    size = 0
    while size < megabytes * 1e6:
        if len(found) % 10 == 9:
            found.append(found[rng.integers(len(found))] + " once again")
        else:
            chosen = words[np.minimum(rng.zipf(1.2, 500) - 1, len(words) - 1)]
            found.append("\n".join(" ".join(chosen[at : at + 12]) + "." for at in range(0, 500, 12)))
        size += len(found[-1])
    return found


def speeds(documents: list[str], peer: str | None) -> None:
    """Prints a line for each stage."""
    theirs = {}
    if peer:
        answer = subprocess.run(
            [peer, "-c", PEER], input=json.dumps(documents), text=True, capture_output=True, check=True
        )
        theirs = dict(line.split("\t") for line in answer.stdout.splitlines())
    with tempfile.TemporaryDirectory() as scratch:
        model = pathlib.Path(scratch) / "a.model"
        train_tokenizer(documents[:300], 1024, model)
        tokenizer = open_tokenizer(model)
        stages: dict[str, Callable[[str], object]] = {
            "exact duplicates": grams.content_hash,
            "quality": lambda text: verdict(text, ["quality"]),
            "repetition": lambda text: verdict(text, ["repetition"]),
            "both filters": lambda text: verdict(text, ["quality", "repetition"]),
            "near duplicates": band_keys,
            "13-grams": grams.grams,
            "tokenising": lambda text: tokenised([text], tokenizer, np.uint16, threads=1),
        }
        print(f"{'stage':18} {'MB/s':>7} {'datatrove':>10}")
        for name, stage in stages.items():
            began = time.process_time()
            for text in documents:
                stage(text)
            speed = sum(map(len, documents)) / 1e6 / (time.process_time() - began)
            print(f"{name:18} {speed:7.2f} {float(theirs[name]) if name in theirs else float('nan'):10.2f}", flush=True)


def memory(megabytes: int, filters: list[str], scratch: str | None, verbose: bool) -> None:
    """Prints how much memory so much text takes, and how long."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = pathlib.Path(name)
        (folder / "texts").mkdir()
        for part in range(0, megabytes, 50):
            with open(folder / "texts" / f"{'ab'[part // 50 % 2]}.jsonl", "a", encoding="utf-8") as handle:
                for text in texts(min(50, megabytes - part), seed=part):
                    handle.write(json.dumps({"text": text}) + "\n")
        program = folder / "child.py"
        program.write_text(CHILD)
        done = subprocess.run([sys.executable, str(program), name, *filters], text=True, check=True,
                              stdout=subprocess.PIPE, stderr=None if verbose else subprocess.DEVNULL)  # fmt: skip
        peak, seconds = map(float, done.stdout.split())
        print(f"{megabytes:8} {peak:8.0f} {seconds:8.0f} {megabytes / seconds:6.2f}", flush=True)


def main() -> None:
    """Prints the table of speeds, then that of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[100, 500, 2000])
    parser.add_argument("--filters", nargs="*", default=["quality", "repetition", "near_duplicates"])
    parser.add_argument("--peer", help="a Python that has datatrove")
    parser.add_argument("--scratch", default=None, help="where to write the text; default: the temporary folder")
    parser.add_argument("--verbose", action="store_true", help="say what the preparation says")
    arguments = parser.parse_args()
    speeds(texts(4), arguments.peer)
    print(f"{'text MB':>8} {'own MB':>8} {'seconds':>8} {'MB/s':>6}")
    for megabytes in arguments.megabytes:
        memory(megabytes, arguments.filters, arguments.scratch, arguments.verbose)


if __name__ == "__main__":
    main()
