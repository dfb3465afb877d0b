"""How much must a layer send at least, and how much does the compiled one send? Pure arithmetic on shapes.

Per device, for one layer and one microbatch. A collective over g devices of an array of n bytes sends (g-1)/g n from
each of them as an all-gather or a reduce-scatter and twice that as an all-reduce, and no algorithm sends less (Chan et
al. 2007, table 1). With e bytes in a number of the compute type, W = d (a + 2 k) + a d + m d f weights in a layer's
matrices (d the model width, a and k the width of all query and key heads, f the inner width, m = 3 if gated, else 2),
t = mesh.tensor, and X = e d x the tokens of one device's rows:

    weights (FSDP; Rajbhandari et al. 2020, stage 3), over fsdp and context
      all-gather      2 e W/t   the forward pass, and once more the backward pass
      reduce-scatter  1 e W/t   gradients
    residual stream split over tokens (Korthikanti et al. 2022, section 4.2.2), over tensor
      all-gather      2 X forward: before the first products of attention and of the feed-forward
                    + 2 X backward: gradients of what the two blocks added
                    + 2 X if anything is recomputed: the inputs of those products, for the gradients of the weights
      reduce-scatter  2 X forward: after the last products
                    + 2 X backward: gradients of the inputs
                    + 1 X with remat `attention` and `full`: the feed-forward's input takes the attention block again,
                          while nothing needs the output of the feed-forward
      A stream that every device holds whole would take all-reduces only, 2 + 2 + 1 of 2 X each: a little less with
      remat, for t times the memory.
    keys of relative distances, S of them, over fsdp and context: the cheaper of two ways to get them from their
    weight of d a/t; r is 1, or 2 with remat `attention` and `full`
      all-gather r e d a/t and reduce-scatter e d a/t   the weight is gathered as others are
      all-reduce r 4 S a/t + e S a/t                    products of parts of the width are added up, in float32
      (counted for all of a/t, though a device that exchanges tokens for heads needs only its own)
    tokens of a row that see each other, over context: the cheaper of two ways (parallel/context.py). With P = e / t x
    the tokens of one device's rows and c = mesh.context
      all-to-all      P (2 a + 2 k) forward: queries, keys, values and the output, exchanged for heads, if they divide
                    + P (2 a + 2 k) backward: gradients of these
                    + P (2 a + 2 k) if anything is recomputed
      all-gather      P c 2 k forward: keys and values
                    + P c 2 k if anything is recomputed
      reduce-scatter  P c 2 k backward: their gradients
    gains and biases: their gradients, over fsdp, context and, where tokens are split over it, tensor
      all-reduce
    gradients over data, once a step and not once a microbatch: of what a device stores of the layer
      all-reduce      in float32, or in the compute type if there is one microbatch
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import TYPE_CHECKING

from chinchilla_jax.base.hlo import HloError
from chinchilla_jax.config import RunConfig
from chinchilla_jax.model.parts import POSITIONS, Weights, block_weights, count, end_weights

if TYPE_CHECKING:
    from chinchilla_jax.preflight.program.program import Collective, StepProgram

STORED = ("fsdp", "context")  # what a weight's model width is split over
_BYTES = {"bfloat16": 2, "float32": 4}
_IN_LAYER = re.compile(r"/layers?(?:_\d+)?/")


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


@dataclasses.dataclass(frozen=True)
class Sent:
    """Bytes that a device sends over some axes in one kind of collective, per microbatch, and the least it could.

    The kind `all` is the sum over kinds, with the permutes that do the work of a gather or a scatter. What runs once a
    step is shared out among its microbatches.
    """

    in_layers: bool  # True for what one layer sends; False for what the embedding and the loss send together
    kind: str
    axes: tuple[str, ...]  # empty for the sum over all axes
    measured: float  # in the compiled program
    minimum: float  # by arithmetic

    @property
    def ratio(self) -> float:
        """Measured over minimum; infinite where nothing is needed, 1 where nothing is needed and nothing sent."""
        if self.minimum:
            return self.measured / self.minimum
        return math.inf if self.measured else 1.0


class _Needs:
    """Collects needs on a mesh. Over a single device nothing is needed."""

    def __init__(self, config: RunConfig):
        self.mesh = config.mesh
        self.collected: list[Need] = []

    def add(self, kind: str, axes: tuple[str, ...], size: int, why: str, times: int = 1) -> None:
        """`times` collectives of an array of `size` bytes."""
        axes = tuple(axis for axis in axes if getattr(self.mesh, axis) > 1)
        group = math.prod(getattr(self.mesh, axis) for axis in axes)
        if group > 1 and size and times:
            wire = (2 if kind == "all-reduce" else 1) * size * (group - 1) // group
            self.collected.append(Need(kind, axes, times * wire, why))

    @property
    def sent(self) -> int:
        return sum(need.wire_bytes for need in self.collected)


def minimum(config: RunConfig) -> Least:
    """The least traffic of a run's train step on its mesh; the module's docstring has the formulas.

    It is that of the table in `parallel/rules.py`, whatever `mesh.rules` changes of it.
    """
    m, mesh, train = config.model, config.mesh, config.train
    size = _BYTES[train.compute_dtype]
    summed = 4 if train.microbatches > 1 else size  # bytes of a gradient once all microbatches are added up
    stored = math.prod(getattr(mesh, axis) for axis in STORED)
    rows = train.batch_size // train.microbatches // (mesh.data * mesh.fsdp)
    tokens = rows * config.data.seq_len // mesh.context
    stream = size * m.d_model * tokens
    recomputed = train.remat != "none"
    blocks_again = int(train.remat in ("attention", "full"))
    distances = _matrices(POSITIONS[m.position].weights(m))
    weights = sum(map(_matrices, block_weights(m).values())) - distances
    weights //= mesh.tensor

    layer = _Needs(config)
    layer.add("all-gather", STORED, size * weights, "weights", 2)
    layer.add("reduce-scatter", STORED, size * weights, "gradients of weights")
    layer.add("all-gather", ("tensor",), stream, "residual stream", 4 + 2 * recomputed)
    layer.add("reduce-scatter", ("tensor",), stream, "residual stream", 4 + blocks_again)
    if distances:
        layer.collected += _relative(config, size, distances // mesh.tensor, 1 + blocks_again)
        weights += distances // mesh.tensor
    layer.collected += _context(config, size * tokens // mesh.tensor, 1 + recomputed)
    whole, split = _vectors(config)
    layer.add("all-reduce", (*STORED, "tensor"), size * whole, "gradients of gains and biases of the stream")
    layer.add("all-reduce", STORED, size * split, "gradients of biases of heads and inner width")

    layer_step = _Needs(config)
    layer_step.add("all-reduce", ("data",), summed * (weights // stored + whole + split), "gradients")

    positions = _matrices(POSITIONS[m.position].table(m))
    tables = (_matrices(end_weights(m)) - positions) // mesh.tensor
    ends = _Needs(config)
    ends.add("reduce-scatter", ("tensor",), stream, "embeddings, from parts of the vocabulary")
    ends.add("all-gather", ("tensor",), stream, "gradients of embeddings")
    ends.add("all-gather", ("tensor",), stream, "input of the logits")
    ends.add("reduce-scatter", ("tensor",), stream, "its gradients")
    ends.add("all-reduce", ("tensor",), 3 * 4 * tokens, "largest logit, sum and label's logit of every token")
    ends.add("reduce-scatter", STORED, size * (tables + positions), "gradients of tables")
    ends_step = _Needs(config)
    ends_step.add("all-gather", STORED, size * (tables + positions), "tables")
    ends_step.add("all-reduce", ("data",), summed * (tables + positions) // stored, "gradients of tables")
    return Least(*(tuple(needs.collected) for needs in (layer, layer_step, ends, ends_step)))


def _matrices(weights: Weights) -> int:
    """Numbers in the weights that are split along the model width."""
    return count(weight for weight in weights.values() if "embed" in weight.axes)


def _relative(config: RunConfig, size: int, weights: int, passes: int) -> list[Need]:
    """The keys of distances, the cheaper way. `weights` is how many a device has, were it not for `STORED`."""
    width = weights // config.model.d_model
    gathered, added = _Needs(config), _Needs(config)
    gathered.add("all-gather", STORED, size * weights, "weight of relative keys", passes)
    gathered.add("reduce-scatter", STORED, size * weights, "its gradient")
    added.add("all-reduce", STORED, 4 * config.data.seq_len * width, "relative keys", passes)
    added.add("all-reduce", STORED, size * config.data.seq_len * width, "gradient of relative keys")
    return min(gathered, added, key=lambda needs: needs.sent).collected


def _context(config: RunConfig, size: int, passes: int) -> list[Need]:
    """Attention of split rows, the cheaper way. `size` is that of one channel of a device's tokens and heads."""
    m, context = config.model, config.mesh.context
    kv = m.n_kv_heads * m.head_dim
    exchanged, gathered = _Needs(config), _Needs(config)
    exchanged.add("all-to-all", ("context",), size * (2 * m.d_attn + 2 * kv), "tokens for heads", 1 + passes)
    gathered.add("all-gather", ("context",), size * context * 2 * kv, "keys and values", passes)
    gathered.add("reduce-scatter", ("context",), size * context * 2 * kv, "gradients of keys and values")
    ways = [gathered] if m.n_kv_heads % (config.mesh.tensor * context) else [exchanged, gathered]
    return min(ways, key=lambda needs: needs.sent).collected


