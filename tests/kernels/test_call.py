"""Which calls of attention are refused, and how `auto` chooses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chinchilla_jax.kernels import attention as module
from chinchilla_jax.kernels.attention import attention, xla_form
from chinchilla_jax.kernels.call import AttentionError

B, S, T, H, G, K = 2, 4, 6, 4, 2, 8


def good():
    """A call nothing is wrong with, every optional argument given."""
    return {
        "q_BxSxHxK": jnp.ones((B, S, H, K)), "k_BxTxGxK": jnp.ones((B, T, G, K)), "v_BxTxGxK": jnp.ones((B, T, G, K)),
        "r_NxHxK": jnp.ones((T, H, K)), "content_bias_HxK": jnp.ones((H, K)), "position_bias_HxK": jnp.ones((H, K)),
        "segment_ids_BxT": jnp.ones((B, T), jnp.int32), "q_segment_ids_BxS": jnp.ones((B, S), jnp.int32),
        "q_offset": 2, "window": 5, "softcap": 20.0, "scale": 0.1,
    }  # fmt: skip


BAD = {
    "three axes": ("q_BxSxHxK", jnp.ones((S, H, K))),
    "no queries": ("q_BxSxHxK", jnp.ones((B, 0, H, K))),
    "float16": ("q_BxSxHxK", jnp.ones((B, S, H, K), jnp.float16)),
    "other rows": ("k_BxTxGxK", jnp.ones((1, T, G, K))),
    "other head size": ("k_BxTxGxK", jnp.ones((B, T, G, 4))),
    "groups that do not divide": ("k_BxTxGxK", jnp.ones((B, T, 3, K))),
    "keys of another type": ("k_BxTxGxK", jnp.ones((B, T, G, K), jnp.bfloat16)),
    "values of another type": ("v_BxTxGxK", jnp.ones((B, T, G, K), jnp.bfloat16)),
    "more values than keys": ("v_BxTxGxK", jnp.ones((B, T + 1, G, K))),
    "distances without r": ("r_NxHxK", None),
    "no content bias": ("content_bias_HxK", None),
    "no position bias": ("position_bias_HxK", None),
    "too few distances": ("r_NxHxK", jnp.ones((4, H, K))),
    "distances of another type": ("r_NxHxK", jnp.ones((T, H, K), jnp.bfloat16)),
    "distances of the groups": ("r_NxHxK", jnp.ones((T, G, K))),
    "a bias of the groups": ("content_bias_HxK", jnp.ones((G, K))),
    "an integer bias": ("position_bias_HxK", jnp.ones((H, K), jnp.int32)),
    "ids of the queries only": ("segment_ids_BxT", None),
    "ids that are floats": ("segment_ids_BxT", jnp.ones((B, T))),
    "ids of other keys": ("segment_ids_BxT", jnp.ones((B, T + 1), jnp.int32)),
    "ids of other queries": ("q_segment_ids_BxS", jnp.ones((B, T), jnp.int32)),
    "an offset a row": ("q_offset", jnp.ones((B,), jnp.int32)),
    "half a position": ("q_offset", 1.5),
    "a window of nothing": ("window", 0),
    "a window that is a flag": ("window", True),
    "a cap of zero": ("softcap", 0.0),
    "a cap of infinity": ("softcap", np.inf),
    "a scale below zero": ("scale", -1.0),
    "an unknown implementation": ("implementation", "flash"),
}


@pytest.mark.parametrize("implementation", ["plain", "blockwise", "auto"])
@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_is_refused_by_name(name, implementation):
    argument, value = BAD[name]
    call = {"implementation": implementation} | good() | {argument: value}
    with pytest.raises(AttentionError, match=f"^{argument}: ") as refused:
        jax.eval_shape(lambda q: attention(**call | {"q_BxSxHxK": q}), call["q_BxSxHxK"])
    assert refused.value.argument == argument


@pytest.mark.parametrize("implementation", ["plain", "blockwise", "auto"])
def test_nothing_is_refused_of_a_good_call(implementation):
    out, lse = jax.eval_shape(lambda: attention(**good(), return_lse=True, implementation=implementation))
    assert (out.shape, lse.shape, lse.dtype) == ((B, S, H, K), (B, H, S), jnp.float32)


def test_ids_of_queries_that_stand_beyond_the_keys_have_to_be_given():
    call = good() | {"q_segment_ids_BxS": None, "q_offset": 3}
    with pytest.raises(AttentionError, match="^q_segment_ids_BxS: is missing"):
        attention(**call)


def test_a_traced_offset_needs_distances_for_every_key_in_the_window():
    call = good() | {"window": None, "r_NxHxK": jnp.ones((T - 1, H, K))}
    with pytest.raises(AttentionError, match="^r_NxHxK: has 5 rows.*at least 6"):
        jax.eval_shape(lambda at: attention(**call | {"q_offset": at}), jnp.int32(0))
    jax.eval_shape(lambda at: attention(**call | {"q_offset": at, "window": 5}), jnp.int32(0))


def test_float64_is_for_the_plain_form():
    with jax.enable_x64(True):
        qkv = [jnp.ones((1, 3, 1, 8), jnp.float64)] * 3
        with pytest.raises(AttentionError, match='^q_BxSxHxK: is float64.*implementation="plain"'):
            attention(*qkv, implementation="blockwise")
        assert attention(*qkv, implementation="plain").dtype == jnp.float64


def test_short_rows_and_few_queries_are_plain_and_long_rows_blockwise():
    assert xla_form(128, 128, relative=False) == xla_form(128, 128, relative=True) == "plain"
    assert xla_form(1, 2**20, relative=False) == xla_form(8, 2**20, relative=True) == "plain"
    assert xla_form(512, 512, relative=False) == xla_form(512, 512, relative=True) == "blockwise"


def test_auto_says_once_what_it_chose(monkeypatch):
    said = []
    monkeypatch.setattr(module.logging, "info", lambda text, *arguments: said.append(text % arguments))
    module._log_choice.cache_clear()
    for _ in range(2):
        jax.eval_shape(lambda: attention(**good()))
    assert len(said) == 1 and "plain" in said[0] and "cpu" in said[0]
