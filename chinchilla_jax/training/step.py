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

from chinchilla_jax.config import MeshConfig, RunConfig
from chinchilla_jax.kernels.tiles import compile_for
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.parallel.attention import sharded_attention
from chinchilla_jax.parallel.distances import project
from chinchilla_jax.parallel.rules import check_split, flax_rules, partition_spec, rules_of, shardings
from chinchilla_jax.parallel.vocabulary import lookup
from chinchilla_jax.training.machine.shape import shape_key
from chinchilla_jax.training.machine.xla_flags import step_options
from chinchilla_jax.training.objective import NEXT_TOKEN, next_token_sums, objective_of
from chinchilla_jax.training.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """Everything a step changes. Weights are float32: the master copy lives in the sharded state.

    `extra` is what an objective keeps besides weights and moments, a tree of arrays; next-token prediction keeps
    nothing.
    """

    step: jax.Array
    params: dict
    opt_state: tuple
    extra: Any = flax.struct.field(default_factory=dict)


class Program(NamedTuple):
    """The compiled functions of one shape, shared by every run of that shape.

    init: key -> sharded TrainState. step: (state, batch, lr) -> (state, metrics). evaluate: (params, batch) -> sums.
    abstract: TrainState of ShapeDtypeStructs with shardings, to restore a checkpoint into.
    batch_sharding: for arrays `[M, B/M, S]`.
    """

    init: jax.stages.Wrapped
    step: jax.stages.Wrapped
    evaluate: jax.stages.Wrapped
    abstract: TrainState
    batch_sharding: NamedSharding


def model_of(config: RunConfig) -> Transformer:
    """The module of a run, its attention laid out on the mesh in force, if there is one."""
    mesh, remat = jax.sharding.get_abstract_mesh(), config.train.remat
    if remat == "none" and mesh.size > 1:
        remat = "gathered"
    dtype = jnp.dtype(config.train.compute_dtype)
    return Transformer(config.model, dtype, remat, sharded_attention(mesh), lookup, project)


def init_state(config: RunConfig, key: jax.Array, objective: str = NEXT_TOKEN) -> TrainState:
    """A fresh state; weights still carry their logical axes."""
    rows = config.mesh.data * config.mesh.fsdp  # a mesh has no use for less than a row for each of them
    tokens = jnp.zeros((rows, config.data.seq_len), jnp.int32)
    params = model_of(config).init(key, tokens)["params"]
    opt_state = make_optimizer(config.optimizer).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, objective_of(objective).init_extra(config, params))


def train_step(
    config: RunConfig, state: TrainState, batch: dict, lr: jax.Array, objective: str = NEXT_TOKEN
) -> tuple[TrainState, dict]:
    """One update from the token-weighted mean gradient of the whole batch.

    Args:
      batch: arrays `[M, B/M, S]`: M microbatches, one after the other. Besides bounding memory this is what makes
        small models fast on a CPU: a microbatch's activations stay in the cache.
      lr: learning rate of this step.
      objective: name of what is minimised.

    Returns:
      The new state, and scalars: loss (nats per token), grad_norm (before clipping), weight (tokens), and what else the
      objective or the blocks sum up, by token.
    """

    def summed_loss(params, rows):
        return objective_of(objective).sums(config, model_of(config), params, state.extra, rows)

    def microbatch(carry, rows):
        grads, sums = carry
        (_, more), more_grads = jax.value_and_grad(summed_loss, has_aux=True)(state.params, rows)
        auxiliary = {name: value for name, value in more.items() if name not in sums}
        sums = {name: value + more[name] for name, value in sums.items()}
        return (jax.tree.map(jnp.add, grads, more_grads), sums), auxiliary

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    sums = {"nll": jnp.zeros(()), "weight": jnp.zeros(())}
    (grads, sums), auxiliary = jax.lax.scan(microbatch, (zeros, sums), batch)
    weight = jnp.maximum(sums["weight"], 1.0)
    grads = jax.tree.map(lambda g: g / weight, grads)
    updates, opt_state = make_optimizer(config.optimizer).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, jax.tree.map(lambda u: -lr * u, updates))
    metrics = {"loss": sums["nll"] / weight, "grad_norm": optax.tree.norm(grads), "weight": sums["weight"]}
    metrics |= {name: value.sum(0) / weight for name, value in auxiliary.items()}
    extra = objective_of(objective).next_extra(config, params, state.extra)
    return TrainState(state.step + 1, params, opt_state, extra), metrics


def evaluate_step(config: RunConfig, params: dict, batch: dict) -> dict:
    """Sums of each microbatch of a batch `[M, B/M, S]`: `nll` (nats of the next token) and `weight`, both `[M]`."""
    return jax.lax.map(lambda rows: next_token_sums(model_of(config), params, rows)[1], batch)


def on_mesh(function: Callable, mesh: Mesh | AbstractMesh, config: MeshConfig) -> Callable:
    """Traces a function with mesh and rules in force, so that constraints in the model know them, and for the mesh's
    kind of device, which need not be one of this machine."""

    @functools.wraps(function)
    def wrapped(*args):
        with (
            rules_of(config),
            jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
            nn.logical_axis_rules(flax_rules()),
            compile_for(mesh.abstract_mesh.abstract_device.device_kind),
        ):
            return function(*args)

    return wrapped


def make_program(config: RunConfig, mesh: Mesh | AbstractMesh, objective: str = NEXT_TOKEN) -> Program:
    """Jitted init, step and evaluation for a config on a mesh; cached, so that equal shapes share compilations.

    On devices that are not there, as those of `topology_mesh` or `ahead.abstract_mesh`, they can be lowered, not run.

    Raises:
      ShardingError: a weight's axes collide on the mesh.
      ConfigError: no objective has that name, or `mesh.rules` cannot be.
    """
    with rules_of(config.mesh):
        return _make_program(shape_key(config), mesh, objective)


@functools.lru_cache(maxsize=64)
def _make_program(config: RunConfig, mesh: Mesh | AbstractMesh, objective: str) -> Program:
    boxed = jax.eval_shape(lambda key: init_state(config, key, objective), jax.random.key(0))
    placed = shardings(boxed, mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), placed)
    check_split(abstract, mesh)
    replicated = NamedSharding(mesh, partition_spec(()))
    device_kind = mesh.abstract_mesh.abstract_device.device_kind
    batch_sharding = NamedSharding(mesh, partition_spec(("microbatch", "batch", "length")))

    # Runs once, and its random numbers take a CPU longer to compile well than to draw slowly.
    options = {"xla_backend_optimization_level": 0} if device_kind == "cpu" else None
    init = jax.jit(
        on_mesh(lambda key: nn.unbox(init_state(config, key, objective)), mesh, config.mesh),
        out_shardings=placed,
        compiler_options=options,
    )
    step = jax.jit(
        on_mesh(lambda state, batch, lr: train_step(config, state, batch, lr, objective), mesh, config.mesh),
        donate_argnums=0,
        in_shardings=(placed, batch_sharding, replicated),
        out_shardings=(placed, replicated),
        compiler_options=step_options(device_kind),
    )
    evaluate = jax.jit(
        on_mesh(lambda params, batch: evaluate_step(config, params, batch), mesh, config.mesh),
        in_shardings=(placed.params, batch_sharding),
        out_shardings=replicated,
    )
    return Program(init, step, evaluate, abstract, batch_sharding)
