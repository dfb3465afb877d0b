"""Time of the XLA forms of attention on a CPU core, forward and backward, in one process, alternating.

    taskset -c 0 python -m tests.benchmarks.attention_cpu [short] [long]     both by default; short is a worker's core

`short` are the smallest, middle and largest model of the CPU study; `long` are rows of one sequence with two heads of
64, with the temporary memory of the compiled program. Times are medians in milliseconds, with what they are of the
plain form's; what would take more than 512 MiB is compiled and not run. `attention.xla_form` follows this table.
"""

import functools
import math
import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from chinchilla_jax.config import RunConfig
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.study.plan import plan
from chinchilla_jax.training.machine.hardware import keep_freed_memory
from configs.isoflop import get_config

FORMS = {name: functools.partial(attention, implementation=name) for name in ("plain", "blockwise")}
BIASES = ("content_bias_HxK", "position_bias_HxK")
LONG = (128, 256, 512, 1024, 2048, 8192)
ROUNDS, SECONDS, MEMORY = 3, 0.1, 512 * 2**20


def of_jax(q, k, v):
    """JAX's own attention, the form its users would take."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def inputs(batch: int, length: int, heads: int, size: int, relative: bool) -> tuple[tuple, dict]:
    """Arguments of attention, positional and named."""
    rng = np.random.default_rng(0)
    shapes = {}
    if relative:
        shapes = {"r_NxHxK": (length, heads, size)} | dict.fromkeys(BIASES, (heads, size))
    qkv = tuple(jax.device_put(rng.standard_normal((batch, length, heads, size), np.float32)) for _ in range(3))
    return qkv, {name: jax.device_put(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}


def compare(forms: dict[str, Callable], qkv: tuple, named: dict) -> dict[str, tuple[float, int]]:
    """Median seconds of forward and backward of each form, nan if not run, and bytes of temporaries."""
    compiled = {}
    for name, form in forms.items():
        # A square makes the gradient of the output depend on it, as in a model.
        loss = jax.value_and_grad(lambda qkv, named, form=form: (form(*qkv, **named) ** 2).sum(), argnums=(0, 1))
        compiled[name] = jax.jit(loss).lower(qkv, named).compile()
    memory = {name: function.memory_analysis().temp_size_in_bytes for name, function in compiled.items()}
    taken = {name: [] if memory[name] <= MEMORY else [math.nan] for name in forms}
    for _ in range(ROUNDS):
        for name, function in compiled.items():
            end = time.perf_counter() + SECONDS
            while memory[name] <= MEMORY:
                begin = time.perf_counter()
                jax.block_until_ready(function(qkv, named))
                taken[name].append(time.perf_counter() - begin)
                if time.perf_counter() > end:
                    break
    return {name: (statistics.median(times), memory[name]) for name, times in taken.items()}


def report(title: str, found: dict[str, tuple[float, int]], memory: bool) -> None:
    """One line."""
    cells, base = [], found["plain"][0]
    for name, (seconds, size) in found.items():
        ratio = "" if math.isnan(base) else f" x {seconds / base:.2f}"
        cells.append(f"{name} " + ("  not run" if math.isnan(seconds) else f"{seconds * 1e3:8.2f} ms{ratio}")
                     + (f" {size / 2**20:6.0f} MiB" if memory else ""))  # fmt: skip
    print(f"{title:<44}" + "   ".join(cells), flush=True)


def main() -> None:
    """Prints the tables."""
    wanted = sys.argv[1:] or ["short", "long"]
    keep_freed_memory()
    if "short" in wanted:
        config = RunConfig.from_dict(get_config("cpu").to_dict())
        runs = sorted(plan(config).runs, key=lambda run: run.params)
        rows = config.train.batch_size // config.train.microbatches
        for run in (runs[0], runs[len(runs) // 2], runs[-1]):
            model = RunConfig.from_dict(run.config).model
            shape = rows, config.data.seq_len, model.n_heads, model.head_dim
            _both(f"{shape[0]} x {shape[1]}, {shape[2]} heads of {shape[3]}", shape, memory=False)
    for length in LONG if "long" in wanted else ():
        _both(f"1 x {length}, 2 heads of 64", (1, length, 2, 64), memory=True)


def _both(title: str, shape: tuple[int, int, int, int], memory: bool) -> None:
    report(title, compare(FORMS | {"jax.nn": of_jax}, *inputs(*shape, relative=False)), memory)
    report(f"{title}, relative", compare(FORMS, *inputs(*shape, relative=True)), memory)


if __name__ == "__main__":
    main()
