"""Directories: a study, one run, or a folder of runs, each with the curves its runs wrote."""

import json

import pytest

from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused


def listed(loaded):
    """Reasons by place."""
    return {row.where: row.reason for row in loaded.bad}


def write_run(folder, **changes):
    """A run directory as `train` leaves it: no name, budget or convention of its own."""
    flops = {"table_a4": 5.0e9, "appendix_f": 7.0e9, "6nd": 6.0e9, "executed": 6.5e9}
    result = {"loss": 3.0, "params": 1000, "params_non_embedding": 800, "tokens": 1000000,
              "flops_by_convention": flops, "diverged": False} | changes  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_metrics(folder, lines):
    """`metrics.jsonl` of these objects; text goes in as it is."""
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def test_study_directory(tmp_path, write_study):
    write_study(tmp_path, held_out=False)
    broken = tmp_path / "runs" / "isoflop-03" / "result.json"
    row = json.loads(broken.read_text())
    broken.write_text(json.dumps(row | {"loss": float("nan"), "diverged": True}))
    (tmp_path / "runs" / "stray").mkdir()
    loaded = load_runs(tmp_path)
    assert len(loaded.runs) == 27 and loaded.convention == "executed"
    reasons = listed(loaded)
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
    assert listed(loaded) == {"budget 1e+11, N 2e+06": "dropped from the plan: too few steps"}
    assert loaded.header["study"] == "tiny"


def test_a_diverged_run_may_have_no_loss_and_no_convention(tmp_path, write_study):
    write_study(tmp_path)
    (tmp_path / "runs" / "isoflop-05" / "result.json").write_text('{"diverged": true, "loss": null}')
    loaded = load_runs(tmp_path)
    assert loaded.convention == "executed" and listed(loaded) == {"isoflop-05": "diverged"}


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
    assert listed(load_runs(tmp_path)) == {
        "../elsewhere": "a run name must be a plain folder name (manifest.jsonl line 32)"
    }


@pytest.mark.parametrize("line", [
    "{", "[]", "{}", '{"name": 3}', "\0", '{"manifest": {"dropped": 3}}',
    '{"manifest": {"dropped": [{"budget": "x"}]}}',
])  # fmt: skip
def test_a_damaged_manifest_is_refused_with_its_line(tmp_path, write_study, line):
    write_study(tmp_path)
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(FitRefused, match="manifest.jsonl") as caught:
        load_runs(tmp_path)
    assert caught.value.reason == "manifest" and ("line 32" in str(caught.value) or line == "\0")


def test_one_run_directory(tmp_path):
    loaded = load_runs(write_run(tmp_path / "first"))
    (run,) = loaded.runs
    assert (run.name, run.params, run.tokens, run.flops, run.budget, run.role) == (
        "first", 1000.0, 1e6, 6.5e9, None, "isoflop",
    )  # fmt: skip
    assert loaded.describe() == [
        "N: parameters, total: embeddings included, a tied matrix once; from params",
        "D: training tokens; from tokens",
        "C: training FLOPs, convention executed; from flops",
        "loss: nats per token, on held-out text; from loss",
    ]


def test_a_folder_of_run_directories(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", loss=2.9, name="called otherwise")
    (write_run(tmp_path / "c") / "result.json").write_text("{")
    (write_run(tmp_path / "d") / "result.json").write_text("[]")
    (write_run(tmp_path / "e") / "result.json").write_bytes(b"\xff\xfe\0")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "config.json").write_text("{}")
    (tmp_path / "plots").mkdir()
    write_run(tmp_path / "g")
    write_run(tmp_path / "h", loss=None)
    loaded = load_runs(tmp_path)
    assert [run.name for run in loaded.runs] == ["a", "b"]
    found = listed(loaded)
    assert found.pop("c").startswith("result.json is not JSON: ")
    assert found.pop("e").startswith("result.json is not JSON: ")
    assert found == {
        "d": "result.json is not an object",
        "f": f"not finished: no result.json in {tmp_path / 'f'}",
        "g": "duplicate of a: same N, D, C and loss",
        "h": "loss is missing",
    }


def test_a_run_that_is_not_finished_is_listed_and_not_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    loaded = load_runs(tmp_path)
    assert not loaded.runs and len(loaded.bad) == 1 and loaded.bad[0].reason.startswith("not finished")


def test_a_directory_without_runs_is_refused(tmp_path):
    (tmp_path / "plots").mkdir()
    with pytest.raises(FitRefused, match="no run directory in it") as caught:
        load_runs(tmp_path)
    assert caught.value.reason == "not_found"


