"""Where the text comes from: every `DataConfig.source` becomes a stream of documents with a domain.

A domain is what a mixture weighs. `text:FOLDER` takes each subfolder as a domain, `jsonl:PATH` each file,
`tfds:NAME` each prepared configuration, and the fetched packages name theirs in `packages.py`.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from chinchilla_jax.config import ConfigError, DataConfig
from chinchilla_jax.data.errors import DataError
from chinchilla_jax.data.sources import packages

SHIPPED = pathlib.Path(__file__).parents[1] / "shipped" / "text"
# A book or a dictionary is cut into documents of this many to twice as many characters; records are never cut.
DOCUMENT_CHARACTERS = 4096
_BREAKS = tuple(re.compile(p) for p in (r"\n[ \t]*\n+(?=\S)", r"\n[ \t]*\n+", r"\n", r"\s"))


class Document(NamedTuple):
    """A text of a domain; `split` is `train`, `validation`, or None where the corpus builder is to choose."""

    domain: str
    text: str
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A place text comes from. `documents` starts a new pass over it; `details` says what exactly was read."""

    name: str
    documents: Callable[[], Iterator[Document]]
    details: dict


def open_source(name: str, data: DataConfig, echo: Callable[[str], None]) -> Source:
    """The source called `name` (anything `DataConfig.source` may be, except `auto`), fetched if need be.

    Raises:
      DataError: nothing there, or it cannot be fetched.
    """
    kind, _, rest = name.partition(":")
    downloads = pathlib.Path(data.data_dir) / "downloads"
    if kind == "debian":
        paths = packages.fetch_debian(downloads / "debian", echo)
        return Source(name, lambda: _cut(packages.read_debian(downloads / "debian")), _names(paths))
    if kind == "pypi":
        paths = packages.fetch_pypi(downloads / "pypi", echo)
        return Source(name, lambda: _cut(packages.read_pypi(downloads / "pypi")), _names(paths))
    if kind == "shipped":
        return Source(name, lambda: _cut(_read_folder(SHIPPED)), {"files": "shipped with chinchilla_jax"})
    if kind == "text":
        files = text_files(pathlib.Path(rest))
        return Source(name, lambda: _cut(_read_folder(pathlib.Path(rest))), {"files": len(files)})
    if kind == "jsonl":
        files = jsonl_files(pathlib.Path(rest))
        return Source(name, lambda: _read_jsonl(files, data.text_field), {"files": len(files)})
    if kind == "tfds":
        folders = _tfds_folders(rest, pathlib.Path(data.data_dir), echo)
        return Source(name, lambda: _read_tfds(folders, data.text_field), {"folders": list(folders)})
    raise ConfigError("data.source", f"unknown source {name!r}")


def first_source_that_works(data: DataConfig, echo: Callable[[str], None]) -> tuple[str, list[str]]:
    """What `auto` means on this machine: (source name, why each earlier one was passed over)."""
    reasons = []
    for name in ("debian", "pypi"):
        try:
            open_source(name, data, echo)
            return name, reasons
        except DataError as error:
            reasons.append(f"{name}: {error}")
            echo(f"source=auto: {name} cannot be used: {error}")
    return "shipped", reasons


