"""Which column of a table holds N, D, C and the loss, in which unit, and which count of parameters or FLOPs is it?

Headers are compared without regard to case and punctuation. A multiplier at the end of one is understood
(`params_millions`, `tokens_b`, `N (B)`, `compute (PF-days)`), and so is a named count (`params_non_embedding`,
`flops_table_a4`). What was made of a header is always echoed, and `--columns` overrides it.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from chinchilla_jax.config import CONVENTIONS, did_you_mean
from chinchilla_jax.scaling.runs import FitRefused

PARAMETER_COUNTS = ("total", "non_embedding")
# Headers met in published run tables, the more specific ones first.
_HEADERS = {
    "name": ("name", "run", "run_name", "run_id", "id"),
    "params": ("params", "n_params", "num_params", "model_params", "parameters", "n_parameters", "num_parameters",
               "model_parameters", "param_count", "parameter_count", "model_size", "n"),
    "tokens": ("tokens", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "tokens_seen", "dataset_size",
               "d"),
    "loss": ("loss", "final_loss", "val_loss", "validation_loss", "eval_loss", "test_loss", "train_loss",
             "training_loss", "l"),
    "flops": ("flops", "flop", "training_flops", "training_flop", "train_flops", "train_flop", "total_flops",
              "compute", "training_compute", "train_compute", "c"),
    "budget": ("budget", "isoflop_budget", "flop_budget", "flops_budget", "compute_budget"),
    "role": ("role",),
    "curve": ("curve", "loss_curve", "learning_curve", "training_curve"),
    "diverged": ("diverged", "is_diverged", "has_diverged"),
    "step": ("step", "steps", "iteration", "iter"),
}  # fmt: skip
FIELDS = ("name", "params", "tokens", "loss", "flops", "budget", "role", "curve", "diverged")
CURVE_FIELDS = ("name", "tokens", "flops", "step", "loss")
_COUNTED = {"params": PARAMETER_COUNTS, "flops": CONVENTIONS}
_SCALED = ("params", "tokens", "flops", "budget")
_FACTORS = {word: factor for factor, words in {
    1e3: ("k", "thousand", "thousands"), 1e6: ("m", "mm", "mn", "million", "millions"),
    1e9: ("b", "bn", "billion", "billions"), 1e12: ("t", "tn", "trillion", "trillions"),
}.items() for word in words}  # fmt: skip
_PF_DAY = 86400e15  # FLOPs (Kaplan et al. 2020, section 1.1)
_NON_EMBEDDING = r"_?(?:non|no|without|excl|excluding)_?(?:emb|vocab)[a-z]*"
_TOTAL = r"^total_|_total$|_?(?:with|incl|including)_emb[a-z]*"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column `name` whose numbers are multiplied by `factor`; `count` is the named count it holds, or empty."""

    name: str
    factor: float = 1.0
    count: str = ""

    def __str__(self) -> str:
        return self.name if self.factor == 1.0 else f"{self.name} x {self.factor:g}"


def parse_columns(text: str) -> dict[str, str]:
    """`params:N,tokens:D*1e9` as `{"params": "N", "tokens": "D*1e9"}`; quotes protect a comma in a column's name.

    Raises:
      FitRefused: `columns`, a part without a colon, an unknown field, or one that is named twice.
    """
    mapping: dict[str, str] = {}
    for part in next(csv.reader([text], skipinitialspace=True), []):
        field, colon, column = (piece.strip() for piece in part.partition(":"))
        if not colon or not field or not column:
            raise FitRefused("columns", f"--columns: {part!r} is not FIELD:COLUMN, as in params:N,loss:val_loss")
        if field in mapping:
            raise FitRefused("columns", f"--columns: {field} is mapped twice, to {mapping[field]} and to {column}")
        _check_field(field)
        mapping[field] = column
    return mapping


