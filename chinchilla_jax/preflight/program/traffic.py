"""How much must a layer send at least, and how much does the compiled one send? Pure arithmetic on shapes.

Per device, for one layer and one microbatch. A collective over g devices of an array of n bytes sends (g-1)/g n from
each of them as an all-gather or a reduce-scatter and twice that as an all-reduce, and no algorithm sends less (Chan et
al. 2007, table 1). `_minimum` lists the collectives, by the axes of the table in `parallel/rules.py`:

    weights (FSDP; Rajbhandari et al. 2020, stage 3), over fsdp and context: gathered for the forward pass and once more
      for the backward pass; their gradients are reduced and scattered
    residual stream, split over tokens (Korthikanti et al. 2022, section 4.2.2), over tensor: gathered before the first
      products of attention and of the feed-forward, for the gradients of what the two blocks added, and again if
      anything is recomputed; scattered after the last products, for the gradients of the inputs, and once more with
      remat `attention` and `full`: the feed-forward's input takes the attention block again, while nothing needs the
      output of the feed-forward. A stream that every device holds whole would take all-reduces only, 2 + 2 + 1 of them:
      a little less with remat, for as many times the memory as `tensor` has devices.
    keys of relative distances, over fsdp and context: the cheaper of two ways to get them. Their weight is gathered as
      others are, or the products of parts of the width are added up, in float32. (Counted for all heads, though a
      device that exchanges tokens for heads needs only its own.)
    tokens of a row that see each other, over context: the cheaper of two ways (`parallel/context.py`). Queries, keys,
      values and the output are exchanged for heads, if they divide, or keys and values are gathered.
    rows of tokens for the experts of other devices, over expert: there and back, forward and backward, and again if
      anything is recomputed; a row for each expert that a token is sent to
    gradients over data, and of all but experts over expert, once a step: of what a device stores of the layer, in
      float32, or in the compute type if there is one microbatch
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from chinchilla_jax.base.hlo import HloError
from chinchilla_jax.config import MeshConfig, RunConfig
from chinchilla_jax.model.parts import POSITIONS, Weight, block_weights, end_weights, is_experts
from chinchilla_jax.parallel.rules import mesh_axes, rules_of
from chinchilla_jax.preflight.step import Sent

if TYPE_CHECKING:
    from chinchilla_jax.preflight.program.program import Collective, StepProgram

_BYTES = {"bfloat16": 2, "float32": 4}
_IN_LAYER = re.compile(r"/layers?(?:_\d+)?/")
_Row = tuple[int, str, tuple[str, ...], int, str]  # how many collectives of an array, kind, axes, its bytes, why


@dataclasses.dataclass(frozen=True)
class Need:
    """A collective that cannot be avoided: what one device sends, in bytes, over the axes with more than one device."""

    kind: str
    axes: tuple[str, ...]
    wire_bytes: int
    why: str


@dataclasses.dataclass(frozen=True)
class Least:
    """The least that a device sends. The tables are gathered once a step."""

    layer: tuple[Need, ...]  # per layer and microbatch
    layer_per_step: tuple[Need, ...]  # per layer and step, whatever the number of microbatches
    embedding_and_loss: tuple[Need, ...]  # per microbatch, outside the layers
    embedding_and_loss_per_step: tuple[Need, ...]


def minimum(config: RunConfig) -> Least:
    """The least traffic of a run's train step on its mesh; the module's docstring has the formulas.

    Raises:
      ConfigError: `mesh.rules` gives an axis that is split twice.
    """
    with rules_of(config.mesh):
        return _minimum(config)


def _minimum(config: RunConfig) -> Least:
    m, mesh, train = config.model, config.mesh, config.train
    size = _BYTES[train.compute_dtype]
    summed = 4 if train.microbatches > 1 else size  # bytes of a gradient once all microbatches are added up
    stored, length, heads = mesh_axes("embed"), mesh_axes("length"), mesh_axes("heads")
    spread = _without(mesh_axes("residual_length"), length)  # of the residual stream
    copied = _without(mesh_axes("batch", "length"), stored)  # axes whose devices have other tokens, but equal weights
    added = _without(mesh_axes("batch", "length"), copied)
    vocabulary = mesh_axes("vocab")
    rows = train.batch_size // train.microbatches // devices(mesh, mesh_axes("batch"))
    tokens = rows * config.data.seq_len // devices(mesh, length)
    stream = size * m.d_model * tokens
    recomputed = train.remat != "none"
    blocks_again = int(train.remat in ("attention", "full"))
    layer = [weight for weights in block_weights(m).values() for weight in weights.values()]
    distances = _numbers(mesh, POSITIONS[m.position].weights(m).values(), "embed")
    weights = _numbers(mesh, layer, "embed")
    vectors, whole = _numbers(mesh, layer) - weights, _numbers(mesh, layer, "norm")
    tables = _numbers(mesh, end_weights(m).values(), "embed")
    in_layer = (
        (2, "all-gather", stored, size * (weights - distances), "weights"),
        (1, "reduce-scatter", stored, size * (weights - distances), "gradients of weights"),
        (4 + 2 * recomputed, "all-gather", spread, stream, "residual stream"),
        (4 + blocks_again, "reduce-scatter", spread, stream, "residual stream"),
        (
            2 + blocks_again,
            "all-reduce",
            _without(heads, spread),
            stream,
            "residual stream, where devices hold it whole",
        ),
        (2, "all-reduce", _without(mesh_axes("mlp"), spread), stream, "residual stream, where devices hold it whole"),
        *_relative(config, size, distances, 1 + blocks_again),
        (
            4 + 2 * recomputed,
            "all-to-all",
            mesh_axes("experts"),
            stream * (m.active_experts or m.experts),
            "tokens for experts",
        ),
        *_context(config, size * tokens // devices(mesh, heads), 1 + recomputed),
        (1, "all-reduce", (*added, *spread), size * whole, "gradients of gains and biases of the stream"),
        (1, "all-reduce", added, size * (vectors - whole), "gradients of biases of heads and inner width"),
    )
    ends = (
        (1, "reduce-scatter", spread, stream, "embeddings, from parts of the vocabulary"),
        (1, "all-gather", spread, stream, "gradients of embeddings"),
        (1, "all-gather", spread, stream, "input of the logits"),
        (1, "reduce-scatter", spread, stream, "its gradients"),
        (2, "all-reduce", _without(vocabulary, spread), stream, "the same, where devices hold the stream whole"),
        (1, "all-reduce", vocabulary, 3 * 4 * tokens, "largest logit, sum and label's logit of every token"),
        (1, "reduce-scatter", stored, size * tables, "gradients of tables"),
    )
    ends_per_step = (
        (1, "all-gather", stored, size * tables, "tables"),
        (1, "all-reduce", copied, summed * tables // devices(mesh, stored), "gradients of tables"),
    )
    layer_per_step = [
        (
            1,
            "all-reduce",
            _without(copied, axes),
            summed * _stored(mesh, [w for w in layer if is_experts(w) == own]),
            why,
        )
        for own, axes, why in ((False, (), "gradients"), (True, mesh_axes("experts"), "gradients of experts"))
    ]
    return Least(
        _needs(mesh, in_layer),
        _needs(mesh, layer_per_step),
        _needs(mesh, ends),
        _needs(mesh, ends_per_step),
    )


def _without(axes: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(axis for axis in axes if axis not in others)


def devices(mesh: MeshConfig, axes: Sequence[str]) -> int:
    """How many devices there are along these axes together."""
    return math.prod(mesh.axes[axis] for axis in axes)


def _needs(mesh: MeshConfig, rows: Sequence[_Row]) -> tuple[Need, ...]:
    """The collectives of rows. Over a single device nothing is needed."""
    needs = []
    for times, kind, names, size, why in rows:
        axes = tuple(axis for axis in mesh.axes if axis in names and mesh.axes[axis] > 1)
        group = devices(mesh, axes)
        if group > 1 and size and times:
            wire = (2 if kind == "all-reduce" else 1) * size * (group - 1) // group
            needs.append(Need(kind, axes, times * wire, why))
    return tuple(needs)


def _cheaper(mesh: MeshConfig, *ways: Sequence[_Row]) -> Sequence[_Row]:
    return min(ways, key=lambda rows: sum(need.wire_bytes for need in _needs(mesh, rows)))


def _numbers(mesh: MeshConfig, weights: Iterable[Weight], axis: str | None = None) -> int:
    """Numbers that a device has of weights, or of those with an axis, once their model width is gathered."""
    chosen = [weight for weight in weights if axis is None or axis in weight.axes]
    split = [mesh_axes(*(name for name in w.axes if name and name != "embed")) for w in chosen]
    return sum(math.prod(w.shape) // devices(mesh, axes) for w, axes in zip(chosen, split, strict=True))


def _stored(mesh: MeshConfig, weights: Sequence[Weight]) -> int:
    """Numbers that a device stores of weights."""
    split = _numbers(mesh, weights, "embed")
    return split // devices(mesh, mesh_axes("embed")) + _numbers(mesh, weights) - split


def _relative(config: RunConfig, size: int, weights: int, passes: int) -> Sequence[_Row]:
    """The keys of distances, the cheaper way. `weights` is how many numbers a device has once they are gathered."""
    stored, products = mesh_axes("embed"), config.data.seq_len * (weights // config.model.d_model)
    return _cheaper(
        config.mesh,
        [
            (passes, "all-gather", stored, size * weights, "weight of relative keys"),
            (1, "reduce-scatter", stored, size * weights, "its gradient"),
        ],
        [
            (passes, "all-reduce", stored, 4 * products, "relative keys"),
            (1, "all-reduce", stored, size * products, "gradient of relative keys"),
        ],
    )


def _context(config: RunConfig, size: int, passes: int) -> Sequence[_Row]:
    """Attention of split rows, the cheaper way. `size` is that of one channel of a device's tokens and heads."""
    m, mesh, length = config.model, config.mesh, mesh_axes("length")
    kv, parts = m.n_kv_heads * m.head_dim, devices(mesh, length)
    gathered = [
        (passes, "all-gather", length, size * parts * 2 * kv, "keys and values"),
        (1, "reduce-scatter", length, size * parts * 2 * kv, "gradients of keys and values"),
    ]
    if m.n_kv_heads % (devices(mesh, mesh_axes("heads")) * parts):
        return gathered
    return _cheaper(
        mesh, [(1 + passes, "all-to-all", length, size * (2 * m.d_attn + 2 * kv), "tokens for heads")], gathered
    )


