"""Files of text. `text:FOLDER`: plain text, each subfolder a domain; `shipped`, such a folder in the package; and
`jsonl:PATH`: a file of JSON lines, each line a document, or a folder of such, where each file and each subfolder is a
domain. They may be packed (.gz, .zst)."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import IO

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import DataConfig
from chinchilla_jax.data.sources.below import files_below
from chinchilla_jax.data.sources.registry import Document, Documents, domain_name, fixed_part, register
from chinchilla_jax.data.steps import DataError

_SHIPPED = pathlib.Path(__file__).parents[1] / "shipped" / "text"
_JSONL = re.compile(r"\.jsonl?(\.gz|\.zst)?$")
# A book or a dictionary is cut into documents of this many to twice as many characters; records are never cut.
DOCUMENT_CHARACTERS = 4096
_BREAKS = tuple(re.compile(p) for p in (r"\n[ \t]*\n+(?=\S)", r"\n[ \t]*\n+", r"\n", r"\s"))


def cut_documents(texts: Iterable[tuple[str, str]]) -> Iterator[Document]:
    """The documents of long texts, each (domain, text)."""
    for domain, text in texts:
        for piece in cut_document(text):
            yield Document(domain, piece)


def cut_document(text: str) -> list[str]:
    """Cuts a long text into documents, at the best break in reach; joined they give `text` back.

    Preferred is a blank line before a line that starts at the margin (a headword, a heading, a speech), then any blank
    line, any line end, any space.
    """
    pieces, start = [], 0
    while len(text) - start > 2 * DOCUMENT_CHARACTERS:
        earliest, latest = start + DOCUMENT_CHARACTERS, start + 2 * DOCUMENT_CHARACTERS
        matches = (pattern.search(text, earliest, latest) for pattern in _BREAKS)
        end = next((match.end() for match in matches if match), latest)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _open_text(folder: str, data: DataConfig, echo: Echo) -> tuple[Documents, dict]:
    root = files.path(folder)
    return lambda: cut_documents(_read_folder(root)), {"files": len(_text_files(root))}


def _open_shipped(rest: str, data: DataConfig, echo: Echo) -> tuple[Documents, dict]:
    return lambda: cut_documents(_read_folder(_SHIPPED)), {"files": "shipped with chinchilla_jax"}


def _text_files(root: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """(domain, path) of every file below `root` that is not hidden; files directly inside belong to `root`'s name."""
    if not files.is_folder(root):
        raise DataError(f"{root}: no such folder; text:FOLDER needs a folder of text files")
    listed = files_below(root)
    if not listed:
        raise DataError(f"{root}: no text files in this folder")
    return listed


def _read_folder(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    for domain, path in _text_files(root):
        content = files.read_bytes(path)
        if path.suffix == ".gz":
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path}: not a whole gzip file ({error}); replace or remove it") from None
        if b"\0" in content:
            raise DataError(f"{path}: a binary file (it has NUL bytes); remove it from the folder")
        try:
            yield domain, content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text (byte {error.start}); convert or remove it") from None


def _open_jsonl(path: str, data: DataConfig, echo: Echo) -> tuple[Documents, dict]:
    listed = _jsonl_files(files.path(path))
    return lambda: _read_jsonl(listed, data.text_field), {"files": len(listed)}


def _jsonl_files(root: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """(domain, path) of the files of JSON lines in `root` (or of `root` itself, or of those that match it)."""
    if files.is_file(root):
        return [(_domain(root), root)]
    if fixed_part(root) == root and not files.exists(root):
        raise DataError(f"{root}: no such file or folder; jsonl: needs a .jsonl file or a folder of them")
    listed = files_below(root, lambda path: _JSONL.search(path.name) is not None)
    if not listed:
        raise DataError(f"{root}: no .jsonl or .json files there, plain, .gz or .zst")
    if fixed_part(root) != root:
        return listed
    named = [(_domain(path) if path.parent == root else domain, path) for domain, path in listed]
    owners: dict[str, set[pathlib.Path]] = {}
    for domain, path in named:
        owners.setdefault(domain, set()).add(path if path.parent == root else root / path.relative_to(root).parts[0])
    for domain, places in owners.items():
        if len(places) > 1:
            raise DataError(f"{root}: two files or folders would both be the domain {domain!r}; rename one")
    return named


def _domain(path: pathlib.Path) -> str:
    return domain_name(_JSONL.sub("", path.name))


def _opened(path: pathlib.Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _read_jsonl(listed: list[tuple[str, pathlib.Path]], field: str) -> Iterator[Document]:
    for domain, path in listed:
        number = 0
        try:
            with _opened(path) as handle:  # line by line: a corpus need not fit into memory
                for number, line in enumerate(handle, start=1):
                    if line.strip():
                        yield Document(domain, _text(line, field, f"{path}, line {number}"))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: unreadable after line {number} ({error}); replace or remove it") from None


def _text(line: bytes, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); fix or remove the line") from None
    if isinstance(record, dict) and field in record and not isinstance(record[field], str):
        raise DataError(
            f"{where}: field {field!r} is {json.dumps(record[field])[:40]}, no text; fix or remove the line"
        )
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        known = f"it has {', '.join(record)}" if isinstance(record, dict) else "it is no object"
        raise DataError(f"{where}: no text in field {field!r} ({known}); set data.text_field")
    try:
        record[field].encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: field {field!r} has half a surrogate pair, which is no character") from None
    return record[field]


register("text:", _open_text, list_files=lambda root: [path for _, path in _text_files(root)])
register("shipped", _open_shipped)
register("jsonl:", _open_jsonl, list_files=lambda root: [path for _, path in _jsonl_files(root)], reads_field=True)
