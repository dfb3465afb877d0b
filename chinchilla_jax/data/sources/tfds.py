"""`tfds:NAME`: a dataset of TensorFlow Datasets, each prepared configuration a domain; read without TensorFlow."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import DataConfig
from chinchilla_jax.data.sources.registry import Document, Documents, domain_name, register
from chinchilla_jax.data.steps import DataError


def _open_tfds(name: str, data: DataConfig, echo: Echo) -> tuple[Documents, dict]:
    folders = _prepared(name, files.path(data.data_dir), echo)
    return lambda: _read_tfds(folders, data.text_field), {"folders": list(folders)}


def _prepared(name: str, data_dir: pathlib.Path, echo: Echo) -> dict[str, str]:
    """Domain -> folder of a dataset that was prepared in `data_dir` or where TFDS keeps its own, or is prepared."""
    tfds_dir = pathlib.Path(os.environ.get("TFDS_DATA_DIR", pathlib.Path.home() / "tensorflow_datasets"))
    for root in (data_dir, tfds_dir):
        folders: dict[str, str] = {}
        infos = [*files.glob(root / name, "*/dataset_info.json"), *files.glob(root / name, "*/*/dataset_info.json")]
        versions = [info.parent for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
        for folder in sorted(versions, key=lambda path: [int(n) for n in path.name.split(".")]):
            # NAME/VERSION has no configuration; of several versions the newest, which sorts last, stays.
            config = folder.parent.relative_to(root / name).as_posix()
            folders[_domain(name) if config == "." else domain_name(config)] = str(folder)
        if folders:
            return dict(sorted(folders.items()))
    import tensorflow_datasets as tfds

    echo(f"preparing the TFDS dataset {name} in {data_dir}")
    try:
        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # Builders raise anything, and one that needs TensorFlow an ImportError.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = f"not prepared in {data_dir} or {tfds_dir}"
        raise DataError(f"tfds:{name}: {where}, and TFDS cannot prepare it here: {reason}") from error
    return {_domain(name): str(builder.data_path)}


def _domain(name: str) -> str:
    return domain_name(name.rsplit("/", 1)[-1])


def _read_tfds(folders: dict[str, str], field: str) -> Iterator[Document]:
    import tensorflow_datasets as tfds

    for domain, folder in folders.items():
        builder = tfds.builder_from_directory(folder)
        features, splits = builder.info.features, builder.info.splits
        if field not in features:
            known = ", ".join(sorted(features))
            raise DataError(f"{folder}: no feature {field!r} (it has {known}); set data.text_field")
        # Held-out documents first: should one also be in the training split, the copy there is the one removed.
        held_out = next((split for split in ("validation", "test") if split in splits), None)
        if held_out:
            yield from (Document(domain, text, "validation") for text in _texts(builder, held_out, field))
        if "train" in splits:
            kind = "train" if held_out else None
            yield from (Document(domain, text, kind) for text in _texts(builder, "train", field))


def _texts(builder: Any, split: str, field: str) -> Iterator[str]:
    try:
        rows = builder.as_data_source(split=split)
    except NotImplementedError as error:
        fix = "prepare it with file_format='array_record'"
        raise DataError(f"{builder.data_path}: not readable without TensorFlow ({error}); {fix}") from None
    for start in range(0, len(rows), 256):
        for row in rows.__getitems__(list(range(start, min(start + 256, len(rows))))):
            text = row[field]
            yield text.decode() if isinstance(text, bytes) else str(text)


register("tfds:", _open_tfds, reads_field=True)
