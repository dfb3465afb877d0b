"""Schedules and programs small enough to count by hand, for the tests of the meter."""

import dataclasses

from chinchilla_jax.base.chips import CHIPS
from chinchilla_jax.tools.tpu_meter.bundles import parse_schedule

CORE = dataclasses.replace(CHIPS["v5e"].core, delay_slots=1)  # copies in units of 32 bytes
CHIP = dataclasses.replace(CHIPS["v5e"], core=CORE)
MEGACORE = dataclasses.replace(CHIP, cores=2)


PROGRAM = """HloModule jit_f, is_scheduled=true

%body (arg: (s32[], s32[8])) -> (s32[], s32[8]) {
  %arg = (s32[], s32[8]{0:T(128)}) parameter(0)
  %gte = s32[8]{0:T(128)} get-tuple-element(%arg), index=1
  %looped.2 = bf16[8]{0} custom-call(%gte), custom_call_target="tpu_custom_call", backend_config={"body":"A"}
  ROOT %next = (s32[], s32[8]{0:T(128)}) tuple(%gte, %gte)
}

ENTRY %main (given: s32[8]) -> bf16[8] {
  %given = s32[8]{0:T(128)} parameter(0)
  %zero = s32[] constant(0)
  %table = s32[8]{0:T(128)} constant({1, 0, 0, 1, /*index=4*/1, -1, 0, 0}), metadata={op_name="f"}
  %copied = s32[8]{0:T(128)} copy(%table)
  %start = (s32[], s32[8]{0:T(128)}) tuple(%zero, %copied)
  %loop = (s32[], s32[8]{0:T(128)}) while(%start), condition=%condition, body=%body
  %direct.1 = bf16[8]{0} custom-call(%copied, %given), custom_call_target="tpu_custom_call", backend_config={"body":"A"}
  ROOT %other.3 = bf16[8]{0} custom-call(%given), custom_call_target="tpu_custom_call", backend_config={"body":"B",
"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"1048576"}]}
}
"""
TABLE = {0: 1, 1: 0, 2: 0, 3: 1, 4: 1, 5: 2**32 - 1, 6: 0, 7: 0}


def schedule(*bundles):
    """A schedule of bundles written `MARK DEPTH | instructions`, `|` and what is before it only where needed."""
    lines = []
    for number, bundle in enumerate(bundles):
        mark, bar, body = bundle.rpartition("|")
        lines.append(f"  {number:#x} {mark.strip() if bar else ':'} {{ {body} }}")
    return parse_schedule("header\n\n" + "\n".join(lines))


def loop(trips, *body):
    """`body` in a loop of so many trips, whose counter is %s2 (0, 1, 2 ... ); the bundle of the head is number 1."""
    return schedule(
        "%s1 = smov 0",
        "LB: > | %s2 = sphi %s1, %s3  ;;  %s3 = sadd.s32 1, %s2",
        *(f": > | {bundle}" for bundle in body),
        f": > | %p9 = scmp.lt.s32.totalorder %s3, {trips}",
        ": > | %9 = sbr.rel (%p9) target bundleno = 1 (0x1), region = 3",
        ": > |",
        "",
    )


def table_kernel(trips=8):
    """A loop that runs 16 bundles where a prefetched table is not 0."""
    text = (
        "%s20 = smov [#allocation3]  ;;  %s21 = inlined_call_operand.hbm [shape: s32[8], index: 0, kind: input]",
        "%s22 = sshll.u32 %s21, 4  ;;  %s23 = int_to_ptr.hbm [resolvable:$true] %s22",
        "%11 = dma.hbm_to_smem %s23, 16, %s20, [#allocation2]",
        "%s1 = smov 0",
        "LB: > | %s2 = sphi %s1, %s3  ;;  %s3 = sadd.s32 1, %s2",
        ": > | %s5 = sld [smem:[#allocation3 + %s2]]",
        ": > | %p1 = scmp.eq.s32.totalorder %s5, 0",
        ": > | %5 = sbr.rel (%p1) target bundleno = 25 (0x19), region = 5",
        ": > |",
        *[": > |"] * 16,
        f": > | %p9 = scmp.lt.s32.totalorder %s3, {trips}",
        ": > | %9 = sbr.rel (%p9) target bundleno = 4 (0x4), region = 3",
        ": > |",
    )
    return schedule(*text)
