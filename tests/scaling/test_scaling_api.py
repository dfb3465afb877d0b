"""From Python: DataFrames and plain columns give what files give, and the public names stay."""

import csv
import inspect
import json

import numpy as np
import pyarrow
import pytest

from chinchilla_jax import cli
from chinchilla_jax.scaling import api
from chinchilla_jax.scaling.answers import on_record
from chinchilla_jax.scaling.read.runs import FitRefused

# What other people's programs call. A name or an argument that goes, goes with a major version.
PUBLIC = {
    "Compared": None,
    "Fitted": None,
    "Forecasts": None,
    "Predicted": None,
    "Suggested": None,
    "compare": ["arms", "reference", "budget", "draws", "seed", "reading"],
    "fit": ["runs", "preset", "replicates", "seed", "reading"],
    "fit_losses": ["runs", "names", "budget", "reading"],
    "forecast": ["runs", "names", "reading"],
    "load": ["runs", "reading"],
    "suggest": ["runs", "purse", "count", "budget", "quantity", "options"],
    "predict": ["runs", "budget", "options"],
}


class Interchange:
    """A DataFrame that offers the interchange protocol alone."""

    def __init__(self, columns):
        self._table = pyarrow.table(columns)

    def __dataframe__(self, **options):
        return self._table.__dataframe__(**options)


@pytest.fixture(scope="module")
def path(figure_4_path):
    """Figure 4's table."""
    return figure_4_path


@pytest.fixture(scope="module")
def columns(path):
    """Its numbers by column."""
    rows = list(csv.DictReader(path.open()))
    names = list(rows[0])
    return {name: [row[name] for row in rows] for name in names}


def test_public_names_and_arguments_stay():
    assert sorted(api.__all__) == sorted(PUBLIC)
    for name, arguments in PUBLIC.items():
        if arguments is not None:
            assert list(inspect.signature(getattr(api, name)).parameters) == arguments, name


def test_a_frame_or_columns_give_the_facts_of_the_file(path, columns):
    facts = api.fit(path, replicates=0).facts
    for frame in (columns, pyarrow.table(columns), Interchange(columns)):
        from_frame = api.fit(frame, replicates=0).facts
        for key in ("isoflop", "parametric", "envelope", "flops_range"):
            assert from_frame[key] == facts[key], key
        assert len(from_frame["runs"]) == len(facts["runs"])


def test_numbers_of_numpy_are_numbers(columns):
    typed = {
        name: np.array(values, float) if name in ("params", "tokens", "loss") else values
        for name, values in columns.items()
    }
    assert api.load(typed).runs == api.load(columns).runs


def test_the_facts_are_those_of_the_command_line(path, tmp_path):
    output = tmp_path / "facts.json"
    assert cli.main(["fit", f"--runs={path}", "--replicates=0", f"--output={output}"]) == 0
    assert json.loads(output.read_text()) == api.fit(path, replicates=0).facts


def test_a_fit_is_asked_saved_compared_and_put_on_record(path, tmp_path):
    fitted = api.fit(path, replicates=20)
    answer = fitted.predict(5.76e23)
    low, high = answer.interval
    assert low < answer.loss < high
    assert answer.facts["prediction"]["estimates"]["isoflop"]["params"] == answer.params
    fitted.save(tmp_path / "fit.npz")
    assert api.predict(tmp_path / "fit.npz", 5.76e23).loss == answer.loss
    same = api.compare({"one": fitted, "two": tmp_path / "fit.npz"}, budget=5.76e23, draws=50)
    assert same.comparison.arms[1].target.factor == pytest.approx(1.0, abs=1e-4)
    assert same.facts["comparison"]["reference"] == "one"
    answer.register(tmp_path / "p.json")
    assert on_record.read(tmp_path / "p.json")["content"]["loss"] == pytest.approx(answer.loss)


def test_the_next_runs_and_the_ends_of_runs_under_way(path, columns):
    suggested = api.suggest(path, purse=1e22, count=2, budget=5.76e23)
    assert len(suggested.runs) == 2 == len(suggested.facts["suggestion"]["runs"])
    steps = np.linspace(0.05, 1.0, 20)
    runs = {"name": [], "params": [], "tokens": [], "loss": [], "state": []}
    curves = {"name": [], "tokens": [], "loss": []}
    for i, params in enumerate((1e6, 2e6, 4e6, 8e6, 3e6)):
        last, tokens = i == 4, 20 * params
        done = steps[steps < 0.6] if last else steps
        losses = 2.0 + 3.0 * params**-0.1 * (1.0 + 0.5 * (1.0 - done))
        state = "running" if last else "finished"
        row = f"r{i}", params, tokens, None if last else losses[-1], state
        for values, new in zip(runs.values(), row, strict=True):
            values.append(new)
        for values, new in zip(curves.values(), ([f"r{i}"] * len(done), done * tokens, losses), strict=True):
            values.extend(new)
    ends = api.forecast(runs, curves=pyarrow.table(curves))
    assert [forecast.name for forecast in ends.forecasts] == ["r4"]
    assert ends.forecasts[0].loss == pytest.approx(2.0 + 3.0 * 3e6**-0.1, rel=0.02)
    assert ends.facts["forecasts"][0]["name"] == "r4" and ends.going_wrong == {}


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(FitRefused, match="params 2, tokens 1"):
        api.fit({"params": [1e6, 2e6], "tokens": [1e8]})
    with pytest.raises(FitRefused, match="no column for tokens, loss"):
        api.fit({"params": [1e6, 2e6]})
