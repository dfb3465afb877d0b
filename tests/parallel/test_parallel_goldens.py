"""No weight changes its shape or its place unnoticed."""

import pytest

from tests.parallel.shardings import COMMAND, FAMILIES, FOLDER, MESHES, difference


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_laid_out_as_written_down(family, mesh):
    found = difference(family, mesh)
    assert not found, f"the layout of weights changed; checkpoints and memory with it:\n{found}\n{COMMAND}"


def test_nothing_is_written_down_for_what_is_gone():
    assert {path.stem for path in FOLDER.iterdir()} == {f"{family}.{mesh}" for family in FAMILIES for mesh in MESHES}
