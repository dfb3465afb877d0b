"""How often does the alarm of `status` mark a good run, and how soon a broken one?

    python -m tests.benchmarks.alarms --study=DIR --curves=FILE [--more_studies=DIR ...]

Trains small cells of a study under seeds of their own and appends their curves to FILE, a JSON line a run, until there
are as many as asked for; what is in FILE is not trained again. Broken runs are good ones up to a drawn share of their
training (10% to 80%), and stopped 6% later, or are so from the first step on, and stopped at 25%:

    rate        the learning rate times 10
    labels      targets shuffled over the batch
    spike       the rate times 100 for three steps, then as before

Then prints how many good runs are marked, trained for this and finished ones of --study and --more_studies, and of the
broken ones how many within 2% of their training after it broke, how many before, and the median and latest, as a share
of the training: beside the finished runs of the study, and by their own curve alone. Runs broken from the first step on
are shown apart, also with the study's 50 steps a line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.config import RunConfig
from chinchilla_jax.data.batches import Batch
from chinchilla_jax.scaling.answers.flight.alarm import alarm
from chinchilla_jax.scaling.read.in_flight import Running
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import Curve, Run
from chinchilla_jax.training import loop
from chinchilla_jax.training.record.metrics import Diverged, read_metrics
from chinchilla_jax.training.schedule import steps_of

GOOD_CELLS = ("c3.2e11-n141k", "c3.2e11-n112k", "c3.2e11-n141k", "c3.2e11-n74.3k")
BROKEN_CELLS = ("c3.2e11-n53.4k", "c3.2e11-n74.3k")
KINDS = ("rate", "labels", "spike")
LOG_EVERY, FIRST_SEED, SPIKE_STEPS, WITHIN = 5, 100, 3, 0.02
STOP_AFTER, STOP_FROM_START = 0.06, 0.25


class _Stop(Exception):
    """Ends a training that has shown what it was to show."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: `kind` is `good` or one of `KINDS`; it breaks at `share` of its training."""

    cell: str
    kind: str
    seed: int
    share: float = 1.0

    @property
    def key(self) -> str:
        return f"{self.cell} {self.kind} {self.seed}"


def jobs(good: int, broken: int) -> list[Job]:
    """What to train, broken runs spread among the good ones; a quarter more are broken from the first step on."""
    rng = random.Random(0)
    cells = [BROKEN_CELLS[n % 2] for n in range(broken)]
    wrong = [Job(cells[n], kind, FIRST_SEED + n, rng.uniform(0.1, 0.8)) for n in range(broken) for kind in KINDS]
    wrong += [Job(BROKEN_CELLS[n % 2], kind, 50 + n, 0.0) for n in range(broken // 4) for kind in KINDS[:2]]
    right = [Job(GOOD_CELLS[n % 4], "good", FIRST_SEED + n) for n in range(good)]
    spread = [((n + 0.5) / len(group), job) for group in (wrong, right) for n, job in enumerate(group)]
    return [job for _, job in sorted(spread, key=lambda pair: pair[0])]


def train(job: Job, config: RunConfig) -> dict[str, Any]:
    """The curve of a job: tokens and training loss of every fifth step, until it ends or is stopped."""
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, seed=job.seed, log_every=LOG_EVERY, eval_sequences=64)
    )
    total = steps_of(config).total_steps
    shown = STOP_AFTER if job.share else STOP_FROM_START
    begin, end = (round(total * share) for share in (job.share, job.share + shown))
    plain_rate, plain_batches = loop.learning_rate, loop.open_batches

    def rate(optimizer: Any, batches: Any, step: int) -> float:
        if job.kind != "good" and step > end:
            raise _Stop
        factor = 1.0
        if job.kind == "rate" and step >= begin:
            factor = 10.0
        if job.kind == "spike" and begin <= step < begin + SPIKE_STEPS:
            factor = 100.0
        return factor * plain_rate(optimizer, batches, step)

    def batches(run: RunConfig) -> Any:
        opened = plain_batches(run)
        if job.kind == "labels":
            opened.batch = _shuffled(opened.batch, begin * run.train.batch_size, job.seed)
        return opened

    workdir = pathlib.Path(tempfile.mkdtemp(prefix="alarm"))
    try:
        with mock.patch.object(loop, "learning_rate", rate), mock.patch.object(loop, "open_batches", batches):
            loop.train(config, workdir, echo=lambda line: None)
    except (_Stop, Diverged):
        pass
    lines = [line for line in read_metrics(workdir) if "loss" in line]
    shutil.rmtree(workdir)
    curve = {key: [line[key] for line in lines] for key in ("tokens", "loss")}
    tokens = total * config.train.batch_size * config.data.seq_len
    return {"key": job.key, **dataclasses.asdict(job), "total": tokens, **curve}


