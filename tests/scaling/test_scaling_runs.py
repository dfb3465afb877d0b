"""Reading runs: nothing is dropped in silence, hopeless data are refused with the reason."""

import json

import pytest

from chinchilla_jax.scaling.runs import FitRefused, load_runs


def test_table_columns_are_guessed_and_echoed(figure_4_path):
    loaded = load_runs(figure_4_path)
    assert len(loaded.runs) == 245 and not loaded.bad
    assert loaded.columns == {
        "params": "params", "tokens": "tokens", "loss": "loss", "flops": "flops_6nd", "budget": "isoflop_budget",
    }  # fmt: skip
    other = load_runs(figure_4_path, columns={"flops": "flops_table_a4"})
    assert other.runs[0].flops == pytest.approx(9.93603283573e18)
    assert loaded.runs[0].flops == pytest.approx(9.99385279971e18)
    assert loaded.runs[0].budget == 1e19 and loaded.runs[1].budget is None


def test_short_names_and_missing_flops(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("N,D,loss\n100,2000,3.5\n")
    loaded = load_runs(path)
    assert loaded.runs[0].flops == 6 * 100 * 2000
    assert loaded.columns["params"] == "N" and loaded.columns["flops"] == "6 * params * tokens"


def test_bad_rows_are_listed_with_line_and_reason(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("params,tokens,loss,flops\n1e6,2e7,3.5,1e14\n1e6,,3.5,1e14\n1e6,2e7,nan,1e14\n1e6,2e7,3.5,1e14\n"
                    "-5,2e7,3.5,1e14\nmany,2e7,3.5,1e14\n2e6,2e7,3.4,2e14\n")  # fmt: skip
    loaded = load_runs(path)
    assert [run.params for run in loaded.runs] == [1e6, 2e6]
    reasons = {row.where: row.reason for row in loaded.bad}
    assert reasons["line 3"] == "tokens is missing"
    assert reasons["line 4"] == "diverged: loss is nan"
    assert reasons["line 5"] == "duplicate of line 2: same N, D, C and loss"
    assert reasons["line 6"] == "params is not above 0: '-5'"
    assert reasons["line 7"] == "params is not a number: 'many'"


def test_json_lines(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text('{"n_params": 10, "tokens": 200, "loss": 3.0, "diverged": true}\n{oops\n'
                    '{"n_params": 20, "tokens": 200, "loss": 2.9, "name": "b"}\n')  # fmt: skip
    loaded = load_runs(path)
    assert [run.name for run in loaded.runs] == ["b"]
    assert {row.reason.split(":")[0] for row in loaded.bad} == {"diverged", "not JSON"}


def test_study_directory(tmp_path, write_study):
    write_study(tmp_path, held_out=False)
    broken = tmp_path / "runs" / "isoflop-03" / "result.json"
    row = json.loads(broken.read_text())
    broken.write_text(json.dumps(row | {"loss": float("nan"), "diverged": True}))
    (tmp_path / "runs" / "stray").mkdir()
    loaded = load_runs(tmp_path)
    assert len(loaded.runs) == 27 and loaded.convention == "executed"
    reasons = {row.where: row.reason for row in loaded.bad}
    assert reasons["isoflop-03"] == "diverged"
    assert reasons["stray"] == "not in the manifest"
    assert reasons["predicted-28"].startswith("not finished")
    assert loaded.details["isoflop-00"]["seconds"] == 12.5


def test_plan_with_a_header_and_verification_beside_it(tmp_path, write_study):
    write_study(tmp_path)
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    header = {"study": "tiny", "dropped": [{"budget": 1e11, "params": 2e6, "reason": "too few steps"}]}
    (tmp_path / "manifest.jsonl").write_text("\n".join([json.dumps({"manifest": header}), *lines[:-3]]) + "\n")
    (tmp_path / "verification.jsonl").write_text("\n".join([json.dumps({"manifest": {}}), *lines[-3:]]) + "\n")
    loaded = load_runs(tmp_path)
    assert [run.role for run in loaded.runs[-3:]] == ["predicted", "half", "double"] and len(loaded.runs) == 31
    assert [(row.where, row.reason) for row in loaded.bad] == [
        ("budget 1e+11, N 2e+06", "dropped from the plan: too few steps")
    ]
    assert loaded.header["study"] == "tiny"


def test_a_diverged_run_may_have_no_loss_and_no_convention(tmp_path, write_study):
    write_study(tmp_path)
    (tmp_path / "runs" / "isoflop-05" / "result.json").write_text('{"diverged": true, "loss": null}')
    loaded = load_runs(tmp_path)
    assert loaded.convention == "executed" and [(r.where, r.reason) for r in loaded.bad] == [("isoflop-05", "diverged")]


def test_mixed_conventions_are_refused(tmp_path, write_study):
    write_study(tmp_path)
    path = tmp_path / "runs" / "isoflop-00" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"convention": "6nd"}))
    with pytest.raises(FitRefused, match="6nd, executed") as caught:
        load_runs(tmp_path)
    assert caught.value.reason == "conventions"


def test_a_run_name_cannot_leave_the_study(tmp_path, write_study):
    write_study(tmp_path)
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write('{"name": "../elsewhere"}\n')
    assert any(row.where == "../elsewhere" and "plain folder name" in row.reason for row in load_runs(tmp_path).bad)


@pytest.mark.parametrize(
    ("text", "reason"), [("a,b\n1,2\n", "columns"), ("params,tokens,loss\n1,2,nan\n", "no_runs"), (None, "not_found")]
)
def test_hopeless_data_are_refused(tmp_path, text, reason):
    path = tmp_path / "table.csv"
    if text:
        path.write_text(text)
    with pytest.raises(FitRefused) as caught:
        load_runs(path)
    assert caught.value.reason == reason
