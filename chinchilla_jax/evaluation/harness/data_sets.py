"""Where do the data sets of tasks come from? From a folder of yours, or what is on this machine; else nowhere.

    FOLDER/PATH[/NAME]/SPLIT*.parquet        also .jsonl, .json, .csv; PATH and NAME as the task has them
    FOLDER/PATH[/NAME]/dataset_dict.json     as `save_to_disk` writes it

A task looks for `allenai/ai2_arc`, NAME `ARC-Easy`, in FOLDER/allenai/ai2_arc/ARC-Easy, or without the part before `/`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import ExplainedError

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_EVALUATE_OFFLINE")
_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
_NOT_FOUND = ("ConnectionError", "DatasetNotFoundError", "OfflineModeIsEnabled", "LocalEntryNotFoundError")


class NotHere(ExplainedError):
    """A task needs what is not on this machine."""


def stay_offline() -> None:
    """Lets nothing be fetched, unless HF_HUB_OFFLINE=0 says otherwise; to be called before lm_eval is imported."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if os.environ.get("HF_HUB_OFFLINE") != "0":
        for name in OFFLINE:
            os.environ.setdefault(name, "1")


@contextlib.contextmanager
def found_in(folder: Path | None) -> Iterator[None]:
    """In force, `datasets.load_dataset` looks into the folder first.

    It raises NotHere where a data set is neither there nor elsewhere on this machine.
    """
    import datasets

    before = datasets.load_dataset
    datasets.load_dataset = _looking_up(before, folder)
    try:
        yield
    finally:
        datasets.load_dataset = before


def _looking_up(load: Callable, folder: Path | None) -> Callable:
    def look_up(path: str, name: str | None = None, **options: Any) -> Any:
        there = _place(folder, path, name) if folder else None
        if there is not None:
            return _read(load, there, options.get("split"))
        try:
            return load(path=path, name=name, **options)
        except Exception as error:
            if not {kind.__name__ for kind in type(error).__mro__} & {*_NOT_FOUND, "FileNotFoundError"}:
                raise
            wanted = f"{path}/{name}" if name else path
            where = f"neither in {folder} nor elsewhere on this machine" if folder else "not on this machine"
            fix = (
                f"put its files into FOLDER/{wanted}/SPLIT.parquet for --data=FOLDER, or fetch it with HF_HUB_OFFLINE=0"
            )
            raise NotHere(f"the data set {wanted} is {where}: {fix}") from None

    return look_up


def _place(folder: Path, path: str, name: str | None) -> Path | None:
    """The folder of a data set, by its whole name or without its owner."""
    for whole in (path, path.rpartition("/")[2]):
        for place in (folder / whole / name if name else folder / whole, folder / whole):
            if files.exists(place / "dataset_dict.json") or _splits(place):
                return place
    return None


def _splits(place: Path) -> dict[str, list[str]]:
    """Files by the split that their names begin with."""
    found: dict[str, list[str]] = {}
    for file in files.glob(place):
        if file.suffix in _READERS and files.is_file(file):
            found.setdefault(file.name.split(".")[0].split("-")[0], []).append(str(file))
    return found


def _read(load: Callable, place: Path, split: str | None) -> Any:
    if files.exists(place / "dataset_dict.json"):
        import datasets

        read = datasets.load_from_disk(str(place))
        return read[split] if split else read
    splits = _splits(place)
    (kind,) = {_READERS[Path(file).suffix] for file in next(iter(splits.values()))}
    return load(kind, data_files=splits, **({"split": split} if split else {}))
