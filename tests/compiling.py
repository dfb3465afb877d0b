"""A fixture that spares tests the optimisation of their programs; a folder that wants it imports it in its conftest."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiling is most of the time where shapes are small, and these gain nothing from optimised machine code."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
