"""Which train steps does a run have, and what is known of one that is compiled?

A compiled step is plain values of one chip, without JAX: they are cached, timed and printed.
"""

from __future__ import annotations

import dataclasses
import math

from chinchilla_jax.config import RunConfig


def step_configs(config: RunConfig) -> tuple[RunConfig, ...]:
    """A config for each train step of a run: one, or two if its batch doubles, the smaller batch first."""
    first = config.train.batch_size
    steps = []
    for size in (first, 2 * first) if config.train.double_batch_at else (first,):
        tokens = max(config.train.train_tokens, size * config.data.seq_len)  # at least one batch
        train = dataclasses.replace(config.train, batch_size=size, train_tokens=tokens, double_batch_at=0.0)
        steps.append(dataclasses.replace(config, train=train))
    return tuple(steps)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of HBM of one chip."""

    parameters: int  # float32 master weights
    optimizer: int  # moments, counters, and what the objective keeps
    batch: int  # tokens and weights
    outputs: int = 0  # results that do not take an argument's place
    temporary: int = 0  # what lives within the step at the fullest moment: kept activations, gradients and all else
    code: int = 0  # the program
    peak: int = 0  # everything together at the fullest moment
    usable: int = 0  # what the compiler gives a program

    @property
    def headroom(self) -> int:
        """Usable less peak."""
        return self.usable - self.peak

    @property
    def free_share(self) -> float:
        """Headroom as a share of the usable memory."""
        return self.headroom / self.usable


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What the compiler needed and had, in bytes, when a program did not fit, and its words."""

    needed: int
    available: int
    message: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind over the same mesh axes."""

    kind: str
    axes: tuple[str, ...]
    in_layers: bool  # in the loop over the layers, so that they run for each of them
    asynchronous: bool
    count: int  # in the program
    runs: int  # in a step
    bytes: int  # of the arrays, over a step
    wire_bytes: int  # that a chip sends to its neighbours
    dcn_bytes: int  # that it sends to other slices


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


@dataclasses.dataclass(frozen=True)
class Temporary:
    """An array in HBM that an instruction makes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    op_name: str


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step for a batch of `sequences`, on one chip. The figures that also a `StepProgram` has are those.

    The types are such that `config_values.build` makes a step of what is left of it in JSON.
    """

    sequences: int
    memory: Memory  # if the step was refused, only the state and the batch
    links: dict  # how many links of a chip serve each mesh axis, one way
    seconds: float  # that compiling took
    refusal: Refusal | None = None  # why it does not fit
    unread: str | None = None  # what in the program was not understood; then nothing but the memory is known
    matmul_flops: int = 0
    cycles: int = 0
    hbm_bytes: int = 0
    kernels: dict = dataclasses.field(default_factory=dict)  # how often each runs, by name
    traffic: tuple[Traffic, ...] = ()  # the largest first
    sent: tuple[Sent, ...] = ()  # against the least that the mesh needs
    largest: tuple[Temporary, ...] = ()
    unknown_loops: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.refusal is None
