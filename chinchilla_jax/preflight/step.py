"""What is known of a compiled train step? Plain values of one chip, without JAX: they are cached, timed and printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of HBM of one chip.

    Attributes:
      parameters: float32 master weights. optimizer: its moments and counters. batch: tokens and weights.
      outputs: that do not take an argument's place.
      temporary: at the fullest moment: activations kept for the backward pass, gradients, and whatever else lives
        within the step.
      code: the program.
      peak: at the fullest moment, all together.
      usable: that the compiler gives a program.
    """

    parameters: int
    optimizer: int
    batch: int
    outputs: int
    temporary: int
    code: int
    peak: int
    usable: int

    @property
    def headroom(self) -> int:
        """Usable less peak."""
        return self.usable - self.peak


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What the compiler needed and had, in bytes, when a program did not fit, and its words."""

    needed: int
    available: int
    message: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind over the same mesh axes.

    Attributes:
      in_layers: in the loop over the layers, so that they run for each of them.
      count: in the program; `runs` in a step.
      bytes: of the arrays, over a step. wire_bytes: that a chip sends to its neighbours, dcn_bytes: to other slices.
    """

    kind: str
    axes: tuple[str, ...]
    in_layers: bool
    asynchronous: bool
    count: int
    runs: int
    bytes: int
    wire_bytes: int
    dcn_bytes: int


@dataclasses.dataclass(frozen=True)
class Sent:
    """Bytes that a chip sends in collectives per layer and microbatch, and the least it could (`traffic.minimum`).

    `kind` and `axes` as in `traffic.Row`; `in_layers` False for what the embedding and the loss send per microbatch.
    """

    in_layers: bool
    kind: str
    axes: tuple[str, ...]
    measured: float
    minimum: float


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step for a batch of `sequences`, on one chip.

    Attributes:
      memory: if the step was refused, only the state and the batch.
      refusal: why it does not fit; None if it does.
      unread: what in the program was not understood; then nothing but the memory is known.
      links: of a chip that serve each mesh axis, one way.
      matmul_flops, cycles, hbm_bytes: as in `program.StepProgram`; `kernels` the calls of each in a step.
      largest: the largest arrays in HBM that it makes: name, dtype, shape, bytes, op_name.
      unknown_loops: loops counted once for want of a number of turns.
      seconds: that compiling took.
    """

    sequences: int
    memory: Memory
    links: Mapping[str, int]
    seconds: float
    refusal: Refusal | None = None
    unread: str | None = None
    matmul_flops: int = 0
    cycles: int = 0
    hbm_bytes: int = 0
    kernels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    traffic: tuple[Traffic, ...] = ()
    sent: tuple[Sent, ...] = ()
    largest: tuple[dict[str, Any], ...] = ()
    unknown_loops: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the compiler accepts it."""
        return self.refusal is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CompiledStep:
        """Inverts `to_dict`, after JSON too.

        Raises:
          TypeError, KeyError: values of another kind.
        """
        refusal = values["refusal"] and Refusal(**values["refusal"])
        traffic = tuple(Traffic(**group | {"axes": tuple(group["axes"])}) for group in values["traffic"])
        sent = tuple(Sent(**row | {"axes": tuple(row["axes"])}) for row in values["sent"])
        return cls(**dict(values) | {"memory": Memory(**values["memory"]), "refusal": refusal, "traffic": traffic,
                                     "sent": sent,
                                     "largest": tuple(values["largest"]),
                                     "unknown_loops": tuple(values["unknown_loops"])})  # fmt: skip
