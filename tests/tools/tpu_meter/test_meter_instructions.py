"""What predicated moves and stores do."""

import pytest

from chinchilla_jax.tools.tpu_meter.machine import execute
from tests.tools.tpu_meter.schedules import CHIP, loop


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
