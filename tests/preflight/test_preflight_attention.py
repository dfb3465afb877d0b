"""What is measured of the attention kernels, and how many times that a chip computes."""

import dataclasses

from chinchilla_jax.config import RunConfig
from chinchilla_jax.preflight.attention import plain_name, shape_of
from chinchilla_jax.preflight.slices import parse_slice


def test_attention_is_measured_for_a_few_heads_of_a_row_of_a_chip():
    values = {
        "model": {"n_layers": 2, "d_model": 1024, "n_heads": 24, "n_kv_heads": 12, "head_dim": 128, "position": "rope"},
        "mesh": {"fsdp": 4, "tensor": 2},
        "train": {"batch_size": 64, "microbatches": 2, "compute_dtype": "bfloat16"},
        "data": {"seq_len": 512},
    }
    config = RunConfig.from_dict(values)
    shape, factor = shape_of(config, parse_slice("v5p-16"))
    assert (shape["heads"], shape["groups"], shape["position"], shape["seq"]) == (4, 2, "rope", 512)
    assert factor == 8 * 3 and shape["rows"] == 1, "8 rows of 12 heads"
    narrow = dataclasses.replace(config, model=dataclasses.replace(config.model, n_heads=2, n_kv_heads=2))
    shape, factor = shape_of(narrow, parse_slice("v5p-16"))
    assert (shape["rows"], shape["heads"], factor) == (2, 1, 4), "two TensorCores get a row each"
    split = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=2, context=2))
    assert shape_of(split, parse_slice("v5p-16"))[1] == 16 * 3 / 2, "heads are exchanged"
    odd = dataclasses.replace(split, model=dataclasses.replace(split.model, n_heads=6, n_kv_heads=6))
    assert shape_of(odd, parse_slice("v5p-16"))[1] == 16 / 2 / 2 / 2, "3 heads measured twice; keys are gathered"
    rules = ("heads=", "batch=data+fsdp+tensor")
    whole = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, rules=rules))
    assert shape_of(whole, parse_slice("v5p-16"))[1] == 4 * 6, "4 rows of all 24 heads"


def test_kernels_have_the_same_name_in_a_step_and_alone():
    assert plain_name("transpose_jvp_attention_backward__.3") == plain_name("attention_backward")
    assert plain_name("jvp_attention_forward_") == "attention_forward"
