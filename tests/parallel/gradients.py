"""What a form of attention gives on some mesh, with all its gradients, for tests to compare."""

import functools

import jax
import numpy as np


def value_and_gradients(attend, arrays, cotangents, **keywords):
    """Output, log-sum-exp and the gradients of every array, in one compiled function."""

    @jax.jit
    def run(arrays, cotangents):
        results, pull_back = jax.vjp(lambda x: attend(**x, **keywords, return_lse=True), arrays)
        return results, pull_back(cotangents)[0]

    return run(arrays, cotangents)


def near(found, expected):
    """Asserts that two such results are equal up to rounding."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6), found, expected)
