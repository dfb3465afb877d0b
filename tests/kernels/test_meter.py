"""The cycle meter, on schedules and programs small enough to count by hand, and on the compiler's own."""

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import operator
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_jax.base.chips import CHIPS, kernel_chips
from chinchilla_jax.tools.tpu_meter import __main__ as command
from chinchilla_jax.tools.tpu_meter import compile as compilation
from chinchilla_jax.tools.tpu_meter.bundles import SLOTS, parse_schedule, parse_slot_use
from chinchilla_jax.tools.tpu_meter.errors import TRIED_LIBTPU, CompileError, DumpError, MeterError
from chinchilla_jax.tools.tpu_meter.hlo import memory_words, parse_program
from chinchilla_jax.tools.tpu_meter.machine import execute
from chinchilla_jax.tools.tpu_meter.measure import Request, measure, measure_many
from chinchilla_jax.tools.tpu_meter.report import kernel_report, program_report, render
from chinchilla_jax.tools.tpu_meter.selftest import selftest
from chinchilla_jax.tools.tpu_meter.values import both, either, neither, not_both, scalar_function, select

CORE = dataclasses.replace(CHIPS["v5e"].core, delay_slots=1)  # copies in units of 32 bytes
CHIP = dataclasses.replace(CHIPS["v5e"], core=CORE)
MEGACORE = dataclasses.replace(CHIP, cores=2)
WORDS = st.integers(0, 2**32 - 1)

needs_compiler = [pytest.mark.compiler,
                  pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                     reason="no TPU compiler: pip install 'chinchilla_jax[compiler]'")]  # fmt: skip


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


# ---- control flow


@settings(deadline=None)
@given(st.integers(1, 40))
def test_a_loop_counts_its_body_and_the_delay_slot_of_its_branch_once_a_trip(trips):
    done = execute(loop(trips, "%v1 = vadd.f32 %v0, %v0"), CHIP)
    assert done.cycles == 1 + trips * 5 + 1
    assert list(done.counts) == [1, *[trips] * 5, 1]
    assert [step.cycles for step in done.steps] == [1, *[5] * (trips - 1), 6]
    assert (done.branches[4].reached, done.branches[4].jumped) == (trips, trips - 1)
    assert not done.unresolved and not done.unmodelled


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 25))
def test_a_predicated_region_counts_only_in_the_trips_in_which_it_runs(trips, threshold):
    done = execute(loop(
        trips, f"%p1 = scmp.lt.s32.totalorder %s2, {threshold}",
        "%5 = sbr.rel (%p1) target bundleno = 7 (0x7), region = 5", "", *["%v1 = vadd.f32 %v0, %v0"] * 2,
    ), CHIP)  # fmt: skip
    runs = max(0, trips - threshold)
    assert done.cycles == 1 + trips * 7 + 2 * runs + 1
    assert done.branches[3].reached - done.branches[3].jumped == runs


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 8))
def test_a_triangle_of_blocks_is_counted_exactly(rows, most):
    """An inner loop as long as the outer counter says: what causal attention does with its blocks of keys."""
    program = schedule(
        "%s1 = smov 0",
        "LB: > | %s2 = sphi %s1, %s3  ;;  %s3 = sadd.s32 1, %s2",
        f": > | %s6 = smov 0  ;;  %s8 = smin.u32 %s3, {most}",
        "LB: > > | %s4 = sphi %s6, %s5  ;;  %s5 = sadd.s32 1, %s4",
        ": > > | %p1 = scmp.lt.s32.totalorder %s5, %s8",
        ": > > | %8 = sbr.rel (%p1) target bundleno = 3 (0x3), region = 9",
        ": > > |",
        f": > | %p2 = scmp.lt.s32.totalorder %s3, {rows}",
        ": > | %9 = sbr.rel (%p2) target bundleno = 1 (0x1), region = 3",
        ": > |",
    )
    inner = sum(min(row + 1, most) for row in range(rows))
    report = kernel_report("triangle", program, CHIP, {})
    assert report.cycles == 1 + rows * 5 + inner * 4
    assert [(one.depth, one.trips, one.entries) for one in report.loops] == [(2, inner, rows), (1, rows, 1)]
    assert report.steps == rows