def _vectors(config: RunConfig) -> tuple[int, int]:
    """Gains and biases of a layer: those of the model width, and those of a device's heads and inner width."""
    layer = [weight for weights in block_weights(config.model).values() for weight in weights.values()]
    vectors = [weight for weight in layer if "embed" not in weight.axes]
    whole = count(weight for weight in vectors if "norm" in weight.axes)
    return whole, (count(vectors) - whole) // config.mesh.tensor


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
    inside, outside = [], []
    for c in program.collectives:
        layer = _IN_LAYER.search(c.op_name) or not loops.isdisjoint(c.loops[depth : depth + 1])
        (inside if layer else outside).append(c)
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
    measured: collections.Counter[tuple] = collections.Counter()
    least: collections.Counter[tuple] = collections.Counter()

    def add(sums: collections.Counter[tuple], kind: str, axes: tuple[str, ...], sent: float) -> None:
        for key in ((axes, kind), (axes, "all"), ((), "all")):
            sums[key] += sent

    for c in collectives:
        if c.wire_bytes * c.trips:
            add(measured, c.kind, c.axes, c.wire_bytes * c.trips / times)
    for need, shared in needs:
        add(least, need.kind, need.axes, need.wire_bytes / shared)
    keys = sorted(measured.keys() | least.keys(), key=lambda key: (not key[0], key[0], key[1] == "all", key[1]))
    return [Sent(in_layers, kind, axes, float(measured[axes, kind]), float(least[axes, kind])) for axes, kind in keys]
