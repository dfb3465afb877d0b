"""A tracker sees the numbers of `metrics.jsonl`, of one record per run, and no network; a run does not depend on it."""

import dataclasses
import importlib.machinery
import json
import sqlite3
import struct
import sys
import time
import types

import pytest

from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.training.checkpoint import Position
from chinchilla_jax.training.loop import train
from chinchilla_jax.training.record import trackers
from chinchilla_jax.training.record.metrics import MetricWriter, RunLog, read_metrics


def with_tracker(config, name):
    """The config of the run, watched by this tracker."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, tracker=name))


@pytest.fixture
def workdir(tmp_path):
    """The directory of a run that has begun."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"began": "some time"}')
    return tmp_path / "run"


@pytest.fixture
def fakes(monkeypatch):
    """Packages that remember what they are told, as [name of the call, arguments]; none of them has a network."""
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    told = []

    class Run:
        def define_metric(self, *names, **settings):
            told.append(("define", names))

        def log(self, values, step=None):
            told.append(("log", values["step"] if step is None else step, values))

        def finish(self):
            told.append(("finish",))

    def init(**settings):
        told.append(("init", settings))
        return Run()

    for name in ("wandb", "trackio"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.init, module.finish, module.Settings = init, Run().finish, lambda **settings: settings
        monkeypatch.setitem(sys.modules, name, module)
    return told


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_package_that_is_missing_is_named_before_the_run_takes_its_directory(tiny_run, tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"train.tracker: the package {name} is not .*'chinchilla_jax\[{name}\]'"):
        train(with_tracker(tiny_run, name), tmp_path / "run", echo=lambda line: None)
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ConfigError, match=r"train.tracker: unknown value 'wandbb' \(did you mean 'wandb'\?\)"):
        RunConfig.from_dict({"train": {"tracker": "wandbb"}})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_tells_its_tracker_what_it_writes_and_may_change_it(tiny_run, tmp_path, fakes, name):
    config, said = with_tracker(tiny_run, name), []
    plain = train(tiny_run, tmp_path / "plain", echo=lambda line: None)
    assert train(config, tmp_path / "run", echo=said.append)["loss"] == plain["loss"]
    written = [(record.pop("step"), record) for record in read_metrics(tmp_path / "run")]
    logged = [(step, values) for kind, step, values in (call for call in fakes if call[0] == "log")]
    of_metrics = [
        (step, {key.removeprefix("metrics/"): value for key, value in values.items() if key != "step"})
        for step, values in logged
        if "metrics/tokens" in values
    ]
    assert of_metrics == [(s, {k: v for k, v in r.items() if isinstance(v, (int, float))}) for s, r in written]
    assert any("timing/goodput" in values for _, values in logged) and fakes[-1] == ("finish",)
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert [line for line in said if line.startswith(f"{name}: run ")]
    assert config.content_hash() == tiny_run.content_hash()
    said.clear()
    assert train(tiny_run, tmp_path / "run", echo=said.append)["loss"] == plain["loss"]
    assert len(said) == 1 and "finished already" in said[0]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_that_goes_on_is_the_same_record_and_another_run_is_not(tmp_path, fakes, name):
    config, workdir = RunConfig(), tmp_path / "my study" / "runs" / "small"
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text('{"began": "some time"}')
    (tmp_path / "my study" / "manifest.jsonl").touch()
    for _ in range(2):
        trackers.open_tracker(with_tracker(config, name), workdir, 3, print).close()
    (workdir / "config.json").write_text('{"began": "later"}')
    trackers.open_tracker(with_tracker(config, name), workdir, 0, print).close()
    first, again, other = (call[1] for call in fakes if call[0] == "init")
    assert first == again and first["resume"] == "allow" and first["project"] == "my-study"
    key = "id" if name == "wandb" else "name"
    assert first[key] != other[key] and first["config"]["train"]["tracker"] == name


@pytest.mark.parametrize("mode", [None, "online", "disabled"])
def test_weights_and_biases_are_offline_unless_the_environment_says_otherwise(workdir, fakes, monkeypatch, mode):
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    trackers.open_tracker(with_tracker(RunConfig(), "wandb"), workdir, 0, print)
    assert fakes[0][1]["mode"] == (mode or "offline") and fakes[0][1]["project"] == "mine"


def test_only_the_first_process_opens_it(workdir, fakes, monkeypatch):
    monkeypatch.setattr(distributed, "first", lambda: False)
    RunLog(types.SimpleNamespace(config=with_tracker(RunConfig(), "wandb")), workdir, Position(), None, print)
    assert not fakes


@pytest.mark.parametrize("broken", ["init", "log"])
def test_a_tracker_that_fails_is_given_up_and_said_once(workdir, fakes, monkeypatch, broken):
    def fail(*arguments, **settings):
        raise ConnectionError("no such host\nat line 3")

    made = types.SimpleNamespace(log=fail, finish=fail, define_metric=lambda *names, **settings: None)
    monkeypatch.setattr(sys.modules["wandb"], "init", fail if broken == "init" else lambda **settings: made)
    said = []
    writer = MetricWriter(
        workdir, Position(), trackers.open_tracker(with_tracker(RunConfig(), "wandb"), workdir, 0, said.append)
    )
    for step in (1, 2):
        writer.write("metrics", {"step": step, "loss": 1.0})
    writer.close()
    told = "wandb: no such host; the run goes on without it, metrics.jsonl has everything"
    assert [line for line in said if "no such host" in line] == [told] and len(read_metrics(workdir)) == 2


def wandb_records(path):
    """The records of a `.wandb` file: 7 bytes, then blocks of 32768 of (checksum, length, kind, part of a record)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def write_twice(config, workdir):
    """Two processes of a run, the second of which does step 2 again."""
    for steps in ((1, 2), (2, 3)):
        tracker = trackers.open_tracker(config, workdir, steps[0] - 1, print)
        writer = MetricWriter(workdir, Position(step=steps[0] - 1), tracker)
        for step in steps:
            writer.write("metrics", {"step": step, "loss": 1.0 / step})
        writer.close()
        time.sleep(1.0)  # Weights & Biases calls its folders by the second


def test_offline_files_of_weights_and_biases_hold_the_run(workdir, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    write_twice(with_tracker(RunConfig(), "wandb"), workdir)
    found, runs = [], set()
    for path in sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb")):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "run":
                runs.add((record.run.run_id, record.run.project, record.run.display_name))
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                found.append((items["step"], items["metrics/loss"]))
    assert sorted(found) == [(1, 1.0), (2, 0.5), (2, 0.5), (3, 1 / 3)]
    assert [(project, name) for _, project, name in runs] == [("chinchilla_jax", "run")]


def test_the_database_of_trackio_holds_the_run(workdir, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")  # read from the environment at import
    write_twice(with_tracker(RunConfig(), "trackio"), workdir)
    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert [(step, json.loads(values)["metrics/loss"]) for _, step, values in rows] == [
        (1, 1.0), (2, 0.5), (2, 0.5), (3, 1 / 3),
    ]  # fmt: skip
    assert len({name for name, _, _ in rows}) == 1 and rows[0][0].startswith("run-")
