"""How many tokens a second one core turns into batches: `python -m tests.benchmarks.data_throughput`.

Expected: at least 2 million tokens/s at sequence length 128 and batch 16, so that data never holds up a step.
"""

import argparse
import os
import tempfile
import time

from chinchilla_jax.config import DataConfig
from chinchilla_jax.data import Batches, TokenStore, prepare


def tokens_per_second(batches: Batches, batch_size: int, seconds: float = 2.0) -> float:
    """Tokens per second of consecutive training batches over `seconds`."""
    for step in range(20):
        batches.batch(step * batch_size, batch_size)
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        batches.batch(steps * batch_size, batch_size)
        steps += 1
    return steps * batch_size * batches.store.seq_len / (time.perf_counter() - start)


def main() -> None:
    """Measures the shipped text, or another source, pinned to one core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="shipped")
    parser.add_argument("--data_dir", default="", help="default: a temporary folder")
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as scratch:
        data = DataConfig(source=arguments.source, data_dir=arguments.data_dir or scratch)
        store = TokenStore(prepare(data))
        for mask_documents in (False, True):
            batches = Batches(store, "proportional", seed=0, mask_documents=mask_documents)
            rate = tokens_per_second(batches, arguments.batch_size)
            print(f"mask_documents={mask_documents}: {rate / 1e6:.1f} million tokens/s on one core "
                  f"(seq_len {store.seq_len}, batch {arguments.batch_size})")  # fmt: skip


if __name__ == "__main__":
    main()