def choose_columns(
    source: str, present: Sequence[str], wanted: Mapping[str, str], fields: Iterable[str] = FIELDS, curves: bool = False
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """The column of each field, as wanted or else guessed from the header, and what is worth saying about the guess.

    Args:
      source: the table, for messages.
      present: its columns.
      wanted: column by field; a field may name its count (`params_non_embedding`, `flops_table_a4`), a column its
        multiplier (`D*1e9`). Fields of a table of curves are written `curves.loss`.
      fields: those to look for.
      curves: whether this is a table of curves.

    Raises:
      FitRefused: `columns`, an unknown field or column, or one header twice.
    """
    chosen: dict[str, Column] = {}
    for key, name in wanted.items():
        _check_field(key)
        if key.startswith("curves.") != curves:
            continue
        field, count = _split_field(key.removeprefix("curves."))
        if field in chosen:
            raise FitRefused("columns", f"{source}: two columns are given for {field}: {chosen[field].name} and {name}")
        chosen[field] = _wanted_column(source, field, count, name, present)
    notes = []
    for field in fields:
        if field in chosen:
            continue
        found = _candidates(field, present)
        if found:
            chosen[field] = found[0]
        if len(found) > 1:
            others = ", ".join(column.name for column in found[1:])
            notes.append(f"{field} is read from column {found[0].name}; also there: {others} "
                         f"(--columns={field}:{found[1].name} to change)")  # fmt: skip
    for column in chosen.values():
        if list(present).count(column.name) > 1:
            raise FitRefused("columns", f"{source}: column {column.name!r} is there twice; rename one")
    return chosen, tuple(notes)


def require(source: str, chosen: Mapping[str, Column], needed: Iterable[str], present: Iterable[str]) -> None:
    """Raises:
    FitRefused: `columns`, when a needed field has no column.
    """
    missing = [field for field in needed if field not in chosen]
    if missing:
        raise FitRefused("columns", f"{source}: no column for {', '.join(missing)} among "
                         f"{', '.join(present) or 'none'}; name it: --columns={missing[0]}:COLUMN, or rename your "
                         f"column to {missing[0]}")  # fmt: skip


def _check_field(key: str) -> None:
    known = [*FIELDS, *(f"{field}_{count}" for field, counts in _COUNTED.items() for count in counts)]
    known += [f"curves.{field}" for field in CURVE_FIELDS]
    if key not in known:
        raise FitRefused("columns", f"--columns: {key!r} is no field of a run{did_you_mean(key, known)}; "
                         f"use one of {', '.join(known)}")  # fmt: skip


def _split_field(key: str) -> tuple[str, str]:
    """`flops_table_a4` -> (`flops`, `table_a4`)."""
    for field, counts in _COUNTED.items():
        if key.startswith(f"{field}_") and key.removeprefix(f"{field}_") in counts:
            return field, key.removeprefix(f"{field}_")
    return key, ""


def _wanted_column(source: str, field: str, count: str, name: str, present: Sequence[str]) -> Column:
    factor = None
    if name not in present and (match := re.fullmatch(r"(.+?)\s*\*\s*([0-9.eE+-]+)", name)):
        name, factor = match[1], _factor(match[2], name)
    if name not in present:
        raise FitRefused("columns", f"{source}: no column {name!r} for {field}{did_you_mean(name, present)}; "
                         f"there are {', '.join(present)}")  # fmt: skip
    _, understood, counted = _understand(field, name)
    return Column(name, understood if factor is None else factor, count or counted)


def _factor(text: str, name: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise FitRefused("columns", f"--columns: {name}*{text}: {text} is no positive factor, as in {name}*1e9")
    return factor


def _candidates(field: str, present: Sequence[str]) -> list[Column]:
    """The columns that may hold `field`, the best guess first."""
    counts = ("total", "", "non_embedding") if field == "params" else ("", "6nd", *CONVENTIONS)
    found = []
    for position, name in enumerate(present):
        base, factor, count = _understand(field, name)
        if base in _HEADERS[field]:
            rank = (counts.index(count), _HEADERS[field].index(base), position)
            found.append((rank, Column(name, factor, count)))
    return [column for _, column in sorted(found, key=lambda pair: pair[0])]


def _understand(field: str, header: str) -> tuple[str, float, str]:
    """`Params (non-embedding, M)` -> (`params`, 1e6, `non_embedding`), for a column that serves as `field`."""
    words = re.findall(r"[a-z0-9^+]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", header).lower())
    factor = 1.0
    if field in _SCALED and len(words) > 1:
        factor, words = _take_factor(words)
    base, count = "_".join(words), ""
    if field == "params":
        for name, pattern in (("non_embedding", _NON_EMBEDDING), ("total", _TOTAL)):
            if re.search(pattern, base):
                base, count = re.sub(pattern, "", base).strip("_"), name
                break
    elif field == "flops":
        for convention in CONVENTIONS:
            if base.endswith(f"_{convention}"):
                base, count = base.removesuffix(f"_{convention}"), convention
    return base, factor, count


def _take_factor(words: list[str]) -> tuple[float, list[str]]:
    joined = "_".join(words)
    if pf_days := re.search(r"_(?:in_)?(?:pf|pflop|pflops|petaflop|petaflops)_?days?$", joined):
        return _PF_DAY, joined[: pf_days.start()].split("_")
    last = words[-1].removeprefix("x")
    power = re.fullmatch(r"(?:1e|10\^)\+?(\d{1,2})", last)
    factor = 10.0 ** int(power[1]) if power else _FACTORS.get(last)
    if factor is None:
        return 1.0, words
    rest = words[:-1]
    return factor, rest[:-1] if len(rest) > 1 and rest[-1] == "in" else rest
