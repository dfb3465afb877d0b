"""How are the facts of a report laid out as one HTML page? Images are embedded; nothing is fetched."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.base.words import cell, change, count, flops_text, in_unit, loss_text, percent, unit_of
from chinchilla_jax.scaling.report.page_parts import APPROACH, STYLE, notes, number, short, span, table


def render(facts: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """The page. `facts` as from `report_facts`; `images` maps a title to the bytes of a PNG."""
    sections = [
        _lead(facts),
        _verdicts(facts),
        _approaches(facts),
        _prediction(facts),
        _figures(images),
        _envelope(facts),
        _isoflop(facts),
        _parametric(facts),
        _answers(facts),
        _warnings(facts),
        _time(facts),
        _runs(facts),
        _redo(facts),
        _presets(facts),
    ]
    body = "\n".join(section for section in sections if section)
    title = f"Scaling study: {html.escape(str(facts['source']))}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{title}</title>\n<style>{STYLE}</style></head>\n'
        f"<body><main>\n<h1>{title}</h1>\n{body}\n</main></body></html>\n"
    )


def _lead(facts: Mapping[str, Any]) -> str:
    prediction, budget = facts["prediction"], facts["target_budget"]
    if not prediction:
        return '<p class="lead">No prediction yet; the reasons are below.</p>'
    best = prediction["estimates"][prediction["recommended"]]
    interval = best["intervals"].get("loss", {}).get("95%")
    sure = f" (95% interval {span(interval, loss_text)})" if interval else ""
    kind, unit = "validation loss" if "held-out" in facts["loss_unit"] else "loss", unit_of(facts["loss_unit"])
    loss = f"{best['loss']:.4f} {unit}" if not unit.startswith("taken as") else f"{best['loss']:.4f}</b>, {unit}<b>"
    return (
        f'<p class="lead">For <b>{flops_text(budget)} FLOPs</b>, {facts["extrapolation"]:.3g} times the largest budget '
        f"fitted, train <b>{count(best['params'])} parameters on "
        f"{count(prediction['tokens_at_budget'])} tokens</b> and "
        f"expect a {kind} of <b>{loss}</b>{sure}.</p>"
    )


def _verdicts(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<div class="verdict"><span class="tag {v["status"]}">{v["status"].upper()}</span><div><b>'
        f'{html.escape(v["question"])}</b><br><span class="note">{html.escape(v["detail"])}</span></div></div>'
        for v in facts["verdicts"]
    )
    return f"<h2>Verdicts</h2>{rows}"


def _approaches(facts: Mapping[str, Any]) -> str:
    if not facts["approaches"]:
        return ""
    rows = [
        (
            APPROACH[r["approach"]],
            (f"{r['a']:.3f}", span(r["a_95"], lambda v: f"{v:.3f}")),
            (f"{r['b']:.3f}", span(r["b_95"], lambda v: f"{v:.3f}")),
            (count(r["params"]), span(r.get("params_95"))),
            (count(r["tokens"]), span(r.get("tokens_95"))),
            (count(r["tokens_per_param"]), span(r.get("tokens_per_param_95"))),
            (
                loss_text(r["loss"]) + (" (training)" if "training" in r["loss_law"] else ""),
                span(r.get("loss_95"), loss_text),
            ),
        )
        for r in facts["approaches"]
    ]
    named = [r["approach"] for r in facts["approaches"]]
    best = [named.index(facts["prediction"]["recommended"])] if facts["prediction"] else []
    return (
        f"<h2>Three approaches, side by side</h2>"
        f"{table(('Approach', 'a', 'b', 'N*', 'D*', 'D*/N*', 'Loss'), rows, (0,), best)}"
        f'<p class="note">Below each value its 95% interval; the recommended approach is shaded. N* ~ C<sup>a</sup>, '
        f"D* ~ C<sup>b</sup>; N*, D* and loss for {flops_text(facts['target_budget'])} FLOPs, losses "
        f"{html.escape(in_unit(facts['loss_unit']))}. Preset {facts['preset']}.</p>{_two_tokens(facts)}"
    )


def _two_tokens(facts: Mapping[str, Any]) -> str:
    """Where D* and the D that spends the budget differ, the reader is told which is which."""
    prediction = facts["prediction"]
    best = prediction["estimates"][prediction["recommended"]] if prediction else None
    if not best or abs(best["tokens"] / prediction["tokens_at_budget"] - 1.0) < 0.002:
        return ""
    spent = "C / 6N*" if facts["convention"].startswith("6nd") else "what C buys at N*"
    return (
        f"<p>Two numbers of tokens: D* = {count(best['tokens'])} is fitted apart from N*, and "
        f"{count(prediction['tokens_at_budget'])}, {spent}, is what spends the budget. Train on the latter.</p>"
    )


def _envelope(facts: Mapping[str, Any]) -> str:
    fit = facts["envelope"]
    if not fit:
        return ""
    edges = ", ".join(f"{number} {word}" for word, number in fit["edges"].items() if number) or "none"
    return (
        f"<h2>Approach 1: training-curve envelope</h2><p>{fit['curves']} curves read at {fit['values']} FLOP values. "
        f"The lowest run is in the last 15% of its training at {fit['on_schedule']:.0%} of them (in the paper: all). "
        f"Winners at an edge, where there is no choice: {edges}. Values left out of the fit: {fit['dropped']}. "
        f"Bootstrap replicates usable: {fit['kept_draws']:.0%}.</p>"
    )


def _answers(facts: Mapping[str, Any]) -> str:
    parts = []
    for section in facts["answers"]:
        columns = list(dict.fromkeys(key for row in section["rows"] for key in row))
        rows = [[cell(column, number(row.get(column))) for column in columns] for row in section["rows"]]
        below = notes(line[:1].upper() + line[1:] + "." for line in section["notes"])
        parts.append(f"<h3>{html.escape(section['title'])}</h3>{table(columns, rows) if rows else ''}{below}")
    return f"<h2>What else could be trained</h2>{''.join(parts)}" if parts else ""


def _presets(facts: Mapping[str, Any]) -> str:
    items = "".join(
        f"<li>{html.escape(APPROACH[name])}: {html.escape('; '.join(lines))}.</li>"
        for name, lines in facts["differences"].items()
        if lines
    )
    return f"<h2>What preset {facts['preset']} does, and why</h2><ul>{items}</ul>" if items else ""


def _prediction(facts: Mapping[str, Any]) -> str:
    prediction = facts["prediction"]
    if not prediction:
        return ""
    rows, unit_loss = [], f"Loss, {unit_of(facts['loss_unit'])}"
    for name, e in prediction["estimates"].items():
        mark = " (recommended)" if name == prediction["recommended"] else ""
        for quantity, label, form in (
            ("params", "Parameters N", count),
            ("tokens", "Tokens D*", count),
            ("tokens_at_budget", "Tokens that spend C at N", count),
            ("tokens_per_param", "D*/N", count),
            ("loss", unit_loss, loss_text),
        ):
            spans = e["intervals"].get(quantity, {})
            rows.append(
                (
                    APPROACH[name] + mark if quantity == "params" else "",
                    label,
                    form(e[quantity]),
                    span(spans.get("80%"), form),
                    span(spans.get("95%"), form),
                )
            )
    estimates = table(("Approach", "Quantity", "Prediction", "80% interval", "95% interval"), rows, (0, 1))
    rollouts = table(
        (
            *("Candidate", "Budget", "Fitted to", "N predicted", "N of profile"),
            *("Loss predicted", "Loss of profile", "Loss error", "Cost of size"),
        ),
        [
            (
                r["candidate"],
                flops_text(r["budget"]),
                f"{r['fitted']} budgets",
                count(r["predicted_params"]),
                count(r["profile_params"]),
                loss_text(r["predicted_loss"]),
                loss_text(r["profile_loss"]),
                change(r["loss_error"]),
                percent(r["size_cost"]),
            )
            for r in prediction["rollouts"]
        ],
    )
    hidden = f"<p>Rollouts: larger budgets hidden and predicted from smaller ones; the last decide.</p>{rollouts}"
    return (
        f"<h2>Prediction for {flops_text(facts['target_budget'])} FLOPs</h2>{estimates}"
        f'<p class="note">Recommended: {html.escape(prediction["why"])}. Intervals are bootstrap percentiles; those of '
        f"the loss are for a single trained run. Approach 2 fits N and D apart, so its D* need not spend the budget."
        f"</p>{hidden if prediction['rollouts'] else ''}"
    )


def _figures(images: Mapping[str, bytes]) -> str:
    figures = "\n".join(
        f'<div class="figure"><img alt="{html.escape(title)}" src="data:image/png;base64,'
        f'{base64.b64encode(data).decode()}"></div>'
        for title, data in images.items()
    )
    return f"<h2>Figures</h2>\n{figures}" if images else ""


def _isoflop(facts: Mapping[str, Any]) -> str:
    fit = facts["isoflop"]
    if not fit:
        return ""
    laws = table(
        ("Law", "k", "Exponent", "80% interval", "95% interval"),
        [
            (
                law["form"] + (f": {_irreducible(law)}" if "irreducible" in law else ""),
                f"{law['coefficient']:.4g}" if "coefficient" in law else "",
                f"{law['exponent']:.4f}",
                *(span(law["intervals"].get(k), loss_text) for k in ("80%", "95%")),
            )
            for law in fit["laws"].values()
        ],
    )
    profiles = table(
        ("Budget, FLOPs", "Runs", "Near", "N*", "D*", "D*/N*", "Minimum loss", "Scatter", "Minimum inside"),
        [
            (
                flops_text(p["budget"]),
                p["runs"],
                p["near"],
                count(p["params"]),
                count(p["tokens"]),
                count(p["tokens"] / p["params"]),
                loss_text(p["loss"]),
                percent(p["scatter"]),
                f"{p['kept_draws']:.0%}",
            )
            for p in fit["profiles"]
        ],
    )
    bias = notes(f"{line}." for line in fit["bias"])
    return f"<h2>Approach 2: IsoFLOP profiles</h2>{profiles}{laws}{bias}"


def _irreducible(law: Mapping[str, Any]) -> str:
    low, high = law["irreducible_95"]
    return f"E = {law['irreducible']:.4f} ({low:.4f} to {high:.4f}); exponent of L* at the largest budget"


def _parametric(facts: Mapping[str, Any]) -> str:
    fit = facts["parametric"]
    if not fit:
        return ""
    constants = table(
        ("Constant", "Value", "80% interval", "95% interval", "95%, profile likelihood"),
        [
            (
                name,
                f"{value:.5g}",
                *(span(fit["intervals"].get(name, {}).get(k), short) for k in ("80%", "95%")),
                span(fit["profile_likelihood"].get(name), short),
            )
            for name, value in fit["values"].items()
        ],
    )
    return (
        f"<h2>Approach 3: L = E + A/N<sup>alpha</sup> + B/D<sup>beta</sup></h2>{constants}"
        f'<p class="note">{fit["runs"]} runs, Huber threshold {fit["delta"]:g} on log loss; objective '
        f"{fit['objective']:.7g}, gradient {fit['gradient']:.1e}; "
        f"{fit['agreement']:.0%} of {fit['starts']} starts reached "
        f"this minimum; scatter of a run about the surface {fit['scatter']:.2%}. "
        "a and b are the exponents of the optimal N and D under C = 6ND. "
        f"Profile likelihood, 95%, for the target: {_profiled(fit['profiled_prediction'])}. "
        f"Constants known only together (correlation): {fit['flat'] or 'none'}; compare predictions.</p>"
    )


def _profiled(spans: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {cell(name, [number(v) for v in pair])}" for name, pair in spans.items()) or "none"


def _warnings(facts: Mapping[str, Any]) -> str:
    items = list(facts["warnings"]) + [f"{name} refused: {why}" for name, why in facts["refused"].items()]
    items += [f"budget left out: {r['message']}" for r in (facts["isoflop"] or {}).get("refusals", [])]
    if facts["tokens_per_param_range"]:
        items.append(
            f"Support: D/N from {span(facts['tokens_per_param_range'])}, C from "
            f"{span(facts['flops_range'], flops_text)} FLOPs."
        )
    bad = table(("Row", "Reason"), [(row["where"], row["reason"]) for row in facts["bad_rows"]], text=(1,))
    listed = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    rows = (
        f"<p>Rows left out ({len(facts['bad_rows'])}):</p>{bad}" if facts["bad_rows"] else "<p>No row was left out.</p>"
    )
    return f"<h2>Warnings and limits</h2><ul>{listed}</ul>{rows}"


def _time(facts: Mapping[str, Any]) -> str:
    spent: dict[float, list[float]] = {}
    for run in facts["runs"]:
        if run["seconds"] is not None:
            spent.setdefault(run["budget"] or 0.0, []).append(run["seconds"])
    if not spent:
        return ""
    total = sum(sum(values) for values in spent.values())
    rows = [
        (flops_text(b), len(v), f"{sum(v):,.0f}", f"{max(v):,.0f}", f"{sum(v) / total:.0%}")
        for b, v in sorted(spent.items())
    ]
    return f"<h2>Where the time went</h2><p>{total:,.0f} seconds of training in all.</p>" + table(
        ("Budget, FLOPs", "Runs", "Seconds", "Longest run", "Share"), rows
    )


def _runs(facts: Mapping[str, Any]) -> str:
    rows = [
        (
            r["name"],
            r["role"],
            flops_text(r["budget"]) if r["budget"] else "-",
            count(r["params"]),
            count(r["tokens"]),
            count(r["tokens_per_param"]),
            flops_text(r["flops"]),
            loss_text(r["loss"]),
            loss_text(r["bits_per_byte"]) if r["bits_per_byte"] is not None else "-",
            f"{r['seconds']:,.0f}" if r["seconds"] is not None else "-",
        )
        for r in facts["runs"]
    ]
    listed = table(("Run", "Role", "Budget", "N", "D", "D/N", "C", "Loss", "Bits/byte", "Seconds"), rows, text=(1,))
    reading = "".join(f"<li>{html.escape(line)}</li>" for line in facts["reading"])
    return f"<h2>Runs</h2><ul>{reading}</ul><details open><summary>{len(rows)} runs</summary>{listed}</details>"


def _redo(facts: Mapping[str, Any]) -> str:
    return f"<h2>To make this report again</h2><p><code>{html.escape(facts['command'])}</code></p>"
