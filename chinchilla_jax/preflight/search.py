"""Which mesh, microbatches and remat policy might fit, and which of them are fast? By arithmetic, to compile few.

A compilation takes minutes and there are hundreds of settings. So each is first estimated (`estimate`): bytes of state
and of kept activations, FLOPs with what is recomputed, bytes of collectives. The estimate only says in what order
`choose.py` compiles them. Whether a setting fits and how fast it is, the compiled program says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator

from chinchilla_jax.config import REMAT_POLICIES, ConfigError, MeshConfig, RunConfig
from chinchilla_jax.ledger import count_parameters, forward_flops_per_sequence
from chinchilla_jax.model.parts import FEED_FORWARDS, POSITIONS, count, is_experts
from chinchilla_jax.preflight.slices import Slice, lays_out
from chinchilla_jax.preflight.step import step_configs

STATE_BYTES = 16  # of a parameter: float32 weight, two moments, and the gradient that microbatches add up in
KERNEL_EFFICIENCY = 0.4  # of attention kernels, about: the rest of the step is estimated at the peak
AXES = ("data", "fsdp", "tensor", "context")  # as a config lists them
MOST_TENSOR = 16
MOST_MICROBATCHES = 64
ROOM = 1.25  # estimates are rough: up to this much above the memory is still worth compiling
_ORDER = {"none": 0, "dots": 1, "attention": 2, "full": 3}  # recomputes ever more


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of HBM and seconds of a step of a config, by arithmetic."""

    config: RunConfig
    memory: float
    seconds: float


def with_setting(config: RunConfig, mesh: MeshConfig, microbatches: int, remat: str) -> RunConfig:
    """The config with another setting of what is searched.

    Raises:
      ConfigError: the model or the batch cannot be divided so.
    """
    train = dataclasses.replace(config.train, microbatches=microbatches, remat=remat)
    return dataclasses.replace(config, mesh=mesh, train=train)


def setting_flags(config: RunConfig) -> str:
    """The setting of a config, to be pasted behind --config."""
    of_train = (f"--config.train.{name}={getattr(config.train, name)}" for name in ("microbatches", "remat"))
    return " ".join([mesh_flags(config.mesh), *of_train])


def mesh_flags(mesh: MeshConfig) -> str:
    """`--config.mesh.data=1 --config.mesh.fsdp=64 ...`"""
    axes = AXES + (("expert",) if mesh.expert > 1 else ())
    return " ".join(f"--config.mesh.{axis}={getattr(mesh, axis)}" for axis in axes)


