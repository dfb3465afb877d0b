"""Every implementation of attention is its definition: outputs, log-sum-exps and every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.kernels.plain import plain_attention
from tests.kernels.cases import CASES, Case, draw, with_arguments, with_gradients
from tests.kernels.reference import by_pairs


@functools.cache
def expected(case):
    drawn = draw(case)
    exact = {name: np.asarray(x, np.float64) for name, x in drawn.arrays.items()}
    return by_pairs(exact, np.asarray(drawn.d_out, np.float64), np.asarray(drawn.d_lse), **drawn.settings)


def relative_errors(case, out, lse, gradients):
    """Of each result, the size of its error over its own size; the size itself where it should be zero."""
    reference = expected(case)
    seen = np.isfinite(reference.lse)
    pairs = {"out": (out, reference.out), "lse": (np.where(seen, lse, 0), np.where(seen, reference.lse, 0))}
    pairs |= {name: (gradients[name], exact) for name, exact in reference.gradients.items()}
    norm = np.linalg.norm
    return {name: norm(np.asarray(ours, np.float64) - exact) / (norm(exact) or 1.0)
            for name, (ours, exact) in pairs.items()}  # fmt: skip


def bound(case):
    """Rounding of the inputs to bfloat16 is not an error, of everything computed from them it is."""
    if case.dtype == "bfloat16":
        return 1e-2
    return 2e-6 if case.spread == 1 else 1e-5  # scores in the hundreds have larger absolute errors


@pytest.mark.parametrize("name", CASES)
def test_attention_and_its_gradients_are_those_of_the_pairs(call, name):
    case = CASES[name]
    out, lse, gradients = with_gradients(call, case)
    assert out.dtype == case.dtype and lse.dtype == jnp.float32
    assert {name: x.dtype for name, x in gradients.items()} == {name: x.dtype for name, x in draw(case).arrays.items()}
    errors = relative_errors(case, out, lse, gradients)
    assert all(error < bound(case) for error in errors.values()), errors


@pytest.mark.parametrize(
    "name", ["queries of which some have no key", "queries before the keys, relative", "all keys in the future",
             "queries beyond the keys and partly the window", "a traced offset far beyond the keys, relative, packed"]
)  # fmt: skip
def test_a_query_without_keys_gives_zero_and_minus_infinity_and_has_no_gradient(call, name):
    case = CASES[name]
    out, lse, gradients = with_gradients(call, case)
    empty = ~np.isfinite(expected(case).lse)
    assert empty.any()
    np.testing.assert_array_equal(np.isneginf(lse), empty)
    np.testing.assert_array_equal(np.asarray(out).transpose(0, 2, 1, 3)[empty], 0)
    np.testing.assert_array_equal(np.asarray(gradients["q"]).transpose(0, 2, 1, 3)[empty], 0)


def test_the_gradients_of_the_reference_are_its_slopes():
    case = Case(B=2, S=5, T=8, H=2, G=1, K=3, distances=8, segments="packed", softcap=2.0, window=6)
    drawn, rng = draw(case), np.random.default_rng(1)
    arrays = {name: np.asarray(x, np.float64) for name, x in drawn.arrays.items()}
    d_out, d_lse = np.asarray(drawn.d_out, np.float64), np.asarray(drawn.d_lse, np.float64)

    def value(arrays):
        found = by_pairs(arrays, d_out, d_lse, **drawn.settings)
        return np.sum(found.out * d_out) + np.sum(found.lse * d_lse)

    for name, gradient in by_pairs(arrays, d_out, d_lse, **drawn.settings).gradients.items():
        step = 1e-5 * rng.standard_normal(gradient.shape)
        difference = value(arrays | {name: arrays[name] + step}) - value(arrays | {name: arrays[name] - step})
        np.testing.assert_allclose(difference / 2, np.sum(gradient * step), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("size", [5, 28])
@pytest.mark.parametrize("implementation", ["plain", "blockwise"], indirect=True)
def test_the_forms_that_run_everywhere_take_any_head_size(call, size):
    case = Case(S=9, T=12, K=size, distances=12)
    errors = relative_errors(case, *with_gradients(call, case))
    assert all(error < bound(case) for error in errors.values()), errors


def test_the_plain_form_computes_in_float64_if_asked():
    with jax.enable_x64(True):
        case = Case(S=9, T=12, H=4, G=2, distances=12, softcap=2.0, dtype="float64")
        errors = relative_errors(case, *with_gradients(with_arguments(plain_attention), case))
    assert max(errors.values()) < 1e-14, errors


def test_the_same_inputs_give_the_same_bits(call):
    case = CASES["relative, two rows"]
    first, second = with_gradients(call, case), with_gradients.__wrapped__(call, case)  # the second compiles anew
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)
