"""`text:FOLDER`: plain text files, each subfolder a domain; and `shipped`, the folder that comes with the package."""

from __future__ import annotations

import gzip
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator

from chinchilla_jax.base import files
from chinchilla_jax.config import DataConfig
from chinchilla_jax.data.sources.registry import Document, Documents, domain_name, register
from chinchilla_jax.data.steps import DataError, Echo

_SHIPPED = pathlib.Path(__file__).parents[1] / "shipped" / "text"
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
    root = pathlib.Path(folder)
    return lambda: cut_documents(_read_folder(root)), {"files": len(_text_files(root))}


def _open_shipped(rest: str, data: DataConfig, echo: Echo) -> tuple[Documents, dict]:
    return lambda: cut_documents(_read_folder(_SHIPPED)), {"files": "shipped with chinchilla_jax"}


def _text_files(root: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """(domain, path) of every file below `root` that is not hidden; files directly inside belong to `root`'s name.

    Raises:
      DataError: no such folder, nothing in it, or two folders whose domain names would coincide.
    """
    if not files.is_folder(root):
        raise DataError(f"{root}: no such folder; text:FOLDER needs a folder of text files")
    listed, owner = [], {}
    for path in files.glob(root, "**/*"):
        parts = path.relative_to(root).parts
        if not files.is_file(path) or any(part.startswith(".") for part in parts):
            continue
        folder = parts[0] if len(parts) > 1 else root.resolve().name
        domain = domain_name(folder)
        if owner.setdefault(domain, (folder, len(parts) > 1)) != (folder, len(parts) > 1):
            raise DataError(f"{root}: two folders would both be the domain {domain!r}; rename one")
        listed.append((domain, path))
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


register("text:", _open_text, list_files=lambda root: [path for _, path in _text_files(root)])
register("shipped", _open_shipped)
