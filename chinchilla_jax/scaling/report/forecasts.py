"""What does the verb `forecast` print: where do runs under way end, and which of them go wrong?"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from chinchilla_jax.base.files import write_json
from chinchilla_jax.base.words import Echo, change
from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.answers.flight.alarm import Alarm, alarm
from chinchilla_jax.scaling.answers.flight.forecast import Forecast, answer, forecast
from chinchilla_jax.scaling.answers.flight.law_at import LawAt, law_at
from chinchilla_jax.scaling.read.in_flight import InFlight, load_in_flight
from chinchilla_jax.scaling.read.runs import BadRow
from chinchilla_jax.scaling.report.facts import facts_of
from chinchilla_jax.scaling.report.sections import answer_section
from chinchilla_jax.scaling.report.text import tell

_IDLE = "not finished"  # so begins the reason of a planned run that has no result


@dataclasses.dataclass(frozen=True)
class Outlook:
    """The forecasts and the alarms of the runs under way, in one order, and the law behind the forecasts."""

    forecasts: tuple[Forecast, ...]
    alarms: tuple[Alarm, ...]
    law: LawAt | None

    def going_wrong(self) -> dict[str, str]:
        """By name of a run that the alarm marks: where, and by how much its loss was too high."""
        return {
            f.name: f"at {a.tokens / f.tokens:.1%} of its training its loss was {change(a.excess)} off its course"
            for f, a in zip(self.forecasts, self.alarms, strict=True)
            if a.tokens is not None and a.excess is not None
        }


def outlook(flight: InFlight) -> Outlook:
    """Forecasts and alarms of all runs under way. Refused as `forecast`."""
    law = law_at(flight.finished)
    forecasts = forecast(flight.finished, flight.running, law, flight.schedules)
    alarms = tuple(alarm(run, flight.finished) for run in flight.running)
    return Outlook(tuple(forecasts), alarms, law)


def tell_forecasts(
    path: str | os.PathLike,
    names: Sequence[str],
    reading: dict[str, Any],
    output: str | os.PathLike | None = None,
    echo: Echo = print,
) -> Outlook:
    """Prints the forecasts of the runs under way at `path`, of those of `names` if there are any, and writes the facts
    to `output` as JSON. `reading` is for `load_runs`. Refused as `load_in_flight`."""
    flight = load_in_flight(path, names, **reading)
    finished, running = len(flight.finished), len(flight.running)
    echo(f"{flight.loaded.source}: {finished} finished runs, {running} under way")
    seen = outlook(flight)
    result = _with_alarms(answer(seen.forecasts, finished, seen.law), seen)
    tell([answer_section({"title": result.title, "rows": result.rows, "notes": result.notes})], echo)
    left_out = _left_out(flight)
    idle = [row for row in left_out if row.reason.startswith(_IDLE)]
    if idle:
        echo(f"not begun, or without a line yet: {len(idle)} runs")
    for row in left_out:
        if row not in idle:
            echo(f"left out: {row}")
    if output is not None:
        write_json(output, facts_of_forecasts(flight, seen))
        echo(f"written: {output}")
    return seen


def facts_of_forecasts(flight: InFlight, seen: Outlook) -> dict[str, Any]:
    """The facts of the finished runs that were read, of the forecasts and of the alarms."""
    forecasts = [
        dataclasses.asdict(f) | {"alarm_at": a.tokens, "alarm_excess": a.excess}
        for f, a in zip(seen.forecasts, seen.alarms, strict=True)
    ]
    loaded = dataclasses.replace(flight.loaded, bad=_left_out(flight)) if flight.finished else None
    result = _with_alarms(answer(seen.forecasts, len(flight.finished), seen.law), seen)
    return facts_of(loaded, answers=[result], forecasts=forecasts)


def _with_alarms(result: Answer, seen: Outlook) -> Answer:
    """The answer with what the alarm says of each run that it marks."""
    marked = seen.going_wrong()
    if not marked:
        return result
    words = "marks a good run in at most 1 of 200 trainings"
    notes = [f"{name} goes wrong: {why}" for name, why in marked.items()] + [f"The alarm {words}"]
    rows = [{**row, "alarm": "goes wrong" if row["run"] in marked else "-"} for row in result.rows]
    return dataclasses.replace(result, rows=tuple(rows), notes=(*notes, *result.notes))


def _left_out(flight: InFlight) -> tuple[BadRow, ...]:
    """What is neither finished nor forecast, and why."""
    told = {run.name for run in flight.running} | {row.where for row in flight.bad}
    rest = [row for row in flight.loaded.bad if row.where not in told]
    return (*flight.bad, *(row for row in rest if not row.where.endswith(tuple(f"({name})" for name in told))))
