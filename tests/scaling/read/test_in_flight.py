"""Which runs are under way: in a study, in run directories, in a table with a second one of curves."""

import json
import math

import numpy as np
import pytest

from chinchilla_jax.scaling.read.in_flight import Schedule, load_in_flight, schedule_of
from chinchilla_jax.scaling.read.runs import FitRefused


def stop(folder, lines=5, cut=True):
    """Makes a finished run one under way: `lines` lines of its metrics and half of the next."""
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    tokens = np.linspace(0, result["tokens"], 11)[1 : lines + 1]
    text = "".join(json.dumps({"step": k, "tokens": t, "loss": 4.0 - 0.1 * k}) + "\n" for k, t in enumerate(tokens))
    (folder / "metrics.jsonl").write_text(text + ('{"step": 9, "tok' if cut else ""))
    return result


@pytest.fixture
def study(tmp_path, write_study):
    """A study of which one run has half of its training, and one has not begun."""
    write_study(tmp_path, held_out=False)
    stop(tmp_path / "runs" / "isoflop-05")
    (tmp_path / "runs" / "isoflop-06" / "result.json").unlink()
    return tmp_path


def test_what_has_metrics_and_no_result_is_under_way(study):
    flight = load_in_flight(study)
    (run,) = flight.running
    assert run.name == "isoflop-05" and run.share == pytest.approx(0.5)
    assert len(run.curve.tokens) == 5 and run.curve.loss[-1] == pytest.approx(3.6)
    assert len(flight.finished) == 26 and run.name not in {other.name for other in flight.finished}


def test_n_d_and_c_are_the_planned_ones_in_the_count_of_the_finished_runs(tmp_path, write_study):
    write_study(tmp_path, held_out=False)
    result = stop(tmp_path / "runs" / "isoflop-05")
    (run,) = load_in_flight(tmp_path).running
    assert (run.params, run.tokens) == (result["params"], result["tokens"])
    assert run.flops == pytest.approx(result["flops"], rel=1e-3)  # sizes are whole numbers, budgets round


def test_a_name_that_is_not_under_way_is_refused_with_the_reason(study):
    for name, words in (("isoflop-01", "it is finished"), ("isoflop-06", "no run of that name has written metrics")):
        with pytest.raises(FitRefused, match=words) as refused:
            load_in_flight(study, [name])
        assert refused.value.reason == "not_running" and name in str(refused.value)


def test_a_run_trained_otherwise_than_plainly_is_not_forecast_by_plain_curves(study):
    path = study / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line | ({"method": "patch size=4"} if line.get("name") == "isoflop-05" else {}) for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(FitRefused, match="isoflop-05: is not trained plainly"):
        load_in_flight(study)


def test_nothing_under_way_is_refused(tmp_path, write_study):
    write_study(tmp_path)
    with pytest.raises(FitRefused, match="no run is under way") as refused:
        load_in_flight(tmp_path)
    assert refused.value.reason == "not_running"


def test_a_damaged_line_within_is_no_curve(study):
    path = study / "runs" / "isoflop-05" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": 3.9', '"loss": NaN'))
    with pytest.raises(FitRefused, match="curve left out: diverged: loss is nan"):
        load_in_flight(study)


def write_tables(folder, state=True, tokens=1e9):
    """A table of six runs, the last under way, and one of their curves by tokens."""
    rows = ["name,params,tokens,loss" + ",state" * state]
    curve = ["run,tokens,loss"]
    for k in range(6):
        running = k == 5
        loss = "" if running else f"{3.0 - 0.1 * k}"
        rows.append(f"r{k},{1e7 * (k + 1)},{tokens},{loss}" + (",running" if running else ",finished") * state)
        curve += [f"r{k},{share * 1e9},{4 - share}" for share in np.arange(0.1, 0.55 if running else 1.01, 0.1)]
    (folder / "runs.csv").write_text("\n".join(rows) + "\n")
    (folder / "curves.csv").write_text("\n".join(curve) + "\n")
    return folder / "runs.csv", folder / "curves.csv"


@pytest.mark.parametrize("state", [True, False])
def test_a_row_that_runs_or_has_no_loss_is_under_way(tmp_path, state):
    runs, curves = write_tables(tmp_path, state)
    flight = load_in_flight(runs, curves=curves)
    (run,) = flight.running
    assert run.name == "r5" and run.share == pytest.approx(0.5) and len(flight.finished) == 5
    assert run.flops == pytest.approx(6 * run.params * run.tokens)


def test_a_run_whose_curve_stops_before_its_tokens_is_under_way(tmp_path):
    runs, curves = write_tables(tmp_path, state=False)
    runs.write_text(runs.read_text().replace("1000000000.0,\n", "1000000000.0,3.5\n"))
    flight = load_in_flight(runs, curves=curves)
    assert [run.name for run in flight.running] == ["r5"] and len(flight.finished) == 5


def test_a_run_that_is_finished_by_its_state_is_so_wherever_its_curve_stops(tmp_path):
    runs, curves = write_tables(tmp_path)
    runs.write_text(runs.read_text().replace("1000000000.0,,running", "1000000000.0,3.5,finished"))
    with pytest.raises(FitRefused, match="no run is under way"):
        load_in_flight(runs, curves=curves)


def test_steps_of_a_run_under_way_count_as_in_the_finished_ones(tmp_path):
    runs, curves = write_tables(tmp_path)
    lines = curves.read_text().replace("tokens", "step").splitlines()
    parts = [line.split(",") for line in lines[1:]]
    curves.write_text("\n".join([lines[0], *(f"{n},{float(t) / 1e5:.0f},{y}" for n, t, y in parts)]) + "\n")
    (run,) = load_in_flight(runs, curves=curves).running
    assert run.share == pytest.approx(0.5)


def test_a_row_with_the_tokens_so_far_is_left_out_with_the_reason(tmp_path):
    runs, curves = write_tables(tmp_path)
    runs.write_text(runs.read_text().replace("1000000000.0,,running", "500000000.0,,running"))
    with pytest.raises(FitRefused, match="tokens so far, not those planned"):
        load_in_flight(runs, curves=curves)


def test_schedules_go_as_the_trainings_do():
    from chinchilla_jax.config import OptimizerConfig
    from chinchilla_jax.training.schedule import BatchSchedule, learning_rate

    steps = BatchSchedule(4, 1000, 1000, 128)
    for kind in ("cosine", "constant", "cooldown", "cooldown_sqrt"):
        optimizer = OptimizerConfig(schedule=kind, warmup_steps=50, final_lr_fraction=0.1, peak_lr=2.0)
        config = {"optimizer": vars(optimizer), "train": {"batch_size": 4}, "data": {"seq_len": 128}}
        schedule = schedule_of(config, 1000 * 512)
        for step in (0, 20, 300, 700, 850, 990):
            expected = learning_rate(optimizer, steps, step) / 2.0
            assert schedule.rate((step + 0.5) / 1000) == pytest.approx(expected, abs=0.03), (kind, step)


def test_schedules_are_one_if_their_rates_go_the_same_way():
    cosine = Schedule("cosine", 0.05, 0.1)
    assert cosine.resembles(Schedule("cosine", 0.06, 0.1)) and not cosine.resembles(Schedule("cosine", 0.05, 0.0 + 0.3))
    assert not cosine.resembles(Schedule("linear", 0.05, 0.1))
    assert schedule_of(None, 1.0) is None and schedule_of({"optimizer": {}}, 1.0) is None
    assert math.isclose(Schedule("linear", 0.0, 0.0).rate(0.25), 0.75)
