"""What does the train step of a config become on a slice? Compiled for it, and reduced to the numbers that matter.

`compile_step` takes minutes for a large model. What it returns is plain values, which `cache.py` keeps.
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chinchilla_jax.base.chips import CHIPS, GIB
from chinchilla_jax.base.hlo import HloError
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.parallel.topology import topology, topology_mesh
from chinchilla_jax.preflight.program.program import Collective, StepProgram, read_program
from chinchilla_jax.preflight.program.traffic import Comparison, compare
from chinchilla_jax.preflight.slices import Slice
from chinchilla_jax.preflight.step import CompiledStep, Memory, Refusal, Sent, Traffic
from chinchilla_jax.training.machine.ahead import compile_train_step, train_step_arguments

_UNITS = {"B": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
_SIZE = r"([\d.]+)([BKMGT])"
# The first is a check before buffers are assigned, the second the assignment itself.
_OUT_OF_MEMORY = (re.compile(rf"memory required for HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
                  re.compile(rf"Used {_SIZE}i?B? of {_SIZE}i?B? hbm", re.IGNORECASE))  # fmt: skip


def compile_step(config: RunConfig, slice_: Slice, sequences: int) -> tuple[CompiledStep, str]:
    """The train step for a batch of `sequences`, compiled for a slice that is not there, and its text.

    A step that does not fit the memory has a `refusal` and no text.

    Raises:
      ConfigError: the mesh cannot be laid out on the slice, or there is no compiler.
      ShardingError, AttentionError: the model cannot be laid out on the mesh, or not be computed by its devices.
    """
    mesh = topology_mesh(slice_.topology, config.mesh, slice_.count)
    started = time.perf_counter()
    arguments = train_step_arguments(config, mesh, sequences)
    usable = usable_hbm(slice_.generation)
    state = {"parameters": shard_bytes(arguments[0].params),
             "optimizer": shard_bytes((arguments[0].opt_state, arguments[0].step))}  # fmt: skip
    empty = {"sequences": sequences, "links": axis_links(mesh, slice_)}
    try:
        compiled = compile_train_step(config, mesh, sequences)
    except jax.errors.JaxRuntimeError as error:
        refusal = read_refusal(str(error))
        if refusal is None:
            raise
        memory = Memory(**state, batch=shard_bytes(arguments[1]), outputs=0, temporary=0, code=0, peak=0, usable=usable)
        return CompiledStep(**empty, memory=memory, refusal=refusal, seconds=time.perf_counter() - started), ""
    text = compiled.as_text()
    memory = _memory(compiled.memory_analysis(), state, usable)
    try:
        program = read_program(text, dict(mesh.shape))
        sent = _sent(compare(program, with_batch(config, sequences)))
    except HloError as error:  # whether it fits is known all the same
        return CompiledStep(**empty, memory=memory, unread=str(error), seconds=time.perf_counter() - started), text
    step = CompiledStep(**empty, memory=memory, matmul_flops=program.matmul_flops, cycles=program.cycles,
                        hbm_bytes=program.hbm_bytes, kernels=_kernels(program),
                        traffic=traffic(program.collectives, empty["links"]), sent=sent,
                        largest=tuple(dataclasses.asdict(array) | {"shape": list(array.shape)}
                                      for array in program.largest[:4]),
                        unknown_loops=program.unknown_loops, seconds=time.perf_counter() - started)  # fmt: skip
    return step, text


def _memory(found: Any, state: Mapping[str, int], usable: int) -> Memory:
    outputs = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
    arguments, peak = found.argument_size_in_bytes, found.peak_memory_in_bytes
    # Not temp_size_in_bytes: that adds up buffers which are not all needed at once, and may exceed the peak.
    temporary = max(0, peak - arguments - outputs - found.generated_code_size_in_bytes)
    return Memory(**state, batch=max(0, arguments - sum(state.values())), outputs=outputs, temporary=temporary,
                  code=found.generated_code_size_in_bytes, peak=peak, usable=usable)  # fmt: skip


def shard_bytes(tree: Any) -> int:
    """Bytes of one device's shards of arrays that have shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def usable_hbm(generation: str) -> int:
    """Bytes of HBM that the compiler gives a program; the rest is the system's.

    Asked of the compiler, by a program that is too large for any chip; 0.1 s.

    Raises:
      ConfigError: the compiler does not refuse it, or not in words that are known.
    """
    device = topology(CHIPS[generation].one_chip).devices[0]
    square = jax.ShapeDtypeStruct((1 << 15, 1 << 15), jnp.float32,
                                  sharding=NamedSharding(Mesh([device], ("chip",)), PartitionSpec()))  # fmt: skip

    def too_large(x):
        return jax.lax.scan(lambda y, _: (y @ x, y), x, None, length=256)[1].sum(0)

    try:
        jax.jit(too_large).lower(square).compile()
    except jax.errors.JaxRuntimeError as error:
        if refusal := read_refusal(str(error)):
            return refusal.available
    raise ConfigError("--slice", f"the compiler does not say how much memory of a {generation} it uses; "
                      "this libtpu is not the one that preflight was written for")  # fmt: skip


