"""Which mesh, microbatches and remat policy are fastest of those that fit? Ranked by arithmetic, then compiled.

A compilation takes minutes and there are hundreds of settings. So each is first estimated (`estimate`): bytes of state
and of kept activations, FLOPs with what is recomputed, bytes of collectives. The estimate only says in what order to
compile; what fits and how fast it is, the compiled program says.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from chinchilla_jax.base.chips import GIB
from chinchilla_jax.config import REMAT_POLICIES, ConfigError, MeshConfig, RunConfig
from chinchilla_jax.ledger import count_parameters, forward_flops_per_sequence
from chinchilla_jax.preflight.predict import batches
from chinchilla_jax.preflight.slices import Slice, lays_out

STATE_BYTES = 16  # of a parameter: float32 weight, two moments, and the gradient that microbatches add up in
KERNEL_EFFICIENCY = 0.4  # of attention kernels, about: the rest of the step is estimated at the peak
MOST_TENSOR = 16
MOST_MICROBATCHES = 64
ROOM = 1.25  # estimates are rough: up to this much above the memory is still worth compiling
_ORDER = {name: i for i, name in enumerate(("none", "dots", "attention", "full"))}  # recomputes ever more


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is chosen."""

    mesh: MeshConfig
    microbatches: int
    remat: str

    @classmethod
    def of(cls, config: RunConfig) -> Setting:
        """That of a config."""
        return cls(config.mesh, config.train.microbatches, config.train.remat)

    def apply(self, config: RunConfig) -> RunConfig:
        """The config with this setting.

        Raises:
          ConfigError: the model or the batch cannot be divided so.
        """
        train = dataclasses.replace(config.train, microbatches=self.microbatches, remat=self.remat)
        return dataclasses.replace(config, mesh=self.mesh, train=train)

    @property
    def flags(self) -> str:
        """To be pasted behind --config."""
        return (f"{mesh_flags(self.mesh)} --config.train.microbatches={self.microbatches} "
                f"--config.train.remat={self.remat}")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of a setting, by arithmetic: bytes of HBM and seconds of a step."""

    setting: Setting
    memory: float
    seconds: float


def mesh_flags(mesh: MeshConfig) -> str:
    """`--config.mesh.data=1 --config.mesh.fsdp=64 ...`"""
    return " ".join(f"--config.mesh.{axis}={devices}" for axis, devices in vars(mesh).items())


def meshes(config: RunConfig, slice_: Slice) -> Iterator[MeshConfig]:
    """Meshes that cover the slice and that the model can be laid out on; axes besides the first, `fsdp` and `tensor`
    stay as they are."""
    others = math.prod(v for axis, v in vars(config.mesh).items() if axis not in ("data", "fsdp", "tensor"))
    for tensor in _divisors(slice_.chips // others if slice_.chips % others == 0 else 0):
        if tensor > MOST_TENSOR:
            break
        for fsdp in _divisors(slice_.chips // others // tensor):
            data = slice_.chips // others // tensor // fsdp
            mesh = dataclasses.replace(config.mesh, data=data, fsdp=fsdp, tensor=tensor)
            if data % slice_.count == 0 and lays_out(slice_, mesh):
                yield mesh


def nearest_mesh(config: RunConfig, slice_: Slice) -> MeshConfig | None:
    """The mesh that covers the slice with the config's batch and is most like the config's: first in `tensor`."""

    def distance(mesh: MeshConfig) -> tuple[float, float]:
        return (abs(math.log(mesh.tensor / config.mesh.tensor)), abs(math.log(mesh.data / config.mesh.data)))

    as_is = Setting.of(config)
    fitting = [mesh for mesh in meshes(config, slice_) if _valid(config, dataclasses.replace(as_is, mesh=mesh))]
    return min(fitting, key=distance, default=None)


def settings(config: RunConfig, slice_: Slice) -> Iterator[Setting]:
    """Every setting that is possible."""
    counts = [m for m in _divisors(config.train.batch_size) if m <= MOST_MICROBATCHES]
    for mesh, microbatches, remat in itertools.product(meshes(config, slice_), counts, REMAT_POLICIES):
        setting = Setting(mesh, microbatches, remat)
        if _valid(config, setting):
            yield setting


def _valid(config: RunConfig, setting: Setting) -> bool:
    try:
        setting.apply(config)
    except ConfigError:
        return False
    return True


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def estimate(config: RunConfig, setting: Setting, slice_: Slice) -> Estimate:
    """Bytes and seconds of a setting, for the larger batch of the run."""
    c, sequences = setting.apply(config), batches(config)[-1]
    tokens = chip_tokens(c, sequences)
    return Estimate(setting, _memory(c, tokens), _seconds(c, slice_, sequences, tokens))


def chip_tokens(config: RunConfig, sequences: int) -> float:
    """Tokens that pass through the layers of a chip at a time; those of a `tensor` group share them."""
    return sequences * config.data.seq_len / config.train.microbatches * config.mesh.tensor / config.mesh.size


def activation_bytes(config: RunConfig, tokens: float) -> float:
    """That all layers keep of `tokens` of a chip for the backward pass, by remat policy.

    The stream between the blocks is split over `tensor` by tokens, what is within them by heads and inner width.
    """
    m = config.model
    width = 2 if config.train.compute_dtype == "bfloat16" else 4
    matrices = 2 if m.feed_forward == "swiglu" else 1
    attention = m.d_attn + 2 * m.n_heads  # the output, and the log-sum-exp in float32
    products = m.d_attn + 2 * m.n_kv_heads * m.head_dim + matrices * m.d_ff + 2 * m.d_model
    kept = {"full": 0.0, "attention": attention, "dots": attention + products,
            "none": attention + 2 * products + 4 * m.d_model}  # fmt: skip
    return m.n_layers * tokens * width * (m.d_model + kept[config.train.remat]) / config.mesh.tensor


def _memory(config: RunConfig, tokens: float) -> float:
    m, mesh = config.model, config.mesh
    parameters = count_parameters(m)
    layer = parameters.non_embedding / m.n_layers
    # Weights of two layers and of the tables, gathered; the values of one layer, forward and backward.
    weights = 2 * 2 * (layer + 2 * m.vocab_size * m.d_model / 2) / mesh.tensor
    values = 4 * tokens * (4 * m.d_model + (4 * m.d_attn + 3 * m.d_ff) / mesh.tensor)
    state = STATE_BYTES * parameters.total / (mesh.size // mesh.data)
    return state + activation_bytes(config, tokens) + weights + values


def _seconds(config: RunConfig, slice_: Slice, sequences: int, tokens: float) -> float:
    m, mesh, chip, network = config.model, config.mesh, slice_.chip, slice_.chip.network
    terms = forward_flops_per_sequence(m, config.data.seq_len, "executed")
    names = ("scores", "values", "softmax", "relative_scores")
    attention = sum(terms.get(name, 0.0) for name in names) / 2  # causal
    products = sum(value for name, value in terms.items() if name not in names)
    again = {"none": 0.0, "dots": 0.0, "attention": 1.0, "full": 1.0}[config.train.remat]
    kernels = 3.5 + (1.0 if config.train.remat == "full" else 0.0)
    per_chip = sequences / slice_.chips
    compute = per_chip * ((3 + again) * products + kernels * attention / KERNEL_EFFICIENCY) / chip.peak
    weights = 2.0 * count_parameters(m).total / mesh.tensor
    links = _links(mesh, slice_)
    # Gathered forward and backward, scattered once. The compiler makes all-reduces, which send twice as much, of a
    # gather over three sides of the grid and of a scatter over all chips of a slice (libtpu 0.0.42).
    passes = 2 * (2 if links["fsdp"] > 4 else 1) + (2 if mesh.fsdp == slice_.chips // slice_.count else 1)
    fsdp = config.train.microbatches * passes * weights * (mesh.fsdp - 1) / mesh.fsdp
    hidden = fsdp / (links["fsdp"] * network.link_bandwidth)
    activations = m.n_layers * config.train.microbatches * tokens * m.d_model * 2.0
    tensor = (4 + 2 * again) * activations * 2 * (mesh.tensor - 1) / mesh.tensor
    within = mesh.data // slice_.count
    gradients = 2 * 4.0 * count_parameters(m).total / (mesh.fsdp * mesh.tensor)
    exposed = tensor / (links["tensor"] * network.link_bandwidth)
    exposed += gradients * (within - 1) / within / (links["data"] * network.link_bandwidth)
    exposed += gradients * (slice_.count - 1) / slice_.count / within / network.dcn_bandwidth
    return max(compute, hidden) + exposed


def _links(mesh: MeshConfig, slice_: Slice) -> dict[str, int]:
    """About how many links serve an axis: two for each side of the grid that it fills."""
    side = max(slice_.grid)
    sizes = {axis: getattr(mesh, axis) for axis in ("data", "fsdp", "tensor")}
    sizes["data"] //= slice_.count
    return {axis: 2 * max(1, min(len(slice_.grid), round(math.log(size, side)))) if side > 1 else 1
            for axis, size in sizes.items()}  # fmt: skip


def ranked(config: RunConfig, slice_: Slice, usable: float) -> tuple[list[Estimate], list[Estimate]]:
    """Settings that may fit, the fastest first, and those that by arithmetic cannot.

    Among equals: less recomputed, fewer microbatches.
    """
    found = [estimate(config, setting, slice_) for setting in settings(config, slice_)]
    may = [e for e in found if e.memory <= ROOM * usable]
    order = sorted(may, key=lambda e: (e.seconds, _ORDER[e.setting.remat], e.setting.microbatches))
    return order, sorted((e for e in found if e.memory > ROOM * usable), key=lambda e: e.memory)


def nearest(config: RunConfig, slice_: Slice, needed: float, usable: float) -> list[Estimate]:
    """Settings that need less than the config's, which needs `needed` bytes, and may fit: the most similar first.

    A doubling of microbatches, or a stronger remat policy, is a step away; another mesh is three.
    """
    here = Setting.of(config)
    scale = needed / estimate(config, here, slice_).memory

    def distance(setting: Setting) -> float:
        return (math.log2(setting.microbatches / here.microbatches) + _ORDER[setting.remat] - _ORDER[here.remat]
                + 3 * (setting.mesh != here.mesh))  # fmt: skip

    gentler = [setting for setting in settings(config, slice_) if setting.microbatches >= here.microbatches
               and _ORDER[setting.remat] >= _ORDER[here.remat] and setting != here]  # fmt: skip
    found = [estimate(config, setting, slice_) for setting in gentler]
    return sorted((e for e in found if e.memory * scale <= usable), key=lambda e: (distance(e.setting), e.seconds))


@dataclasses.dataclass(frozen=True)
class Tried:
    """A setting that was compiled: `seconds` of its step, None if it did not fit."""

    estimate: Estimate
    peak: float
    seconds: float | None


def choose(order: Sequence[Estimate], compiles: int,
           attempt: Callable[[Setting], tuple[float, float | None]]) -> list[Tried]:  # fmt: skip
    """Compiles settings in order until `compiles` of them fit, and at most three times as many; the fastest first.

    Skipped are: what is estimated to need as much as one that did not fit; more microbatches where fewer fit.

    Args:
      attempt: compiles a setting; bytes at its peak (or that it would need) and seconds, None if it does not fit.
    """
    tried: list[Tried] = []
    settled: set[tuple[MeshConfig, str]] = set()
    too_much = math.inf
    for candidate in order:
        fitting = sum(t.seconds is not None for t in tried)
        if fitting >= compiles or len(tried) >= 3 * compiles:
            break
        here = candidate.setting
        if candidate.memory >= too_much or (here.mesh, here.remat) in settled:
            continue
        peak, seconds = attempt(here)
        tried.append(Tried(candidate, peak, seconds))
        if seconds is not None:
            settled.add((here.mesh, here.remat))
        else:
            too_much = min(too_much, candidate.memory)
    return sorted(tried, key=lambda t: (t.seconds is None, t.seconds or 0.0))


def rest_words(order: Sequence[Estimate], ruled_out: Sequence[Estimate], tried: Sequence[Tried], usable: float) -> str:
    """Why the others were not compiled."""
    slower = len(order) - len(tried)
    least = f", the least of them {ruled_out[0].memory / GIB:.1f} GiB" if ruled_out else ""
    return (f"not compiled: {slower} settings estimated slower, or as large as one that did not fit, or with more "
            f"microbatches than needed; {len(ruled_out)} estimated not to fit {usable / GIB:.2f} GiB{least}"
            )  # fmt: skip
