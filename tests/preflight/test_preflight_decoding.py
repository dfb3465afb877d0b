"""What a token costs: a decoding step as the TPU compiler makes it, with the fused kernel and the cache as computed."""

import pytest

from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.config import ConfigError, DataConfig, MeshConfig, ModelConfig, RunConfig, TrainConfig
from chinchilla_jax.model.cache import cache_bytes
from chinchilla_jax.preflight.cache import open_cache
from chinchilla_jax.preflight.check import Options
from chinchilla_jax.preflight.decoding import Asked, parse_asked, preflight_decoding
from chinchilla_jax.preflight.slices import parse_slice

SHAPE = {"n_layers": 2, "d_model": 256, "n_heads": 4, "n_kv_heads": 4, "head_dim": 64, "d_ff": 512, "vocab_size": 1024}


@pytest.mark.parametrize("position", ["relative", "rope"])
def test_a_decoding_step_has_the_fused_kernel_in_each_layer_and_the_cache_as_computed(tmp_path, position):
    model = ModelConfig(**SHAPE, position=position)
    train = TrainConfig(compute_dtype="bfloat16", batch_size=8, train_tokens=10**6)
    config = RunConfig(model=model, data=DataConfig(seq_len=128), train=train, mesh=MeshConfig(tensor=4))
    lines = []
    found = preflight_decoding(
        config, Asked(rows=8, prompt=100, new=50), Options(parse_slice("v5e-4"), open_cache(tmp_path)), lines.append
    )
    assert found["kernels"] == {"attention_forward": 2} and found["kernel_cycles"] > 1000
    assert found["cache"] == cache_bytes(model, 8, 256, itemsize=2) / 4 and found["capacity"] == 256
    assert found["peak"] > found["parameters"] + found["cache"] and found["hbm_bytes"] > found["parameters"]
    assert any("tokens/s" in line for line in lines) and any("MB of HBM traffic" in line for line in lines)


@pytest.mark.parametrize("asked", ["8", "8:100", "8:0:4", "8:x:4", "8:1:2:3"])
def test_what_is_no_three_numbers_is_refused(asked):
    with pytest.raises(UsageError, match="ROWS:PROMPT:NEW"):
        parse_asked(asked)


def test_more_rows_than_a_chip_has_memory_for_are_refused_with_what_they_need(tmp_path):
    model = ModelConfig(**(SHAPE | {"n_layers": 64}), position="rope")
    train = TrainConfig(compute_dtype="bfloat16", train_tokens=10**6)
    config = RunConfig(model=model, data=DataConfig(seq_len=128), train=train)
    options = Options(parse_slice("v5e-1"), open_cache(tmp_path))
    with pytest.raises(ConfigError, match="fewer rows"):
        preflight_decoding(config, Asked(rows=64, prompt=1024, new=30000), options, lambda line: None)
