"""Exports as people have them, made from a planted law: each one gives what its owner expects, and says how."""

import pathlib

import numpy as np
import pytest

from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused

REPORTS = pathlib.Path(__file__).parents[1] / "data" / "reports"


@pytest.fixture(scope="module")
def plain():
    """The 28 runs as the plainest of the tables has them."""
    return load_runs(REPORTS / "epochs.csv").runs


def report(name, **options):
    return load_runs(REPORTS / f"{name}.csv", **options)


def said(loaded, words):
    assert any(words in line for line in loaded.describe()), loaded.describe()


def close(runs, plain, tolerance=1e-9):
    for field in ("params", "tokens", "flops", "loss"):
        assert np.allclose([getattr(run, field) for run in runs], [getattr(run, field) for run in plain],
                           rtol=tolerance, atol=0.0), field  # fmt: skip


def test_a_history_is_one_run_a_name_with_its_last_row_and_a_curve(plain):
    loaded = report("history_long")
    close(loaded.runs, plain)
    assert [run.name for run in loaded.runs] == [f"r{number}" for number in range(28)] and not loaded.bad
    assert all(len(run.curve.tokens) == 4 and run.curve.tokens[-1] == run.tokens for run in loaded.runs)
    assert loaded.runs[0].curve.loss.tolist() == [4.319231, 4.054789, 3.790346, 3.525903]
    said(loaded, "112 rows share 28 names while their tokens rise: read as histories (column step rises with the")


@pytest.mark.parametrize(("name", "rows"), [("seeds", 56), ("t_seeds_same_name", 84)])
def test_replicates_are_all_kept_under_names_of_their_own(name, rows):
    loaded = report(name)
    assert len(loaded.runs) == rows and not loaded.bad
    assert len({run.name for run in loaded.runs}) == rows and all(run.name.endswith(f" seed {run.seed}")
                                                                  for run in loaded.runs)  # fmt: skip
    said(loaded, f"replicates: {rows} runs at 28 pairs of N and D, all fitted; they scatter by 0.")


@pytest.mark.parametrize(("name", "words", "tolerance"), [
    ("suffix_cells", "from params", 1e-4),
    ("ppl", "the loss is ln val_ppl", 1e-6),
    ("steps_only", "no column holds tokens: D is step x batch_size x seq_len", 1e-3),
    ("semicolon_locale", "commas in numbers are read as decimal points", 1e-4),
    ("flops_zetta", "from flops (ZFLOPs) x 1e+21", 1e-6),
])  # fmt: skip
def test_units_and_what_is_computed_give_the_same_28_runs(plain, name, words, tolerance):
    loaded = report(name)
    assert len(loaded.runs) == 28 and not loaded.bad
    close(loaded.runs, plain, tolerance)
    said(loaded, words)


def test_a_number_with_a_letter_is_read_exactly():
    assert report("suffix_cells").runs[0].params == 25.008e6 and report("semicolon_locale").runs[0].params == 25.008e6


def test_repeated_data_are_noticed():
    loaded = report("epochs")
    assert all(run.unique_tokens == pytest.approx(run.tokens / 3.0) for run in loaded.runs)
    said(loaded, "warning: data are repeated in 28 of 28 runs (epochs 3): unique tokens are tokens / epochs")


def test_a_chart_export_is_recognised_and_the_message_says_what_is_missing():
    with pytest.raises(FitRefused) as caught:
        report("wandb_chart")
    assert caught.value.reason == "columns"
    for words in ("wandb_chart.csv", "the export of a chart: curves of eval/loss by Step, one column a run: run-0",
                  "N and D of the runs are missing", "(name, params, tokens, loss) as --runs", "--curves"):  # fmt: skip
        assert words in str(caught.value)


def test_a_chart_export_serves_as_the_curves_of_a_table(tmp_path):
    (tmp_path / "runs.csv").write_text("name,N,D,loss\nrun-0,1e6,8e8,3.1\nrun-1,2e6,8e8,3.3\nrun-9,3e6,8e8,3.3\n")
    loaded = load_runs(tmp_path / "runs.csv", curves=REPORTS / "wandb_chart.csv")
    first, second, third = loaded.runs
    assert first.curve.tokens.tolist() == [1e8, 2e8, 4e8, 8e8] and first.curve.loss.tolist() == [4.0, 3.5, 3.25, 3.125]
    assert len(second.curve.tokens) == 2 and third.curve is None, "empty cells are no points"


def test_a_sweep_export_is_guessed_and_its_crashed_run_left_out():
    loaded = report("sweep_export")
    assert {field: loaded.columns[field] for field in ("name", "params", "tokens", "loss", "flops", "budget")} == {
        "name": "run_name", "params": "parameter_count", "tokens": "total_tokens", "loss": "cd_val_loss",
        "flops": "total_gflops x 1e+09", "budget": "budget",
    }  # fmt: skip
    assert [(row.where, row.reason) for row in loaded.bad] == [
        ("line 17 (iso-1e+19-P4.6M-v2)", "run_state is crashed")
    ]
    assert len(loaded.runs) == 19 and all(run.flops == pytest.approx(run.budget) for run in loaded.runs)
    assert len(report("sweep_export", columns={"state": "-"}).runs) == 20
