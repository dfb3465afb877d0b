"""The runs that `configs/` are about fit their slices, with the memory and in the time that their docstrings print."""

import importlib

import pytest

from chinchilla_jax.config import RunConfig
from chinchilla_jax.preflight.cache import Cache
from chinchilla_jax.preflight.check import Options, check
from chinchilla_jax.preflight.slices import parse_slice
from tests.compiling import needs_compiler

pytestmark = [pytest.mark.long, *needs_compiler]

# config, its name, slice, sequences; GiB at the peak and seconds of a step as printed in the docstring and in README.md
PRINTED = [
    ("chinchilla_70b", "v4-1024", "v4-1024", 768, 12.2, 8.63),
    ("chinchilla_70b", "v4-1024", "v4-1024", 1536, 21.9, 16.66),
    ("chinchilla_70b", "v4-2048", "v4-2048", 1536, 11.1, 8.66),
    ("chinchilla_70b", "v4-4096", "v4-4096", 1536, 5.6, 4.50),
    ("chinchilla_70b", "v5p-1024", "v5p-1024", 768, 12.3, 4.81),
    ("chinchilla_70b", "v5p-1024", "v5p-1024", 1536, 22.0, 9.49),
    ("chinchilla_70b", "v5p-2048", "v5p-2048", 1536, 11.2, 4.83),
    ("chinchilla_70b", "v5p-4096", "v5p-4096", 1536, 5.7, 2.47),
    ("gopher", "280b", "v4-4096", 3072, 22.6, 28.76),
    ("llama", "65b", "v5p-1024", 2048, 29.3, 13.82),
    ("chinchilla_study", "16183m", "v5e-256", 256, 3.7, 2.30),
]
ADVICE = "if the program is meant to have changed: correct README.md, the docstring in configs/ and this table"


@pytest.mark.parametrize(("file", "name", "slice_name", "sequences", "peak", "seconds"), PRINTED)
def test_a_flagship_fits_its_slice_as_printed(file, name, slice_name, sequences, peak, seconds, tmp_path):
    config = RunConfig.from_dict(importlib.import_module(f"configs.{file}").get_config(name).to_dict())
    verdict = check(config, Options(parse_slice(slice_name), Cache(tmp_path), every_batch=True), print)
    assert verdict.fits
    found = verdict.checked[sequences]
    assert found.step.memory.peak / 2**30 == pytest.approx(peak, rel=0.02), ADVICE
    assert found.time.total == pytest.approx(seconds, rel=0.02), ADVICE
