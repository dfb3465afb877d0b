"""The train step: a pure function of state, batch and learning rate, jitted with every input's sharding given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from chinchilla_jax.base.chips import chip_of
from chinchilla_jax.config import MeshConfig, RunConfig
from chinchilla_jax.kernels.tiles import compile_for
from chinchilla_jax.model.parts import rates, vectors
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.parallel.attention import project, sharded_attention
from chinchilla_jax.parallel.experts import mix
from chinchilla_jax.parallel.rules import check_split, partition_spec, rules_of, shardings
from chinchilla_jax.parallel.vocabulary import lookup
from chinchilla_jax.training.machine.shape import shape_key
from chinchilla_jax.training.objective import NEXT_TOKEN, Arrays, Objective
from chinchilla_jax.training.optimizer import make_optimizer

# XLA gathers the next weights, and rows split over the tensor axis, while it computes; by default it waits for most of
# them. What this changes in a program: `preflight` counts asynchronous collectives apart.
_TPU_OPTIONS = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}
_ALL_TO_ALL_OPTIONS = {"xla_tpu_enable_async_all_to_all": "true"}  # of attention on a context axis


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes. Weights are float32: the master copy lives in the sharded state.

    `extra` is a tree of arrays that an objective keeps besides weights and moments; next-token prediction keeps none.
    """

    step: jax.Array
    params: dict
    opt_state: tuple
    extra: Any = flax.struct.field(default_factory=dict)


class Program(NamedTuple):
    """The compiled functions of one shape, shared by every run of that shape."""

    init: jax.stages.Wrapped  # key -> sharded TrainState
    step: jax.stages.Wrapped  # (state, batch, lr) -> (state, metrics)
    evaluate: jax.stages.Wrapped  # (params, extra, batch) -> sums
    abstract: TrainState  # of ShapeDtypeStructs with shardings, to restore a checkpoint into
    batch_sharding: NamedSharding  # for arrays `[M, B/M, S]`


def model_of(config: RunConfig) -> Transformer:
    """The module of a run, its attention laid out on the mesh in force, if there is one."""
    mesh, remat = jax.sharding.get_abstract_mesh(), config.train.remat
    remat = "gathered" if remat == "none" and mesh.size > 1 else remat
    dtype = jnp.dtype(config.train.compute_dtype)
    return Transformer(config.model, dtype, remat, sharded_attention(mesh), lookup, project, mix=mix)


def _optimizer(config: RunConfig) -> optax.GradientTransformation:
    return make_optimizer(config.optimizer, vectors(config.model), rates(config.model))


def init_state(config: RunConfig, key: jax.Array, objective: Objective = NEXT_TOKEN) -> TrainState:
    """A fresh state; weights still carry their logical axes."""
    rows = config.mesh.rows  # a mesh has no use for less than a row for each of them
    tokens = jnp.zeros((rows, config.data.seq_len), jnp.int32)
    params = model_of(config).init(key, tokens)["params"]
    opt_state = _optimizer(config).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, objective.init_extra(config, params))


def train_step(
    config: RunConfig, state: TrainState, batch: dict, lr: jax.Array, objective: Objective = NEXT_TOKEN
) -> tuple[TrainState, dict]:
    """One update from the token-weighted mean gradient of the whole batch.

    The batch has arrays `[M, B/M, S]`: M microbatches, one after the other. They bound memory, and on a CPU they make
    small models fast: a microbatch's activations stay in the cache.

    Returns:
      The new state, and scalars: loss (nats per token), grad_norm (before clipping), weight (tokens), and what else the
      objective or the blocks sum up, by token.
    """

    def summed_loss(params: dict, rows: Arrays) -> tuple[jax.Array, Arrays]:
        return objective.sums(config, model_of(config), params, state.extra, rows)

    def microbatch(carry: tuple, rows: Arrays) -> tuple[tuple, Arrays]:
        grads, sums = carry
        (_, more), more_grads = jax.value_and_grad(summed_loss, has_aux=True)(state.params, rows)
        auxiliary = {name: value for name, value in more.items() if name not in sums}
        sums = {name: value + more[name] for name, value in sums.items()}
        return (jax.tree.map(jnp.add, grads, more_grads), sums), auxiliary

    zeros = jax.tree.map(jnp.zeros_like, state.params), {"nll": jnp.zeros(()), "weight": jnp.zeros(())}
    (grads, sums), auxiliary = jax.lax.scan(microbatch, zeros, batch)
    weight = jnp.maximum(sums["weight"], 1.0)
    grads = jax.tree.map(lambda g: g / weight, grads)
    updates, opt_state = _optimizer(config).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, jax.tree.map(lambda u: -lr * u, updates))
    metrics = {"loss": sums["nll"] / weight, "grad_norm": optax.tree.norm(grads), "weight": sums["weight"]}
    metrics |= {name: value.sum(0) / weight for name, value in auxiliary.items()}
    extra = objective.next_extra(config, params, state.extra)
    return TrainState(state.step + 1, params, opt_state, extra), metrics


