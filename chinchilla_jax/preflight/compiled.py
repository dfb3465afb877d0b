"""What does the train step of a config become on a slice? Compiled for it, and reduced to the numbers that matter.

`compile_step` takes minutes for a large model. It returns plain values, which `cache.py` keeps.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from chinchilla_jax.base.chips import CHIPS
from chinchilla_jax.base.hlo import HloError
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.parallel.topology import topology, topology_mesh
from chinchilla_jax.preflight.program.collectives import Collective
from chinchilla_jax.preflight.program.program import read_program
from chinchilla_jax.preflight.program.traffic import compare
from chinchilla_jax.preflight.slices import Slice
from chinchilla_jax.preflight.step import CompiledStep, Memory, Refusal, Traffic
from chinchilla_jax.training.machine.ahead import compile_train_step, train_step_arguments
from chinchilla_jax.training.objective import NEXT_TOKEN, Objective

_SIZE = r"([\d.]+)([BKMGT])"
# The first is a check before buffers are assigned, the second the assignment itself.
_OUT_OF_MEMORY = (
    re.compile(rf"memory required for HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE}i?B? of {_SIZE}i?B? hbm", re.IGNORECASE),
)


def compile_step(config: RunConfig, slice_: Slice, objective: Objective | None = None) -> tuple[CompiledStep, str]:
    """The train step of a config, compiled for a slice that is not there, and the text of the program.

    A step that does not fit the memory has a `refusal` and no text.

    Raises:
      ConfigError: the mesh cannot be laid out on the slice, or there is no compiler.
      ShardingError, AttentionError: the model cannot be laid out on the mesh, or not be computed by its devices.
    """
    objective, mesh = objective or NEXT_TOKEN, topology_mesh(slice_.topology, config.mesh, slice_.count)
    started = time.perf_counter()
    memory = dataclasses.replace(argument_memory(config, mesh, objective), usable=usable_hbm(slice_.generation))
    step = CompiledStep(config.train.batch_size, memory, axis_links(mesh, slice_), seconds=0.0)
    text = ""
    try:
        compiled = compile_train_step(config, mesh, objective=objective)
        text = compiled.as_text()
        step = dataclasses.replace(step, memory=_whole_memory(memory, compiled.memory_analysis()))
        program = read_program(text, dict(mesh.shape))
        step = dataclasses.replace(
            step,
            matmul_flops=program.matmul_flops,
            cycles=program.cycles,
            hbm_bytes=program.hbm_bytes,
            kernels=program.kernels,
            traffic=traffic(program.collectives, step.links),
            sent=compare(program, objective.in_blocks(config)),
            largest=program.largest,
            unknown_loops=tuple(program.unknown_loops.values()),
        )
    except jax.errors.JaxRuntimeError as error:
        refusal = read_refusal(str(error))
        if refusal is None:
            raise
        step = dataclasses.replace(step, refusal=refusal)
    except HloError as error:  # whether it fits is known all the same
        step = dataclasses.replace(step, unread=str(error))
    return dataclasses.replace(step, seconds=time.perf_counter() - started), text


def argument_memory(config: RunConfig, mesh: Mesh | AbstractMesh, objective: Objective = NEXT_TOKEN) -> Memory:
    """The memory of the arguments of a train step, all that is known until it is compiled."""
    state, batch, _ = train_step_arguments(config, mesh, objective=objective)
    parameters = shard_bytes(state.params)
    return Memory(parameters, optimizer=shard_bytes(state) - parameters, batch=shard_bytes(batch))


def _whole_memory(arguments: Memory, analysis: Any) -> Memory:
    size, peak = analysis.argument_size_in_bytes, analysis.peak_memory_in_bytes
    code = analysis.generated_code_size_in_bytes
    outputs = max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
    return dataclasses.replace(
        arguments,
        batch=max(0, size - arguments.parameters - arguments.optimizer),
        outputs=outputs,
        # Not temp_size_in_bytes: that adds up buffers which are not all needed at once, and may exceed the peak.
        temporary=max(0, peak - size - outputs - code),
        code=code,
        peak=peak,
    )


def shard_bytes(tree: Any) -> int:
    """Bytes of one device's shards of arrays that have shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def usable_hbm(generation: str) -> int:
    """Bytes of HBM that the compiler gives a program; the rest is the system's.

    The compiler is asked by a program that is too large for any chip, which takes 0.1 s.

    Raises:
      ConfigError: the compiler does not refuse it, or not in words that are known.
    """
    device = topology(CHIPS[generation].one_chip).devices[0]
    sharding = NamedSharding(Mesh([device], ("chip",)), PartitionSpec())
    square = jax.ShapeDtypeStruct((1 << 15, 1 << 15), jnp.float32, sharding=sharding)

    def too_large(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (y @ x, y), x, None, length=256)[1].sum(0)

    try:
        jax.jit(too_large).lower(square).compile()
    except jax.errors.JaxRuntimeError as error:
        if refusal := read_refusal(str(error)):
            return refusal.available
    told = f"the compiler does not say how much memory of a {generation} it uses"
    raise ConfigError("--slice", f"{told}; this libtpu is not the one that preflight was written for")