def test_phis_of_one_loop_exchange_their_values_at_once():
    program = schedule(
        "%s1 = smov 5  ;;  %s2 = smov 7  ;;  %s8 = smov 0",
        "LB: > | %s3 = sphi %s1, %s4  ;;  %s4 = sphi %s2, %s3  ;;  %s7 = sphi %s8, %s9",
        ": > | %s9 = sadd.s32 1, %s7  ;;  %5 = sst [smem:[#allocation7]] %s3",
        ": > | %p1 = scmp.lt.s32.totalorder %s9, 2",
        ": > | %9 = sbr.rel (%p1) target bundleno = 1 (0x1), region = 3",
        ": > |",
        "%s5 = sld [smem:[#allocation7]]",
        "%p2 = scmp.eq.s32.totalorder %s5, 7",
        "%9 = sbr.rel (%p2) target bundleno = 13 (0xd), region = 4",
        *[""] * 4,
    )
    assert execute(program, CHIP).counts[10:] == [0, 0, 0], "the second trip has the 7 that the first had as the other"


@pytest.mark.parametrize(("core", "skipped"), [(0, 4), (1, 0)])
def test_a_program_can_ask_which_core_it_runs_on(core, skipped):
    done = execute(only_on_core_1(*[""] * 4), MEGACORE, core=core)
    assert done.cycles == 8 - skipped


def only_on_core_1(*body):
    return schedule("%s1 = sld [smem:[#allocation0]]", "%p1 = scmp.ne.s32.totalorder %s1, 1",
                    f"%5 = sbr.rel (%p1) target bundleno = {4 + len(body)} (0x0), region = 2", "", *body)  # fmt: skip


def test_cycles_are_of_the_slower_core_and_bytes_and_flops_of_both():
    body = ("%9 = dma.hbm_to_vmem %s8, 64, %s9, [#allocation2]", "%10 = vmatmul.bf16.gmra.mxu0 %v1")
    one, two = (kernel_report("k", program, MEGACORE, {}) for program in
                (only_on_core_1(*body), schedule("", "", "", "", *body)))  # fmt: skip
    assert one.cycles == two.cycles == 6
    assert (one.hbm_bytes, two.hbm_bytes) == (2048, 4096)
    assert (one.matmul_flops, two.matmul_flops) == (2 * 16 * 128**2, 4 * 16 * 128**2)


def test_a_program_that_does_not_end_is_given_up():
    with pytest.raises(MeterError, match="does not end within 50 blocks"):
        execute(loop(100, ""), CHIP, max_blocks=50)


# ---- what is not known


def test_data_that_is_an_argument_gives_a_range_and_names_the_region():
    program = loop(8, "%s5 = sld [smem:[#allocation3 + %s2]]", "%p1 = scmp.eq.s32.totalorder %s5, 0",
                   "%5 = sbr.rel (%p1) target bundleno = 38 (0x26), region = 5", "",
                   *["%v1 = vadd.f32 %v0, %v0"] * 32)  # fmt: skip
    report = kernel_report("k", program, CHIP, {})
    assert report.cycles - report.cycles_low == 8 * 32
    assert report.unresolved == {"branch at 0x4": 8}
    assert [(one.start, one.ran, one.reached, one.unknown) for one in report.predicated] == [(6, 8, 8, 8)]


def test_a_loop_of_unknown_length_counts_one_trip_and_is_named():
    program = schedule("%s1 = smov 0", "LB: > | %s2 = sphi %s1, %s3  ;;  %s3 = sadd.s32 1, %s2",
                       ": > | %s5 = sld [smem:[#allocation3]]", ": > | %p1 = scmp.lt.s32.totalorder %s3, %s5",
                       ": > | %9 = sbr.rel (%p1) target bundleno = 1 (0x1), region = 3", ": > |")  # fmt: skip
    report = kernel_report("k", program, CHIP, {})
    assert (report.cycles_low, report.cycles, report.unresolved) == (6, 6, {"loop at 0x4": 1})


def test_an_instruction_that_is_not_modelled_is_listed_and_its_result_not_known():
    done = execute(schedule("%s1 = spop %v1", "%p1 = scmp.eq.s32.totalorder %s1, 0",
                            "%5 = sbr.rel (%p1) target bundleno = 4 (0x4), region = 2", ""), CHIP)  # fmt: skip
    assert done.unmodelled == {"spop": 1}
    assert done.unresolved == {"branch at 0x2": 1}


