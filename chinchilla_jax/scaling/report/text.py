"""How are sections printed as text?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from chinchilla_jax.base.words import Echo
from chinchilla_jax.base.words import table as plain_table
from chinchilla_jax.scaling.read.runs import LoadedRuns
from chinchilla_jax.scaling.report.sections import Section, Table


def tell(sections: Iterable[Section], echo: Echo) -> None:
    """Prints the sections, an empty line before each title."""
    for section in sections:
        for line in _lines(section):
            echo(line)


def announce(loaded: LoadedRuns, preset: str, echo: Echo) -> None:
    """Prints, before the fits, how many runs there are and what will take long."""
    held_out = len(loaded.runs) - len(loaded.role("isoflop"))
    held = f", {held_out} of them held out" if held_out else ""
    left = f", {len(loaded.bad)} left out, see below" if loaded.bad else ""
    echo(f"{loaded.source}: {len(loaded.runs)} runs{held}{left}")
    if preset == "paper":
        echo("preset paper: approach 3 descends from 4500 starts one after the other, about half a minute ...")


def _lines(section: Section) -> Iterator[str]:
    if section.title:
        yield ""
        yield section.title
    yield from (section.label + line if section.label else f"  {line}" for line in section.items)
    margin = "  " if section.title else ""
    yield from (margin + line for line in section.sentences)
    for table in section.tables:
        yield from (f"  {line}" for line in _table(table))
    yield from (f"  {line}" for line in section.notes)


def _table(table: Table) -> Iterator[str]:
    """Its lines; what is small print on a page is a line of its own, and marked rows begin with a star."""
    rows = []
    first = table.columns[0]
    for number, row in enumerate(table.rows):
        pairs = {column: value if isinstance(value, tuple) else (value, "") for column, value in row.items()}
        line = {column: pair[0] for column, pair in pairs.items()}
        if table.marked:
            line[first] = f"{'*' if number in table.marked else ' '} {line[first]}"
        rows.append(line)
        if any(below for _, below in pairs.values()):
            rows.append({column: pair[1] for column, pair in pairs.items()})
    yield from plain_table(rows)