def test_keys_of_the_result_serve_as_columns(tmp_path):
    write_run(tmp_path / "a")
    loaded = load_runs(tmp_path, columns={"params": "params_non_embedding", "flops": "flops_table_a4"})
    assert (loaded.runs[0].params, loaded.runs[0].flops, loaded.convention) == (800.0, 5.0e9, "table_a4")
    assert loaded.params_count == "non-embedding: without token, position and output matrices"
    with pytest.raises(FitRefused, match="did you mean 'flops_table_a4'"):
        load_runs(tmp_path, columns={"flops": "flops_table_a5"})
    with pytest.raises(FitRefused, match="does not say how FLOPs are counted") as caught:
        load_runs(tmp_path, columns={"flops": "tokens"})
    assert caught.value.reason == "conventions"


def test_budgets_of_another_convention_are_left_out_and_told(tmp_path):
    write_run(tmp_path / "a", budget=6.5e9, convention="executed", flops=6.5e9)
    assert load_runs(tmp_path).runs[0].budget == 6.5e9
    loaded = load_runs(tmp_path, columns={"flops": "flops_6nd"})
    assert loaded.runs[0].budget is None and loaded.runs[0].flops == 6.0e9
    assert "budgets are left out: they were counted as executed, C here as 6nd" in loaded.describe()


def test_trunks_are_counted_and_not_fitted(tmp_path):
    write_run(tmp_path / "a", role="trunk", loss=3.3)
    write_run(tmp_path / "b", role="isoflop")
    write_run(tmp_path / "c", role="trunk", loss=None, diverged=True)
    loaded = load_runs(tmp_path)
    assert [run.name for run in loaded.runs] == ["b"] and listed(loaded) == {"c": "diverged"}
    assert "trunks are no runs to fit, their branches are: 1 passed over" in loaded.describe()


def test_curves_are_the_training_lines_of_the_metrics(tmp_path):
    write_metrics(write_run(tmp_path / "a"), [
        {"step": 1, "tokens": 500000, "loss": 4.0, "lr": 0.1},
        {"step": 1, "tokens": 500000, "validation_loss": 4.1},
        {"step": 2, "tokens": 1000000, "loss": 3.0},
    ])  # fmt: skip
    write_run(tmp_path / "b", loss=2.9)
    loaded = load_runs(tmp_path)
    a, b = loaded.runs
    assert a.curve.tokens.tolist() == [5e5, 1e6] and a.curve.loss.tolist() == [4.0, 3.0]
    assert b.curve is None and not loaded.bad
    assert loaded.describe()[-1] == "curves: training loss in nats per token, of 1 of 2 runs"


@pytest.mark.parametrize(("lines", "where", "reason"), [
    (['{"tokens": 1, "loss": 4}', '{"tok'], "metrics.jsonl line 2 (a)", "not JSON"),
    ([{"tokens": 2, "loss": 4}, {"tokens": 2, "loss": 3}], "metrics.jsonl line 2 (a)", "tokens do not rise"),
    ([{"tokens": 2, "loss": float("nan")}], "metrics.jsonl line 1 (a)", "diverged: loss is nan"),
    ([{"loss": 4}], "metrics.jsonl line 1 (a)", "tokens is missing"),
    ([{"tokens": 1e7, "loss": 4}], "metrics.jsonl line 1 (a)", "it goes on to 1e+07 tokens, the run has D = 1e+06"),
    (["\0"], "a", "not a text file"),
])  # fmt: skip
def test_a_damaged_curve_costs_the_curve_and_not_the_run(tmp_path, lines, where, reason):
    write_metrics(write_run(tmp_path / "a"), lines)
    loaded = load_runs(tmp_path)
    assert len(loaded.runs) == 1 and loaded.runs[0].curve is None
    (bad,) = loaded.bad
    assert bad.where == where and bad.reason.startswith("curve left out: ") and reason in bad.reason


def test_runs_trained_otherwise_are_no_runs_to_fit_unless_asked_for(tmp_path):
    """And of a run in stages the training loss is not that of next tokens all the way: it has no curve."""
    patches = {"method": "patch size=4", "stages": [{}, {}]}
    for name, more in (("a", {"method": "plain"}), ("b", patches), ("c", {"loss": 3.1})):
        write_run(tmp_path / name, **more)
        write_metrics(tmp_path / name, [{"step": s, "tokens": 1e5 * s, "loss": 4.0 - 0.1 * s} for s in range(1, 11)])
    loaded = load_runs(tmp_path)
    assert [(run.name, run.curve is not None) for run in loaded.runs] == [("a", True), ("c", True)]
    assert any("trained otherwise than plainly: 1 passed over" in note for note in loaded.notes)
    asked = load_runs(tmp_path, where={"method": ("patch size=4",)})
    assert [(run.name, run.curve) for run in asked.runs] == [("b", None)]
