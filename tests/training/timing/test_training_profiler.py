"""A window of steps is traced, and nothing outside it; a window that cannot be is refused before any work."""

import gzip
import json

import jax
import pytest

from chinchilla_jax import cli
from chinchilla_jax.config import ConfigError
from chinchilla_jax.training.loop import Preempted, train
from chinchilla_jax.training.timing import profiler
from chinchilla_jax.training.timing.profiler import parse_window


def quiet(_):
    """An `echo` that says nothing."""


def traced(workdir):
    """For each trace, the numbers of the steps in it."""
    traces = []
    for path in sorted(workdir.glob("profile/plugins/profile/*/*.trace.json.gz")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        traces.append([int(e["args"]["step_num"]) for e in events if e.get("name") == "train"])
        assert path.with_name(path.name.replace(".trace.json.gz", ".xplane.pb")).stat().st_size
    return traces


def test_the_steps_of_the_window_are_traced_and_none_outside(small, said, tmp_path):
    """Evaluations, a checkpoint and other steps lie around it."""
    train(small, tmp_path, profile=range(5, 8), echo=said)
    assert traced(tmp_path) == [[5, 6, 7]]
    assert f"profile: written to {tmp_path / 'profile'}; look at it with" in said.text


def test_a_window_may_end_with_the_run(small, tmp_path):
    train(small, tmp_path, profile=range(24, 25), echo=quiet)
    assert traced(tmp_path) == [[24]]


@pytest.mark.long
def test_a_run_stopped_within_the_window_leaves_its_trace_and_traces_the_rest_later(small, stop_at, tmp_path):
    stop_at(6)
    with pytest.raises(Preempted):
        train(small, tmp_path, profile=range(5, 9), echo=quiet)
    assert traced(tmp_path) == [[5, 6]]
    (tmp_path / "profile").rename(tmp_path / "first")  # a second within the same second would have the same name
    train(small, tmp_path, profile=range(5, 9), echo=quiet)
    assert traced(tmp_path) == [[7, 8]]


def test_a_run_resumed_beyond_the_window_traces_nothing(small, stop_at, tmp_path):
    stop_at(9)
    with pytest.raises(Preempted):
        train(small, tmp_path, echo=quiet)
    train(small, tmp_path, profile=range(5, 10), echo=quiet)
    assert traced(tmp_path) == []


def test_only_the_first_process_traces(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    second = profiler.Profiler(range(1, 3), tmp_path, 10, quiet)
    assert not second.begins(1) and not second.begins(2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("100", "'100' should read START:STOP"),
        ("a:b", "should read START:STOP"),
        ("5:", "should read START:STOP"),
        ("-1:4", "should read START:STOP"),
        ("0:4", "0:4 holds no step; the first step is 1"),
        ("7:7", "7:7 holds no step"),
        ("9:7", "9:7 holds no step"),
    ],
)
def test_a_window_without_steps_is_refused(text, words):
    with pytest.raises(ConfigError, match=words) as raised:
        parse_window(text)
    assert raised.value.key == "--profile"


def test_a_window_as_it_is_typed():
    assert parse_window("100:105") == range(100, 105)


def test_a_window_beyond_the_run_is_refused_before_it_takes_the_directory(small, tmp_path):
    with pytest.raises(ConfigError, match="20:26 goes beyond the run's 24 steps; STOP is at most 25"):
        train(small, tmp_path / "run", profile=range(20, 26), echo=quiet)
    assert not (tmp_path / "run").exists()


def test_the_command_line_refuses_a_bad_window(small, tmp_path, capsys):
    file = tmp_path / "config.py"
    values = small.to_dict()
    file.write_text(f"import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({values!r})\n")
    code = cli.main(["train", f"--config={file}", f"--workdir={tmp_path / 'run'}", "--profile=9:7"])
    assert code == 2 and "--profile: 9:7 holds no step" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
