"""The cleaned corpus as a TFDS dataset: one configuration per domain, splits `train` and `validation`, ArrayRecord.

Anything that reads TFDS can read it (`tfds.builder_from_directory(...).as_data_source("train")`); neither writing nor
reading needs TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Iterator

import absl.logging
import numpy as np
import tensorflow_datasets as tfds

from chinchilla_jax.base import files
from chinchilla_jax.data.clean import read_cleaned
from chinchilla_jax.data.grams import content_hash
from chinchilla_jax.data.steps import DataError

NAME = "chinchilla_text"
VERSION = "1.0.0"


@dataclasses.dataclass(kw_only=True)
class DomainConfig(tfds.core.BuilderConfig):
    """One domain; `cleaned` is the folder `clean` wrote."""

    cleaned: str = ""


class ChinchillaText(tfds.core.GeneratorBasedBuilder):
    """Documents of one domain: `text`, and `id`, the first 63 bits of the hash of the text."""

    VERSION = tfds.core.Version(VERSION)
    # No checksum or citation files lie beside this module; TFDS would look for them through `importlib_resources`.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "id": np.int64})
        return tfds.core.DatasetInfo(builder=self, description="Deduplicated text, by domain.", features=features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # The text was fetched and cleaned before.
        return {split: self._generate_examples(split) for split in ("train", "validation")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for text in read_cleaned(files.path(self.builder_config.cleaned), self.builder_config.name, split):
            number = content_hash(text) >> 1
            yield number, {"text": text, "id": number}


def build_domain(corpus: pathlib.Path, cleaned: pathlib.Path, domain: str) -> None:
    """Writes `corpus/chinchilla_text/DOMAIN/1.0.0`, unless it is there; TFDS writes elsewhere, then renames."""
    tfds.disable_progress_bar()
    verbosity = absl.logging.get_verbosity()
    config = DomainConfig(name=domain, description=f"domain {domain}", cleaned=str(cleaned))
    # `prepare` reports progress in its own words; TFDS prints, and warns that the configuration is not a built-in one.
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder = ChinchillaText(config=config, data_dir=str(corpus), file_format="array_record")
            builder.download_and_prepare()
    finally:
        absl.logging.set_verbosity(verbosity)


def read_domain(corpus: pathlib.Path, domain: str, split: str, batch: int = 256) -> Iterator[list[str]]:
    """Yields lists of up to `batch` texts in the dataset's fixed (hashed) order; `DataError` if it is not there."""
    folder = corpus / NAME / domain / VERSION
    if not files.is_folder(folder):
        raise DataError(f"{folder}: missing; delete {corpus} and prepare the data again")
    rows = tfds.builder_from_directory(str(folder)).as_data_source(split=split)
    for start in range(0, len(rows), batch):
        yield [row["text"].decode() for row in rows.__getitems__(list(range(start, min(start + batch, len(rows)))))]
