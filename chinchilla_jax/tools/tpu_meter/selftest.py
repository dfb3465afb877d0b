"""Are the dumps of the installed libtpu still understood? A plain matmul must come out a little below the peak."""

from __future__ import annotations

from typing import Any

from chinchilla_jax.base.chips import CHIPS
from chinchilla_jax.tools.tpu_meter import DumpError
from chinchilla_jax.tools.tpu_meter.measure import measure
from chinchilla_jax.tools.tpu_meter.report import Report

SIZE, BLOCK_M, BLOCK_N, BLOCK_K = 2048, 512, 512, 1024
STEPS = (SIZE // BLOCK_M) * (SIZE // BLOCK_N) * (SIZE // BLOCK_K)
# Every step reads a block of each operand, and the result is written once.
HBM_BYTES = 2 * (STEPS * BLOCK_K * (BLOCK_M + BLOCK_N) + SIZE**2)
# Of the peak that so small a matmul reaches at least; above 1 the schedule read is not the one that runs.
LEAST = 0.6


def build() -> dict[str, Any]:
    """A `SIZE` cubed bfloat16 matmul of blocks, accumulated in float32."""
    import jax  # only in the process that compiles
    import jax.numpy as jnp
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    def kernel(x_ref: jax.Ref, y_ref: jax.Ref, out_ref: jax.Ref, sum_ref: jax.Ref) -> None:
        @pl.when(pl.program_id(2) == 0)
        def begin() -> None:
            sum_ref[...] = jnp.zeros_like(sum_ref)

        sum_ref[...] += jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)

        @pl.when(pl.program_id(2) == SIZE // BLOCK_K - 1)
        def end() -> None:
            out_ref[...] = sum_ref[...].astype(out_ref.dtype)

    square = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.bfloat16)
    matmul = pl.pallas_call(
        kernel,
        out_shape=square,
        grid=(SIZE // BLOCK_M, SIZE // BLOCK_N, SIZE // BLOCK_K),
        in_specs=[
            pl.BlockSpec((BLOCK_M, BLOCK_K), lambda m, n, k: (m, k)),
            pl.BlockSpec((BLOCK_K, BLOCK_N), lambda m, n, k: (k, n)),
        ],
        out_specs=pl.BlockSpec((BLOCK_M, BLOCK_N), lambda m, n, k: (m, n)),
        scratch_shapes=[pltpu.VMEM((BLOCK_M, BLOCK_N), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        name="selftest_matmul",
    )
    return {"fn": matmul, "args": (square, square), "flops": 2.0 * SIZE**3}


def selftest(gen: str) -> Report:
    """Measures the matmul and checks what must be so whatever the compiler does.

    Raises:
      DumpError: a count is impossible, so the dumps mean something else than the meter thinks.
      MeterError: see `measure`.
    """
    report = measure(f"{__name__}:build", gen)
    (kernel,) = report.kernels
    cores = CHIPS[gen].cores_per_device
    if kernel.unresolved:
        raise DumpError(f"{gen}: nothing in a matmul depends on data, yet not known: {dict(kernel.unresolved)}")
    if kernel.matmul_flops != report.flops:
        raise DumpError(
            f"{gen}: {kernel.matmul_flops:.6g} FLOPs of matrix instructions executed, the matmul has {report.flops:.6g}"
        )
    if kernel.hbm_bytes != HBM_BYTES:
        raise DumpError(f"{gen}: {kernel.hbm_bytes:,} bytes copied, the blocks of the matmul have {HBM_BYTES:,}")
    if kernel.steps * cores < STEPS:
        raise DumpError(f"{gen}: {kernel.steps} steps on each of {cores} cores, the grid has {STEPS}")
    peak = report.peak_fraction or 0.0
    if not LEAST < peak < 1.0:
        raise DumpError(f"{gen}: {peak:.1%} of the peak, expected {LEAST:.0%} to 100%")
    return report