def evaluate_step(
    config: RunConfig, params: dict, extra: Any, batch: dict, objective: Objective = NEXT_TOKEN
) -> dict[str, jax.Array]:
    """Sums of each microbatch of a batch `[M, B/M, S]`: `nll` (nats of the next token) and `weight`, both `[M]`."""
    return jax.lax.map(lambda rows: objective.next_token_sums(config, model_of(config), params, extra, rows), batch)


def on_mesh(function: Callable, mesh: Mesh | AbstractMesh, config: MeshConfig) -> Callable:
    """Traces a function with mesh and rules in force, for the mesh's kind of device; this machine need not have one."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        with (
            rules_of(config),
            jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
            compile_for(mesh.abstract_mesh.abstract_device.device_kind),
        ):
            return function(*args)

    return wrapped


def make_program(config: RunConfig, mesh: Mesh | AbstractMesh, objective: Objective = NEXT_TOKEN) -> Program:
    """Jitted init, step and evaluation for a config on a mesh; cached, so that equal shapes share compilations.

    For devices that are not there (`topology_mesh`, `ahead.abstract_mesh`) they can be lowered, not run. Raises a
    `ShardingError` if a weight's axes collide on the mesh, a `ConfigError` of `mesh.rules`.
    """
    with rules_of(config.mesh):
        return _make_program(shape_key(config), mesh, objective)


@functools.lru_cache(maxsize=64)
def _make_program(config: RunConfig, mesh: Mesh | AbstractMesh, objective: Objective) -> Program:
    boxed = jax.eval_shape(lambda key: init_state(config, key, objective), jax.random.key(0))
    placed = shardings(boxed, mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), placed)
    check_split(abstract, mesh)
    replicated = NamedSharding(mesh, partition_spec(()))
    device_kind = mesh.abstract_mesh.abstract_device.device_kind
    batch_sharding = NamedSharding(mesh, partition_spec(("microbatch", "batch", "length")))

    def jit(function: Callable, options: dict | None = None, **arguments: Any) -> jax.stages.Wrapped:
        return jax.jit(on_mesh(function, mesh, config.mesh), compiler_options=options, **arguments)

    init = jit(lambda key: nn.unbox(init_state(config, key, objective)), once(device_kind), out_shardings=placed)
    step = jit(
        lambda state, batch, lr: train_step(config, state, batch, lr, objective),
        step_options(device_kind),
        donate_argnums=0,
        in_shardings=(placed, batch_sharding, replicated),
        out_shardings=(placed, replicated),
    )
    evaluate = jit(
        lambda params, extra, batch: evaluate_step(config, params, extra, batch, objective),
        in_shardings=(placed.params, placed.extra, batch_sharding),
        out_shardings=replicated,
    )
    return Program(init, step, evaluate, abstract, batch_sharding)


def once(device_kind: str) -> dict[str, int] | None:
    """Options for `jax.jit` of what runs once: random numbers take a CPU longer to compile well than to draw slowly."""
    return {"xla_backend_optimization_level": 0} if device_kind == "cpu" else None


def step_options(device_kind: str) -> dict[str, str] | None:
    """Options for `jax.jit` of a train step for a kind of device, as `device.device_kind` names it."""
    if not device_kind.startswith("TPU"):
        return None
    slices = chip.slices if (chip := chip_of(device_kind)) else None
    return _TPU_OPTIONS | (_ALL_TO_ALL_OPTIONS if slices and slices.async_all_to_all else {})
