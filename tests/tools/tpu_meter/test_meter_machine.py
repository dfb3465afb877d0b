"""Where the scalar program of a schedule goes, counted by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_jax.tools.tpu_meter import MeterError
from chinchilla_jax.tools.tpu_meter.machine import execute
from chinchilla_jax.tools.tpu_meter.program import parse_program
from chinchilla_jax.tools.tpu_meter.report import kernel_report
from tests.tools.tpu_meter.schedules import CHIP, MEGACORE, PROGRAM, loop, schedule, table_kernel


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


def test_a_table_that_is_a_constant_decides_branches():
    program = parse_program(PROGRAM)
    known = kernel_report("k", table_kernel(), CHIP, program.constant_operands("direct.1"))
    assert known.cycles == known.cycles_low == 4 + 8 * 8 + 4 * 16
    assert known.hbm_bytes == 0, "tables are not counted as blocks"
    unknown = kernel_report("k", table_kernel(), CHIP, program.constant_operands("other.3"))
    assert (unknown.cycles_low, unknown.cycles) == (4 + 8 * 8, 4 + 8 * 8 + 8 * 16)