def read_refusal(message: str) -> Refusal | None:
    """What the compiler says it needs and has, if that is what its error is about."""
    for pattern in _OUT_OF_MEMORY:
        if "RESOURCE_EXHAUSTED" in message and (match := pattern.search(message)):
            needed, available = (round(float(number) * _UNITS[unit.upper()])
                                 for number, unit in (match.group(1, 2), match.group(3, 4)))  # fmt: skip
            return Refusal(needed, available, message[match.start() :].split("\n")[0].strip(". ")[:200])
    return None


def _kernels(program: StepProgram) -> dict[str, int]:
    found: dict[str, int] = {}
    for kernel in program.kernels:
        found[kernel.name] = found.get(kernel.name, 0) + kernel.trips
    return found


def with_batch(config: RunConfig, sequences: int) -> RunConfig:
    """The config with batches of another size, and tokens for one at least."""
    tokens = max(config.train.train_tokens, sequences * config.data.seq_len)
    train = dataclasses.replace(config.train, batch_size=sequences, train_tokens=tokens, double_batch_at=0.0)
    return dataclasses.replace(config, train=train)


def _sent(comparison: Comparison) -> tuple[Sent, ...]:
    rows = [(True, row) for row in comparison.layer] + [(False, row) for row in comparison.embedding_and_loss]
    return tuple(Sent(in_layers, row.kind, row.axes, row.measured, row.minimum) for in_layers, row in rows)


def axis_links(mesh: Mesh, slice_: Slice) -> dict[str, int]:
    """How many links of a chip serve each mesh axis, one way, within a slice.

    Two for each side of the grid that the axis covers as a ring, one where it is a line. An axis of one device has 0.
    """
    found = {}
    for position, (axis, size) in enumerate(mesh.shape.items()):
        if axis == "data":
            size //= slice_.count
        index = tuple(slice(0, size) if i == position else 0 for i in range(mesh.devices.ndim))
        coordinates = [device.coords for device in mesh.devices[index]]
        extents = [len({c[side] for c in coordinates}) for side in range(len(slice_.grid))]
        found[axis] = sum(2 if extent == slice_.grid[side] and slice_.wraps(side) else 1
                          for side, extent in enumerate(extents) if extent > 1)  # fmt: skip
    return found


def traffic(collectives: Sequence[Collective], links: Mapping[str, int]) -> tuple[Traffic, ...]:
    """Collectives of a step by kind, axes, whether they are in the loop over the layers and whether asynchronous.

    Args:
      links: of each mesh axis; only an all-to-all needs them, to know how often it is passed on.
    """
    groups: dict[tuple, list[int]] = {}
    for c in collectives:
        sent = c.wire_bytes
        if c.kind == "all-to-all":
            # On k rings of n chips each a message passes k n/4 links in the mean.
            rings = max(1, sum(links[axis] for axis in c.axes) // 2)
            sent = max(sent, round(c.bytes * rings * c.group ** (1 / rings) / 4))
        within, across = (0, sent) if c.network == "dcn" else (sent, 0)
        in_layers = "/layer" in c.op_name and bool(c.loops)
        entry = groups.setdefault((c.kind, c.axes, in_layers, c.asynchronous), [0, 0, 0, 0, 0])
        for i, value in enumerate((1, c.trips, c.trips * c.bytes, c.trips * within, c.trips * across)):
            entry[i] += value
    order = sorted(groups.items(), key=lambda item: -item[1][3] - item[1][4])
    return tuple(Traffic(*key, *values) for key, values in order)


def compiler_words(error: Exception) -> str:
    """The first line of an error of the compiler, for a message of one line."""
    return str(error).strip().split("\n")[0][:300]


def gib(count: float) -> float:
    """Bytes in GiB."""
    return count / GIB
