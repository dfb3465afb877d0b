"""What a run writes while it runs.

metrics.jsonl   one line per logged step or evaluation: only values that a rerun reproduces to the bit
timing.jsonl    what the clock had booked by then, by part, over restarts; at logged steps tokens/s and FLOP/s too.
                It is never cut: steps that a restart does again are there twice, and the last line before it says
                what the process that was killed had spent
tensorboard/    both, as events
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tensorboardX import SummaryWriter

from chinchilla_jax.base.files import write_text
from chinchilla_jax.training.checkpoint import Position


class MetricWriter:
    """Appends lines to a run's files, after cutting off the metrics that lie past the position it resumes from."""

    def __init__(self, directory: Path, position: Position):
        paths = {name: Path(directory) / f"{name}.jsonl" for name in ("metrics", "timing")}
        if paths["metrics"].exists():
            _truncate(Path(directory), position)
        _end_line(paths["timing"])
        self._files = {name: path.open("a", encoding="utf-8") for name, path in paths.items()}
        self._events = SummaryWriter(str(Path(directory) / "tensorboard"), purge_step=position.step + 1)

    def write(self, kind: str, record: dict) -> None:
        """One line in `metrics` or `timing`; numbers also become TensorBoard scalars."""
        file = self._files[kind]
        file.write(json.dumps(record) + "\n")
        file.flush()
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)):
                self._events.add_scalar(f"{kind}/{key}", value, record["step"])

    def close(self) -> None:
        """Flushes and closes everything."""
        for file in self._files.values():
            file.close()
        self._events.close()


class NoWriter:
    """Writes nothing: all but one of several processes."""

    def write(self, kind: str, record: dict) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _truncate(directory: Path, position: Position) -> None:
    """Keeps what was logged up to the position: a killed run may have logged steps that it will do again."""
    _copy_metrics(
        directory,
        directory,
        lambda record: (
            record["step"] < position.step
            or (record["step"] == position.step and not ("validation_loss" in record and position.evaluation_owed))
        ),
    )


def adopt_metrics(trunk: Path, directory: Path, eval_every: int) -> None:
    """Makes the trunk's metrics those of a branch: what the branch would have written, had it trained those steps.

    A trunk evaluates at its end; a branch that goes on from there does so only every `eval_every` steps. Lines past the
    fork are cut off by the writer.
    """
    _copy_metrics(
        trunk,
        directory,
        lambda record: "validation_loss" not in record or (eval_every and record["step"] % eval_every == 0),
    )


def _copy_metrics(source: Path, target: Path, keep: Callable[[dict], bool]) -> None:
    lines = [json.dumps(record) + "\n" for record in read_metrics(source) if keep(record)]
    write_text(target / "metrics.jsonl", "".join(lines))


def read_metrics(directory: Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl`, up to the one that a killed run was writing."""
    path = Path(directory) / "metrics.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _end_line(path: Path) -> None:
    """What a killed run was writing becomes a line of its own, which readers pass over."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, 2)
            if file.read() != b"\n":
                file.write(b"\n")