@pytest.mark.parametrize(("function", "truth"), [
    (either, lambda a, b: a or b), (both, lambda a, b: a and b),
    (neither, lambda a, b: not (a or b)), (not_both, lambda a, b: not (a and b)),
])  # fmt: skip
def test_a_predicate_is_known_exactly_when_every_completion_agrees(function, truth):
    for a, b in itertools.product((True, False, None), repeat=2):
        outcomes = {truth(x, y) for x in ((True, False) if a is None else (a,))
                    for y in ((True, False) if b is None else (b,))}  # fmt: skip
        assert function(a, b) == (outcomes.pop() if len(outcomes) == 1 else None)


def test_a_choice_between_equal_values_is_known():
    assert select(None, 3, 3) == 3
    assert select(None, 3, 4) is None


# ---- arithmetic


@settings(deadline=None)
@given(WORDS, WORDS, st.integers(0, 31))
def test_words_wrap_and_shift_as_32_bits_do(a, b, shift):
    x, y = np.uint32(a), np.uint32(b)
    with np.errstate(over="ignore"):
        for opcode, expected in (
            ("sadd.s32", x + y), ("ssub.s32", x - y), ("smul.u32", x * y), ("sand.u32", x & y), ("sor.u32", x | y),
            ("sxor.u32", x ^ y),
        ):  # fmt: skip
            assert scalar_function(opcode, 2)(a, b) == int(expected)
    assert scalar_function("sshll.u32", 2)(a, shift) == int(x << np.uint32(shift))
    assert scalar_function("sshrl.u32", 2)(a, shift) == int(x >> np.uint32(shift))
    assert scalar_function("sshra.s32", 2)(a, shift) == int(x.view(np.int32) >> np.int32(shift)) % 2**32


@settings(deadline=None)
@given(WORDS, WORDS)
def test_comparisons_and_extremes_read_words_as_their_type_says(a, b):
    for kind, dtype in (("s32", np.int32), ("u32", np.uint32)):
        x, y = (int(np.uint32(word).view(dtype)) for word in (a, b))
        for name in ("eq", "ne", "lt", "le", "gt", "ge"):
            got = scalar_function(f"scmp.{name}.{kind}.totalorder", 2)(a, b)
            assert got is getattr(operator, name)(x, y)
        assert scalar_function(f"smin.{kind}", 2)(a, b) == min(x, y) % 2**32
        assert scalar_function(f"smax.{kind}", 2)(a, b) == max(x, y) % 2**32


@pytest.mark.parametrize("opcode", ["sadd.f32", "scmp.lt.f32.totalorder", "sdivrem.u32", "sadd"])
def test_what_is_not_integer_arithmetic_is_not_guessed(opcode):
    assert scalar_function(opcode, 2) is None


def test_a_predicated_move_keeps_the_old_value():
    done = execute(loop(4, "%p1 = scmp.ge.s32.totalorder %s2, 2", "%s5 = smov (%p1, %s2), 0",
                        "%p2 = scmp.eq.s32.totalorder %s5, 0",
                        "%5 = sbr.rel (%p2) target bundleno = 8 (0x8), region = 5", "", ""), CHIP)  # fmt: skip
    # 0 where the predicate holds, the counter where it does not: 0, 1, 0, 0
    assert done.counts[7] == 1


@pytest.mark.parametrize(("predicate", "known"), [("scmp.lt.s32.totalorder %s2, 1", True),
                                                   ("scmp.lt.s32.totalorder %s9, 1", False)])  # fmt: skip
def test_a_predicated_store_happens_only_when_its_predicate_holds(predicate, known):
    """The counter is stored in the first trip; where that is not known, what memory then holds is not either."""
    done = execute(loop(3, f"%p1 = {predicate}", "%6 = sst [smem:[#allocation7 + $0x1]] (%p1), %s2",
                        "%s5 = sld [smem:[#allocation7 + $0x1]]  ;;  %p2 = scmp.eq.s32.totalorder %s5, 0",
                        "%5 = sbr.rel (%p2) target bundleno = 8 (0x8), region = 5", "", ""), CHIP)  # fmt: skip
    assert done.counts[7] == (0 if known else 3)
    assert bool(done.unresolved) != known


# ---- copies


