"""The published shapes: each preset, built as a model, has exactly the parameters its paper's table implies."""

import csv
import dataclasses
import pathlib

import flax
import jax
import jax.numpy as jnp
import pytest

from chinchilla_jax.config import ConfigError, ModelConfig
from chinchilla_jax.ledger import count_parameters
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.presets import preset, presets

# Shapes as printed; sizes are our arithmetic from them, and round to what the papers print. layers, d_model, heads,
# head size, d_ff; the matrices alone, L(5 d hk + 2 df) + 32000 d; all parameters.
# Rae et al. 2021 (arXiv 2112.11446), Table 1; Hoffmann et al. 2022 (arXiv 2203.15556), Table 4.
DEEPMIND = {
    "gopher-44m": (8, 512, 16, 32, 2048, 43_646_976, 43_720_448),
    "gopher-117m": (12, 768, 12, 64, 3072, 116_588_544, 116_713_472),
    "gopher-417m": (12, 1536, 12, 128, 6144, 417_202_176, 417_420_032),
    "gopher-1.4b": (24, 2048, 16, 128, 8192, 1_374_158_848, 1_374_684_416),
    "gopher-7.1b": (32, 4096, 32, 128, 16384, 7_110_393_856, 7_111_740_672),
    "gopher-280b": (80, 16384, 128, 128, 65536, 279_697_162_240, 279_710_317_824),
    "chinchilla-70b": (80, 8192, 64, 128, 32768, 70_055_362_560, 70_061_956_352),
}
# Brown et al. 2020 (arXiv 2005.14165), Table 2.1 as printed: 24 heads for XL and width 5140 for 13B are its misprints.
GPT3 = {
    "gpt3-small": (12, 768, 12, 64, 3072, 125_226_240),
    "gpt3-medium": (24, 1024, 16, 64, 4096, 355_871_744),
    "gpt3-large": (24, 1536, 16, 96, 6144, 760_300_032),
    "gpt3-xl": (24, 2048, 24, 128, 8192, 1_517_123_584),
    "gpt3-2.7b": (32, 2560, 32, 80, 10240, 2_651_553_280),
    "gpt3-6.7b": (32, 4096, 32, 128, 16384, 6_658_404_352),
    "gpt3-13b": (40, 5140, 40, 128, 20560, 12_936_488_380),
    "gpt3-175b": (96, 12288, 96, 128, 49152, 174_604_259_328),
}
# Touvron et al. 2023 (arXiv 2302.13971), Table 2 and the released code; the last column is without the embeddings.
LLAMA = {
    "llama-7b": (32, 4096, 32, 128, 11008, 6_738_415_616, 6_476_271_616),
    "llama-13b": (40, 5120, 40, 128, 13824, 13_015_864_320, 12_688_184_320),
    "llama-33b": (60, 6656, 52, 128, 17920, 32_528_943_616, 32_102_959_616),
    "llama-65b": (80, 8192, 64, 128, 22016, 65_285_660_672, 64_761_372_672),
}
TABLE_A9 = {
    f"study-{row['params_millions_printed']}m": {key: float(value) for key, value in row.items()}
    for row in csv.DictReader((pathlib.Path(__file__).parent / "data" / "chinchilla_table_a9.csv").open())
}
# Pan et al. 2024 (arXiv 2404.05567), Tables 1 and 5: layers, d_model, heads, head size, d_ff; experts in attention,
# those of feed-forward layers, groups of keys; millions without embeddings: of the DS-MoE, and of the dense model
# beside it.
DS_MOE = {
    "ds-moe-1b": (24, 2048, 32, 64, 8192, 16, 32, 2, 1067, 1017),
    "ds-moe-3b": (28, 3072, 32, 96, 12288, 8, 32, 4, 2793, 2705),
    "ds-moe-6b": (36, 4096, 32, 128, 16384, 8, 32, 4, 6338, 6186),
}
EVERY_PRESET = [*DEEPMIND, *TABLE_A9, *GPT3, *LLAMA, *DS_MOE]


def abstract_sizes(model: ModelConfig) -> dict[str, int]:
    """Parameters of the built model by path, from shapes alone: nothing is allocated."""
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    key = jax.random.key(0, impl="unsafe_rbg")  # the generator that is fastest to trace: no number is drawn
    variables = flax.linen.meta.unbox(jax.eval_shape(Transformer(model).init, key, tokens))
    return {path: leaf.size for path, leaf in flax.traverse_util.flatten_dict(variables["params"], sep="/").items()}


def in_matrices(sizes: dict[str, int]) -> int:
    """Parameters in matrices: without the gains, the biases, u and v."""
    names = {path: path.rpartition("/")[2] for path in sizes}
    return sum(n for path, n in sizes.items() if not names[path].endswith(("gain", "bias")) and names[path] not in "uv")


@pytest.fixture(scope="module")
def sizes():
    """Parameters by path, of every preset."""
    return {name: abstract_sizes(found.model) for name, found in presets().items()}


def shape_of(name):
    """What the preset says: layers, d_model, heads, head size, d_ff."""
    model = preset(name).model
    return model.n_layers, model.d_model, model.n_heads, model.head_dim, model.d_ff


