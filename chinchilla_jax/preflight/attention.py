"""How many cycles do the attention kernels of a step take? The meter counts them, for a row of a few heads.

All rows and heads of a chip are equal turns of the kernels' grid. So the cycles of all are those of one row and a few
heads, times their number. Only the start of the pipeline is then counted too often: 2 to 6% too much, at 2048 tokens on
v5p. Where documents are packed, what a kernel can skip depends on the data; nothing is taken to be skipped.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from chinchilla_jax.config import RunConfig
from chinchilla_jax.model.parts import POSITIONS
from chinchilla_jax.preflight.cache import Cache
from chinchilla_jax.preflight.slices import Slice

BUILD = "chinchilla_jax.tools.tpu_meter.attention:build"
FEW = 4  # heads that are measured


@dataclasses.dataclass(frozen=True)
class KernelCycles:
    """Cycles of the attention kernels of a chip."""

    calls: dict[str, float]  # by kernel, of one call for all rows and heads
    measured: dict[str, Any]  # the shape that was measured
    factor: float  # how many times a call holds that shape
    error: str | None = None  # why nothing was measured


def shape_of(config: RunConfig, slice_: Slice) -> tuple[dict[str, Any], float]:
    """The shape to measure, and how many times a call of a kernel holds it. The batch is that of `config`."""
    m, mesh = config.model, config.mesh
    split = {"batch": mesh.data * mesh.fsdp, "heads": mesh.tensor, "length": mesh.context}  # over how many devices
    if mesh.rules:
        from chinchilla_jax.parallel.rules import mesh_axes, rules_of  # imports JAX

        with rules_of(mesh):
            split = {name: math.prod(mesh.axes[axis] for axis in mesh_axes(name)) for name in split}
    rows = max(1, config.train.batch_size // config.train.microbatches // split["batch"])
    heads, groups, context = m.n_heads // split["heads"], m.n_kv_heads // split["heads"], split["length"]
    shared = heads // groups
    few = max(n for n in range(1, max(FEW // shared, 1) + 1) if groups % n == 0)
    # Two TensorCores share rows and heads evenly, if there is an even number of them.
    twice = 2 if few * shared % 2 and rows % 2 == 0 else 1
    shape = {
        "generation": slice_.generation,
        "rows": twice,
        "heads": few * shared,
        "groups": few,
        "head_dim": m.head_dim,
        "seq": config.data.seq_len,
        "position": POSITIONS[m.position].kernel_form,
        "packed": config.data.mask_documents,
        "dtype": config.train.compute_dtype,
    }
    # A context axis shares the work out evenly (`parallel/context.py`); where heads do not divide, in two calls.
    calls = 2 if context > 1 and (heads % context or groups % context) else 1
    return shape, rows / twice * groups / few / context / calls


def kernel_cycles(config: RunConfig, slice_: Slice, cache: Cache) -> KernelCycles:
    """Cycles of a call of the forward and of the backward kernel; 5 to 30 seconds the first time for a shape."""
    shape, factor = shape_of(config, slice_)
    key = cache.key({"attention": shape})
    calls = cache.read(key, lambda cycles: _calls(cycles, factor))
    if calls is None:
        from chinchilla_jax.tools.tpu_meter import MeterError
        from chinchilla_jax.tools.tpu_meter.measure import measure

        try:
            report = measure(BUILD, slice_.generation, {k: v for k, v in shape.items() if k != "generation"})
        except MeterError as error:
            return KernelCycles({}, shape, factor, str(error).strip().split("\n")[-1][:200])
        cycles: dict[str, list[float]] = {}
        for kernel in report.kernels:
            cycles.setdefault(plain_name(kernel.name), []).append(kernel.bound_cycles)
        cache.write(key, cycles)
        calls = _calls(cycles, factor)
    return KernelCycles(calls, shape, factor)


def _calls(cycles: dict[str, list[float]], factor: float) -> dict[str, float]:
    """A long sequence takes several calls of a kernel. The program counts each of them, so their mean is taken here."""
    return {name: factor * sum(calls) / len(calls) for name, calls in cycles.items()}


def plain_name(name: str) -> str:
    """`transpose_jvp_attention_backward__.3` -> `attention_backward`: without the transformations around the call."""
    return re.sub(r"^(?:transpose_|jvp_|checkpoint_|rematted_computation_)+", "", name.split(".")[0]).rstrip("_")