def test_a_copy_counts_when_its_predicate_holds_and_in_the_step_in_which_it_begins():
    program = loop(4, "%p1 = scmp.lt.s32.totalorder %s2, 2",
                   "%5 = dma.hbm_to_vmem [thread:$0]  (%p1), /*hbm=*/%s8, /*size_in_granules=*/4096, /*vmem=*/%s9, %s7",
                   "%6 = dma.vmem_to_vmem %s8, 64, %s9, %s7", "%7 = dma.done.wait %s7, 4096")  # fmt: skip
    done = execute(program, CHIP)
    assert done.copied == {"hbm->vmem": 2 * 4096 * 32, "vmem->vmem": 4 * 64 * 32}
    assert [step.hbm_bytes for step in done.steps] == [0, 4096 * 32, 4096 * 32, 0, 0]


def test_the_bound_takes_each_step_for_as_long_as_its_copies():
    program = loop(4, "%p1 = scmp.lt.s32.totalorder %s2, 2", "%5 = dma.hbm_to_vmem (%p1), %s8, 4096, %s9, %s7")
    report = kernel_report("k", program, CHIP, {})
    copy = 4096 * 32 / CHIP.hbm_bytes_per_cycle
    assert copy == pytest.approx(4096 * 32 * 1.503e9 / 819e9, rel=1e-3)
    assert report.bound_cycles == int(1 + 2 * copy + 6 + 7)
    assert report.hbm_cycles == round(2 * copy)


def test_a_copy_of_unknown_size_or_predicate_is_not_passed_over_in_silence():
    done = execute(schedule("%5 = dma.hbm_to_vmem %s8, %s6, %s9, %s7",
                            "%6 = dma.hbm_to_vmem (%p1), %s8, 2, %s9, %s7"), CHIP)  # fmt: skip
    assert done.unresolved == {"size of a copy": 1, "copy": 1}
    assert done.copied["hbm->vmem"] == 64


# ---- tables of a scalar prefetch

