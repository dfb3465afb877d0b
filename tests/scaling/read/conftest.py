"""Tables written for a test."""

import pytest

from chinchilla_jax.scaling.read.load import load_runs


@pytest.fixture
def table(tmp_path):
    """`table(text)`: the path of a file with that content."""

    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def load(table):
    """`load(text, **options)`: the runs of a CSV table with that content."""
    return lambda text, **options: load_runs(table(text), **options)
