"""What does a token cost on a slice, once a model is trained? Its decoding step, compiled for a TPU that is not there.

Printed by `preflight --generate=ROWS:PROMPT:NEW`: memory of a chip with its cache, cycles and bytes of a step in which
every row gets one token. Weights are in the compute type, and each row may be padded in front.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chinchilla_jax.base.chips import GIB
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.generation.decode import as_used, make_decoder, room_for, round_up
from chinchilla_jax.interop.trained import for_use
from chinchilla_jax.kernels.call import AttentionError
from chinchilla_jax.parallel.rules import ShardingError
from chinchilla_jax.parallel.topology import topology_mesh
from chinchilla_jax.preflight.check import Options
from chinchilla_jax.preflight.compiled import axis_links, read_refusal, shard_bytes, traffic, usable_hbm
from chinchilla_jax.preflight.predict import BASIS, FEW, ici_seconds, plain_name
from chinchilla_jax.preflight.program.program import read_program
from chinchilla_jax.preflight.slices import Slice
from chinchilla_jax.training.step import make_program

BUILD = "chinchilla_jax.tools.meter_attention:build_decoding"


class Asked(NamedTuple):
    """So many rows, prompts of so many tokens, and new ones for each."""

    rows: int
    prompt: int
    new: int


def parse_asked(text: str) -> Asked:
    """`ROWS:PROMPT:NEW`. Raises UsageError for anything else."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"--generate={text}: expected ROWS:PROMPT:NEW, as 8:1024:256: three numbers of 1 or more")
    return Asked(*map(int, parts))


