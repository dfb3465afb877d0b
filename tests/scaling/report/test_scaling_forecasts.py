"""The verb `forecast`, from the command line to its table and its JSON."""

import json

import numpy as np
import pytest

from chinchilla_jax import cli
from tests.scaling.answers.flights import study


def write(folder, runs, share):
    """Tables of the runs and of their curves; the last two of the runs are under way."""
    rows, lines = ["name,params,tokens,budget,loss,state"], ["run,tokens,loss"]
    for k, run in enumerate(runs):
        running = k >= len(runs) - 2
        loss, state = ("", "running") if running else (run.loss, "finished")
        rows.append(f"{run.name},{run.params},{run.tokens},{run.budget},{loss},{state}")
        for tokens, value in zip(run.curve.tokens, run.curve.loss, strict=True):
            if not running or tokens <= share * run.tokens:
                lines.append(f"{run.name},{tokens},{value}")
    (folder / "runs.csv").write_text("\n".join(rows) + "\n")
    (folder / "curves.csv").write_text("\n".join(lines) + "\n")
    return [f"--runs={folder / 'runs.csv'}", f"--curves={folder / 'curves.csv'}"]


@pytest.fixture
def runs():
    """A study of twenty runs."""
    return study()


def forecast(capsys, *words):
    code = cli.main(["forecast", *words])
    return code, *capsys.readouterr()


def test_runs_of_a_table_are_forecast(tmp_path, capsys, runs):
    where = tmp_path / "out.json"
    code, out, _ = forecast(capsys, *write(tmp_path, runs, 0.6), f"--output={where}")
    assert code == 0 and "18 finished runs, 2 under way" in out and "Where running runs will end" in out
    facts = json.loads(where.read_text())
    assert [f["name"] for f in facts["forecasts"]] == [run.name for run in runs[-2:]]
    for made, run in zip(facts["forecasts"], runs[-2:], strict=True):
        assert made["low"] < run.loss < made["high"] and made["alarm_at"] is None
        assert f"{made['loss']:.4f}" in out
    assert {row["run"] for row in facts["answers"][0]["rows"]} == {run.name for run in runs[-2:]}


def test_a_run_that_goes_wrong_is_marked(tmp_path, capsys, runs):
    last = runs[-1].curve
    last.loss[len(last.loss) // 3 :] *= 1.5
    code, out, _ = forecast(capsys, *write(tmp_path, runs, 0.5))
    assert code == 0
    assert f"{runs[-1].name} goes wrong: at 3" in out and f"{runs[-2].name} goes wrong" not in out


def test_nothing_under_way_is_one_line_and_exit_code_2(tmp_path, capsys, runs):
    table = write(tmp_path, runs, 1.0)
    text = (tmp_path / "runs.csv").read_text().replace(",,running", ",3.0,finished")
    (tmp_path / "runs.csv").write_text(text)
    code, out, err = forecast(capsys, *table)
    assert code == 2 and not out and err.count("\n") == 1 and "no run is under way" in err


def test_names_of_runs_go_with_a_study(tmp_path, capsys, runs):
    code, _, err = forecast(capsys, "x", *write(tmp_path, runs, 0.5))
    assert code == 2 and "a RUN is one of a study" in err


def test_a_run_is_chosen_by_name_or_folder(tmp_path, capsys, write_study):
    write_study(tmp_path, held_out=False)
    for name in ("isoflop-05", "isoflop-09"):
        folder = tmp_path / "runs" / name
        tokens = json.loads((folder / "result.json").read_text())["tokens"]
        (folder / "result.json").unlink()
        lines = [{"step": k, "tokens": k * tokens / 20, "loss": 3 + 1 / k} for k in np.arange(1, 11)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line, default=float) + "\n" for line in lines))
    code, out, _ = forecast(capsys, f"{tmp_path}/runs/isoflop-05")
    assert code == 0 and "26 finished runs, 1 under way" in out
    assert "no finished run has a curve" in out.lower()
    code, out, _ = forecast(capsys, "isoflop-05", f"--study={tmp_path}")
    assert code == 0 and "1 under way" in out
    code, out, _ = forecast(capsys, f"--study={tmp_path}")
    assert "2 under way" in out
