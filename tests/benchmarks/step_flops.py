"""Achieved FLOP/s of a study's largest model over that of a plain float32 matrix product, in one process, alternating.

    taskset -c 0 python -m tests.benchmarks.step_flops [cpu|cpu_long]     one worker's core, as the study runs it
"""

import statistics
import sys

from chinchilla_jax.config import RunConfig
from chinchilla_jax.study.plan import plan
from chinchilla_jax.training.machine.hardware import matmul_flops
from configs.isoflop import get_config
from tests.benchmarks.steps import Steps

ROUNDS = 7


def main() -> None:
    """Prints both figures and their ratio, medians over alternating rounds."""
    name = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    config = RunConfig.from_dict(get_config(name).to_dict())
    run = max(plan(config).runs, key=lambda run: run.params)
    largest = RunConfig.from_dict(run.config)
    steps = Steps(largest.model, largest.data.seq_len, largest.train.batch_size, largest.train.microbatches)
    rates, products = [], []
    for _ in range(ROUNDS):
        rates.append(steps.flops / steps.seconds(10))
        products.append(matmul_flops())
    rate, product = statistics.median(rates), statistics.median(products)
    print(f"{name}: {run.params:,} parameters, width {largest.model.d_model}, batch {largest.train.batch_size} x "
          f"{largest.data.seq_len}")  # fmt: skip
    print(f"train step            {rate / 1e9:8.1f} GFLOP/s (executed)")
    print(f"float32 1024^3 product {product / 1e9:7.1f} GFLOP/s")
    print(f"ratio                 {rate / product:8.2f}")


if __name__ == "__main__":
    main()
