"""The table of chips: its figures, and a chip that is added without editing a file of the package."""

import dataclasses

import pytest

from chinchilla_jax.base.chips import CHIPS, Chip, chip_days, device_peak, kernel_chips, register
from chinchilla_jax.config import ConfigError
from chinchilla_jax.kernels.tiles import compile_for, limit, ranked, tpu_generation
from chinchilla_jax.preflight.predict import step_time
from chinchilla_jax.preflight.slices import parse_slice
from chinchilla_jax.preflight.step import CompiledStep, Memory


@pytest.fixture
def toy():
    """A chip twice as fast as v6e, with slices of 3D grids, in the table for the time of a test."""
    v6e, v5p = CHIPS["v6e"], CHIPS["v5p"]
    slices = dataclasses.replace(v5p.slices, compiler="v9", largest=512, aliases=("v9lite",))
    chip = dataclasses.replace(v6e, name="v9", peak=2 * v6e.peak, kinds=("TPU v9",), slices=slices)
    yield register(chip)
    del CHIPS["v9"]


def test_a_registered_chip_is_known_everywhere(toy):
    assert device_peak("TPU v9") == toy.peak and chip_days("v9", 1, 1, 1.0) == toy.peak * 86400
    with compile_for("TPU v9"):
        assert tpu_generation() == "v9"
    assert limit("v9") == limit("v6e") and ranked("v9", backward=False, relative=False, size=128)
    slice_ = parse_slice("v9lite-64")
    assert (slice_.name, slice_.topology, slice_.chip) == ("v9-64", "v9:4x4x4", toy)


def test_the_time_of_a_step_is_predicted_for_a_registered_chip(toy):
    memory = Memory(1, 1, 1, 0, 1, 0, 4, 8)
    step = CompiledStep(sequences=1, memory=memory, links={}, seconds=1.0, matmul_flops=10**15, cycles=0)
    assert step_time(step, parse_slice("v9-4"), {}).total == pytest.approx(10**15 / toy.peak)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'v4' already"):
        register(Chip("v4", 1e12))


@pytest.mark.parametrize(("name", "gigahertz"), [("v4", 1.05), ("v5e", 1.5), ("v5p", 1.75), ("v6e", 1.75)])
def test_the_published_peak_implies_the_published_clock(name, gigahertz):
    assert CHIPS[name].clock == pytest.approx(gigahertz * 1e9, rel=5e-3)


def test_no_name_of_a_device_belongs_to_two_chips():
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)
    assert all(chip.kinds and chip.slices and chip.hbm_bandwidth for chip in kernel_chips().values())


def test_chip_days_are_flops():
    assert chip_days("v4", 1024, 10, 0.5) == pytest.approx(275e12 * 1024 * 864000 * 0.5)
    assert device_peak("TPU v3") == CHIPS["v3"].peak / 2 and device_peak("cpu") is None
    wrong = (("v44", 1, 1, 0.5), ("v4", 0, 1, 0.5), ("v4", 1, -1, 0.5), ("v4", 1, 1, 1.5), ("v4", 1, 1, float("nan")))
    for bad, flag in zip(wrong, ("chip", "chips", "days", "utilisation", "utilisation"), strict=True):
        with pytest.raises(ConfigError, match=f"--{flag}\\b"):
            chip_days(*bad)
