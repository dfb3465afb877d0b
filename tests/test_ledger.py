"""The ledger: parameters, FLOPs under each convention, bytes; against the papers' tables and the code itself."""

import csv
import dataclasses
import itertools
import json
import math
import pathlib

import flax
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from chinchilla_jax.config import CONVENTIONS, ConfigError, DataConfig, ModelConfig, RunConfig, TrainConfig
from chinchilla_jax.kernels.tiles import compile_for
from chinchilla_jax.ledger import count_parameters, count_run, forward_flops_per_sequence, train_flops_per_token
from chinchilla_jax.model.parts import BIASES, FEED_FORWARDS, NORMS, POSITIONS
from chinchilla_jax.model.transformer import Transformer

FOLDER = pathlib.Path(__file__).parent / "data"


def rows(table):
    return list(csv.DictReader((FOLDER / table).open()))


def published(row):
    """The model of a row of Table A4 or A9."""
    heads = int(row["n_heads"])
    return ModelConfig(n_layers=int(row["n_layers"]), d_model=int(row["d_model"]), n_heads=heads, n_kv_heads=heads,
                       head_dim=int(row["kv_size"]), d_ff=int(row["ffw_size"]), vocab_size=32000)  # fmt: skip


TABLE_A4 = {row["parameters_printed"]: row for row in rows("chinchilla_table_a4.csv")}
TABLE_A9 = {row["params_millions_printed"]: row for row in rows("chinchilla_table_a9.csv")}
# The formula of appendix F as printed, on the same six models. The paper's own table disagrees with it.
AS_PRINTED = {"73M": 1.58, "305M": 1.32, "552M": 1.23, "1.1B": 1.14, "1.6B": 1.12, "6.8B": 1.03}

CHINCHILLA = ModelConfig(n_layers=2, d_model=512, n_heads=6, n_kv_heads=6, head_dim=64, d_ff=2048, vocab_size=4096,
                         scan_layers=False)  # fmt: skip
LLAMA = dataclasses.replace(CHINCHILLA, n_heads=8, n_kv_heads=2, d_ff=1536, position="rope", feed_forward="swiglu",
                            biases="none", tie_embeddings=False)  # fmt: skip


def ratio_to_6nd(model, convention):
    return train_flops_per_token(model, 2048, convention) / train_flops_per_token(model, 2048, "6nd")


@pytest.mark.parametrize("size", TABLE_A4)
def test_table_a4_is_reproduced_to_the_two_decimals_it_prints(size):
    printed = float(TABLE_A4[size]["flop_ratio_ours_to_6nd_printed"])
    assert round(ratio_to_6nd(published(TABLE_A4[size]), "table_a4"), 2) == printed


@pytest.mark.parametrize("size", TABLE_A4)
def test_appendix_f_as_printed_does_not_give_table_a4(size):
    ratio = ratio_to_6nd(published(TABLE_A4[size]), "appendix_f")
    assert round(ratio, 2) == AS_PRINTED[size]
    assert ratio - float(TABLE_A4[size]["flop_ratio_ours_to_6nd_printed"]) > 0.03


@pytest.mark.parametrize("size", TABLE_A9)
def test_the_50_study_models_have_the_flops_per_token_of_both_counts(size):
    row = TABLE_A9[size]
    model = published(row)
    for convention in ("table_a4", "appendix_f"):
        assert train_flops_per_token(model, 2048, convention) == float(row[f"train_flops_per_token_{convention}"])
        assert ratio_to_6nd(model, convention) == pytest.approx(float(row[f"ratio_{convention}_to_6n"]), abs=1e-5)


@pytest.mark.parametrize("model", [CHINCHILLA, LLAMA, published(TABLE_A9["2639"])], ids=["small", "llama", "2639m"])
def test_6nd_is_six_times_every_parameter_at_any_length(model):
    for length in (1, 77, 2048):
        assert train_flops_per_token(model, length, "6nd") == 6 * count_parameters(model).total


def test_the_terms_of_appendix_f_by_hand():
    model = ModelConfig(n_layers=3, d_model=10, n_heads=2, n_kv_heads=2, head_dim=7, d_ff=40, vocab_size=100)
    s = 5
    assert forward_flops_per_sequence(model, s, "appendix_f") == {
        "embedding": 2 * s * 100 * 10,
        "qkv": 3 * 2 * 3 * s * 10 * 14,
        "scores": 3 * 2 * s * s * 14,
        "softmax": 3 * 3 * 2 * s * s,
        "values": 3 * 2 * s * s * 14,
        "attention_output": 3 * 2 * s * 14 * 10,
        "feed_forward": 3 * 2 * s * (10 * 40 + 10 * 40),
        "logits": 2 * s * 10 * 100,
    }


