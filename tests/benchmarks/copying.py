"""Which models of a study copy from their context? The loss on shuffled tokens that come twice in a row.

    python -m tests.benchmarks.copying --study=DIR [--data_dir=DIR] [RUN ...]

256 rows of tokens of the held-out text in random order, each row a half and that half again, in the same order or, as a
control, shuffled anew. Nothing but the first half tells the second: a model that copies in order loses less there, and
not in the control, where the same tokens come without their order (Olsson et al. 2022, arXiv 2209.11895). Prints nats
per token of every run, smallest budget first. The prepared text must be where it was, or in --data_dir.
"""

import argparse
import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import ExplainedError
from chinchilla_jax.config import RunConfig
from chinchilla_jax.data.prepare import store_path
from chinchilla_jax.data.store import TokenStore
from chinchilla_jax.evaluation.score import make_score
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.checkpoint import Checkpoints
from chinchilla_jax.training.step import make_program

ROWS, MICROBATCHES = 256, 8


def losses(folder: pathlib.Path, data_dir: str | None) -> tuple[float, float, float]:
    """Nats per token of the first half, of the same again, and of the same shuffled, by a run's newest checkpoint."""
    config = RunConfig.from_dict(files.read_json(folder / "config.json")["config"])
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=data_dir))
    mesh, length = make_mesh(config.mesh), config.data.seq_len
    checkpoints = Checkpoints(folder / "checkpoints")
    restored = checkpoints.restore(lambda step: make_program(config, mesh).abstract, print)
    checkpoints.close()
    if restored is None:
        raise SystemExit(f"{folder}: no checkpoint that can be read")
    store, rng = TokenStore(store_path(config.data)), np.random.default_rng(0)
    text = np.concatenate([np.ravel(store.array(domain, "validation")) for domain in store.domains]).astype(np.int32)
    half = rng.choice(text, (ROWS, length // 2))
    score = make_score(config, mesh)

    def mean(second: np.ndarray, start: int, stop: int) -> float:
        tokens = np.concatenate([half, second, half[:, :1]], axis=1)[:, : length + 1]
        counted = np.zeros((ROWS, length), np.float32)
        counted[:, start:stop] = 1.0
        batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": counted}
        rows = {name: jnp.asarray(array.reshape(MICROBATCHES, -1, length)) for name, array in batch.items()}
        found = score(restored[0].params, rows)
        return float(-found["log_likelihood"].sum() / found["tokens"].sum())

    # The first token of the second half is a repeat that nothing announces yet: it counts in none.
    later = length // 2, length - 1
    return mean(half, 0, length // 2 - 1), mean(half, *later), mean(rng.permuted(half, axis=1), *later)


def main() -> None:
    """Prints a line a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=pathlib.Path, required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("runs", nargs="*")
    values = parser.parse_args()
    results = {path.parent: files.read_json(path) for path in files.glob(values.study / "runs", "*/result.json")}
    print(f"{'run':24}{'first half':>12}{'again':>9}{'shuffled':>10}{'again less shuffled':>21}")
    for folder, result in sorted(results.items(), key=lambda item: (item[1]["budget"], item[1]["params"])):
        if not values.runs or folder.name in values.runs:
            try:
                first, again, shuffled = losses(folder, values.data_dir)
            except ExplainedError as error:
                raise SystemExit(str(error)) from None
            print(f"{result['name']:24}{first:12.3f}{again:9.3f}{shuffled:10.3f}{again - shuffled:+21.3f}", flush=True)


if __name__ == "__main__":
    main()
