"""How is a comparison of arms worded, in text, in JSON and as a page?

The facts are those of `Comparison` under `comparison`, beside `sources`, `reading` (sentences, by arm), `bad_rows`
(by arm), `command` and `plots`, as in `facts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.files import read_bytes, write_json, write_text
from chinchilla_jax.base.words import Echo, flops_text, in_unit, loss_text
from chinchilla_jax.scaling.answers.compare.compare import Comparison
from chinchilla_jax.scaling.answers.compare.costs import KINDS
from chinchilla_jax.scaling.read.runs import LoadedRuns
from chinchilla_jax.scaling.report.facts import as_json
from chinchilla_jax.scaling.report.sections import Facts, Section, Table
from chinchilla_jax.scaling.report.text import tell


def facts_of_comparison(comparison: Comparison, arms: Mapping[str, LoadedRuns], command: str = "") -> dict[str, Any]:
    """The facts of a comparison, plain JSON values."""
    return as_json(
        {
            "comparison": comparison,
            "sources": {name: loaded.source for name, loaded in arms.items()},
            "reading": {name: loaded.describe() for name, loaded in arms.items()},
            "bad_rows": {name: loaded.bad for name, loaded in arms.items()},
            "command": command,
            "plots": {},
        }
    )


def of_comparison(facts: Facts) -> list[Section]:
    """The lead, the target, every budget, costs, warnings and notes."""
    compared = facts["comparison"]
    return [
        Section("", sentences=(_lead(compared),)),
        _target(compared),
        _budgets(compared),
        _costs(compared),
        Section(
            "Warnings and limits", compared["warnings"], () if compared["warnings"] else ("None.",), label="warning: "
        ),
        _reading(facts),
    ]


def write_comparison(
    comparison: Comparison, arms: Mapping[str, LoadedRuns], output: str | None, command: str, echo: Echo
) -> dict[str, Any]:
    """Prints the comparison; with `output` writes the facts there (FILE.json), or a folder with comparison.html,
    comparison.json and the plot. Returns the facts."""
    facts = facts_of_comparison(comparison, arms, command)
    tell(of_comparison(facts), echo)
    if output is None:
        return facts
    path = files.path(output)
    if path.suffix == ".json":
        write_json(path, facts)
        echo(f"written: {path}")
        return facts
    from chinchilla_jax.scaling.report.plots.compared import plot_comparison
    from chinchilla_jax.scaling.report.report import render_page

    image = plot_comparison(comparison, path / "plots" / "comparison.png")
    facts["plots"] = {"Frontiers and gain": str(image.relative_to(path))}
    first, *then = of_comparison(facts)
    again = Section("To make this comparison again", sentences=(command,)) if command else Section("")
    title = f"Comparison with {comparison.reference}"
    page = render_page(title, [first, *then[:2]], [*then[2:], again], {"Frontiers and gain": read_bytes(image)})
    write_json(path / "comparison.json", facts)
    write_text(path / "comparison.html", page)
    echo(f"comparison: {path / 'comparison.html'}")
    return facts


def _factor(value: Any) -> str:
    return "beyond any compute" if value == "inf" else f"{float(value):.3f}x"


def _factors(pair: Any) -> str:
    return f"{_factor(pair[0])} to {_factor(pair[1])}"


def _lead(compared: Facts) -> str:
    reference, *others = compared["arms"]
    parts = [
        f"{arm['name']} {_factor(arm['target']['factor'])} (95% {_factors(arm['target']['factor_95'])})"
        for arm in others
    ]
    return (
        f"At {flops_text(compared['budget'])} FLOPs, {compared['budget'] / compared['largest']:.3g} times the largest "
        f"budget that all arms reach, compute-equivalent gain over {reference['name']}: {'; '.join(parts)}."
    )


def _target(compared: Facts) -> Section:
    rows: list[dict[str, Any]] = []
    for arm in compared["arms"]:
        gain, first = arm["target"], not rows
        row: dict[str, Any] = {"Arm": (arm["name"], f"{arm['runs']} runs")}
        row["Loss"] = loss_text(arm["loss"]), " to ".join(loss_text(end) for end in arm["loss_95"])
        row["Difference"] = ("reference", "") if first else _difference(gain)
        row["Gain"] = ("1x", "") if first else (_factor(gain["factor"]), _factors(gain["factor_95"]))
        row["Gain, nothing shared"] = ("", "") if first else ("", _factors(arm["unpaired_95"]))
        row["Better"] = "" if first else f"{gain['better']:.1%}"
        rows.append(row | {"Best": f"{arm['best']:.1%}"})
    unit = in_unit(compared["loss_unit"])
    at_cells = all(arm["correlation"] is not None and not arm["budgets"] for arm in compared["arms"])
    which = "means over the sizes" if at_cells else "the lowest of the budget"
    note = (
        f"Below each value its 95% interval; losses {unit}, {which}. Better: the probability of a "
        "lower loss than the reference's; best: than all others'."
    )
    title = f"At the target, C = {flops_text(compared['budget'])}"
    return Section(title, tables=(Table(rows, words=("Arm",)),), notes=(note, *(f"{n}." for n in compared["notes"])))


def _difference(gain: Facts) -> tuple[str, str]:
    low, high = gain["loss_difference_95"]
    return f"{gain['loss_difference']:+.4f}", f"{low:+.4f} to {high:+.4f}"


def _budgets(compared: Facts) -> Section:
    rows = []
    for arm in compared["arms"][1:]:
        for gain in arm["budgets"]:
            row: dict[str, Any] = {"Arm": arm["name"], "C": flops_text(gain["budget"])}
            row |= {"Difference": _difference(gain), "Gain": (_factor(gain["factor"]), _factors(gain["factor_95"]))}
            rows.append(row | {"Better": f"{gain['better']:.1%}", "From": gain["basis"]})
    tables = (Table(rows, words=("Arm", "From")),) if rows else ()
    return Section("At every budget", tables=tables, sentences=() if rows else ("Surfaces have no budgets.",))


def _costs(compared: Facts) -> Section:
    rows: list[dict[str, Any]] = []
    for arm in compared["arms"][1:]:
        row: dict[str, Any] = {"Arm": arm["name"]}
        for kind in KINDS:
            cost = arm["costs"][kind]
            row[f"Gain in {kind}"] = (
                (_factor(cost["factor"]), _factors(cost["factor_95"])) if cost else ("not known", "")
            )
        rows.append(row)
    note = (
        "What the reference pays for the arm's loss at the target, over what the arm pays, each at its own best size."
    )
    return Section("In other costs", tables=(Table(rows, words=("Arm",)),), notes=(note,))


def _reading(facts: Facts) -> Section:
    """What was read: lines that all arms share once."""
    lines: dict[str, list[str]] = {}
    for name, sentences in facts["reading"].items():
        for sentence in sentences:
            lines.setdefault(sentence, []).append(name)
    count = len(facts["sources"])
    items = [line if len(names) == count else f"{', '.join(names)}: {line}" for line, names in lines.items()]
    items += [f"{name}: {source}" for name, source in facts["sources"].items()]
    left = [
        f"{name}: left out {row['where']}: {row['reason']}" for name, rows in facts["bad_rows"].items() for row in rows
    ]
    return Section("Notes", items=(*items, *left))
