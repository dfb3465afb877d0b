"""A mark for tests that need the TPU compiler."""

import importlib.metadata
import importlib.util

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
