"""Metrics are those of the steps that count: what a restart does again is cut off."""

import json

from tensorboardX.proto.event_pb2 import Event, SessionLog

from chinchilla_jax.training.checkpoint import Position
from chinchilla_jax.training.record.metrics import MetricWriter, read_metrics


def test_metrics_past_the_position_are_cut_off(tmp_path):
    writer = MetricWriter(tmp_path, Position())
    for step in (1, 2, 3):
        writer.write("metrics", {"step": step, "loss": 1.0})
        writer.write("metrics", {"step": step, "validation_loss": 1.0})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert len(read_metrics(tmp_path)) == 6
    MetricWriter(tmp_path, Position(step=3)).close()
    assert len(read_metrics(tmp_path)) == 6 and (tmp_path / "metrics.jsonl").read_text().endswith("\n")
    MetricWriter(tmp_path, Position(step=2, evaluation_owed=True)).close()
    kinds = [(r["step"], "loss" in r) for r in read_metrics(tmp_path)]
    assert kinds == [(1, True), (1, False), (2, True)]
    MetricWriter(tmp_path, Position()).close()
    assert read_metrics(tmp_path) == []


def test_events_of_the_step_resumed_from_are_not_purged(tmp_path):
    """TensorBoard drops what a restart purges: everything from that step on."""
    MetricWriter(tmp_path, Position(step=4)).close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, starts = file.read_bytes(), []
    while content:  # records: length, its checksum, event, its checksum
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        if event.session_log.status == SessionLog.START:
            starts.append(event.step)
    assert starts == [5]


def test_a_damaged_line_is_left_out_and_told_and_those_after_it_stay(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 6)]
    for damaged in ('{"step": 2, "lo\n', "[]\n", '{"loss": 1.0}\n', b'{"step": 2, "l\xff": 1.0}\n'):
        content = [line.encode() for line in lines]
        content[1] = damaged if isinstance(damaged, bytes) else damaged.encode()
        (tmp_path / "metrics.jsonl").write_bytes(b"".join(content))
        said = []
        MetricWriter(tmp_path, Position(step=4), echo=said.append).close()
        assert [record["step"] for record in read_metrics(tmp_path)] == [1, 3, 4]
        assert said == [f"{tmp_path / 'metrics.jsonl'}: line 2 is damaged, and left out"]


def test_what_is_gone_is_told(tmp_path):
    said = []
    for name in ("early", "gone"):
        (tmp_path / name).mkdir()
    MetricWriter(tmp_path / "early", Position(step=4), echo=said.append, log_every=5).close()
    assert not said
    MetricWriter(tmp_path / "gone", Position(step=5), echo=said.append, log_every=5).close()
    assert said == [f"{tmp_path / 'gone' / 'metrics.jsonl'} is missing: what was logged up to step 5 is lost"]
