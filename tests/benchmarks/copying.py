"""Which models of a study copy from their context? The loss on shuffled tokens that come twice in a row.

    python -m tests.benchmarks.copying --study=DIR [RUN ...]

256 rows of tokens of the held-out text in random order, each row the same half twice. Nothing but the first half tells
the second: a model that copies loses less there, one that does not the same on both (Olsson et al. 2022,
arXiv 2209.11895). Prints nats per token of both halves for every run, smallest budget first. The prepared text must be
where it was.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.config import RunConfig
from chinchilla_jax.data.prepare import store_path
from chinchilla_jax.data.store import TokenStore
from chinchilla_jax.evaluation.score import make_score
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.checkpoint import Checkpoints
from chinchilla_jax.training.step import make_program

ROWS, MICROBATCHES = 256, 8


def halves(folder: pathlib.Path) -> tuple[float, float]:
    """Nats per token of the first and of the second half, by the newest checkpoint of a run."""
    config = RunConfig.from_dict(files.read_json(folder / "config.json")["config"])
    mesh, length = make_mesh(config.mesh), config.data.seq_len
    checkpoints = Checkpoints(folder / "checkpoints")
    restored = checkpoints.restore(lambda step: make_program(config, mesh).abstract, print)
    checkpoints.close()
    if restored is None:
        raise SystemExit(f"{folder}: no checkpoint that can be read")
    store = TokenStore(store_path(config.data))
    text = np.concatenate([np.ravel(store.array(domain, "validation")) for domain in store.domains]).astype(np.int32)
    half = np.random.default_rng(0).choice(text, (ROWS, length // 2))
    tokens = np.concatenate([half, half, half[:, :1]], axis=1)[:, : length + 1]
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    losses = []
    # The first target of the second half is a repeat that nothing announces yet: it counts in neither.
    for start, stop in ((0, length // 2 - 1), (length // 2, length - 1)):
        counted = np.zeros((ROWS, length), np.float32)
        counted[:, start:stop] = 1.0
        rows = {name: array.reshape(MICROBATCHES, -1, length) for name, array in (batch | {"weights": counted}).items()}
        score = make_score(config, mesh)(restored[0].params, jax.tree.map(jnp.asarray, rows))
        losses.append(float(-score["log_likelihood"].sum() / score["tokens"].sum()))
    return losses[0], losses[1]


def main() -> None:
    """Prints a line a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=pathlib.Path, required=True)
    parser.add_argument("runs", nargs="*")
    values = parser.parse_args()
    results = {path.parent: files.read_json(path) for path in files.glob(values.study / "runs", "*/result.json")}
    print(f"{'run':24}{'first half':>12}{'second half':>13}{'difference':>12}")
    for folder, result in sorted(results.items(), key=lambda item: (item[1]["budget"], item[1]["params"])):
        if not values.runs or folder.name in values.runs:
            first, second = halves(folder)
            print(f"{result['name']:24}{first:12.3f}{second:13.3f}{second - first:+12.3f}", flush=True)


if __name__ == "__main__":
    main()
