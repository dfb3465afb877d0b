"""How are the facts worded? Each is put into a sentence or a table once, for text and page alike.

`of_fit`, `of_prediction`, `of_suggestion` and `of_page` choose the sections of `fit`, `predict`, `suggest` and the
page. `text.tell` prints sections; the page renders them with `templates/page.html.j2`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chinchilla_jax.base.words import cell, change, count, flops_text, in_unit, loss_text, unit_of
from chinchilla_jax.scaling.predict.analysis import APPROACHES

Facts = Mapping[str, Any]
# Columns of tables, each `TITLE=key of the facts`.
_ROLLOUT = (
    "approach=candidate | C=budget | budgets below=fitted | N=predicted_params | N of profile=profile_params | "
    "loss=predicted_loss | loss, of profile=profile_loss | loss error=loss_error | cost of size=size_cost"
)
_PROFILE = (
    "C=budget | runs=runs | near=near | N*=params | D*=tokens | D*/N*=tokens_per_param | loss=loss | scatter=scatter | "
    "minimum inside=kept_draws"
)
_RUN = (
    "run=name | role=role | C, nominal=budget | N=params | D=tokens | D/N=tokens_per_param | C=flops | loss=loss | "
    "loss, bits/byte=bits_per_byte | seconds=seconds"
)
_SAME = 0.002  # relative difference between two numbers of tokens that need not be told apart


@dataclasses.dataclass(frozen=True)
class Table:
    """`rows` of column -> text, or (text, text in small print below it); `words` are columns of words, which may wrap.
    `marked` rows stand out; `folded` is the line that opens a long table."""

    rows: Sequence[Mapping[str, str | tuple[str, str]]]
    words: Sequence[str] = ()
    marked: Sequence[int] = ()
    folded: str = ""

    @property
    def columns(self) -> list[str]:
        """In the order in which they first occur."""
        return list(dict.fromkeys(column for row in self.rows for column in row))


@dataclasses.dataclass(frozen=True)
class Section:
    """A part under one title: a list of `items`, `sentences`, `tables`, and `notes` in small print, in this order.
    `label` goes before each item in text; `level` is that of the title, 3 for a part of the section above."""

    title: str
    items: Sequence[str] = ()
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    label: str = ""
    level: int = 2


def of_fit(facts: Facts, explain: bool) -> list[Section]:
    """Results, then warnings, then notes; with `explain` also what the preset does, and why."""
    head = f"Preset {facts['preset']}; losses {in_unit(facts['loss_unit'])}."
    sections = [Section("", sentences=(head,)), *_approaches(facts), _warnings(facts)]
    if explain:
        return [*sections, _notes(facts), _presets(facts)]
    return [*sections, _notes(facts, f"--explain says what the preset {facts['preset']} does, and why")]


def of_prediction(facts: Facts) -> list[Section]:
    """Results, then warnings, then notes; without runs the answers alone."""
    answers = [answer_section(answer) for answer in facts["answers"]]
    if facts["prediction"] is None:
        return answers
    table = _side_by_side(facts, refusals=True)
    return [_lead(facts), table, *_rollouts(facts), *answers, _warnings(facts), _notes(facts)]


def of_suggestion(facts: Facts) -> list[Section]:
    """The next runs, then warnings, then notes."""
    return [*(answer_section(answer) for answer in facts["answers"]), _warnings(facts), _notes(facts)]


def of_page(facts: Facts) -> tuple[list[Section], list[Section]]:
    """The sections before the figures, and after them."""
    rows = [{"Verdict": v["status"].upper(), "Question": (v["question"], v["detail"])} for v in facts["verdicts"]]
    first, then = [_lead(facts), Section("Verdicts", tables=(Table(rows, words=("Question",)),))], []
    if facts["on_record"]:
        first.append(_on_record(facts))
    if facts["prediction"]:
        first += [_side_by_side(facts), _prediction(facts), *_rollouts(facts)]
        then += _approaches(facts)
    if facts["answers"]:
        then += [Section("What else could be trained"), *(answer_section(a, level=3) for a in facts["answers"])]
    then += [answer_section(answer) for answer in facts["tasks"]]
    runs = _cells(facts["runs"], _RUN, words=("role",), folded=f"{len(facts['runs'])} runs")
    then += [_warnings(facts), _notes(facts), *_time(facts), Section("Runs", tables=(runs,))]
    then.append(Section("To make this report again", sentences=(facts["command"],)))
    return first, then + ([_presets(facts)] if facts["preset"] else [])


def _span(pair: Sequence[Any] | None, form: Callable[[float], str] = count) -> str:
    return f"{form(float(pair[0]))} to {form(float(pair[1]))}" if pair else "-"


def _levels(spans: Mapping[str, Any], form: Callable[[float], str]) -> dict[str, str]:
    """Two columns: the 80% and the 95% interval."""
    return {f"{level} interval": _span(spans.get(level), form) for level in ("80%", "95%")}


def _named(name: str) -> str:
    """`Approach 2` of `isoflop`."""
    return APPROACHES[name].split(":")[0].capitalize()


def _lead(facts: Facts) -> Section:
    prediction = facts["prediction"]
    if not prediction:
        return Section("", sentences=(f"No prediction yet: {facts['refused']['prediction']}.",))
    best, tokens = prediction["estimates"][prediction["recommended"]], prediction["tokens_at_budget"]
    interval = best["intervals"].get("loss", {}).get("95%")
    sure = f" (95% interval of one run {_span(interval, loss_text)})" if interval else ""
    kind, unit = "validation loss" if "held-out" in facts["loss_unit"] else "loss", unit_of(facts["loss_unit"])
    comma = "," if unit.startswith("taken as") else ""
    lead = (
        f"For {flops_text(facts['target_budget'])} FLOPs, {facts['extrapolation']:.3g} times the largest budget "
        f"fitted, train {count(best['params'])} parameters on {count(tokens)} tokens and expect a {kind} of "
        f"{best['loss']:.4f}{comma} {unit}{sure}."
    )
    return Section("", sentences=(lead,))


def _side_by_side(facts: Facts, refusals: bool = False) -> Section:
    """The exponents, and the answers at the target, of all approaches; `refusals`: also why one is missing."""
    prediction, rows = facts["prediction"], []
    best, tokens = prediction["estimates"][prediction["recommended"]], prediction["tokens_at_budget"]
    for name, estimate in prediction["estimates"].items():
        spans = {quantity: levels["95%"] for quantity, levels in estimate["intervals"].items()}
        row: dict[str, Any] = {"Approach": _named(name)}
        for symbol, (value, intervals) in exponents(facts, name).items():
            row[symbol] = f"{value:.3f}", _span(intervals.get("95%"), "{:.3f}".format)
        for column, quantity in (("N*", "params"), ("D*", "tokens"), ("D*/N*", "tokens_per_param")):
            row[column] = count(estimate[quantity]), _span(spans.get(quantity))
        training = " (training)" if "training" in estimate["loss_law"] else ""
        rows.append(row | {"Loss": (loss_text(estimate["loss"]) + training, _span(spans.get("loss"), loss_text))})
    notes = [
        f"Recommended, marked: {prediction['why']}.",
        f"Below each value its 95% interval. N* ~ C^a, D* ~ C^b; N*, D* and loss for "
        f"{flops_text(facts['target_budget'])} FLOPs, losses {in_unit(facts['loss_unit'])}. Preset {facts['preset']}.",
    ]
    profiled = prediction["profile_likelihood"].items()
    if profiled:
        words = ", ".join(f"{name} {_span(pair, loss_text if name == 'loss' else count)}" for name, pair in profiled)
        notes.append(f"Approach 3, profile likelihood, 95%: {words}.")
    if abs(best["tokens"] / tokens - 1.0) > _SAME:
        spent = "C / 6N*" if (facts["convention"] or "").startswith("6nd") else "what C buys at N*"
        notes.append(
            f"Two numbers of tokens: D* = {count(best['tokens'])} is fitted apart from N*, and {count(tokens)}, "
            f"{spent}, is what spends the budget. Train on the latter."
        )
    if refusals:
        notes += [f"{_named(name)} refused: {why}." for name, why in facts["refused"].items()]
    marked = (list(prediction["estimates"]).index(prediction["recommended"]),)
    table = Table(rows, words=("Approach",), marked=marked)
    return Section("Three approaches, side by side", tables=(table,), notes=notes)


def exponents(facts: Facts, name: str) -> dict[str, tuple[float, Mapping[str, Any]]]:
    """a of N* and b of D* of an approach, each with its intervals; {} where the runs do not determine them."""
    fit = facts[name]
    if name == "parametric" and fit["known"]["why"]:
        return {}
    if name == "parametric":
        return {symbol: (fit["values"][symbol], fit["intervals"].get(symbol, {})) for symbol in "ab"}
    laws = {"a": fit["laws"]["params"], "b": fit["laws"]["tokens"]}
    return {symbol: (law["exponent"], law["intervals"]) for symbol, law in laws.items()}


def _prediction(facts: Facts) -> Section:
    prediction, rows = facts["prediction"], []
    mean = "Loss, mean of such runs"
    quantities = (
        ("params", "Parameters N", count),
        ("tokens", "Tokens D*", count),
        ("tokens_at_budget", "Tokens that spend C at N", count),
        ("tokens_per_param", "D*/N", count),
        ("loss", f"Loss of one run, {unit_of(facts['loss_unit'])}", loss_text),
        ("mean_loss", mean, loss_text),
    )
    for name, estimate in prediction["estimates"].items():
        mark = " (recommended)" if name == prediction["recommended"] else ""
        estimate = estimate | {"mean_loss": estimate["loss"]}
        for quantity, label, form in quantities:
            if label == mean and quantity not in estimate["intervals"]:
                continue
            row = {"Approach": _named(name) + mark if quantity == "params" else "", "Quantity": label}
            row["Prediction"] = form(estimate[quantity])
            rows.append(row | _levels(estimate["intervals"].get(quantity, {}), form))
    note = (
        "Intervals of approach 2 follow from the scatter of its minima and an average over E, the others are bootstrap "
        "percentiles. Approach 2 fits N and D apart, so its D* need not spend the budget."
    )
    table = Table(rows, words=("Approach", "Quantity"))
    return Section(f"Prediction for {flops_text(facts['target_budget'])} FLOPs", tables=(table,), notes=(note,))


def _on_record(facts: Facts) -> Section:
    """What was predicted before it was trained, and what came of it."""
    rows = []
    for row in facts["on_record"]["predictions"]:
        judged = row["error"] is not None
        words: dict[str, Any] = {"Verdict": row["status"].upper(), "Run": (row["run"], row["made"][:19] + " UTC")}
        words |= {"N": count(row["params"]), "C": flops_text(row["flops"])}
        words["Predicted"] = loss_text(row["loss"]), _span(row["loss_95"], loss_text)
        words["Trained"] = loss_text(row["trained"]) if judged else "-"
        rows.append(words | {"Error": change(row["error"]) if judged else "-", "Inside": _inside(row["inside"])})
    total = facts["on_record"]["calibration"]
    notes = [
        "Predictions of single runs, with their 95% intervals, put on record at the time given, before the run began."
    ]
    if total["judged"]:
        notes.append(
            f"{total['judged']} judged: {total['inside_95']:.0%} inside the 95% interval, mean error "
            f"{change(total['mean_error'])}, mean absolute error {total['mean_absolute_error']:.2%}. Runs of one study "
            "share their law, so they are right or wrong together."
        )
    if total["diverged"]:
        notes.append(f"{total['diverged']} more diverged.")
    notes += [f"Unreadable: {line}." for line in facts["on_record"]["unreadable"]]
    tables = (Table(rows, words=("Run",)),) if rows else ()
    return Section("Predictions on record", tables=tables, notes=notes)


def _inside(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _rollouts(facts: Facts) -> list[Section]:
    rows = [row | {"candidate": _named(row["candidate"])} for row in facts["prediction"]["rollouts"]]
    sentence = "Larger budgets are hidden and predicted from the smaller ones."
    return [Section("Rollouts", sentences=(sentence,), tables=(_cells(rows, _ROLLOUT),))] if rows else []


def _approaches(facts: Facts) -> list[Section]:
    word, sections = {"envelope": _envelope, "isoflop": _isoflop, "parametric": _parametric}, []
    for name, title in APPROACHES.items():
        title, refusal = title[:1].upper() + title[1:], f"Refused: {facts['refused'].get(name, 'not fitted')}."
        sections.append(word[name](title, facts[name]) if facts[name] else Section(title, sentences=(refusal,)))
    return sections


def _laws(fit: Facts) -> Table:
    rows = []
    for law in (fit["laws"]["params"], fit["laws"]["tokens"]):
        row = {"Law": law["form"], "k": f"{law['coefficient']:.4g}", "Exponent": f"{law['exponent']:.4f}"}
        rows.append(row | _levels(law["intervals"], loss_text))
    return Table(rows)


def _envelope(title: str, fit: Facts) -> Section:
    edges = ", ".join(f"{number} {word}" for word, number in fit["edges"].items() if number) or "none"
    sentence = (
        f"{fit['curves']} curves read at {fit['values']} FLOP values. The lowest run is in the last 15% of its "
        f"training at {fit['on_schedule']:.0%} of them (in the paper: all). Winners at an edge, where there is no "
        f"choice: {edges}. Values left out of the fit: {fit['dropped']}. Bootstrap replicates usable: "
        f"{fit['kept_draws']:.0%}."
    )
    return Section(title, sentences=(sentence,), tables=(_laws(fit),))


def _isoflop(title: str, fit: Facts) -> Section:
    profiles = [p | {"tokens_per_param": p["tokens"] / p["params"]} for p in fit["profiles"]]
    law = fit["laws"]["loss"]
    notes = [
        f"{law['form']}: E = {law['irreducible']:.4f} ({_span(law['irreducible_95'], loss_text)}), exponent of L* at "
        f"the largest budget {law['exponent']:.4f}; noise of a run {fit['noise']:.2%}."
    ]
    notes += [f"Left out: {refusal['message']}." for refusal in fit["refusals"]]
    return Section(title, tables=(_cells(profiles, _PROFILE), _laws(fit)), notes=notes)


def _parametric(title: str, fit: Facts) -> Section:
    v, quality = fit["values"], _quality(fit)
    if why := fit["known"]["why"]:
        open_ = (
            f"These runs do not determine E, A, B, alpha and beta, so they are not shown: {why}. Known is the loss at "
            "N and D near theirs."
        )
        condition = f"condition number of what they say of A, B, alpha and beta: {float(fit['known']['condition']):.2g}"
        return Section(title, sentences=(open_,), notes=[f"{quality} {condition[:1].upper()}{condition[1:]}."])
    formula = (
        f"L = {v['E']:.4f} + {v['A']:.5g} / N^{v['alpha']:.4f} + {v['B']:.5g} / D^{v['beta']:.4f}; under C = 6 N D "
        f"N* ~ C^{v['a']:.4f} and D* ~ C^{v['b']:.4f}."
    )
    digits, rows = "{:.5g}".format, []
    for name, value in v.items():
        row = {"Constant": name, "Value": digits(value)} | _levels(fit["intervals"].get(name, {}), digits)
        rows.append(row | {"95%, profile likelihood": _span(fit["profile_likelihood"].get(name), digits)})
    notes = [quality]
    if fit["flat"]:
        pairs = ", ".join(f"{one} and {other} ({correlation:+.3f})" for one, other, correlation in fit["flat"])
        notes.append(f"Constants in flat directions, known only together (correlation): {pairs}; compare predictions.")
    return Section(title, sentences=(formula,), tables=(Table(rows),), notes=notes)


def _quality(fit: Facts) -> str:
    """How the surface was reached, and how well it goes through the runs."""
    return (
        f"{fit['runs']} runs, misfit {fit['misfit']} (threshold {float(fit['delta']):g}); objective "
        f"{fit['objective']:.8g}, gradient {fit['gradient']:.1e}; {fit['agreement']:.1%} of {fit['starts']} starts "
        f"reached this minimum; scatter of a run about the surface {fit['scatter']:.2%}."
    )


def _cells(rows: Sequence[Facts], columns: str = "", **options: Any) -> Table:
    """A table of plain values, worded by the names of its columns; without `columns` the keys are the titles."""
    pairs = [column.split("=") for column in columns.split(" | ")] if columns else [(k, k) for row in rows for k in row]
    values = [{title: row.get(key) for title, key in pairs} for row in rows]
    infinite = {"inf": float("inf")}  # as it is in the facts
    return Table([{name: cell(name, infinite.get(str(v), v)) for name, v in row.items()} for row in values], **options)


def answer_section(answer: Facts, level: int = 2) -> Section:
    """An `Answer`."""
    tables = (_cells(answer["rows"]),) if answer["rows"] else ()
    return Section(answer["title"], tables=tables, notes=[f"{note}." for note in answer["notes"]], level=level)


def variants(facts: Facts) -> Section:
    """Other ways to fit."""
    return Section("Variants", tables=(_cells(facts["variants"]),))


def _warnings(facts: Facts) -> Section:
    sentences, rows = [], [{"Row": row["where"], "Reason": row["reason"]} for row in facts["bad_rows"]]
    if facts["tokens_per_param_range"]:
        ratios, flops = _span(facts["tokens_per_param_range"]), _span(facts["flops_range"], flops_text)
        sentences.append(f"Support: D/N from {ratios}, C from {flops} FLOPs.")
    sentences.append(f"Rows left out ({len(rows)}):" if rows else "No row was left out.")
    tables = (Table(rows, words=("Reason",)),) if rows else ()
    return Section("Warnings and limits", facts["warnings"], sentences, tables, label="warning: ")


def _notes(facts: Facts, *more: str) -> Section:
    bias = facts["isoflop"]["bias"] if facts["isoflop"] else []
    noise = (facts["noise"]["words"],) if facts["noise"] else ()
    return Section("Notes", items=(*facts["reading"], *noise, *bias, *more))


def _presets(facts: Facts) -> Section:
    items = [f"{_named(name)}: {line}" for name, lines in facts["differences"].items() for line in lines if facts[name]]
    return Section(f"What preset {facts['preset']} does, and why", items=items)


def _time(facts: Facts) -> list[Section]:
    spent: dict[float, list[float]] = {}
    for run in facts["runs"]:
        if run["seconds"] is not None:
            spent.setdefault(run["budget"] or 0.0, []).append(run["seconds"])
    if not spent:
        return []
    total = sum(sum(values) for values in spent.values())
    rows = [
        {"C, nominal": c, "runs": len(v), "seconds": sum(v), "seconds, longest": max(v), "share": sum(v) / total}
        for c, v in sorted(spent.items())
    ]
    sentence = f"{total:,.0f} seconds of training in all."
    return [Section("Where the time went", sentences=(sentence,), tables=(_cells(rows),))]
