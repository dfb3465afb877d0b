"""How much memory reading a table of text takes: `python -m tests.benchmarks.columns`.

A file of about 300 MB in each format, written in one piece (one row group, one record batch) and in the usual ones, is
read in a process of its own. Pages of a mapped file count as long as they are in memory, though the system may take
them back at any time; `own` leaves them out. Expected: own memory far below the file's size, whatever its pieces.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("parquet", "arrow", "arrows")  # `arrows` is the stream format
CHILD = """
import pathlib, sys, threading, time
import pyarrow, pyarrow.parquet, pyarrow.compute
from chinchilla_jax.data.sources.columns import texts

def memory(name):
    status = dict(line.split(":") for line in open("/proc/self/status"))
    return int(status[name].split()[0]) / 1024

def watch():
    while True:
        peak[0] = max(peak[0], memory("RssAnon"))
        time.sleep(0.002)

open("/proc/self/clear_refs", "w").write("5")  # the highest resident size so far is that of now
whole, own = memory("VmHWM"), memory("RssAnon")
peak = [own]
threading.Thread(target=watch, daemon=True).start()
began = time.perf_counter()
characters = sum(map(len, texts(pathlib.Path(sys.argv[1]), "text")))
print(memory("VmHWM") - whole, peak[0] - own, characters / 1e6 / (time.perf_counter() - began))
"""


def write(path: pathlib.Path, megabytes: int, pieces: int) -> None:
    """A file of texts of 2000 characters, which do not compress well, in so many row groups or record batches."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz      ", np.uint8)
    rows = megabytes * 1_000_000 // 2000
    texts = pa.array([letters[rng.integers(0, 32, 2000)].tobytes().decode() for _ in range(rows)])
    table, size = pa.table({"id": np.arange(rows), "text": texts}), -(-rows // pieces)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=size, compression="none")
        return
    new = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=size)


def main() -> None:
    """Prints a line for each format and number of pieces."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--scratch", default=None, help="where to write the files; default: the temporary folder")
    arguments = parser.parse_args()
    print(f"{'format':8} {'pieces':>6} {'file MB':>8} {'peak +MB':>9} {'own +MB':>8} {'MB/s':>6}")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for name in FORMATS:
            for pieces in (1, arguments.megabytes // 2):
                path = pathlib.Path(scratch) / f"a.{name}"
                write(path, arguments.megabytes, pieces)
                size = path.stat().st_size / 1e6
                time.sleep(0.1)
                printed = subprocess.run(
                    [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True
                ).stdout
                peak, own, speed = map(float, printed.split())
                print(f"{name:8} {pieces:6} {size:8.0f} {peak:9.0f} {own:8.0f} {speed:6.0f}", flush=True)
                path.unlink()


if __name__ == "__main__":
    main()
