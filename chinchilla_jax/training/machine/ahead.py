"""A run's programs before it runs: lowered and compiled from shapes for devices that are not there, or warmed up here.

    config = RunConfig.from_dict(...)
    compiled = compile_train_step(config, topology_mesh("v5p:4x4x4", config.mesh))
    compiled.memory_analysis(), compiled.as_text()

`topology_mesh` needs the TPU compiler. `abstract_mesh` needs nothing, and is enough to lower and to export.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from chinchilla_jax.config import MeshConfig, RunConfig
from chinchilla_jax.parallel.mesh import make_mesh
from chinchilla_jax.training.objective import NEXT_TOKEN, Objective
from chinchilla_jax.training.step import make_program


def abstract_mesh(config: MeshConfig, device_kind: str) -> AbstractMesh:
    """A mesh with the axes of a config of devices of a `device_kind` that JAX knows: `TPU v5 lite`, `cpu`."""
    platform = "tpu" if device_kind.startswith("TPU") else device_kind
    types, device = (AxisType.Auto,) * len(config.axes), AbstractDevice(device_kind, 1, platform)
    return AbstractMesh(config.shape, tuple(config.axes), axis_types=types, abstract_device=device)


def train_step_arguments(
    config: RunConfig, mesh: Mesh | AbstractMesh, sequences: int | None = None, objective: Objective = NEXT_TOKEN
) -> tuple:
    """Shapes, types and shardings of `Program.step`'s state, batch and learning rate.

    `sequences` are those of the batch; default `train.batch_size`. A run whose batch doubles has two train steps.
    `objective` is what the step minimises.
    """
    program, train = make_program(config, mesh, objective), config.train
    shape = (train.microbatches, (sequences or train.batch_size) // train.microbatches, config.data.seq_len)
    types = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    if config.data.mask_documents:
        types["segment_ids"] = jnp.int32
    if config.data.has_teacher:
        types["other_labels"] = jnp.int32
    batch = {name: jax.ShapeDtypeStruct(shape, t, sharding=program.batch_sharding) for name, t in types.items()}
    return program.abstract, batch, jax.ShapeDtypeStruct((), jnp.float32)


def lower_train_step(
    config: RunConfig, mesh: Mesh | AbstractMesh, sequences: int | None = None, objective: Objective = NEXT_TOKEN
) -> jax.stages.Lowered:
    """The train step for the devices of the mesh, before their compiler has seen it.

    Raises a `ShardingError` or `AttentionError` if the model cannot be laid out on the mesh or computed by its devices.
    """
    arguments = train_step_arguments(config, mesh, sequences, objective)
    traced = make_program(config, mesh, objective).step.trace(*arguments)
    return traced.lower(lowering_platforms=(mesh.abstract_mesh.abstract_device.platform,))


def compile_train_step(
    config: RunConfig, mesh: Mesh, sequences: int | None = None, objective: Objective = NEXT_TOKEN
) -> jax.stages.Compiled:
    """The train step as the devices of the mesh would run it: its memory, its text. Minutes for a large model.

    Raises what `lower_train_step` does, and a `JaxRuntimeError` where the compiler refuses it, as for want of memory.
    """
    return lower_train_step(config, mesh, sequences, objective).compile()


def warm(config: RunConfig) -> None:
    """Has this process ready for the first step and the evaluation of the run `config`. Nothing is read or written.

    What is compiled goes into the compilation cache too, for other processes. It raises what the run would raise.
    """
    from chinchilla_jax.training.machine import hardware  # neither decides about a program
    from chinchilla_jax.training.stages import course_of

    hardware.keep_freed_memory()
    first = course_of(config).stages[0]
    mesh = make_mesh(config.mesh)
    program = make_program(first.config, mesh, first.objective)
    _, shapes, _ = train_step_arguments(first.config, mesh, objective=first.objective)
    batch = {name: jax.device_put(np.zeros(a.shape, a.dtype), a.sharding) for name, a in shapes.items()}
    state, _ = program.step(program.init(jax.random.key(config.train.seed)), batch, np.float32(0.0))
    jax.block_until_ready(program.evaluate(state.params, state.extra, batch))
