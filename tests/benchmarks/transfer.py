"""Does the learning rate that suits a narrow model suit a wide one? Under muP and in the standard parametrisation.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.transfer [--steps=100] [--seeds=1] [--widths=64,256]

Models of one layer and several widths are trained for one pass over the text that comes with the package, at rates a
factor 2 apart. Prints the training loss of the last quarter of the steps for each, the best rate by the parabola
through the lowest three in the logarithm of the rate, and how far the best rates of the widths are apart.
"""

import argparse
import dataclasses
import tempfile

import jax
import numpy as np

from chinchilla_jax.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from chinchilla_jax.data import TokenStore, prepare, store_path
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.step import make_program

RATES = tuple(2.0**-i for i in range(9, 2, -1))
BASE_WIDTH, ROWS, LENGTH, WARMUP = 64, 8, 64, 0.1


def config_of(width: int, mup: bool, data: DataConfig) -> RunConfig:
    """A model with heads of 16, of one layer: a step of a wide one is a second on a core otherwise."""
    heads = width // 16
    model = ModelConfig(n_layers=1, d_model=width, n_heads=heads, n_kv_heads=heads, head_dim=16, d_ff=4 * width)
    model = dataclasses.replace(model, vocab_size=512, scan_layers=False, base_width=BASE_WIDTH if mup else 0)
    optimizer = OptimizerConfig(weight_decay=0.0)
    return RunConfig(model=model, data=data, optimizer=optimizer, train=TrainConfig(batch_size=ROWS))


def last_loss(config: RunConfig, rows: np.ndarray, rate: float, seed: int) -> float:
    """Mean loss of the last quarter of a run on rows `[steps, ROWS, LENGTH + 1]`; the rate rises, then falls to 0."""
    program = make_program(config, make_mesh(config.mesh))
    state, losses, steps = program.init(jax.random.key(seed)), [], len(rows)
    for step, tokens in enumerate(np.random.default_rng(seed).permutation(rows)):
        batch = {"inputs": tokens[None, :, :-1], "targets": tokens[None, :, 1:], "weights": np.ones((1, ROWS, LENGTH))}
        now = rate * min(1.0, (step + 1) / (WARMUP * steps), (steps - step) / ((1.0 - WARMUP) * steps))
        state, metrics = program.step(state, batch, np.float32(now))
        losses.append(metrics["loss"])
    return float(np.mean([float(loss) for loss in losses[3 * steps // 4 :]]))


def best_rate(rates: np.ndarray, losses: np.ndarray) -> float:
    """Where the parabola through the lowest loss and its neighbours is least; an outer rate if that is the lowest."""
    i = int(np.nanargmin(losses))
    if i in (0, len(rates) - 1):
        return float(rates[i])
    a, b, _ = np.polyfit(np.log(rates[i - 1 : i + 2]), losses[i - 1 : i + 2], 2)
    return float(np.exp(-b / (2.0 * a)))


def main() -> None:
    """Prints a line for each parametrisation and width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--widths", default="64,256")
    values = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = DataConfig(source="shipped", data_dir=folder, vocab_size=512, seq_len=LENGTH, validation_fraction=0.02)
        prepare(data, lambda line: None)
        store = TokenStore(store_path(data))
        text = np.concatenate([np.ravel(store.array(domain, "train")) for domain in store.domains]).astype(np.int32)
    starts = np.arange(values.steps * ROWS).reshape(values.steps, ROWS, 1) * LENGTH
    if starts.max() + LENGTH >= len(text):
        raise SystemExit(f"--steps: the text has {len(text)} tokens, enough for {(len(text) - 1) // (ROWS * LENGTH)}")
    rows = text[starts + np.arange(LENGTH + 1)]
    print(f"{'':9} {'width':>5} " + " ".join(f"{rate:8.4f}" for rate in RATES) + f" {'best rate':>10}", flush=True)
    for way in ("standard", "muP"):
        best = []
        for width in map(int, values.widths.split(",")):
            config = config_of(width, way == "muP", data)
            losses = [np.mean([last_loss(config, rows, rate, s) for s in range(values.seeds)]) for rate in RATES]
            best.append(best_rate(np.array(RATES), np.array(losses)))
            print(f"{way:9} {width:5d} " + " ".join(f"{x:8.4f}" for x in losses) + f" {best[-1]:10.4f}", flush=True)
        print(f"{way}: best rates a factor {max(best) / min(best):.2f} apart", flush=True)


if __name__ == "__main__":
    main()