def _shuffled(plain: Any, first: int, seed: int) -> Any:
    """The function `batch` of `Batches` whose targets from sequence `first` on are in random order."""

    def batch(first_sequence: int, n: int, rows: Any = None) -> Batch:
        arrays = plain(first_sequence, n, rows)
        if first_sequence >= first:
            rng = np.random.default_rng((seed, first_sequence))
            arrays["targets"] = rng.permutation(arrays["targets"].ravel()).reshape(arrays["targets"].shape)
        return arrays

    return batch


def curves(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """What is in the file of curves."""
    if files.exists(path):
        yield from (json.loads(line) for line in files.read_text(path).splitlines())


def train_missing(values: argparse.Namespace) -> None:
    """Trains what the file of curves lacks, one run after the other."""
    done = {record["key"] for record in curves(values.curves)}
    missing = [job for job in jobs(values.good, values.broken) if job.key not in done]
    for number, job in enumerate(missing, 1):
        config = RunConfig.from_dict(files.read_json(values.study / "runs" / job.cell / "config.json")["config"])
        if values.data_dir:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=values.data_dir))
        record = train(job, config)
        with values.curves.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"trained {number} of {len(missing)}: {job.key}", flush=True)


def running(record: dict[str, Any], params: float, lines: int = 1) -> Running:
    """The run of a record; `lines` of its lines make one."""
    whole = len(record["loss"]) // lines * lines
    tokens = np.array(record["tokens"][:whole], np.float64)[lines - 1 :: lines]
    loss = np.array(record["loss"][:whole]).reshape(-1, lines).mean(1)
    return Running(record["key"], params, record["total"], math.nan, Curve(tokens, loss))


def show_good(records: Sequence[dict[str, Any]], studies: Sequence[Sequence[Run]], beside: bool) -> None:
    """Prints how many good runs are marked."""
    params = {run.name: run.params for run in studies[0]}
    marked, number = [], 0
    for record in records:
        if record["kind"] == "good":
            number += 1
            if alarm(running(record, params[record["cell"]]), studies[0] if beside else ()).tokens is not None:
                marked.append(record["key"])
    of_studies = [(run, [other for other in runs if other is not run]) for runs in studies for run in runs]
    for run, others in of_studies:
        flight = Running(run.name, run.params, run.tokens, run.flops, run.curve)
        if alarm(flight, others if beside else ()).tokens is not None:
            marked.append(run.name)
    total, words = number + len(of_studies), f"{number} trained for this, {len(of_studies)} of studies"
    print(f"  good runs marked: {len(marked)} of {total} ({words}) {' '.join(marked)}", flush=True)


def show_broken(records: Sequence[dict[str, Any]], finished: Sequence[Run], params: Mapping[str, float]) -> None:
    """Prints how soon broken runs are marked."""
    for kind in KINDS:
        for from_start, lines in ((False, 1), (True, 1), (True, 10)):
            group = [r for r in records if r["kind"] == kind and (r["share"] == 0.0) == from_start]
            late = []
            for record in group:
                at = alarm(running(record, params[record["cell"]], lines), finished).tokens
                late.append(math.inf if at is None else at / record["total"] - record["share"])
            if group:
                soon, early = sum(0 <= x <= WITHIN for x in late), sum(x < 0 for x in late)
                where = f" from the first step, {LOG_EVERY * lines} steps a line" if from_start else ""
                known = [x for x in late if x < math.inf]
                spread = f"marked at all: {len(known)}, median {np.median(known or [math.nan]):.2%}, latest "
                spread += f"{max(known, default=math.nan):.2%}"
                print(f"  {kind}{where}: {soon} of {len(group)} within {WITHIN:.0%}, {early} before; {spread}")


def main() -> None:
    """Trains what is missing, then prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=pathlib.Path, required=True)
    parser.add_argument("--more_studies", action="append", default=[], help="whose finished runs are good runs as well")
    parser.add_argument("--curves", type=pathlib.Path, required=True)
    parser.add_argument("--good", type=int, default=200)
    parser.add_argument("--broken", type=int, default=20)
    parser.add_argument("--data_dir")
    values = parser.parse_args()
    train_missing(values)
    records = list(curves(values.curves))
    studies = [load_runs(study).runs for study in (values.study, *values.more_studies)]
    params = {run.name: run.params for run in studies[0]}
    for beside in (True, False):
        print("beside finished runs:" if beside else "by its own curve alone:")
        show_good(records, studies, beside)
        show_broken(records, studies[0] if beside else (), params)


if __name__ == "__main__":
    main()
