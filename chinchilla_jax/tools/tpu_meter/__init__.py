"""How many cycles does a TPU kernel take, asked on a machine without a TPU?

The real compiler (libtpu, which needs no TPU to compile) writes the schedule of every Pallas kernel for a chosen TPU
generation. A schedule is a list of bundles of instructions that are issued together. The meter executes the scalar
program in it (loop counters, branches, conditions of copies, tables of a scalar prefetch) and adds up the bundles:

    python -m chinchilla_jax.tools.tpu_meter pkg.mod:build --gen v5e --kwargs '{"length": 2048}' -v

    from chinchilla_jax.tools.tpu_meter.measure import measure
    report = measure("pkg.mod:build", "v5e", {"length": 2048})
    report.kernels[0].cycles

`build(**kwargs)` returns `(fn, args)` or a dict `{"fn": ..., "args": ..., "flops": ...}`: `args` is a tuple of trees of
`jax.ShapeDtypeStruct`, `flops` the useful work of one call, which the share of the peak is counted against.

What is counted:
  cycles  bundles issued by the slower core, one cycle each. The schedule read is the one in which empty bundles still
          stand for the latency of matrix unit, cross-lane unit and branches. The compiler's last pass drops those that
          the hardware waits for by itself; counting what it leaves puts a plain matmul above the peak.
  low     the same, when a branch depends on data that is an argument of the program: `cycles` runs such a region every
          time, `low` never. They are equal when everything was known. A loop of unknown length counts as one trip in
          both, so that neither bounds it.
  bound   sum over the steps of the outermost loop of the larger of a step's cycles and the time of its HBM copies at
          the published bandwidth.
One call of each kernel is counted, also where the program calls it in a loop.

What is not seen: latency of copies and contention between them, waits on semaphores, traffic between chips, clock and
throttling, overlays of instruction memory, bank conflicts, XLA's own fusions. So these are cycles of a schedule with
an HBM roofline term, and no claim about wall time: kernels of tiny blocks, which wait for their copies, look too good.
Operands are kept in HBM, as they are in a real model.

The format of the schedules is private to libtpu, so that jax and libtpu are pinned together in the constraints files;
`--selftest` tells whether another version is still understood.
"""

TRIED_LIBTPU = "0.0.42.1 with jax 0.10.2, 0.0.50.1 with jax 0.12"
INSTALL = "pip install 'chinchilla_jax[compiler]'"


class MeterError(RuntimeError):
    """A kernel that cannot be measured; the message says why and what to do."""


class CompileError(MeterError):
    """The builder or the compiler refused; the message ends with the last lines it printed."""


class DumpError(MeterError):
    """A dump of the compiler that the meter cannot read."""

    def __init__(self, what: str):
        super().__init__(
            f"{what}; the dump format is private to libtpu and was tried with {TRIED_LIBTPU}: "
            f"install one of them ({INSTALL} with the constraints file of this Python)"
        )
