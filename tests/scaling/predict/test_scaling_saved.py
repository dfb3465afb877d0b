"""A saved fit answers as the fit did, to the bit, without its table; what is no such fit is refused in one line."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from chinchilla_jax import cli
from chinchilla_jax.scaling.predict import saved
from chinchilla_jax.scaling.predict.analysis import analyse
from chinchilla_jax.scaling.predict.predict import predict
from chinchilla_jax.scaling.predict.saved import SavedFit, load_fit, save_fit
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.report import report
from chinchilla_jax.scaling.report.facts import facts_of

# Of the names and fields of the classes that a file holds. Where it changes, files of before cannot be read as they
# were meant: raise `saved.SCHEMA` by one, and put the new digest here.
FIELDS = {1: "02300b61dd8e221d"}


@pytest.fixture(scope="module")
def study(tmp_path_factory, write_study):
    """A planted study of 4 budgets, fitted, and the fit in a file."""
    root = tmp_path_factory.mktemp("study")
    write_study(root)
    loaded = load_runs(root)
    fitted = SavedFit(loaded, analyse(loaded.runs, replicates=50))
    save_fit(root / "fit.npz", fitted)
    return root / "fit.npz", fitted


def test_it_gives_the_same_answers_to_the_bit(study):
    path, before = study
    after = load_fit(path)
    facts = [
        json.dumps(facts_of(fit.loaded, prediction=predict(fit.fits, 1.08e13), answers=())) for fit in (before, after)
    ]
    assert facts[0] == facts[1]
    assert after.loaded.runs == before.loaded.runs
    assert after.loaded.header == before.loaded.header


def test_a_run_of_many_fits_is_one_run(study):
    after = load_fit(study[0])
    assert {id(run) for run in after.fits.isoflop.runs} <= {id(run) for run in after.loaded.runs}


def test_the_command_line_answers_from_the_file_alone(tmp_path, capsys, write_study, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: {})
    root = tmp_path / "study"
    write_study(root)
    path, words = tmp_path / "fit.npz", ["--budget=1e13"]
    assert cli.main(["fit", f"--study={root}", "--replicates=50", f"--save={path}"]) == 0
    assert cli.main(["predict", f"--study={root}", "--replicates=50", *words, f"--output={tmp_path}/a.json"]) == 0
    for file in sorted(root.glob("**/*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    assert cli.main(["predict", f"--fit={path}", *words, f"--output={tmp_path}/b.json"]) == 0
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert cli.main(["report", f"--fit={path}", *words, f"--output={tmp_path}/page"]) == 0
    assert (tmp_path / "page" / "report.html").exists()
    assert cli.main(["compare", str(path), f"again={path}", *words]) == 0
    capsys.readouterr()
    assert cli.main(["predict", f"--fit={path}", "--preset=paper"]) == 2
    assert "--preset goes with `fit`" in capsys.readouterr().err


def change(path, to, **changes):
    with np.load(path) as arrays:
        content = dict(arrays)
    header = json.loads(bytes(content["header"])) | changes
    np.savez(to, **content | {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)})
    return to


def test_another_schema_is_refused_by_name(study, tmp_path):
    other = change(study[0], tmp_path / "other.npz", schema=7, code="0.9 (abc)")
    with pytest.raises(FitRefused, match=r"made with schema 7 by 0.9 \(abc\); this code reads schema 1: fit the runs"):
        load_fit(other)


def test_what_is_no_saved_fit_is_refused(study, tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    cut = tmp_path / "cut.npz"
    cut.write_bytes(study[0].read_bytes()[:-2000])
    np.savez(tmp_path / "arrays.npz", x=np.zeros(3))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, header=np.array([{"format": saved.FORMAT}], dtype=object))
    odd = change(
        study[0], tmp_path / "odd.npz", content={"runs": [], "loaded": {"#": "Popen", "fields": {}}, "fits": None}
    )
    for path in (tmp_path / "text.npz", cut, tmp_path / "arrays.npz", pickled, odd):
        with pytest.raises(FitRefused, match="not a saved fit"):
            load_fit(path)
    with pytest.raises(FitRefused, match="no such file"):
        load_fit(tmp_path / "absent.npz")
    with pytest.raises(FitRefused, match=r"NAME\.npz"):
        save_fit(tmp_path / "fit.json", study[1])


def test_fields_do_not_change_without_another_schema():
    fields = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in sorted(saved.CLASSES.items())}
    digest = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]
    assert FIELDS[saved.SCHEMA] == digest, "a class that saved fits hold has changed: see FIELDS"
