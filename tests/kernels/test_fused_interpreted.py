"""The kernels in Pallas's TPU interpreter: memory starts as NaN, and reading beyond an array is an error.

Off a TPU the kernels run in a plain interpreter, which is quicker, starts memory as zeros and clamps what it reads.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model.positions import rotary

STRICT = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="raise", detect_races=True)


def rotations(queries, keys, size):
    table = rotary(jnp.arange(keys), size, 100.0)
    return {"q_turn_2xSxK": table[:, keys - queries :], "k_turn_2xTxK": table}


def documents(rows, keys):
    return {"segment_ids_BxT": np.repeat(np.arange(3, dtype=np.int32), [keys // 4, keys // 2, keys - keys // 4 * 3])
            [None].repeat(rows, 0)}  # fmt: skip


@pytest.mark.parametrize(("queries", "keys", "relative", "settings"), [
    (200, 200, True, documents(1, 200)),
    (70, 200, False, rotations(70, 200, 32) | {"window": 100, "softcap": 8.0}),
])  # fmt: skip
def test_no_value_is_used_before_it_is_written_and_none_from_outside(queries, keys, relative, settings):
    normal = np.random.default_rng(0).standard_normal
    shapes = {"q_BxSxHxK": (1, queries, 1, 32), "k_BxTxGxK": (1, keys, 1, 32), "v_BxTxGxK": (1, keys, 1, 32)}
    if relative:
        shapes |= {"r_NxHxK": (keys, 1, 32), "content_bias_HxK": (1, 32), "position_bias_HxK": (1, 32)}
    arrays = {name: jnp.asarray(normal(shape), jnp.float32) for name, shape in shapes.items()}
    d_out = jnp.asarray(normal(shapes["q_BxSxHxK"]), jnp.float32)

    def gradients(implementation):
        attend = functools.partial(attention, **settings, implementation=implementation)
        return jax.jit(jax.value_and_grad(lambda arrays: jnp.sum(attend(**arrays) * d_out)))(arrays)

    expected = gradients("plain")
    with pltpu.force_tpu_interpret_mode(STRICT):
        found = gradients("fused")
    for ours, exact in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(ours - exact) < 1e-5 * np.linalg.norm(exact)