def preflight_decoding(config: RunConfig, asked: Asked, options: Options, echo: Echo) -> dict[str, Any]:
    """Compiles prefill and step for the slice, prints and returns what they take.

    Raises:
      ConfigError: the mesh cannot be laid out on the slice, or the compiler refuses the program.
    """
    slice_ = options.slice
    config = for_use(dataclasses.replace(config, method=None), config.mesh)
    rows = -(-asked.rows // config.mesh.rows) * config.mesh.rows
    capacity = room_for(asked.prompt + asked.new)
    try:
        found = _compile(config, slice_, rows, round_up(asked.prompt), capacity)
    except (AttentionError, ShardingError) as error:
        raise ConfigError("mesh", f"{config.mesh}: {error}") from error
    found |= _kernels(config, slice_, rows, capacity, found["kernels"])
    found |= _time(found, slice_)
    for line in _words(found, config, asked, slice_):
        echo(line)
    return found


def _compile(config: RunConfig, slice_: Slice, rows: int, width: int, capacity: int) -> dict[str, Any]:
    mesh = topology_mesh(slice_.topology, config.mesh, slice_.count)
    decoder, started = make_decoder(config, mesh), time.perf_counter()
    params = as_used(config, make_program(config, mesh).abstract.params)

    def tokens(count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, count), jnp.int32, sharding=decoder.batch_sharding)

    starts, length = jax.ShapeDtypeStruct((rows,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    found: dict[str, Any] = {"rows": rows, "capacity": capacity, "usable": usable_hbm(slice_.generation)}
    found["parameters"] = shard_bytes(params)
    try:
        prefill = decoder.prefill.lower(params, tokens(width), length, starts, capacity)
        compiled = prefill.compile()
        found["prefill_peak"] = compiled.memory_analysis().peak_memory_in_bytes
        cache = jax.tree.map(
            lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
            prefill.out_info[1],
            compiled.output_shardings[1],
        )
        found["cache"] = shard_bytes((cache.keys, cache.values, cache.distances))
        step = decoder.extend.lower(params, cache, tokens(1)).compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = read_refusal(str(error))
        if refusal is None:
            raise
        told = f"the compiler needs {refusal.needed / GIB:.2f} GiB and has {refusal.available / GIB:.2f}"
        raise ConfigError("--generate", f"{told}: fewer rows, shorter texts, or more chips") from None
    program = read_program(step.as_text(), dict(mesh.shape))
    links = axis_links(mesh, slice_)
    sent = traffic(program.collectives, links)
    return found | {
        "peak": step.memory_analysis().peak_memory_in_bytes,
        "cycles": program.cycles,
        "hbm_bytes": program.hbm_bytes,
        "products": program.matmul_flops,
        "kernels": program.kernels,
        "sent": sum(group.wire_bytes + group.dcn_bytes for group in sent),
        "ici_seconds": sum(ici_seconds(group, links, slice_) for group in sent),
        "dcn_seconds": sum((group.dcn_bytes / slice_.network.dcn_bandwidth for group in sent), 0.0),
        "compiled_in": time.perf_counter() - started,
    }


def _kernels(config: RunConfig, slice_: Slice, rows: int, capacity: int, kernels: dict[str, int]) -> dict[str, Any]:
    """Cycles of the attention kernels of a step, counted for one row of a few heads; nothing where that fails."""
    if not kernels:
        return {"kernel_cycles": 0.0}
    from chinchilla_jax.tools.tpu_meter import MeterError
    from chinchilla_jax.tools.tpu_meter.measure import measure

    m, mesh = config.model, config.mesh
    heads, groups = m.n_heads // mesh.tensor, m.n_kv_heads // mesh.tensor
    few = max(n for n in range(1, max(FEW * groups // heads, 1) + 1) if groups % n == 0)
    shape: dict[str, Any] = {
        "rows": 1,
        "heads": few * heads // groups,
        "groups": few,
        "head_dim": m.head_dim,
        "capacity": capacity,
    }
    shape |= {"relative": m.position == "relative", "dtype": config.train.compute_dtype}
    try:
        report = measure(BUILD, slice_.generation, shape)
    except MeterError as error:
        return {"kernel_cycles": None, "unmeasured": str(error).strip().split("\n")[-1][:200]}
    by_name: dict[str, list[float]] = {}
    for kernel in report.kernels:
        by_name.setdefault(plain_name(kernel.name), []).append(kernel.bound_cycles)
    calls = {name: sum(cycles) / len(cycles) for name, cycles in by_name.items()}
    times = rows // mesh.rows * groups // few
    return {"kernel_cycles": sum(runs * times * calls.get(plain_name(name), 0.0) for name, runs in kernels.items())}


def _time(found: dict[str, Any], slice_: Slice) -> dict[str, Any]:
    """Seconds of a step: the longest of products, cycles and HBM traffic, then kernels and communication."""
    chip = slice_.chip
    compute = max(
        found["products"] / chip.peak, found["cycles"] / chip.clock, found["hbm_bytes"] / chip.hbm_bandwidth_per_device
    )
    kernels = (found["kernel_cycles"] or 0.0) / chip.clock
    return {"seconds": compute + kernels + found["ici_seconds"] + found["dcn_seconds"]}


def _words(found: dict[str, Any], config: RunConfig, asked: Asked, slice_: Slice) -> list[str]:
    gib = {name: found[name] / GIB for name in ("parameters", "cache", "peak", "prefill_peak", "usable")}
    rows = found["rows"]
    kernels = "not measured" if found["kernel_cycles"] is None else f"{found['kernel_cycles']:,.0f}"
    names = ", ".join(f"{name} {runs}x" for name, runs in found["kernels"].items()) or "none"
    return [
        f"{slice_}: {rows} rows, prompts of {asked.prompt:,} tokens and {asked.new:,} new ones, a cache for "
        f"{found['capacity']:,} in each; compiled in {found['compiled_in']:.0f} s",
        f"  memory of a chip, GiB: weights {gib['parameters']:.3f}, cache {gib['cache']:.3f}; peak "
        f"{gib['peak']:.3f} in a step, {gib['prefill_peak']:.3f} with the prompts, of {gib['usable']:.3f}",
        f"  a step, a token in each row: {found['cycles']:,} cycles beside kernels (the compiler's estimate), "
        f"{kernels} in attention kernels ({names})",
        f"  a token: {(found['cycles'] + (found['kernel_cycles'] or 0)) / rows:,.0f} cycles, "
        f"{found['hbm_bytes'] / rows / 1e6:,.1f} MB of HBM traffic, {found['sent'] / rows / 1e6:,.3f} MB sent",
        f"  {found['seconds'] * 1e3:.3f} ms a step, {rows / found['seconds']:,.0f} tokens/s ({BASIS})",
    ]
