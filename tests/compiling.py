"""A mark for tests that need the TPU compiler, and a fixture that spares tests the optimisation of their programs.

A folder that wants the fixture imports it in its conftest.
"""

import importlib.metadata
import importlib.util

import jax
import pytest

needs_compiler = [
    pytest.mark.compiler,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: pip install 'chinchilla_jax[compiler]'"
    ),
]


def libtpu() -> tuple[int, ...]:
    """The version of the TPU compiler, without its build number."""
    return tuple(map(int, importlib.metadata.version("libtpu").split(".")[:3]))


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiling is most of the time where shapes are small, and these gain nothing from optimised machine code."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
