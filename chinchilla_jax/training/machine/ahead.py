"""What is a run's train step on devices that are not there? It is lowered and compiled from shapes: no array is made.

    config = RunConfig.from_dict(...)
    compiled = compile_train_step(config, topology_mesh("v5p:4x4x4", config.mesh))
    compiled.memory_analysis(), compiled.as_text()

`topology_mesh` needs the TPU compiler. `abstract_mesh` needs nothing, and is enough to lower and to export.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from chinchilla_jax.config import MeshConfig, RunConfig
from chinchilla_jax.parallel.rules import MESH_AXES
from chinchilla_jax.training.objective import NEXT_TOKEN
from chinchilla_jax.training.step import make_program


def abstract_mesh(config: MeshConfig, device_kind: str) -> AbstractMesh:
    """A `data x fsdp x context x tensor` mesh of devices of a `device_kind` that JAX knows: `TPU v5 lite`, `cpu`."""
    platform = "tpu" if device_kind.startswith("TPU") else device_kind
    return AbstractMesh(
        config.shape,
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        abstract_device=AbstractDevice(device_kind, 1, platform),
    )


def train_step_arguments(
    config: RunConfig, mesh: Mesh | AbstractMesh, sequences: int | None = None, objective: str = NEXT_TOKEN
) -> tuple:
    """Shapes, types and shardings of `Program.step`'s state, batch and learning rate.

    Args:
      sequences: in the batch; default `train.batch_size`. A run whose batch doubles has two train steps.
      objective: name of what the step minimises.
    """
    program, train = make_program(config, mesh, objective), config.train
    shape = (train.microbatches, (sequences or train.batch_size) // train.microbatches, config.data.seq_len)

    def array(dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=program.batch_sharding)

    batch = {"inputs": array(jnp.int32), "targets": array(jnp.int32), "weights": array(jnp.float32)}
    if config.data.mask_documents:
        batch["segment_ids"] = array(jnp.int32)
    return program.abstract, batch, jax.ShapeDtypeStruct((), jnp.float32)


def lower_train_step(
    config: RunConfig, mesh: Mesh | AbstractMesh, sequences: int | None = None, objective: str = NEXT_TOKEN
) -> jax.stages.Lowered:
    """The train step for the devices of the mesh, before their compiler has seen it.

    Raises:
      ShardingError, AttentionError: the model cannot be laid out on the mesh, or not be computed by its devices.
    """
    arguments = train_step_arguments(config, mesh, sequences, objective)
    traced = make_program(config, mesh, objective).step.trace(*arguments)
    return traced.lower(lowering_platforms=(mesh.abstract_mesh.abstract_device.platform,))


def compile_train_step(
    config: RunConfig, mesh: Mesh, sequences: int | None = None, objective: str = NEXT_TOKEN
) -> jax.stages.Compiled:
    """The train step as the devices of the mesh would run it: its memory, its text. Minutes for a large model.

    Raises:
      ShardingError, AttentionError: see `lower_train_step`.
      jax.errors.JaxRuntimeError: the compiler refuses it, as when it does not fit the memory.
    """
    return lower_train_step(config, mesh, sequences, objective).compile()