def read_refusal(message: str) -> Refusal | None:
    """What the compiler says it needs and has, if that is what its error is about."""
    for pattern in _OUT_OF_MEMORY:
        if "RESOURCE_EXHAUSTED" in message and (match := pattern.search(message)):
            needed, available = (round(float(match[i]) * 1024.0 ** "BKMGT".index(match[i + 1].upper())) for i in (1, 3))
            return Refusal(needed, available, message[match.start() :].split("\n")[0].strip(". ")[:200])
    return None


def axis_links(mesh: Mesh, slice_: Slice) -> dict[str, int]:
    """How many links of a chip serve each mesh axis, one way, within a slice.

    An axis has two links for each side of the grid that it covers as a ring, and one for each that it covers as a line.
    An axis of one device has none.
    """
    links = {}
    for position, (axis, size) in enumerate(mesh.shape.items()):
        if axis == "data":
            size //= slice_.count
        index = tuple(slice(0, size) if i == position else 0 for i in range(mesh.devices.ndim))
        coordinates = zip(*(device.coords for device in mesh.devices[index]), strict=True)
        extents = [len(set(places)) for _, places in zip(slice_.grid, coordinates, strict=False)]
        rings = [extent == slice_.grid[side] and slice_.wraps(side) for side, extent in enumerate(extents)]
        links[axis] = sum(1 + ring for ring, extent in zip(rings, extents, strict=True) if extent > 1)
    return links


def traffic(collectives: Sequence[Collective], links: Mapping[str, int]) -> tuple[Traffic, ...]:
    """Collectives of a step added up by kind, axes, place (in the loop over the layers or not) and asynchrony."""
    groups: dict[tuple[str, tuple[str, ...], bool, bool], list[Collective]] = {}
    for c in collectives:
        in_layers = "/layer" in c.op_name and bool(c.loops)
        groups.setdefault((c.kind, c.axes, in_layers, c.asynchronous), []).append(c)
    rows = []
    for (kind, axes, in_layers, asynchronous), group in groups.items():
        sent = {"ici": 0, "dcn": 0}
        rings = max(1, sum(links[axis] for axis in axes) // 2)
        for c in group:
            # On k rings of n chips each, an all-to-all passes k n/4 links in the mean.
            passed = round(c.bytes * rings * c.group ** (1 / rings) / 4) if kind == "all-to-all" else 0
            sent[c.network] += c.trips * max(c.wire_bytes, passed)
        runs, size = sum(c.trips for c in group), sum(c.trips * c.bytes for c in group)
        rows.append(Traffic(kind, axes, in_layers, asynchronous, len(group), runs, size, sent["ici"], sent["dcn"]))
    return tuple(sorted(rows, key=lambda row: -row.wire_bytes - row.dcn_bytes))
