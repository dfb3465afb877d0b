"""What tests of reading ask of a table that was loaded, or refused."""

import pytest

from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused


def listed(loaded):
    """Reasons by place."""
    return {row.where: row.reason for row in loaded.bad}


def refusal(path, **options):
    """The refusal that loading `path` ends in."""
    with pytest.raises(FitRefused) as caught:
        load_runs(path, **options)
    return caught.value
