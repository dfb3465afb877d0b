"""Shares of slots in a report."""

import pytest

from chinchilla_jax.tools.tpu_meter import DumpError
from chinchilla_jax.tools.tpu_meter.bundles import SLOTS, parse_slot_use
from chinchilla_jax.tools.tpu_meter.report import kernel_report
from tests.tools.tpu_meter.schedules import CHIP, schedule


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
