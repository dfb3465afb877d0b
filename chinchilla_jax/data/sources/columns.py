"""Tables with a column of text. `parquet:PATH`, and `arrow:PATH` in the file (Feather 2) or the stream format.

PATH is a file, a folder (each subfolder a domain, as with `text:`) or a pattern with wildcards; a row is a document,
its text the column `DataConfig.text_field`, inside a column with fields `column.field`. Rows without a text (null) are
skipped and counted. A few rows are in memory at a time, whatever the size of a file, a row group or a record batch.
"""

from __future__ import annotations

import mmap
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import DataConfig
from chinchilla_jax.data.sources.below import files_below
from chinchilla_jax.data.sources.registry import Document, Documents, Opener, domain_name, register
from chinchilla_jax.data.steps import DataError

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET, ARROW = (".parquet", ".pq"), (".arrow", ".arrows", ".feather", ".ipc")
ROWS = 1024  # at a time
# A column chunk is as long as its row group; without a buffer all of it is read at once.
_BUFFER = 1 << 20
_SHARD = re.compile(r"[-_.]?\d+-of-\d+.*$")


def texts(path: pathlib.Path, column: str) -> Iterator[str | None]:
    """The texts of a Parquet or Arrow file, None where there is none (null), in the order of its rows.

    Raises:
      DataError: no such column (the message lists those there are), one that is not text, bytes that are not UTF-8, or
        a file that cannot be read.
    """
    import pyarrow as pa

    row = 0
    try:
        for part in _parts(path, column):
            yield from (value.decode() if isinstance(value, bytes) else value for value in part.to_pylist())
            row += len(part)
    except UnicodeDecodeError as error:
        where = f"between rows {row} and {row + ROWS}"
        raise DataError(f"{path}: column {column!r} is not UTF-8 {where} ({error.reason}); convert it") from None
    except DataError:  # which is a ValueError, and says itself what is wrong
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # an empty file cannot be mapped: a ValueError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: unreadable after row {row} ({reason}); replace or remove it") from None


def documents(listed: Iterable[tuple[str, pathlib.Path, str | None]], column: str, echo: Echo) -> Iterator[Document]:
    """The documents of (domain, file, split) in turn; at the end `echo` is told how many rows had no text."""
    empty = 0
    for domain, path, split in listed:
        for text in texts(path, column):
            if text is None:
                empty += 1
            else:
                yield Document(domain, text, split)
    if empty:
        echo(f"corpus: {empty:,} rows without a text in column {column!r} were skipped")


def _parts(path: pathlib.Path, column: str) -> Iterator[pa.Array]:
    """The column in pieces of at most `ROWS` rows."""
    import pyarrow.parquet as pq

    if path.suffix not in PARQUET and files.read_end(path, 4) != b"PAR1":
        yield from _arrow_parts(path, column)
        return
    # By itself pyarrow would read ahead, and keep, every row group.
    with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
        names = _names(file.schema_arrow, column, path)
        for batch in file.iter_batches(ROWS, columns=[column]):
            yield _inside(batch.column(names[0]), names[1:])


def _arrow_parts(path: pathlib.Path, column: str) -> Iterator[pa.Array]:
    """Those of a file in either Arrow format, which is mapped: a record batch may be as large as the file."""
    import pyarrow as pa

    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    content = pa.py_buffer(mapped)
    is_file = files.read_end(path, 6) == b"ARROW1"
    reader = pa.ipc.open_file(content) if is_file else pa.ipc.open_stream(content)
    names = _names(reader.schema, column, path)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
    for batch in batches:
        values = batch.column(names[0])
        for start in range(0, len(values), ROWS):
            yield _inside(values.slice(start, ROWS), names[1:])
            if hasattr(mmap, "MADV_DONTNEED"):  # what was read need not stay in the memory of this process
                mapped.madvise(mmap.MADV_DONTNEED)


def _names(schema: pa.Schema, column: str, path: pathlib.Path) -> list[str]:
    """What leads to the column: its name, and those of the fields inside it; `DataError` if that is no text."""
    columns = dict(_leaves(schema))
    if column not in columns:
        known = ", ".join(columns) or "none"
        raise DataError(f"{path}: no column {column!r} (it has {known}); set data.text_field")
    names, kind = columns[column]
    if not _is_text(kind):
        textual = ", ".join(name for name, (_, other) in columns.items() if _is_text(other)) or "none"
        raise DataError(f"{path}: column {column!r} is {kind}, not text (text are: {textual}); set data.text_field")
    return names


def _leaves(fields: Iterable, before: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[list[str], pa.DataType]]]:
    """(dotted name, (names, type)) of every column, and of every field inside one."""
    import pyarrow as pa

    for field in fields:
        names = (*before, field.name)
        if pa.types.is_struct(field.type):
            yield from _leaves(field.type, names)
        else:
            yield ".".join(names), (list(names), field.type)


def _is_text(kind: pa.DataType) -> bool:
    """Whether values are text: also as bytes, which old writers of Parquet make of it, and coded by a dictionary."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _inside(values: pa.Array, names: list[str]) -> pa.Array:
    import pyarrow.compute as pc

    return pc.struct_field(values, names) if names else values


def _opener(suffixes: tuple[str, ...]) -> tuple[Opener, Callable[[pathlib.Path], list[pathlib.Path]]]:
    """How files of these suffixes are opened and listed."""

    def listed(root: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
        if files.is_file(root):
            return [(domain_name(_SHARD.sub("", root.stem)), root)]
        if found := files_below(root, lambda path: path.suffix in suffixes):
            return found
        if not files.exists(root) and not any(character in str(root) for character in "*?["):
            raise DataError(f"{root}: no such file or folder")
        raise DataError(f"{root}: no {', '.join(suffixes)} files there")

    def opened(rest: str, data: DataConfig, echo: Echo) -> tuple[Documents, dict]:
        found = [(domain, path, None) for domain, path in listed(files.path(rest))]
        return lambda: documents(found, data.text_field, echo), {"files": len(found)}

    return opened, lambda root: [path for _, path in listed(root)]


for _name, _suffixes in (("parquet:", PARQUET), ("arrow:", ARROW)):
    register(_name, *_opener(_suffixes), reads_field=True)
