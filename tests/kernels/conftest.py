"""Which implementations there are to test, and how each is called."""

import functools

import pytest

from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.kernels.blockwise import blockwise_attention
from tests.kernels.cases import with_arguments

# Blocks so small that even the short rows of the tests have several, the last one not full.
CALLS = {
    "plain": functools.partial(attention, implementation="plain"),
    "blockwise": with_arguments(blockwise_attention, block=48),
    "fused": functools.partial(attention, implementation="fused"),
}


@pytest.fixture(params=CALLS, scope="module")
def implementation(request):
    """The name of each implementation in turn; off a TPU the kernels run in Pallas's interpreter."""
    return request.param


@pytest.fixture(scope="module")
def call(implementation):
    """Attention by that implementation."""
    return CALLS[implementation]
