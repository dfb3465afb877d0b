"""`hf:FOLDER`: a Hugging Face dataset that is on disk, read without their library. Four kinds of folder are known:

1. `save_to_disk` of a Dataset: `state.json` lists files in the Arrow stream format;
2. `save_to_disk` of a DatasetDict: `dataset_dict.json` lists the splits, a folder of the first kind each;
3. what `load_dataset` keeps: `dataset_info.json` beside `NAME-SPLIT[-00000-of-00002].arrow`;
4. a repository of Parquet files, `[CONFIG/]SPLIT-00000-of-00002.parquet` or `[CONFIG/]SPLIT/0000.parquet`, or what the
   hub's client keeps of it (`datasets--NAME/snapshots/REVISION`). A folder `data` is no configuration; a file or folder
   whose name has none of the usual splits in it is of `train`.

A configuration is a domain, else the folder's name is. The split `validation`, or else `test`, is what is held out, if
there is one; otherwise documents of `train` are. A dataset whose only split is called otherwise is read whole.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import DataConfig
from chinchilla_jax.data.sources.columns import documents
from chinchilla_jax.data.sources.registry import Documents, domain_name, register
from chinchilla_jax.data.steps import DataError

_HELD_OUT = ("validation", "valid", "val", "dev", "test")  # the first that is there
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*$")
_SPLIT = re.compile(rf"(?<![a-z])(train|{'|'.join(_HELD_OUT)})(?![a-z])")


class _Part(NamedTuple):
    """A file, and the split of the domain that it belongs to."""

    domain: str
    split: str
    path: pathlib.Path


def _open_saved(folder: str, data: DataConfig, echo: Echo) -> tuple[Documents, dict]:
    listed = _dealt(_parts(files.path(folder)), folder)
    splits = sorted({part.split for part, _ in listed})
    found = [(part.domain, part.path, split) for part, split in listed]
    return lambda: documents(found, data.text_field, echo), {"files": len(found), "splits": splits}


def _dealt(parts: list[_Part], folder: str) -> list[tuple[_Part, str | None]]:
    """The files to read, each with the split of its documents; of each domain those held out first, as with TFDS."""
    dealt: list[tuple[_Part, str | None]] = []
    for domain in sorted({part.domain for part in parts}):
        mine = [part for part in parts if part.domain == domain]
        splits = {part.split for part in mine}
        train = "train" if "train" in splits or len(splits) > 1 else min(splits)
        if train not in splits:
            fix = "name the folder of one, or its files with parquet: or arrow:"
            raise DataError(f"{folder}: no split train (there are {', '.join(sorted(splits))}); {fix}")
        held_out = next((split for split in _HELD_OUT if split in splits - {train}), None)
        dealt += [(part, "validation") for part in mine if part.split == held_out]
        dealt += [(part, "train" if held_out else None) for part in mine if part.split == train]
    return dealt


def _parts(root: pathlib.Path) -> list[_Part]:
    """Every file of the dataset, by its kind of folder."""
    if not files.is_folder(root):
        raise DataError(f"{root}: no such folder; hf: needs the folder of a dataset")
    name = domain_name(files.resolved(root).name)
    if files.exists(root / "dataset_dict.json"):
        splits = _read(root / "dataset_dict.json")["splits"]
        return [_Part(name, split, path) for split in splits for path in _saved_files(root / split)]
    if files.exists(root / "state.json"):
        split = _read(root / "state.json").get("_split") or "train"
        return [_Part(name, split, path) for path in _saved_files(root)]
    if cached := [path for path in files.glob(root, "*.arrow") if not path.name.startswith("cache-")]:
        named = [(_SHARD.sub("", path.stem).rpartition("-"), path) for path in cached]
        return [_Part(domain_name(prefix) if prefix else name, split, path) for (prefix, _, split), path in named]
    snapshots = files.glob(root, "snapshots/*")
    if len(snapshots) > 1:
        raise DataError(f"{root}: several snapshots ({', '.join(p.name for p in snapshots)}); name the folder of one")
    parts = list(_repository(snapshots[0] if snapshots else root, name))
    if not parts:
        known = "state.json, dataset_dict.json, *.arrow nor *.parquet"
        raise DataError(f"{root}: no Hugging Face dataset: it has neither {known}")
    return parts


def _saved_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """What `state.json` lists, in its order, which is the order of rows."""
    state = _read(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: rows are in the order of an index beside them; save it with a newer `datasets`")
    return [folder / file["filename"] for file in state["_data_files"]]


def _read(path: pathlib.Path) -> dict:
    """A description that the library wrote; `DataError` if it is not whole."""
    try:
        found = files.read_json(path)
        if isinstance(found["splits" if path.name == "dataset_dict.json" else "_data_files"], list):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{path}: missing or damaged; save the dataset again")


def _repository(root: pathlib.Path, name: str) -> Iterable[_Part]:
    for path in files.glob(root, "**/*.parquet"):
        folders = list(path.relative_to(root).parts[:-1])
        if any(folder.startswith(".") for folder in folders):
            continue
        split, shards = _SHARD.subn("", path.stem)
        if not shards:
            inside = bool(folders) and _SPLIT.fullmatch(folders[-1]) is not None
            match = _SPLIT.search(folders.pop() if inside else path.stem)
            split = match[0] if match else "train"
        config = [folder for folder in folders if folder != "data"]
        yield _Part(domain_name("_".join(config)) if config else name, split, path)


register("hf:", _open_saved, list_files=lambda root: [part.path for part in _parts(root)], reads_field=True)