def test_there_are_72_presets_and_no_others():
    assert len(EVERY_PRESET) == 72
    assert sorted(presets()) == sorted(EVERY_PRESET)


@pytest.mark.parametrize("name", EVERY_PRESET)
def test_the_model_the_ledger_and_the_table_count_the_same_parameters(name, sizes):
    built = sum(sizes[name].values())
    assert built == count_parameters(preset(name).model).total == preset(name).params_exact


@pytest.mark.parametrize("name", DEEPMIND)
def test_gopher_and_chinchilla_have_the_size_their_printed_shape_implies(name, sizes):
    *shape, matrices, total = DEEPMIND[name]
    assert shape_of(name) == tuple(shape)
    assert sum(sizes[name].values()) == total
    assert in_matrices(sizes[name]) == matrices
    assert abs(total / preset(name).params_printed - 1) < 0.02


@pytest.mark.parametrize("name", TABLE_A9)
def test_each_of_the_50_study_models_rounds_to_the_millions_table_a9_prints(name, sizes):
    row = TABLE_A9[name]
    assert shape_of(name) == tuple(row[k] for k in ("n_layers", "d_model", "n_heads", "kv_size", "ffw_size"))
    assert preset(name).model.vocab_size == 32000
    built = sum(sizes[name].values())
    assert built == row["params_formula"]
    assert round(built / 1e6) == row["params_millions_printed"] == preset(name).params_printed / 1e6
    layers, d, heads, k, f = shape_of(name)
    assert in_matrices(sizes[name]) == layers * (5 * d * heads * k + 2 * d * f) + 32000 * d


def test_six_study_models_have_heads_that_do_not_add_up_to_the_width():
    unequal = [name for name in TABLE_A9 if preset(name).model.d_attn != preset(name).model.d_model]
    assert unequal == [f"study-{millions}m" for millions in (3530, 4084, 11452, 12569, 13735, 14940)]


@pytest.mark.parametrize("name", GPT3)
def test_gpt3_has_the_size_its_printed_shape_implies(name, sizes):
    *shape, total = GPT3[name]
    assert shape_of(name) == tuple(shape)
    assert sum(sizes[name].values()) == total
    if name != "gpt3-xl":  # its printed heads do not give the printed size
        assert abs(total / preset(name).params_printed - 1) < 0.02


@pytest.mark.parametrize("name", LLAMA)
def test_llama_has_the_size_its_printed_shape_implies(name, sizes):
    *shape, total, inner = LLAMA[name]
    assert shape_of(name) == tuple(shape)
    assert sum(sizes[name].values()) == total
    assert sum(n for path, n in sizes[name].items() if path not in ("embedding", "output")) == inner
    assert count_parameters(preset(name).model).non_embedding == inner
    assert abs(total / preset(name).params_printed - 1) < 0.01


@pytest.mark.parametrize("name", DS_MOE)
def test_ds_moe_is_as_much_larger_than_its_dense_model_as_table_5_prints(name, sizes):
    *shape, attention_experts, experts, groups, printed, dense_printed = DS_MOE[name]
    model = preset(name).model
    assert shape_of(name) == tuple(shape)
    assert (model.attention_experts, model.experts, model.n_kv_heads) == (attention_experts, experts, groups)
    assert model.n_heads == attention_experts * groups, "each expert has a query head for each group of keys"
    assert preset(name).params_printed == printed * 10**6
    inner = sum(n for path, n in sizes[name].items() if path != "embedding")
    dense = dataclasses.replace(model, feed_forward="gelu", experts=1, attention_experts=1, router_width=0)
    routers = inner - count_parameters(dense).non_embedding
    layers, d = shape[:2]
    assert routers == layers * (2 * d * 512 + 512 * (attention_experts + experts))
    assert abs(routers / 1e6 - (printed - dense_printed)) <= 1.0, "a difference of two rounded numbers"
    assert 0 < inner / 1e6 / printed - 1 < 0.0031, "the counts themselves are a little above the printed ones"


def test_the_families_differ_in_the_parts_their_papers_name():
    gopher, gpt3, llama = (preset(name).model for name in ("gopher-280b", "gpt3-175b", "llama-65b"))
    assert (gopher.position, gopher.norm, gopher.feed_forward, gopher.tie_embeddings) == (
        "relative", "rmsnorm", "gelu", True)  # fmt: skip
    assert (gpt3.position, gpt3.norm, gpt3.feed_forward, gpt3.biases, gpt3.vocab_size, gpt3.max_position) == (
        "learned", "layernorm", "gelu", "all", 50257, 2048)  # fmt: skip
    assert (llama.position, llama.norm, llama.feed_forward, llama.biases, llama.tie_embeddings) == (
        "rope", "rmsnorm", "swiglu", "none", False)  # fmt: skip
    assert (preset("llama-7b").model.norm_eps, llama.norm_eps) == (1e-6, 1e-5)
    assert {found.model.scan_layers for found in presets().values()} == {True}


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"^model.preset: unknown preset 'chinchila-70b' \(did you mean 'chinchilla"):
        preset("chinchila-70b")
