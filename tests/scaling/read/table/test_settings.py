"""Rows that are asked for, sweeps, mixes and two counts of C: what is said, and what the flags do about it."""

import json

import numpy as np
import pytest

from chinchilla_jax import cli
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.read.table.select import parse_where

SIZES = [2e7 * 1.5**i for i in range(7)]
BUDGETS = (1e18, 3e18, 9e18)


def law(n, d):
    return 1.8 + 480 / n**0.35 + 2400 / d**0.37


def grid(*columns, budget=True):
    """CSV of the planted law, with one row for each of `columns` (name, values, change of the loss) and size."""
    head = ["params", "tokens", "loss", *(name for name, _, _ in columns)] + ["budget"] * budget
    rows = []
    for c in BUDGETS:
        for n in SIZES:
            d = c / 6 / n
            cells = [([], law(n, d))]
            for _, values, changes in columns:
                cells = [([*named, value], loss + change) for named, loss in cells
                         for value, change in zip(values, changes, strict=True)]  # fmt: skip
            rows += [[repr(n), repr(d), repr(loss), *named] + [repr(c)] * budget for named, loss in cells]
    return "\n".join(",".join(row) for row in [head, *rows]) + "\n"


@pytest.fixture
def write(tmp_path):
    def to(text, name="table.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to


def notes(loaded, word):
    return [note for note in loaded.notes if word in note]


LR = ("lr", ("1e-3", "2e-3", "4e-3"), (0.2, 0.0, 0.1))
SEED = ("seed", ("0", "1"), (0.001, -0.001))
CORPUS = ("corpus", ("c4", "the pile"), (0.0, 0.3))


@pytest.mark.parametrize("budget", [True, False])
def test_a_sweep_is_told_and_its_best_setting_kept_by_flag(write, budget):
    path = write(grid(LR, budget=budget))
    (note,) = notes(load_runs(path), "--best_per_cell")
    assert note.startswith("warning: 63 runs differ in lr only, 21 of 21 pairs of N and D have several")
    loaded = load_runs(path, best_per_cell=True)
    assert len(loaded.runs) == 21 and notes(loaded, "of 63 runs at 21 pairs of N and D those of the lowest loss by lr")
    assert np.allclose([run.loss for run in loaded.runs], [law(run.params, run.tokens) for run in loaded.runs])


def test_seeds_are_no_sweep_and_all_those_of_the_best_setting_stay(write):
    loaded = load_runs(write(grid(SEED)), best_per_cell=True)
    assert len(loaded.runs) == 42 and notes(loaded, "replicates: 42 runs at 21 pairs")
    assert notes(loaded, "--best_per_cell: no N and D have runs that differ in a setting; all are kept")
    loaded = load_runs(write(grid(LR, SEED)), best_per_cell=True)
    assert len(loaded.runs) == 42 and {run.seed for run in loaded.runs} == {"0", "1"}


def test_the_best_setting_is_the_best_on_average_over_its_seeds(write):
    rows = "1e-3,0,3.0\n1e-3,1,3.4\n2e-3,0,3.1\n2e-3,1,3.11\n".splitlines()
    path = write("N,D,lr,seed,loss\n" + "".join(f"1e7,1e9,{row}\n" for row in rows))
    assert [run.loss for run in load_runs(path, best_per_cell=True).runs] == [3.1, 3.11]


def test_held_out_runs_stay_whatever_their_setting(write):
    rows = "isoflop,1e-3,3.2\nisoflop,2e-3,3.1\npredicted,1e-3,2.9\n".splitlines()
    path = write("N,D,role,lr,loss\n" + "".join(f"1e7,1e9,{row}\n" for row in rows))
    assert [run.loss for run in load_runs(path, best_per_cell=True).runs] == [3.1, 2.9]


def test_a_rate_that_follows_the_tokens_is_no_sweep(write):
    rows = "".join(f"{n},{d},{lr},{law(n, d)}\n" for n in SIZES for d, lr in ((1e9, "1e-3"), (1.3e9, "2e-3")))
    assert not load_runs(write(f"N,D,lr,loss\n{rows}")).notes


def test_a_number_that_is_another_in_every_row_is_no_setting(write):
    text = "\n".join(f"{row},{i or 'reading'}" for i, row in enumerate(grid(SEED).splitlines()))
    assert not notes(load_runs(write(text)), "--best_per_cell") and notes(load_runs(write(text)), "replicates")


def test_the_scatter_of_replicates_counts_the_means_that_were_taken(write):
    (note,) = notes(load_runs(write("N,D,seed,loss\n1e7,1e9,0,2.97\n1e7,1e9,1,3.03\n")), "replicates")
    assert "2 runs at 1 pairs" in note and "scatter by 1.41%" in note


def test_words_on_a_few_runs_each_are_no_mix(write):
    words = ["kind", *["abcde"[i % 5] for i in range(21)]]
    text = "\n".join(map(",".join, zip(grid().splitlines(), words, strict=True)))
    assert not notes(load_runs(write(text)), "mixes"), "four or five runs of each"


def test_a_row_that_breaks_off_is_listed_whatever_is_asked_for_and_values_are_shown_as_written_first(write):
    path = write("N,D,loss,lr\n1e7,1e9,3,1e-3\n2e7,1e9\n3e7,1e9,3.2,0.001\n4e7,1e9,3.3,2e-3\n")
    loaded = load_runs(path, where={"lr": ["0.0010"]})
    assert [run.params for run in loaded.runs] == [1e7, 3e7]
    assert [(row.where, row.reason) for row in loaded.bad] == [("line 3", "2 cells, the header has 4")]
    with pytest.raises(FitRefused, match="there are 1e-3, 2e-3"):
        load_runs(path, where={"lr": ["3e-3"]})


def test_a_rate_that_follows_the_size_is_no_sweep(write):
    rows = grid(SEED).splitlines()
    text = "\n".join(f"{row},{'lr,wall_time' if not i else f'{1 / float(row.split(chr(44))[0])},{i}'}"
                     for i, row in enumerate(rows))  # fmt: skip
    assert not notes(load_runs(write(text)), "--best_per_cell")


def test_a_mix_of_corpora_is_told_with_the_flags_that_split_it(write):
    path = write(grid(CORPUS))
    (note,) = notes(load_runs(path), "mixes")
    assert "several corpus (c4 21, the pile 21)" in note and "--where=corpus=c4" in note and "--by=corpus" in note
    loaded = load_runs(path, where={"corpus": ["The Pile"]})
    assert len(loaded.runs) == 21 and not notes(loaded, "mixes")
    assert loaded.notes == ("rows with corpus=The Pile: 21 of 42",)
    best = load_runs(write(grid(CORPUS, LR)), best_per_cell=True)
    assert len(best.runs) == 42, "the best of each corpus, not the better corpus"
    assert not notes(load_runs(path), "replicates"), "what differs in its corpus is no replicate"


def test_words_for_sizes_or_budgets_are_no_mix(write):
    rows = grid().splitlines()
    words = ["size", *("small" if float(row.split(",")[0]) < 6e7 else "large" for row in rows[1:])]
    assert not notes(load_runs(write("\n".join(map(",".join, zip(rows, words, strict=True))))), "mixes")


def test_values_are_compared_as_numbers_where_they_are_numbers(write):
    path = write(grid(LR))
    assert len(load_runs(path, where={"lr": ["0.001", "4E-3"]}).runs) == 42
    assert len(load_runs(path, where={"lr": ["0.001"], "budget": ["1000000000000000000"]}).runs) == 7


@pytest.mark.parametrize(("where", "words"), [
    ({"corpsu": ["c4"]}, "no column 'corpsu' (did you mean 'corpus'?)"),
    ({"corpus": ["pile"]}, "no row with corpus=pile (did you mean 'the pile'?); there are c4, the pile"),
    ({"corpus": ["c4"], "budget": ["2e18"]}, "no row with budget=2e18"),
])  # fmt: skip
def test_a_column_or_value_that_is_not_there_is_refused_with_the_nearest(write, where, words):
    with pytest.raises(FitRefused) as caught:
        load_runs(write(grid(CORPUS)), where=where)
    assert caught.value.reason == "where" and words in str(caught.value) and "table.csv" in str(caught.value)


def test_the_flag_is_column_equals_values():
    assert parse_where(["a=1, 2", 'b="x,y",z']) == {"a": ("1", "2"), "b": ("x,y", "z")}
    for texts in (["a"], ["=1"], ["a="], ["a=1,"], ["a=1", "a=2"]):
        with pytest.raises(FitRefused, match="--where"):
            parse_where(texts)


def test_runs_of_a_directory_are_selected_by_the_keys_of_their_results(tmp_path, write_study):
    write_study(tmp_path)
    loaded = load_runs(tmp_path, where={"budget": ["1e11", "3e11"]})
    assert len(loaded.runs) == 14
    with pytest.raises(FitRefused, match="did you mean 'budget'"):
        load_runs(tmp_path, where={"budgte": ["1e11"]})


def test_two_counts_of_c_are_told_with_figures(write):
    rows = ["params,tokens,loss,budget"]
    rows += [f"{n},{c / 6 / n * (0.93 + 0.07 * i)},3,{c}" for c in BUDGETS for i, n in enumerate(SIZES)]
    (note,) = notes(load_runs(write("\n".join(rows))), "C / budget")
    assert "is not the budget in 18 of 21 runs: C / budget has a median of 1.140, from 0.930 to 1.350" in note
    assert not notes(load_runs(write("\n".join(rows)), columns={"flops": "budget"}), "C / budget")


def run(capsys, *argv):
    code = cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_by_fits_each_value_and_shows_them_side_by_side(write, capsys, tmp_path):
    path, answer = write(grid(CORPUS)), tmp_path / "answer.json"
    code, out, err = run(capsys, "fit", f"--runs={path}", "--by=corpus", "--replicates=0", f"--output={answer}")
    assert code == 0 and not err
    first, second = (line.split() for line in out.splitlines() if line.strip().startswith(("c4  ", "the pile  ")))
    assert first[-3] == "1.800" and second[-3] == "2.100", "E, then alpha and beta"
    fits = json.loads(answer.read_text())["fits"]
    values = fits["the pile"]["parametric"]["values"]
    assert values["E"] == pytest.approx(2.1, abs=1e-3) and set(fits) == {"c4", "the pile"}


def test_by_tells_a_value_that_cannot_be_fitted_and_refuses_when_none_can(write, capsys):
    text = grid(("corpus", ("c4",), (0.0,))) + "1e7,1e9,3,tiny,1e18\n1e7,2e9,,tiny,1e18\n"
    code, out, _ = run(capsys, "fit", f"--runs={write(text)}", "--by=corpus", "--replicates=0")
    assert code == 0 and "tiny: refused: " in out and "1 row of" in out and "loss is missing" in out
    code, _, err = run(capsys, "fit", f"--runs={write(text)}", "--by=params")
    assert code == 2 and len(err.splitlines()) == 1 and "no value of params can be fitted" in err


@pytest.mark.parametrize(("argv", "words"), [
    (["fit", "--by=corpsu"], "--by: no column 'corpsu' (did you mean 'corpus'?)"),
    (["fit", "--by=loss"], "column loss has 42 values"),
    (["fit", "--by=corpus", "--where=corpus=c4"], "give one of them"),
    (["fit", "--by=corpus", "--variants"], "take one value at a time"),
    (["predict", "--by=corpus", "--budget=1e20"], "--by goes with fit; here ask about one value at a time"),
    (["report", "--by=corpus"], "--where=corpus=VALUE"),
])  # fmt: skip
def test_where_by_does_not_go_the_message_names_what_does(write, capsys, argv, words):
    code, _, err = run(capsys, *argv, f"--runs={write(grid(CORPUS))}")
    assert code == 2 and len(err.splitlines()) == 1 and words in err


def test_by_of_a_study_goes_over_the_keys_of_its_results(tmp_path, write_study, capsys):
    write_study(tmp_path)
    code, out, _ = run(capsys, "fit", f"--study={tmp_path}", "--by=convention", "--replicates=0")
    assert code == 0 and any(line.split()[:2] == ["executed", "28"] for line in out.splitlines())


def test_a_refusal_says_how_many_rows_were_left_out_and_why(write, capsys):
    rows = "".join(f"{n},{20 * n},3.{i},3e18,crashed\n" for i, n in enumerate(SIZES))
    path = write(f"params,tokens,loss,budget,state\n1e7,2e9,3,1e18,finished\n{rows}")
    code, _, err = run(capsys, "fit", f"--runs={path}")
    assert code == 2 and "7 rows of" in err and "were left out, the first: line 3: state is crashed" in err
    code, _, err = run(capsys, "predict", f"--runs={path}", "--budget=1e20")
    assert code == 2 and "7 rows of" in err and len(err.splitlines()) == 1


def test_a_constant_loss_is_refused_in_words(write, capsys):
    rows = "".join(f"{n},{c / 6 / n},3.3\n" for c in BUDGETS for n in SIZES)
    code, _, err = run(capsys, "fit", f"--runs={write(f'params,tokens,loss{chr(10)}{rows}')}")
    assert code == 2 and "all 21 losses are 3.3" in err and "is this the column of the loss?" in err