def meshes(config: RunConfig, slice_: Slice) -> Iterator[MeshConfig]:
    """Meshes that cover the slice. They differ in `data`, `fsdp` and `tensor`; the other axes are the config's."""
    chips, rest = divmod(slice_.chips, config.mesh.context * config.mesh.expert)
    for tensor in _divisors(0 if rest else chips, MOST_TENSOR):
        for fsdp in _divisors(chips // tensor):
            mesh = dataclasses.replace(config.mesh, data=chips // tensor // fsdp, fsdp=fsdp, tensor=tensor)
            if lays_out(slice_, mesh):
                yield mesh


def nearest_mesh(config: RunConfig, slice_: Slice) -> MeshConfig | None:
    """The mesh most like the config's, first in `tensor`, that covers the slice and that its batch can be split on."""

    def distance(mesh: MeshConfig) -> tuple[float, float]:
        return (abs(math.log(mesh.tensor / config.mesh.tensor)), abs(math.log(mesh.data / config.mesh.data)))

    same = settings(config, slice_, (config.train.microbatches,), (config.train.remat,))
    return min((one.mesh for one in same), key=distance, default=None)


def settings(
    config: RunConfig, slice_: Slice, microbatches: Iterable[int] = (), policies: Iterable[str] = REMAT_POLICIES
) -> Iterator[RunConfig]:
    """The config with every setting that is possible; by default with every number of microbatches."""
    counts = microbatches or _divisors(config.train.batch_size, MOST_MICROBATCHES)
    for setting in itertools.product(meshes(config, slice_), counts, policies):
        with contextlib.suppress(ConfigError):
            yield with_setting(config, *setting)


def _divisors(n: int, most: int | None = None) -> list[int]:
    return [d for d in range(1, min(n, most or n) + 1) if n % d == 0]


def estimate(config: RunConfig, slice_: Slice) -> Estimate:
    """Bytes and seconds of a config, for the largest batch of the run."""
    step = step_configs(config)[-1]
    return Estimate(config, _memory(step), _seconds(step, slice_))


def _chip_tokens(config: RunConfig) -> float:
    """Tokens that pass through the layers of a chip at a time; the chips of a `tensor` group share them."""
    train, mesh = config.train, config.mesh
    return train.batch_size * config.data.seq_len / train.microbatches * mesh.tensor / mesh.size


def activation_bytes(config: RunConfig) -> float:
    """Bytes that all layers of a chip keep for the backward pass, by remat policy.

    Over `tensor`, the stream between the blocks is split by tokens, and arrays within them by heads and inner width.
    """
    m = config.model
    width = 2 if config.train.compute_dtype == "bfloat16" else 4
    used = FEED_FORWARDS[m.feed_forward].used(m).values()
    inner = sum(count([w]) // m.d_model for w in used if w.axes[-2:] == ("embed", "mlp"))
    attention = m.d_attn + 2 * m.n_heads  # the output, and the log-sum-exp in float32
    products = m.d_attn + 2 * m.n_kv_heads * m.head_dim + inner + 2 * m.d_model
    kept = {
        "full": 0.0,
        "attention": attention,
        "dots": attention + products,
        "none": attention + 2 * products + 4 * m.d_model,
    }
    return m.n_layers * _chip_tokens(config) * width * (m.d_model + kept[config.train.remat]) / config.mesh.tensor


def _memory(config: RunConfig) -> float:
    m, mesh, tokens = config.model, config.mesh, _chip_tokens(config)
    inner = FEED_FORWARDS[m.feed_forward].width(m)
    parameters = count_parameters(m)
    layer = parameters.non_embedding / m.n_layers
    # Weights of two layers and of the tables, gathered; the values of one layer, forward and backward.
    weights = 2 * 2 * (layer + 2 * m.vocab_size * m.d_model / 2) / mesh.tensor
    values = 4 * tokens * (4 * m.d_model + (4 * m.d_attn + 3 * inner) / mesh.tensor)
    # Devices along `data` have copies of every weight, those along `expert` of all but the experts.
    experts = m.n_layers * count(w for w in FEED_FORWARDS[m.feed_forward].weights(m).values() if is_experts(w))
    stored = experts + (parameters.total - experts) * mesh.expert
    state = STATE_BYTES * stored / (mesh.size // mesh.data)
    return state + activation_bytes(config) + weights + values


def _seconds(config: RunConfig, slice_: Slice) -> float:
    m, mesh, train, network = config.model, config.mesh, config.train, slice_.network
    terms = forward_flops_per_sequence(m, config.data.seq_len, "executed")
    names = ("scores", "values", "softmax", *POSITIONS[m.position].flops(m, config.data.seq_len))
    attention = sum(terms.get(name, 0.0) for name in names) / 2  # causal
    products = sum(value for name, value in terms.items() if name not in names)
    again = 1.0 if train.remat in ("attention", "full") else 0.0
    kernels = 3.5 + (1.0 if train.remat == "full" else 0.0)
    per_chip = train.batch_size / slice_.chips
    compute = per_chip * ((3 + again) * products + kernels * attention / KERNEL_EFFICIENCY) / slice_.chip.peak
    parameters, within = count_parameters(m).total, mesh.data // slice_.count
    bandwidth = {
        axis: _links(size, slice_) * network.link_bandwidth
        for axis, size in (("data", within), ("fsdp", mesh.fsdp), ("tensor", mesh.tensor))
    }
    # Gathered forward and backward, scattered once. The compiler makes all-reduces, which send twice as much, of a
    # gather over three sides of the grid and of a scatter over all chips of a slice (libtpu 0.0.42).
    passes = 2 * (2 if _links(mesh.fsdp, slice_) > 4 else 1)
    passes += 2 if mesh.fsdp == slice_.chips // slice_.count else 1
    fsdp = train.microbatches * passes * (2.0 * parameters / mesh.tensor) * (mesh.fsdp - 1) / mesh.fsdp
    activations = m.n_layers * train.microbatches * _chip_tokens(config) * m.d_model * 2.0
    tensor = (4 + 2 * again) * activations * 2 * (mesh.tensor - 1) / mesh.tensor
    gradients = 2 * 4.0 * parameters / (mesh.fsdp * mesh.tensor)
    exposed = tensor / bandwidth["tensor"]
    exposed += gradients * (within - 1) / within / bandwidth["data"]
    exposed += gradients * (slice_.count - 1) / slice_.count / within / network.dcn_bandwidth
    return max(compute, fsdp / bandwidth["fsdp"]) + exposed


def _links(size: int, slice_: Slice) -> int:
    """About how many links serve an axis of so many chips: two for each side of the grid that it fills."""
    side = max(slice_.grid)
    return 2 * max(1, min(len(slice_.grid), round(math.log(size, side)))) if side > 1 else 1


def ranked(config: RunConfig, slice_: Slice, usable: float) -> tuple[list[Estimate], list[Estimate]]:
    """Settings that may fit, the fastest first, and those that by arithmetic cannot.

    Among equals: less recomputed, fewer microbatches.
    """
    estimates = [estimate(one, slice_) for one in settings(config, slice_)]
    may = [e for e in estimates if e.memory <= ROOM * usable]
    may.sort(key=lambda e: (e.seconds, _ORDER[e.config.train.remat], e.config.train.microbatches))
    cannot = sorted((e for e in estimates if e.memory > ROOM * usable), key=lambda e: e.memory)
    return may, cannot


def nearest(config: RunConfig, slice_: Slice, needed: float, usable: float) -> list[Estimate]:
    """Settings that may fit and take less memory than the config's, the most similar first.

    A doubling of microbatches, or a stronger remat policy, is a step away; another mesh is three.

    Args:
      needed: bytes that the config needs as it is.
    """
    start, scale = config.train, needed / estimate(config, slice_).memory
    fitting = []
    for one in settings(config, slice_):
        doublings = math.log2(one.train.microbatches / start.microbatches)
        recomputed, taken = _ORDER[one.train.remat] - _ORDER[start.remat], estimate(one, slice_)
        if min(doublings, recomputed) >= 0 and one != config and taken.memory * scale <= usable:
            fitting.append((doublings + recomputed + 3 * (one.mesh != config.mesh), taken.seconds, taken))
    return [taken for _, _, taken in sorted(fitting, key=lambda one: one[:2])]
