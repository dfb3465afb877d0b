"""Rows that share a name: histories, replicates and horizons are told apart, the decision is said and can be turned."""

import pytest


def history(points, names=("a", "b"), seeds=("",), header="name,N,D,loss,seed"):
    """A table of `points` (tokens, loss) for each name and seed."""
    rows = [f"{name},{index + 1}e6,{at},{loss},{seed}" for index, name in enumerate(names) for seed in seeds
            for at, loss in points]  # fmt: skip
    return "\n".join([header, *rows]) + "\n"


EVEN = [(1e8 * i, 5 - 0.3 * i) for i in range(1, 7)]
FACTORS = [(1e8 * 2**i, 5 - 0.3 * i) for i in range(4)]


def test_evenly_spaced_tokens_are_a_log_and_factors_are_horizons(load):
    loaded = load(history(EVEN))
    assert [(run.name, run.tokens, run.loss) for run in loaded.runs] == [("a", 6e8, 3.2), ("b", 6e8, 3.2)]
    assert len(loaded.runs[0].curve.tokens) == 6
    assert any("read as histories (their tokens are evenly spaced" in note for note in loaded.notes)
    loaded = load(history(FACTORS))
    assert [run.name for run in loaded.runs] == ["a", "a #2", "a #3", "a #4", "b", "b #2", "b #3", "b #4"]
    assert all(run.curve is None for run in loaded.runs)
    assert any("read as 8 runs trained for several token counts" in note for note in loaded.notes)


def test_the_decision_can_be_turned_by_hand(load):
    assert len(load(history(EVEN), columns={"step": "-"}).runs) == 12
    assert len(load(history(EVEN), columns={"name": "-"}).runs) == 12
    assert len(load(history(FACTORS), columns={"step": "D"}).runs) == 2


def test_a_log_of_steps_makes_a_history_whatever_the_spacing_but_planned_steps_do_not(load):
    rows = "".join(f"a,1e6,{at},{loss},{at / 1e6}\n" for at, loss in FACTORS)
    assert len(load(f"name,N,D,loss,_step\n{rows}").runs) == 1
    assert len(load(f"name,N,D,loss,total_steps\n{rows}").runs) == 4


def test_a_dozen_rows_a_name_are_a_log_whatever_the_spacing(load):
    for number, runs in ((11, 22), (12, 2)):
        loaded = load(history([(1e6 * 2**i, 5 - 0.1 * i) for i in range(number)]))
        assert len(loaded.runs) == runs
    assert any("read as histories (12 rows a name)" in note for note in loaded.notes)


def test_steps_that_do_not_rise_are_no_log(load):
    rows = "".join(f"a,1e6,{at},{loss},1000\n" for at, loss in FACTORS)
    assert len(load(f"name,N,D,loss,step\n{rows}").runs) == 4


def test_where_as_many_names_are_spaced_evenly_as_not_each_row_is_a_run(load):
    other = history(FACTORS, names=("b",)).replace("b,1e6", "b,2e6").partition("\n")[2]
    assert len(load(history(EVEN, names=("a",)) + other).runs) == 10


def test_two_rows_in_falling_order_are_no_log_that_is_newest_first(load):
    assert len(load("name,N,D,loss\na,1e6,3e8,3.5\na,1e6,1e8,4\n", columns={"step": "D"}).runs) == 2


def test_a_name_without_a_single_loss_among_histories_is_listed_once(load):
    loaded = load(history(EVEN) + "z,3e6,1e8,,\nz,3e6,2e8,,\nz,3e6,3e8,,\n")
    assert [run.name for run in loaded.runs] == ["a", "b"]
    assert [(row.where, row.reason) for row in loaded.bad] == [("line 16 (z)", "loss is missing")]


def test_two_rows_of_one_name_are_no_log(load):
    loaded = load("name,N,D,loss\na,1e6,1e8,4\na,1e6,3e8,3.5\nb,2e6,1e8,3.9\nb,2e6,3e8,3.4\n")
    assert len(loaded.runs) == 4


def test_budgets_and_horizons_of_one_name_are_runs_of_their_own(load):
    rows = "".join(f"a,1e6,{at},3,{at}\n" for at, _ in EVEN)
    for column in ("budget", "horizon", "max_steps", "lr_schedule"):
        loaded = load(f"name,N,D,loss,{column}\n{rows}", columns={"step": "D"})
        assert len(loaded.runs) == 6 and len({run.name for run in loaded.runs}) == 6, column


def test_histories_of_several_seeds_are_replicates_each_with_its_curve(load):
    for seeds in (("0", "1"), ("", "")):  # without seeds the tokens start again
        loaded = load(history(EVEN, seeds=seeds).replace("5e8,3.5", "5e8,3.51"))
        assert len(loaded.runs) == (4 if seeds[0] else 2), "equal to the last digit without a seed: one run"
        assert all(len(run.curve.tokens) == 6 for run in loaded.runs)
    other = history([(at, loss + 0.01) for at, loss in EVEN]).partition("\n")[2]
    loaded = load(history(EVEN) + other)
    assert sorted(run.name for run in loaded.runs) == ["a", "a #2", "b", "b #2"]


