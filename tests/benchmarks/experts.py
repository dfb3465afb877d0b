"""What do experts cost beside their FLOPs? Wall time of train steps on this CPU; cycles of a grouped product on a TPU.

    taskset -c 0 python -m tests.benchmarks.experts steps      a dense model, DS-MoE and top-k ones, in one process
    python -m tests.benchmarks.experts cycles [--gen v5p]      needs the TPU compiler, no TPU

`steps` runs models of one shape by turns and prints, for each: executed FLOPs of a step by the ledger, its
milliseconds, the median over rounds of its time over that of the dense model, the ratio of their FLOPs, and the one
over the other: what a FLOP of it costs beside one of the dense model.

`cycles` measures kernels with `chinchilla_jax.tools.tpu_meter`: bfloat16 rows `[M, D]` times one matrix by a tiled
kernel, and the same rows times those of E experts, each with M / E rows, by the grouped kernel that JAX ships
(`megablox`), tiles being equal. The useful work is the same. The groups are given as constants, so that the meter can
follow the kernel's grid, which is otherwise data. What the model calls, `jax.lax.ragged_dot`, becomes a kernel of the
compiler's own. Its groups come from a kernel before it, so the meter cannot tell its trips: nothing is printed of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import statistics
from typing import Any

from chinchilla_jax.base.chips import kernel_chips
from chinchilla_jax.config import ModelConfig
from chinchilla_jax.tools.tpu_meter.measure import measure

BUILDERS = "tests.benchmarks.experts"
ROUNDS, STEPS = 7, 3
DENSE = ModelConfig(n_layers=2, d_model=128, n_heads=4, n_kv_heads=4, head_dim=32, d_ff=512, vocab_size=1024,
                    position="rope", biases="none")  # fmt: skip
MODELS = {
    "dense": {},
    "ds_moe 16": {"feed_forward": "ds_moe", "experts": 16},
    "ds_moe 16, attention 4": {"feed_forward": "ds_moe", "experts": 16, "attention_experts": 4, "n_kv_heads": 1},
    "top_k 2 of 8, equal N": {"feed_forward": "top_k", "experts": 8, "active_experts": 2},
    "top_k 2 of 8, equal active": {"feed_forward": "top_k", "experts": 8, "active_experts": 2, "d_ff": 2048},
}
ROWS, WIDTH, INNER, TILE = 8192, 1024, 2048, 512


def steps() -> None:
    """Prints time and FLOPs of a step of each model, over the dense one's."""
    from tests.benchmarks.steps import Steps  # imports JAX

    running = {name: Steps(dataclasses.replace(DENSE, **changes), 128, 8, 4) for name, changes in MODELS.items()}
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        rounds.append({name: one.seconds(STEPS) for name, one in running.items()})
    print(f"{'model':28} {'GFLOPs':>8} {'ms':>8} {'time':>6} {'FLOPs':>6} {'per FLOP':>9}   of the dense model's")
    for name, one in running.items():
        time = statistics.median(taken[name] / taken["dense"] for taken in rounds)
        flops = one.flops / running["dense"].flops
        milliseconds = 1e3 * statistics.median(taken[name] for taken in rounds)
        print(f"{name:28} {one.flops / 1e9:8.2f} {milliseconds:8.1f} {time:6.2f} {flops:6.2f} {time / flops:9.2f}")


def build_dense() -> dict[str, Any]:
    """Rows times one matrix, in tiles, added up in float32."""
    import jax  # only in the process that compiles
    import jax.numpy as jnp
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    def kernel(x_ref: jax.Ref, w_ref: jax.Ref, y_ref: jax.Ref, sum_ref: jax.Ref) -> None:
        @pl.when(pl.program_id(2) == 0)
        def begin() -> None:
            sum_ref[...] = jnp.zeros_like(sum_ref)

        sum_ref[...] += jnp.dot(x_ref[...], w_ref[...], preferred_element_type=jnp.float32)

        @pl.when(pl.program_id(2) == WIDTH // TILE - 1)
        def end() -> None:
            y_ref[...] = sum_ref[...].astype(y_ref.dtype)

    product = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((ROWS, INNER), jnp.bfloat16),
        grid=(INNER // TILE, ROWS // TILE, WIDTH // TILE),
        in_specs=[
            pl.BlockSpec((TILE, TILE), lambda n, m, k: (m, k)),
            pl.BlockSpec((TILE, TILE), lambda n, m, k: (k, n)),
        ],
        out_specs=pl.BlockSpec((TILE, TILE), lambda n, m, k: (m, n)),
        scratch_shapes=[pltpu.VMEM((TILE, TILE), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        name="dense_product",
    )
    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((ROWS, WIDTH), (WIDTH, INNER)))
    return {"fn": product, "args": (x, w), "flops": 2.0 * ROWS * WIDTH * INNER}


def build_grouped(experts: int) -> dict[str, Any]:
    """The same rows times the matrices of so many experts, an equal number each."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    gmm = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
    sizes = np.full(experts, ROWS // experts, np.int32)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    tiles = np.arange(ROWS // TILE, dtype=np.int32)
    # What it makes of equal groups of whole tiles; its own are arrays that a program computes.
    groups = (tiles // (len(tiles) // experts)).astype(np.int32)
    gmm.make_group_metadata = lambda **_: ((offsets, groups, tiles), len(tiles))

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return gmm.gmm(x, w, jnp.asarray(sizes), preferred_element_type=jnp.bfloat16, tiling=(TILE, TILE, TILE))

    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((ROWS, WIDTH), (experts, WIDTH, INNER)))
    return {"fn": product, "args": (x, w), "flops": 2.0 * ROWS * WIDTH * INNER}


def cycles(gen: str) -> None:
    """Prints cycles of one product for all rows, and of the grouped one, over it."""
    print(f"{gen}: {ROWS} rows of {WIDTH} to {INNER}, bfloat16, tiles of {TILE}; thousands of cycles")
    dense = measure(f"{BUILDERS}:build_dense", gen, {})
    print(f"{'dense':12} schedule {dense.cycles / 1e3:8.1f}  bound {dense.bound_cycles / 1e3:8.1f}")
    for experts in (1, 4, 8, 16):
        grouped = measure(f"{BUILDERS}:build_grouped", gen, {"experts": experts})
        ratios = grouped.cycles / dense.cycles, grouped.bound_cycles / dense.bound_cycles
        print(f"{experts:3} experts  schedule {grouped.cycles / 1e3:8.1f}  bound {grouped.bound_cycles / 1e3:8.1f}  "
              f"{ratios[0]:.3f} and {ratios[1]:.3f} of the dense one's")  # fmt: skip


def main() -> None:
    """One of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "cycles"))
    parser.add_argument("--gen", nargs="+", default=["v5p"], choices=kernel_chips())
    flags = parser.parse_args()
    if flags.what == "steps":
        steps()
    for gen in flags.gen if flags.what == "cycles" else ():
        cycles(gen)


if __name__ == "__main__":
    main()
