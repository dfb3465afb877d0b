"""Headers as they are met in the wild: what is guessed is right, what is ambiguous is told, what is wanted is done;
tokens and losses that a table states in other words are computed."""

import math

import pytest

from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.read.table.columns import choose_columns, parse_columns
from chinchilla_jax.scaling.read.table.formats import Table


def choose(present, by_hand):
    """The columns chosen for a table of these headers and no rows, and what is said of the choice."""
    table = Table("table", (), present)
    choose_columns(table, by_hand)
    return table.columns, table.notes


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
    assert choose([header], {}) == ({}, [])


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


@pytest.mark.parametrize(("header", "cells", "tokens", "words"), [
    ("steps,batch_size,seq_len", "100,8,512", 409600, "steps x batch_size x seq_len"),
    ("iteration,Global Batch Size,context length", "100,8,512", 409600,
     "iteration x Global Batch Size x context length"),
    ("train_steps,batch_tokens", "100,4096", 409600, "train_steps x batch_tokens"),
    ("steps,batch_tokens (M)", "100,0.5", 5e7, "steps x batch_tokens (M) x 1e+06"),
    ("steps,bs,batch_size,seq_len", "100,4,8,512", 409600, "steps x batch_size x seq_len"),
    ("tokens_per_param", "20", 2e7, "tokens_per_param x N"),
    ("D/N", "20", 2e7, "D/N x N"),
    ("flops", "1.2e14", 2e7, "D is C / 6N, from flops"),
    ("budget", "1.2e14", 2e7, "C / 6N, from budget (nominal"),
])  # fmt: skip
def test_tokens_are_computed_and_said(load, header, cells, tokens, words):
    loaded = load(f"N,loss,{header}\n1e6,3,{cells}\n")
    assert loaded.runs[0].tokens == pytest.approx(tokens)
    assert any("no column holds tokens" in note and words in note for note in loaded.notes), loaded.notes


def test_a_row_that_lacks_an_ingredient_is_told_by_its_name(load):
    loaded = load("N,loss,step,batch,seq_len\n1e6,3,10,8,512\n1e6,3,10,,512\n1e6,3,10,8,long\n")
    assert [row.reason for row in loaded.bad] == ["batch size is missing", "sequence length is not a number: 'long'"]


@pytest.mark.parametrize(("header", "value", "loss", "unit"), [
    ("perplexity", "20", math.log(20), "nats per token, the logarithm of a perplexity"),
    ("eval/ppl", "20", math.log(20), "nats per token, the logarithm of a perplexity"),
    ("loss_bits", "4", 4 * math.log(2), "nats per token, from bits"),
    ("bits_per_token", "4", 4 * math.log(2), "nats per token, from bits"),
    ("val_bpb", "0.9", 0.9, "bits per byte, as it stands"),
    ("val_bpb,bytes_per_token", "0.9,4", 0.9 * 4 * math.log(2), "nats per token, from bits per byte"),
    ("loss,ppl,bpb", "3,20,0.9", 3.0, "taken as nats per token"),
])  # fmt: skip
def test_the_loss_is_converted_or_its_unit_is_said(load, header, value, loss, unit):
    loaded = load(f"N,D,{header}\n1e6,1e7,{value}\n")
    assert loaded.runs[0].loss == pytest.approx(loss) and loaded.loss_unit.startswith(unit)


def test_a_perplexity_named_by_hand_is_one_too_unless_a_factor_says_no(load):
    text = "N,D,loss,val_ppl\n1e6,1e7,3,20\n2e6,1e7,3,0.9\n3e6,1e7,3,1\n"
    loaded = load(text, columns={"loss": "val_ppl"})
    assert loaded.runs[0].loss == pytest.approx(math.log(20))
    assert [row.reason for row in loaded.bad] == ["val_ppl is not above 1, the perplexity of a loss of 0"] * 2
    assert load(text, columns={"loss": "val_ppl*1"}).runs[0].loss == 20.0


def test_curves_of_a_second_table_may_be_perplexities(load, tmp_path):
    (tmp_path / "curves.csv").write_text("run,tokens,ppl\na,1e6,30\na,1e7,20\n")
    loaded = load("name,N,D,ppl\na,1e6,1e7,20\n", curves=tmp_path / "curves.csv")
    assert loaded.runs[0].curve.loss.tolist() == [math.log(30), math.log(20)]


@pytest.mark.parametrize(("header", "field", "column"), [
    ("params_active_precise,params_total,D,loss", "params", "params_active_precise"),
    ("params_nonembed,params_nominal,D,loss", "params", "params_nonembed"),
    ("params_nominal,x,D,loss", "params", "params_nominal"),
    ("param_count,n_params,D,loss", "params", "n_params"),
    ("N,x,D,c4_en_loss", "loss", "c4_en_loss"),
    ("N,x,D,loss_c4_val", "loss", "loss_c4_val"),
    ("N,train/loss,D,cd_val_loss", "loss", "train/loss"),
    ("N,web_train_loss,D,c4_en_loss", "loss", "c4_en_loss"),
    ("N,router_loss,D,cd_val_loss", "loss", "cd_val_loss"),
    ("N,loss_std,D,summary/eval/loss", "loss", "summary/eval/loss"),
    ("N,x,throughput/total_tokens,loss", "tokens", "throughput/total_tokens"),
])  # fmt: skip
def test_headers_met_in_published_tables(load, header, field, column):
    cells = "standard,1e6,1e7,3" if header.startswith("param_count") else "1e6,2e6,1e7,3"
    assert load(f"{header}\n{cells}\n").columns[field] == column


@pytest.mark.parametrize(("text", "words"), [
    ("param_count,D,loss\nstandard,1e7,3\nkaplan,1e7,3\n", "param_count holds no numbers: 'standard'"),
    ("N,D,c4_loss,pile_loss\n1,2,3,4\n", "several may be the loss: c4_loss, pile_loss; name it: --columns=loss:c4"),
    ("N,throughput/tokens,loss\n1,2,3\n", "no column for tokens"),
    ("N,achieved_flops,tflops,loss\n1,2,3,4\n", "no column for tokens"),
])  # fmt: skip
def test_what_may_be_something_else_is_not_guessed_and_the_message_names_it(load, text, words):
    with pytest.raises(FitRefused) as caught:
        load(text)
    assert caught.value.reason == "columns" and words in str(caught.value)


def test_a_multiplier_in_the_header_and_in_the_cell_is_told(load):
    loaded = load("params (M),D,loss\n25,2e9,3\n25M,2e9,3.1\n")
    assert [row.reason for row in loaded.bad] == [
        "params '25M' has a multiplier, and so has its header: which one holds?"
    ]


@pytest.mark.parametrize(("header", "factor"), [
    ("flops (ZFLOPs)", 1e21), ("total_gflops", 1e9), ("training compute (EFLOP)", 1e18), ("zflops", 1e21),
    ("C (1e18 FLOPs)", 1e18), ("budget_eflops", 1e18),
])  # fmt: skip
def test_flops_with_a_prefix(load, header, factor):
    loaded = load(f"N,D,loss,{header}\n1,2,3,4\n")
    assert (loaded.runs[0].budget if "budget" in header else loaded.runs[0].flops) == pytest.approx(4 * factor)


def test_a_column_can_be_switched_off(load):
    assert load("N,D,loss,C\n1,2,3,99\n", columns={"flops": "-"}).runs[0].flops == 12.0
    with pytest.raises(FitRefused, match="no column for loss"):
        load("N,D,loss,ppl\n1,2,3,20\n", columns={"loss": "-"})