def test_a_history_newest_first_is_turned(load):
    loaded = load(history(EVEN[::-1]))
    assert [(run.name, run.tokens) for run in loaded.runs] == [("a", 6e8), ("b", 6e8)]


def test_rows_of_a_history_without_a_loss_or_tokens_are_no_points(load):
    rows = "a,1e6,0,9.1,0\n" + "".join(
        f"a,1e6,{at},{loss},{at / 1e6}\na,1e6,{at},,{at / 1e6}\na,1e6,,4,{at / 1e6}\n" for at, loss in EVEN
    )
    loaded = load(f"name,N,D,loss,step\n{rows}")
    (run,) = loaded.runs
    assert len(run.curve.tokens) == 6 and not loaded.bad
    assert any("13 rows of histories have no loss, or no tokens yet" in note for note in loaded.notes)


def test_a_history_whose_tokens_and_loss_are_computed(load):
    rows = "".join(f"a,1e6,{step},{size},512,{ppl}\n" for step, size, ppl in
                   ((0, 8, 900), (10, 8, 90), (20, 8, ""), (30, 8, 50), (40, 8, 40), (50, 8, 30)))  # fmt: skip
    loaded = load(f"name,N,_step,batch_size,seq_len,val_ppl\n{rows}")
    (run,) = loaded.runs
    assert run.tokens == 50 * 8 * 512 and len(run.curve.tokens) == 4 and not loaded.bad


def test_a_batch_that_grows_within_a_history_does_not_cut_it(load):
    rows = "".join(f"a,1e6,{at},{loss},{at / 1e6},{8 if at < 3e8 else 16}\n" for at, loss in EVEN)
    assert len(load(f"name,N,D,loss,step,batch_size\n{rows}").runs) == 1


def test_a_history_that_ends_in_nan_or_crashed_is_left_out_once(load):
    rows = "".join(f"{name},1e6,{at},{loss},{at / 1e6},{state}\n" for name, state in (("a", "crashed"), ("b", "done"))
                   for at, loss in [*EVEN, (7e8, "nan" if name == "b" else 3)])  # fmt: skip
    rows += "".join(f"c,2e6,{at},{'nan' if at == 3e8 else loss},{at / 1e6},FINISHED\n" for at, loss in EVEN)
    loaded = load(f"name,N,D,loss,step,State\n{rows}")
    assert [(run.name, run.curve) for run in loaded.runs] == [("c", None)]
    assert [(row.where, row.reason) for row in loaded.bad] == [
        ("line 2 to 8 (a)", "State is crashed"),
        ("line 9 to 15 (b)", "diverged: loss is nan"),
        ("line 18 (c)", "curve left out: diverged: loss is nan"),
    ]


@pytest.mark.parametrize("word", ["crashed", "Failed", "RUNNING", "killed"])
@pytest.mark.parametrize("header", ["State", "state", "run_state", "status"])
def test_a_run_that_did_not_finish_is_left_out(load, header, word):
    loaded = load(f"N,D,loss,{header}\n1,2,3,{word}\n2,2,3,finished\n3,2,3,\n")
    assert [(row.where, row.reason) for row in loaded.bad] == [("line 2", f"{header} is {word}")]


def test_replicates_without_a_seed_get_numbers_and_names_stay_unique(load):
    loaded = load("name,N,D,loss\na,1,2,3\na,1,2,3.1\na,1,2,3.1\na #2,2,2,3\n")
    assert [run.name for run in loaded.runs] == ["a", "a #3", "a #2"]
    assert [row.reason for row in loaded.bad] == ["duplicate of line 3 (a): same N, D, C and loss"]
    loaded = load("name,N,D,loss,seed\na,1,2,3,0\na,1,2,3,1.0\na,1,4,3,1\n")
    assert [(run.name, run.seed) for run in loaded.runs] == [("a seed 0", "0"), ("a seed 1", "1"), ("a seed 1 #2", "1")]


def test_sizes_of_one_family_under_one_name_are_runs_of_their_own(load):
    assert [run.params for run in load("name,N,D,loss\nllama,1,2,3\nllama,2,2,2.9\nllama,3,4,2.8\n").runs] == [1, 2, 3]


def test_curves_of_a_second_table_are_not_given_to_runs_that_share_a_name(load, tmp_path):
    (tmp_path / "curves.csv").write_text("run,tokens,loss\na,1,4\na,2,3\nb,2,3\n")
    loaded = load("name,N,D,loss\na,1,2,3\na,1,2,3.1\nb,2,2,3\n", curves=tmp_path / "curves.csv")
    assert [run.curve is not None for run in loaded.runs] == [False, False, True]
    assert [row.reason for row in loaded.bad] == ["curve of 2 points left out: 2 runs have that name"]
