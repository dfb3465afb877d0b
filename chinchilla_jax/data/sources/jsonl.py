"""`jsonl:PATH`: a file of JSON lines, or a folder of them, each file a domain and each line a document."""

from __future__ import annotations

import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterator

from chinchilla_jax.base import files
from chinchilla_jax.config import DataConfig
from chinchilla_jax.data.sources.registry import Document, Documents, domain_name, register
from chinchilla_jax.data.steps import DataError, Echo


def _open_jsonl(path: str, data: DataConfig, echo: Echo) -> tuple[Documents, dict]:
    listed = _jsonl_files(pathlib.Path(path))
    return lambda: _read_jsonl(listed, data.text_field), {"files": len(listed)}


def _jsonl_files(root: pathlib.Path) -> list[pathlib.Path]:
    """The `.jsonl` and `.jsonl.gz` files in `root` (or `root` itself), each a domain.

    Raises:
      DataError: none there, or two of one name.
    """
    if not files.exists(root):
        raise DataError(f"{root}: no such file or folder; jsonl: needs a .jsonl file or a folder of them")
    if files.is_file(root):
        return [root]
    listed = sorted([*files.glob(root, "*.jsonl"), *files.glob(root, "*.jsonl.gz")])
    if not listed:
        raise DataError(f"{root}: no .jsonl or .jsonl.gz files in this folder")
    names = [_domain(path) for path in listed]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{root}: two files would both be the domain {name!r}; rename one")
    return listed


def _domain(path: pathlib.Path) -> str:
    return domain_name(re.sub(r"\.jsonl(\.gz)?$|\.json$", "", path.name))


def _read_jsonl(paths: list[pathlib.Path], field: str) -> Iterator[Document]:
    for path in paths:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as handle:  # line by line: a corpus need not fit into memory
            number = 0
            try:
                for number, line in enumerate(handle, start=1):
                    if line.strip():
                        yield Document(_domain(path), _text(line, field, f"{path}, line {number}"))
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path}: unreadable after line {number} ({error}); replace or remove it") from None


def _text(line: bytes, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); fix or remove the line") from None
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        known = f"it has {', '.join(record)}" if isinstance(record, dict) else "it is no object"
        raise DataError(f"{where}: no text in field {field!r} ({known}); set data.text_field")
    try:
        record[field].encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: field {field!r} has half a surrogate pair, which is no character") from None
    return record[field]


register("jsonl:", _open_jsonl, list_files=_jsonl_files, reads_field=True)