def compare(program: StepProgram, config: RunConfig) -> tuple[Sent, ...]:
    """What a compiled train step sends against the least: first a layer, then the embedding and the loss.

    A collective is a layer's if its name says so, or if it runs in a loop over layers. A loop is one over layers if it
    holds a collective whose name says so. The last row of each part is the sum of all.

    Raises:
      HloError: the trips of a loop with collectives in it are not known, so that what they send is not.
    """
    for c in program.collectives:
        if unknown := [loop for loop in c.loops if loop in program.unknown_loops]:
            what = f"{c.name} runs in {unknown[-1]}, whose trips could not be found: what it sends is not known"
            raise HloError(what)
    microbatches, layers = config.train.microbatches, config.model.n_layers
    depth = 1 if microbatches > 1 else 0  # the loop over microbatches is around everything
    loops = {c.loops[depth] for c in program.collectives if _IN_LAYER.search(c.op_name) and len(c.loops) > depth}

    def in_layer(c: Collective) -> bool:
        return bool(_IN_LAYER.search(c.op_name)) or not loops.isdisjoint(c.loops[depth : depth + 1])

    inside = [c for c in program.collectives if in_layer(c)]
    outside = [c for c in program.collectives if not in_layer(c)]
    least = minimum(config)
    needs = [(need, 1) for need in least.layer] + [(need, microbatches) for need in least.layer_per_step]
    ends = [(need, 1) for need in least.embedding_and_loss]
    ends += [(need, microbatches) for need in least.embedding_and_loss_per_step]
    return (*_rows(True, inside, layers * microbatches, needs), *_rows(False, outside, microbatches, ends))


def _rows(in_layers: bool, collectives: list[Collective], times: int, needs: list[tuple[Need, int]]) -> list[Sent]:
    """Rows by axes and kind, with sums.

    Args:
      times: how often the part runs in a step, over which what is measured is shared out.
      needs: each with the number of times over which it is shared out.
    """
    measured: dict[tuple[tuple[str, ...], str], float] = collections.defaultdict(float)
    least: dict[tuple[tuple[str, ...], str], float] = collections.defaultdict(float)
    sent = [(measured, c.kind, c.axes, c.wire_bytes * c.trips / times) for c in collectives if c.wire_bytes * c.trips]
    sent += [(least, need.kind, need.axes, need.wire_bytes / shared) for need, shared in needs]
    for sums, kind, axes, size in sent:
        for key in ((axes, kind), (axes, "all"), ((), "all")):
            sums[key] += size
    keys = sorted(measured.keys() | least.keys(), key=lambda key: (not key[0], key[0], key[1] == "all", key[1]))
    return [Sent(in_layers, kind, axes, measured[axes, kind], least[axes, kind]) for axes, kind in keys]
