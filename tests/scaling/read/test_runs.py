"""What a path holds, in one form: units and counts in words, and nothing dropped in silence."""

import pathlib

import pytest

from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns


def test_figure_4_is_read_with_the_columns_guessed_and_echoed(figure_4_path):
    loaded = load_runs(figure_4_path)
    assert len(loaded.runs) == 245 and not loaded.bad
    assert loaded.columns == {
        "params": "params", "tokens": "tokens", "loss": "loss", "flops": "flops_6nd", "budget": "isoflop_budget",
    }  # fmt: skip
    other = load_runs(figure_4_path, columns={"flops": "flops_table_a4"})
    assert other.runs[0].flops == pytest.approx(9.93603283573e18)
    assert loaded.runs[0].flops == pytest.approx(9.99385279971e18)
    assert loaded.runs[0].budget == 1e19 and loaded.runs[1].budget is None
    assert (loaded.convention, other.convention) == ("6nd", "table_a4")
    assert "budget: nominal training FLOPs of an IsoFLOP profile; from isoflop_budget" in loaded.describe()


def test_every_line_of_the_description_names_what_it_is_about(figure_4_path):
    lines = load_runs(figure_4_path, columns={"flops": "flops_table_a4"}).describe()
    assert [line.partition(":")[0] for line in lines] == ["N", "D", "C", "loss", "budget"]


def test_short_names_and_missing_flops(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("N,D,loss\n100,2000,3.5\n")
    loaded = load_runs(path)
    assert loaded.runs[0].flops == 6 * 100 * 2000 and loaded.runs[0].name == "line 2"
    assert loaded.columns["params"] == "N" and loaded.columns["flops"] == "6 * params * tokens"


def test_roles_tell_fitted_runs_from_held_out_ones(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("name,role,N,D,loss\na,,1,2,3\nb,half,1,3,3\nc,isoflop,1,4,3\nd,other,1,5,3\n")
    loaded = load_runs(path)
    assert [run.name for run in loaded.role("isoflop")] == ["a", "c"]
    assert [run.name for run in loaded.role("half", "double")] == ["b"]
    assert [(row.where, row.reason) for row in loaded.bad] == [
        ("line 5 (d)", "role 'other' is none of isoflop, predicted, half, double")
    ]


def test_curves_go_with_a_table_and_a_path_must_be_there(tmp_path):
    for path, curves, reason in ((tmp_path / "none.csv", None, "not_found"), (tmp_path, "curves.csv", "curves")):
        with pytest.raises(FitRefused) as caught:
            load_runs(path, curves=curves)
        assert caught.value.reason == reason


def test_what_was_loaded_stands_for_its_path(figure_4_path):
    loaded = load_runs(figure_4_path)
    assert isinstance(loaded, LoadedRuns) and str(loaded) == str(figure_4_path)
    assert pathlib.Path(loaded) == figure_4_path
    assert load_runs(loaded) is loaded