PROGRAM = """HloModule jit_f

%body (arg: (s32[], s32[8])) -> (s32[], s32[8]) {
  %arg = (s32[], s32[8]{0:T(128)}) parameter(0)
  %gte = s32[8]{0:T(128)} get-tuple-element(%arg), index=1
  %looped.2 = bf16[8]{0} custom-call(%gte), custom_call_target="tpu_custom_call", backend_config={"body":"A"}
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


def test_constants_are_found_through_copies_and_loop_invariants():
    program = parse_program(PROGRAM)
    assert program.kernels == ("looped.2", "direct.1", "other.3")
    assert program.constant_operands("direct.1") == {0: TABLE}
    assert program.constant_operands("looped.2") == {0: TABLE}
    assert program.constant_operands("other.3") == {}, "an argument of the program is not known"
    assert program.vmem_bytes("other.3") == 2**20


def test_a_table_of_one_value_may_be_a_scalar_made_wider():
    program = parse_program("%one = s32[]{:T(512)} constant(1)\n"
                            "%table = s32[3]{0:T(128)} broadcast(%one), dimensions={}\n"
                            "%row = s32[3]{0:T(128)} constant({1, 2, 3})\n"
                            "%column = s32[3,1]{1,0:T(4,128)} broadcast(%row), dimensions={0}\n"
                            "%square = s32[3,3]{1,0:T(4,128)} broadcast(%row), dimensions={1}\n")  # fmt: skip
    assert program.constant("table") == {0: 1, 1: 1, 2: 1}
    assert program.constant("square") is None, "only single values are made wider"
    assert program.constant("column") is None, "nor turned"


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


def test_a_table_that_is_a_constant_decides_branches():
    program = parse_program(PROGRAM)
    known = kernel_report("k", table_kernel(), CHIP, program.constant_operands("direct.1"))
    assert known.cycles == known.cycles_low == 4 + 8 * 8 + 4 * 16
    assert known.hbm_bytes == 0, "tables are not counted as blocks"
    unknown = kernel_report("k", table_kernel(), CHIP, program.constant_operands("other.3"))
    assert (unknown.cycles_low, unknown.cycles) == (4 + 8 * 8, 4 + 8 * 8 + 8 * 16)


@pytest.mark.parametrize(("shape", "dtype", "layout"), [
    ((10, 200), np.int32, "{1,0:T(8,128)}"), ((2, 10, 200), np.int8, "{2,1,0:T(8,128)(4,1)}"),
    ((3, 5), np.int16, "{1,0:T(2,128)(2,1)}"), ((300,), np.int8, "{0:T(512)(128)(4,1)}"), ((), np.int32, ""),
])  # fmt: skip
def test_words_lie_where_the_layout_says(shape, dtype, layout):
    values = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    words = memory_words([int(v) for v in values.flat], list(shape), values.itemsize, layout)
    packed, bits = 4 // values.itemsize, 8 * values.itemsize
    if len(shape) < 2:
        places = [(i // packed, i % packed) for i in range(values.size)]
    else:
        rows = int(layout.partition("T(")[2].partition(",")[0])
        down, across = -(-shape[-2] // rows), -(-shape[-1] // 128)
        places = []
        for *plane, r, c in np.ndindex(*shape):
            tile = (sum(plane) * down + r // rows) * across + c // 128
            places.append((tile * rows * 128 // packed + r % rows // packed * 128 + c % 128, r % rows % packed))
    assert len(set(places)) == len(places)
    for value, (word, part) in zip(values.flat, places, strict=True):
        assert words[word] >> bits * part & 2**bits - 1 == int(value) % 2**bits


def test_one_value_stands_for_a_whole_constant():
    assert parse_program("%c = pred[3]{0:T(512)} constant({...})\n").constant("c") is None
    assert memory_words([7], [3], 4, "{0:T(128)}") == {0: 7, 1: 7, 2: 7}


# ---- dumps


def dumps(folder, program=PROGRAM, **kernels):
    """A folder as a compilation leaves it: `program`, and a schedule for each kernel named."""
    (folder / compilation.PROGRAM).write_text(program)
    (folder / compilation.META).write_text(json.dumps({"flops": None, "jax": "0", "device_kind": "TPU"}))
    for name, text in kernels.items():
        (folder / f"17-{name.replace('_', '.')}-01-{compilation.SCHEDULE}.txt").write_text(text)
    return compilation.read_dumps(folder)


def test_calls_of_the_same_code_share_its_schedule(tmp_path):
    found = dumps(tmp_path, looped_2="0 : { }\n0x1 : { }", other_3="0 : { }")
    assert len(found.schedule("direct.1").bundles) == 2
    assert len(found.schedule("other.3").bundles) == 1


@pytest.mark.parametrize(("text", "words"), [("nothing", "no bundles"), ("0 : { }\n0x2 : { }", "calls itself 0x2")])
def test_a_schedule_that_cannot_be_read_names_the_libtpu_that_can_be(tmp_path, text, words):
    with pytest.raises(DumpError, match=rf"{words}.*private to libtpu.*{TRIED_LIBTPU}"):
        dumps(tmp_path, other_3=text).schedule("other.3")


def test_a_kernel_without_a_schedule_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "libtpu_version", lambda: "9.9")
    with pytest.raises(DumpError, match=rf"libtpu 9.9 dumped no schedule of the kernel 'other.3'.*{TRIED_LIBTPU}"):
        dumps(tmp_path, looped_2="0 : { }").schedule("other.3")


def test_the_table_of_slots_gives_shares_and_spills():
    text = "== CAPACITY:\nMXU, ...\n 4 3 4 2 1 3 3 1 1 2\n== UTILIZATION:\n0 0 4 0 0 1 1 0 1 2\n0 0 2 0 0 0 0 0 1 0\n"
    report = kernel_report("k", schedule("%v1 = vmatmul.f32.gmra.mxu0 %v2", "%v3 = vrot.lane.b32.xlu1 %v1"), CHIP, {},
                           parse_slot_use(text))  # fmt: skip
    (region,) = report.regions
    assert tuple(region.slots) == SLOTS
    assert (region.slots["VALU"], region.slots["SPILL"], region.spills, region.fills) == (0.75, 1.0, 2, 1)
    assert region.slots["MXU"] == region.mxu == 8 / (2 * 4), "an f32 instruction holds one of four units for 8 cycles"
    assert region.slots["XLU"] == 9 / (2 * 3)
    with pytest.raises(DumpError, match="not a table of slots"):
        parse_slot_use("moved")


# ---- what is asked, and what is said


def test_an_unknown_generation_is_named():
    with pytest.raises(MeterError, match="unknown TPU generation 'v5'.*did you mean.*v4, v5e, v5p, v6e, v7x"):
        measure("m:f", "v5")


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MeterError, match=r"libtpu is not installed: pip install 'chinchilla_jax\[compiler\]'"):
        measure("m:f")


def test_a_folder_with_other_dumps_is_not_measured_into(tmp_path):
    (tmp_path / "old").write_text("")
    with pytest.raises(MeterError, match="is not empty"):
        measure("m:f", keep=tmp_path)


def test_measuring_does_not_import_jax():
    code = "import sys, chinchilla_jax.tools.tpu_meter.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def measured(monkeypatch):
    """The command line with `measure` answered by a kernel of 8 trips, 132 cycles."""
    kernels = [kernel_report("k", table_kernel(), CHIP, parse_program(PROGRAM).constant_operands("direct.1"))]
    report = program_report(kernels, CHIP, build="m:f", kwargs={"n": 1}, device_kind="TPU v5 lite", jax="0", libtpu="0",
                            flops=132 * 2 * 4 * 128**2 / 2)  # fmt: skip
    monkeypatch.setattr(command, "measure", lambda *_: report)
    return report


def test_the_command_prints_the_report_and_writes_all_of_it(measured, tmp_path, capsys):
    assert command.main(["m:f", "--json", str(tmp_path / "r.json"), "-v"]) == 0
    out = capsys.readouterr().out
    assert "cycles 132," in out and "predicated 0x9: 16 bundles, ran 4 of 8" in out and "= 50.0% of the peak" in out
    assert out.strip() == render(measured, verbose=True)
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(dataclasses.asdict(measured)))


@pytest.mark.parametrize(("most", "code"), [("132", 0), ("131", 1)])
def test_the_command_fails_above_the_cycles_allowed(measured, capsys, most, code):
    assert command.main(["m:f", "--max-cycles", most]) == code
    assert ("132 cycles, more than the 131 allowed" in capsys.readouterr().err) == bool(code)


@pytest.mark.parametrize(("argv", "words"), [
    ([], "name a builder"), (["m:f", "--selftest"], "name a builder"), (["m:f", "--kwargs", "{"], "is not JSON"),
    (["m:f", "--kwargs", "[1]"], "must be a JSON object"),
])  # fmt: skip
def test_the_command_says_what_is_wrong_with_its_flags(capsys, argv, words):
    with pytest.raises(SystemExit, match="2"):
        command.main(argv)
    assert words in capsys.readouterr().err


def test_the_command_gives_an_error_one_line_and_code_2(capsys):
    assert command.main(["m:f", "--gen", "v9"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown TPU generation 'v9'")


# ---- with the compiler

# Cycles of the self-test's matmul as jax 0.10.2 and libtpu 0.0.42.1 schedule it.
MATMUL_CYCLES = {"v4": 74_688, "v5e": 146_750, "v5p": 74_724, "v6e": 49_923, "v7x": 50_950}


@pytest.mark.parametrize("gen", [
    pytest.param(gen, marks=needs_compiler + ([] if gen == "v5e" else [pytest.mark.long])) for gen in kernel_chips()
])  # fmt: skip
def test_the_dumps_of_the_compiler_are_understood(gen):
    report = selftest(gen)
    versions = importlib.metadata.version("jax"), report.libtpu
    if versions == ("0.10.2", TRIED_LIBTPU):
        assert report.cycles == MATMUL_CYCLES[gen], "same compiler, same schedule: the meter reads it differently"
    assert report.cycles == report.cycles_low


def scratch_too_large():
    """A builder: a kernel that asks for 256 MiB of VMEM."""
    import jax
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    array = jax.ShapeDtypeStruct((8, 128), "float32")

    def copy(x_ref, out_ref, scratch_ref):
        scratch_ref[:8] = x_ref[...]
        out_ref[...] = scratch_ref[:8]

    return pl.pallas_call(copy, out_shape=array, scratch_shapes=[pltpu.VMEM((2**19, 128), "float32")]), (array,)


class TestWithTheCompiler:
    pytestmark = needs_compiler

    def test_in_a_sweep_what_does_not_compile_gives_the_compilers_words(self):
        build = f"{__name__}:scratch_too_large"
        errors = measure_many([Request(build), Request("no_such_module:build")])
        assert all(isinstance(error, CompileError) for error in errors)
        assert "RESOURCE_EXHAUSTED" in str(errors[0]) and "space=vmem" in str(errors[0])
        assert str(errors[1]).endswith("ModuleNotFoundError: No module named 'no_such_module'")