def products(jaxpr) -> int:
    """FLOPs of the matrix products of a traced function, two for each multiply-accumulate."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        if equation.primitive.name == "ragged_dot_general":  # each row by one matrix, or into the gradient of one
            total += 2 * equation.invars[0].aval.size * equation.outvars[0].aval.shape[-1]
        total += sum(products(inner) for inner in jaxprs_in_params(equation.params))
    return total


def training_pass(model, sequences, length):
    """The gradient of the loss as a function, and the shapes of its arguments; every score is computed."""
    transformer = Transformer(dataclasses.replace(model, attention="plain"))
    tokens = jax.ShapeDtypeStruct((sequences, length), jnp.int32)
    variables = flax.linen.meta.unbox(jax.eval_shape(transformer.init, jax.random.key(0), tokens))

    def loss(variables, tokens):
        logits, *_ = transformer.apply(variables, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

    return jax.value_and_grad(loss), (variables, tokens)


@pytest.mark.parametrize("model", [CHINCHILLA, LLAMA], ids=["chinchilla", "llama"])
@pytest.mark.parametrize(("sequences", "length"), [(1, 256), (3, 64)])
def test_the_executed_count_is_what_the_compiler_counts(model, sequences, length):
    step, arguments = training_pass(model, sequences, length)
    counted = jax.jit(step).lower(*arguments).cost_analysis()["flops"]  # before any optimisation
    ours = train_flops_per_token(model, length, "executed", sequences) * sequences * length
    assert ours == pytest.approx(counted, rel=0.01)


COMBINATIONS = [
    {"position": position, "feed_forward": feed_forward, "n_kv_heads": 8 if position == "relative" else kv_heads}
    for position in POSITIONS
    for feed_forward in ("gelu", "swiglu")
    for kv_heads in (8, 2)
] + [
    {"feed_forward": "ds_moe", "experts": 4},
    {"feed_forward": "ds_moe", "experts": 4, "attention_experts": 2, "router_width": 32},
    {"feed_forward": "gelu", "attention_experts": 4},
    {"feed_forward": "top_k", "experts": 4, "active_experts": 2, "biases": "all"},
    {"feed_forward": "top_k_swiglu", "experts": 4, "active_experts": 1, "router_width": 32},
]


@pytest.mark.parametrize("changes", COMBINATIONS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_the_executed_count_is_every_matrix_product_of_a_training_pass_and_a_softmax(changes):
    model = dataclasses.replace(LLAMA, **changes)
    step, arguments = training_pass(model, 3, 64)
    ours = 3 * 64 * train_flops_per_token(model, 64, "executed", sequences=3)
    terms = forward_flops_per_sequence(model, 64, "executed")
    softmax = 3 * 3 * terms["softmax"]
    # The plain form computes the scores of one distance more than there are keys: `plain.shift_to_keys`.
    one_distance_more = 3 * 3 * terms.get("relative_scores", 0) / 64
    with compile_for("v5e"):  # elsewhere the tiles of experts are filled up
        traced = jax.make_jaxpr(step)(*arguments)
    assert ours - softmax + one_distance_more == products(traced.jaxpr)


def test_the_relative_projection_is_counted_once_for_each_pass_however_many_sequences():
    alone, together = (train_flops_per_token(CHINCHILLA, 64, "executed", sequences=n) for n in (1, 8))
    projection = 2 * 2 * 2 * 512 * 384  # 2 layers, forward and one backward product, 2 d hk for a position
    assert alone - together == projection * (1 - 1 / 8)
    assert train_flops_per_token(LLAMA, 64, "executed", 1) == train_flops_per_token(LLAMA, 64, "executed", 8)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("biases", BIASES)
def test_every_combination_of_parts_has_the_parameters_the_ledger_counts(biases, tied):
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    parts = [(*one, 1) for one in itertools.product(POSITIONS, ("gelu", "swiglu"), NORMS)]
    parts += [("rope", feed_forward, "rmsnorm", 4) for feed_forward in FEED_FORWARDS.keys() - {"gelu", "swiglu"}]
    for position, feed_forward, norm, experts in parts:
        model = ModelConfig(n_layers=2, d_model=20, n_heads=4, n_kv_heads=4 if position == "relative" else 2,
                            head_dim=6, d_ff=52, vocab_size=33, position=position, feed_forward=feed_forward,
                            norm=norm, biases=biases, tie_embeddings=tied, max_position=9,
                            experts=experts, attention_experts=1 + (experts > 1))  # fmt: skip
        shapes = flax.linen.meta.unbox(jax.eval_shape(Transformer(model).init, jax.random.key(0), tokens))["params"]
        part = dict.fromkeys(("embedding", "output", "attention", "feed_forward", "norms"), 0)
        for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
            name = path[1] if path[0] == "layers" else path[0]
            name = "norms" if name.endswith("norm") else name
            part[{"position": "embedding", "output_bias": "output"}.get(name, name)] += leaf.size
        assert dataclasses.asdict(count_parameters(model)) == part, (position, feed_forward, norm)


def test_an_unknown_convention_is_refused_by_name():
    with pytest.raises(ConfigError, match="^convention: unknown convention '7nd'; one of table_a4, appendix_f, 6nd"):
        train_flops_per_token(CHINCHILLA, 64, "7nd")


def test_a_run_is_counted_under_every_convention_with_its_bytes():
    config = RunConfig(model=ModelConfig(vocab_size=1024), data=DataConfig(seq_len=64),
                       train=TrainConfig(train_tokens=10**6, batch_size=8, microbatches=2))  # fmt: skip
    ledger = count_run(config)
    n = count_parameters(config.model).total
    assert set(ledger.flops) == set(CONVENTIONS)
    for convention, flops in ledger.flops.items():
        assert flops == 10**6 * train_flops_per_token(config.model, 64, convention, sequences=4)
    assert (ledger.bytes_parameters, ledger.bytes_optimizer) == (4 * n, 2 * 4 * n)
    assert ledger.tokens == 10**6
    assert count_run(config, tokens=2 * 10**6).flops["6nd"] == 2 * ledger.flops["6nd"]


def test_a_ledger_can_be_written_as_json():
    config = RunConfig()
    values = json.loads(json.dumps(count_run(config).to_dict()))
    parameters = count_parameters(config.model)
    assert values["params"] == parameters.total == sum(values["parameters"].values())
    assert values["params_non_embedding"] == parameters.total - parameters.embedding - parameters.output
    assert values["tokens_per_param"] == config.train.train_tokens / parameters.total
