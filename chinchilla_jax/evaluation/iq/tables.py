"""Tables that you bring for symbolic mapping: the text of BoolQ or OCNLI is not ours to ship.

    rules/boolq.jsonl     {"passage": "...", "question": "...", "label": true}
    rules/colours.csv     text,label

A file is a task, `symbolic_` and its name; names of the published tasks have their sizes. The column `label` is the
label, `idx` and `id` are left out, the others are shown in their order. A value in an object, as
`{"target": {"span1_text": ...}}` of WSC, is a field of its own.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.evaluation.iq.question import Task
from chinchilla_jax.evaluation.iq.symbols import Row, of_rows

LABEL = "label"
_LEFT_OUT = ("idx", "id")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".json")
_KINDS = (*_SEPARATORS, *_JSON_LINES)


def read_tasks(path: str | os.PathLike) -> tuple[Task, ...]:
    """The tasks of a table, or of all the tables in a folder, by name.

    Raises:
      UsageError: there is no table, or one that cannot be read, has no column `label`, or not two labels with three
        different rows each; the message names the file.
    """
    path = files.path(path)
    if not files.exists(path):
        raise UsageError(f"--rules={path}: no such file or folder")
    tables = [path] if files.is_file(path) else [file for file in files.glob(path) if file.suffix.lower() in _KINDS]
    if not tables:
        raise UsageError(f"--rules={path}: no table in this folder; it takes files of {', '.join(_KINDS)}")
    tasks = [_task(table) for table in tables]
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--rules={path}: two tables make the task {twice[0]}; rename one")
    return tuple(tasks)


def _task(path: Path) -> Task:
    name = re.sub(r"\W+", "_", path.stem.lower())
    try:
        return of_rows(name, list(dict.fromkeys(_rows(path))))
    except ValueError as error:  # a UnicodeDecodeError among them
        raise UsageError(f"--rules={path}: {error}") from None


class _Row(Row):
    """A row that equals another with the same text, so that none is the example of itself."""

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Row) and self.text == other.text


def _rows(path: Path) -> Iterator[_Row]:
    for where, values in _lines(path):
        if LABEL not in values:
            raise ValueError(f"{where}: no column {LABEL!r}; it has {', '.join(values) or 'none'}")
        fields = {name: text for name, text in values.items() if name not in (LABEL, *_LEFT_OUT) and text}
        if not values[LABEL] or not fields:
            raise ValueError(f"{where}: no {'text' if values[LABEL] else LABEL}")
        yield _Row(fields, values[LABEL])


def _lines(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row is, and its values as text without line ends."""
    kind, text = path.suffix.lower(), files.read_bytes(path).decode("utf-8-sig")
    if kind in _SEPARATORS:
        reader = csv.DictReader(io.StringIO(text), delimiter=_SEPARATORS[kind], strict=True)
        try:
            for row in reader:
                if None in row:
                    raise ValueError(f"line {reader.line_num}: more values than columns")
                yield f"line {reader.line_num}", {name.strip().lower(): _words(value) for name, value in row.items()}
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from None
    elif kind in _JSON_LINES:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"line {number}", dict(_flat(_object(line, number)))
    else:
        raise ValueError(f"a table of this kind is not read; it takes {', '.join(_KINDS)}")


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"line {number}: no JSON object; a file has one in each line")
    return value


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value)
        elif isinstance(value, list):
            yield name.lower(), ", ".join(map(_words, value))
        else:
            yield name.lower(), _words(value)


def _words(value: Any) -> str:
    """A value as text in one line: what is shown of a row never ends a line by itself."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else " ".join(str(value).split())
