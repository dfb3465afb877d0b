"""Headers as they are met in the wild: what is guessed is right, what is ambiguous is told, what is wanted is done."""

import pytest

from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.read.table.columns import choose_columns, parse_columns
from chinchilla_jax.scaling.read.table.formats import Table


def choose(present, by_hand):
    """The columns chosen for a table of these headers and no rows, and what is said of the choice."""
    return choose_columns(Table("table", (), tuple(present)), by_hand)


@pytest.mark.parametrize(("field", "header", "factor", "count"), [
    ("params", "params", 1.0, ""),
    ("params", "N", 1.0, ""),
    ("params", "nParams", 1.0, ""),
    ("params", "Model Size", 1.0, ""),
    ("params", "params_millions", 1e6, ""),
    ("params", "params (M)", 1e6, ""),
    ("params", "N (B)", 1e9, ""),
    ("params", "Parameters [in billions]", 1e9, ""),
    ("params", "params_non_embedding", 1.0, "non_embedding"),
    ("params", "non-embedding params (M)", 1e6, "non_embedding"),
    ("params", "n_nonemb", 1.0, "non_embedding"),
    ("params", "params_without_embeddings", 1.0, "non_embedding"),
    ("params", "activated_params", 1.0, "active"),
    ("params", "total_params", 1.0, "total"),
    ("params", "params_total_b", 1e9, "total"),
    ("tokens", "D", 1.0, ""),
    ("tokens", "Training Tokens", 1.0, ""),
    ("tokens", "tokens_b", 1e9, ""),
    ("tokens", "tokens (T)", 1e12, ""),
    ("tokens", "tokens (1e9)", 1e9, ""),
    ("flops", "Training FLOP", 1.0, ""),
    ("flops", "FLOPs", 1.0, ""),
    ("flops", "C (x1e18)", 1e18, ""),
    ("flops", "compute (PF-days)", 8.64e19, ""),
    ("flops", "compute_pflop_days", 8.64e19, ""),
    ("flops", "flops_6nd", 1.0, "6nd"),
    ("flops", "flops_table_a4", 1.0, "table_a4"),
    ("loss", "val/loss", 1.0, ""),
    ("loss", "Validation Loss", 1.0, ""),
    ("name", "Run Name", 1.0, ""),
])  # fmt: skip
def test_a_header_is_understood_with_its_multiplier_and_count(field, header, factor, count):
    chosen, _ = choose(["x", header, "y"], {})
    assert list(chosen) == [field]
    assert (chosen[field].name, chosen[field].factor, chosen[field].count) == (header, factor, count)


@pytest.mark.parametrize("header", ["M", "b", "loss_m", "bits_per_byte", "val_loss_bits", "flops_per_second",
                                    "active", "learning_rate", "params_digitised",
                                    "pflops", "TFLOPs", "run-0/loss"])  # fmt: skip
def test_a_header_that_may_mean_something_else_is_not_taken(header):
    assert choose([header], {}) == ({}, ())


def test_of_several_columns_the_plain_one_serves_and_the_others_are_told():
    present = ["params_non_embedding", "params", "flops_table_a4", "flops_6nd", "val_loss", "loss"]
    chosen, notes = choose(present, {})
    assert {field: column.name for field, column in chosen.items()} == {
        "params": "params", "loss": "loss", "flops": "flops_6nd",
    }  # fmt: skip
    assert "loss is read from column loss; also there: val_loss (--columns=loss:val_loss to change)" in notes
    assert len(notes) == 3


def test_the_flag_is_field_colon_column_with_an_optional_multiplier():
    assert parse_columns("") == {}
    assert parse_columns('params:N, tokens:D*1e9,"loss:loss, nats"') == {
        "params": "N", "tokens": "D*1e9", "loss": "loss, nats",
    }  # fmt: skip
    wanted = {"params_non_embedding": "N", "tokens": "D*1e9", "loss": "a*2"}
    chosen, _ = choose(["N", "D", "a*2"], wanted)
    assert (chosen["params"].name, chosen["params"].count) == ("N", "non_embedding")
    assert (chosen["tokens"].name, chosen["tokens"].factor, str(chosen["tokens"])) == ("D", 1e9, "D x 1e+09")
    assert chosen["loss"].name == "a*2", "a column that is really called so wins over a multiplier"


def test_a_multiplier_of_the_header_can_be_switched_off():
    assert choose(["N (M)"], {"params": "N (M)*1"})[0]["params"].factor == 1.0


@pytest.mark.parametrize(("text", "words"), [
    ("params", ["'params' is not FIELD:COLUMN"]),
    ("params:", ["is not FIELD:COLUMN"]),
    ("parms:N", ["'parms' is no field", "did you mean 'params'"]),
    ("params:N,params:M", ["params is mapped twice"]),
    ("flops_6ndd:N", ["did you mean 'flops_6nd'"]),
])  # fmt: skip
def test_a_flag_that_cannot_be_read_is_refused(text, words):
    with pytest.raises(FitRefused) as caught:
        parse_columns(text)
    assert caught.value.reason == "columns" and all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("wanted", "words"), [
    ({"loss": "validation_los"}, ["no column 'validation_los' for loss (did you mean 'validation_loss'?)",
                                  "there are N, validation_loss"]),
    ({"params": "N*many"}, ["no column 'N*many'"]),
    ({"params": "N*-3"}, ["-3 is no positive factor"]),
    ({"params": "N", "params_total": "N"}, ["two columns are given for params"]),
])  # fmt: skip
def test_a_wanted_column_that_is_not_there_is_refused_with_the_nearest(wanted, words):
    with pytest.raises(FitRefused) as caught:
        choose(["N", "validation_loss"], wanted)
    assert caught.value.reason == "columns" and all(word in str(caught.value) for word in words)


def test_a_column_that_is_there_twice_is_refused():
    with pytest.raises(FitRefused, match="column 'loss' is there twice"):
        choose(["loss", "N", "loss"], {})