def fingerprint(name: str) -> list | None:
    """What the files behind a `text:` or `jsonl:` source look like now: [[path, size, modified], ...]; [] for others.

    None when the folder is not on this machine (a store may be used where its text is not). Sizes and times stand for
    the content: hashing a large corpus at every start would take longer than the mistake it prevents.
    """
    kind, _, rest = name.partition(":")
    if kind not in ("text", "jsonl"):
        return []
    root = pathlib.Path(rest)
    if not root.exists():
        return None
    files = [path for _, path in text_files(root)] if kind == "text" else jsonl_files(root)
    return [[path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def text_files(root: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """(domain, path) of every file below `root` that is not hidden; files directly inside belong to `root`'s name.

    Raises:
      DataError: no such folder, nothing in it, or two folders whose domain names would coincide.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; text:FOLDER needs a folder of text files")
    files, owner = [], {}
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if not path.is_file() or any(part.startswith(".") for part in parts):
            continue
        folder = parts[0] if len(parts) > 1 else root.resolve().name
        domain = domain_name(folder)
        if owner.setdefault(domain, (folder, len(parts) > 1)) != (folder, len(parts) > 1):
            raise DataError(f"{root}: two folders would both be the domain {domain!r}; rename one")
        files.append((domain, path))
    if not files:
        raise DataError(f"{root}: no text files in this folder")
    return files


def jsonl_files(root: pathlib.Path) -> list[pathlib.Path]:
    """The `.jsonl` and `.jsonl.gz` files in `root` (or `root` itself), each a domain.

    Raises:
      DataError: none there, or two of one name.
    """
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; jsonl: needs a .jsonl file or a folder of them")
    files = [root] if root.is_file() else sorted([*root.glob("*.jsonl"), *root.glob("*.jsonl.gz")])
    if not files:
        raise DataError(f"{root}: no .jsonl or .jsonl.gz files in this folder")
    names = [_jsonl_domain(path) for path in files]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{root}: two files would both be the domain {name!r}; rename one")
    return files


def domain_name(text: str) -> str:
    """`text` as a name that is safe in file names and in `domain=weight,domain=weight`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.-") or "text"


def cut_document(text: str) -> list[str]:
    """Cuts a long text into documents, at the best break in reach; joined they give `text` back.

    Preferred is a blank line before a line that starts at the margin (a headword, a heading, a speech), then any blank
    line, any line end, any space.
    """
    pieces, start = [], 0
    while len(text) - start > 2 * DOCUMENT_CHARACTERS:
        earliest, latest = start + DOCUMENT_CHARACTERS, start + 2 * DOCUMENT_CHARACTERS
        found = (pattern.search(text, earliest, latest) for pattern in _BREAKS)
        end = next((match.end() for match in found if match), latest)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _names(paths: list[pathlib.Path]) -> dict:
    return {"packages": [path.name for path in paths]}


def _cut(texts: Iterator[tuple[str, str]]) -> Iterator[Document]:
    for domain, text in texts:
        for piece in cut_document(text):
            yield Document(domain, piece)


def _read_folder(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    for domain, path in text_files(root):
        content = path.read_bytes()
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


def _jsonl_domain(path: pathlib.Path) -> str:
    return domain_name(re.sub(r"\.jsonl(\.gz)?$|\.json$", "", path.name))


def _read_jsonl(files: list[pathlib.Path], field: str) -> Iterator[Document]:
    for path in files:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as handle:
            number = 0
            try:
                for number, line in enumerate(handle, start=1):
                    if line.strip():
                        yield Document(_jsonl_domain(path), _json_text(line, field, f"{path}, line {number}"))
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path}: unreadable after line {number} ({error}); replace or remove it") from None


def _json_text(line: bytes, field: str, where: str) -> str:
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


def _tfds_folders(name: str, data_dir: pathlib.Path, echo: Callable[[str], None]) -> dict[str, str]:
    """Domain -> folder of a prepared TFDS dataset, searched in `data_dir`, then where TFDS keeps its own."""
    own = pathlib.Path(os.environ.get("TFDS_DATA_DIR", pathlib.Path.home() / "tensorflow_datasets"))
    for root in (data_dir, own):
        found: dict[str, str] = {}
        infos = [*(root / name).glob("*/dataset_info.json"), *(root / name).glob("*/*/dataset_info.json")]
        versions = [info.parent for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
        for folder in sorted(versions, key=lambda path: [int(n) for n in path.name.split(".")]):
            # NAME/VERSION has no configuration; of several versions the newest, which sorts last, stays.
            config = folder.parent.relative_to(root / name).as_posix()
            found[domain_name(name.rsplit("/", 1)[-1] if config == "." else config)] = str(folder)
        if found:
            return dict(sorted(found.items()))
    import tensorflow_datasets as tfds

    echo(f"preparing the TFDS dataset {name} in {data_dir}")
    try:
        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # Builders raise anything, and one that needs TensorFlow an ImportError.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"tfds:{name}: not prepared in {data_dir} or {own}, and TFDS cannot prepare it here: "
                        f"{reason}") from error  # fmt: skip
    return {domain_name(name.rsplit("/", 1)[-1]): str(builder.data_path)}


def _read_tfds(folders: dict[str, str], field: str) -> Iterator[Document]:
    import tensorflow_datasets as tfds

    for domain, folder in folders.items():
        builder = tfds.builder_from_directory(folder)
        if field not in builder.info.features:
            raise DataError(f"{folder}: no feature {field!r} (it has {', '.join(sorted(builder.info.features))}); set "
                            "data.text_field")  # fmt: skip
        held_out = next((split for split in ("validation", "test") if split in builder.info.splits), None)
        # Held-out documents first: should one also be in the training split, the copy there is the one removed.
        for split in (held_out, "train"):
            if split not in builder.info.splits:
                continue
            try:
                rows = builder.as_data_source(split=split)
            except NotImplementedError as error:
                raise DataError(f"{folder}: not readable without TensorFlow ({error}); prepare it with "
                                "file_format='array_record'") from None  # fmt: skip
            kind = None if held_out is None else ("train" if split == "train" else "validation")
            for start in range(0, len(rows), 256):
                for row in rows.__getitems__(list(range(start, min(start + 256, len(rows))))):
                    text = row[field]
                    yield Document(domain, text.decode() if isinstance(text, bytes) else str(text), kind)
