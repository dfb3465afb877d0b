"""Metrics are those of the steps that count: what a restart does again is cut off."""

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
