"""How are the facts of a report laid out as one HTML page? Images are embedded; nothing is fetched."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping
from typing import Any

from chinchilla_jax.scaling.words import cell, count, flops_text

_STYLE = """
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1d2430;
  margin: 0; background: #f5f6f8 }
main { max-width: 1000px; margin: 0 auto; padding: 28px 32px 60px; background: #fff }
h1 { font-size: 1.7em; margin: .2em 0 }
h2 { font-size: 1.25em; margin: 2em 0 .5em; border-bottom: 1px solid #d9dde3; padding-bottom: .2em }
p.lead { font-size: 1.1em }
table { border-collapse: collapse; margin: .7em 0; font-size: .88em; font-variant-numeric: tabular-nums }
td, th { padding: .25em .8em .25em 0; text-align: right; border-bottom: 1px solid #eceef1; white-space: nowrap }
td:first-child, th:first-child, td.text, th.text { text-align: left }
td.text { white-space: normal }
th { color: #5f6670; font-weight: 600 }
.scroll { overflow-x: auto }
img { max-width: 100%; height: auto }
.verdict { display: flex; gap: 14px; padding: .5em 0; align-items: baseline }
.tag { flex: none; width: 6em; text-align: center; border-radius: 4px; font-weight: 700; font-size: .82em;
  padding: .15em 0 }
.pass { background: #cfe8f7; color: #003f66 }
.fail { background: #f9dccb; color: #7a2f00 }
.pending { background: #e6e8ec; color: #444b55 }
.note { color: #5f6670; font-size: .9em }
code { background: #eef0f3; padding: .15em .35em; border-radius: 3px; font-size: .88em; overflow-wrap: anywhere }
summary { cursor: pointer; font-weight: 600 }
"""
_APPROACH = {
    "envelope": "Approach 1 (training curves)",
    "isoflop": "Approach 2 (IsoFLOP profiles)",
    "parametric": "Approach 3 (parametric surface)",
}


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
        _presets(facts),
        _warnings(facts),
        _time(facts),
        _runs(facts),
        _redo(facts),
    ]
    body = "\n".join(section for section in sections if section)
    title = f"Scaling study: {html.escape(str(facts['source']))}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{title}</title>\n<style>{_STYLE}</style></head>\n'
        f"<body><main>\n<h1>{title}</h1>\n{body}\n</main></body></html>\n"
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]], text: Iterable[int] = ()) -> str:
    text = set(text)

    def cells(tag: str, row: Iterable[Any]) -> str:
        return "".join(
            f"<{tag}{' class=text' if i in text else ''}>{html.escape(str(v))}</{tag}>" for i, v in enumerate(row)
        )

    lines = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{lines}</tbody></table></div>'


def _span(pair: Iterable[float] | None, form=count) -> str:
    return f"{form(pair[0])} to {form(pair[1])}" if pair else "-"


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _lead(facts: Mapping[str, Any]) -> str:
    prediction, budget = facts["prediction"], facts["target_budget"]
    if not prediction:
        return '<p class="lead">No prediction yet; the reasons are below.</p>'
    best = prediction["estimates"][prediction["recommended"]]
    interval = best["intervals"].get("loss", {}).get("95%")
    sure = f" (95% interval {_span(interval, _loss)})" if interval else ""
    return (
        f'<p class="lead">For <b>{flops_text(budget)} FLOPs</b>, {facts["extrapolation"]:.3g} times the largest budget '
        f"fitted, train <b>{count(best['params'])} parameters on "
        f"{count(prediction['tokens_at_budget'])} tokens</b> and "
        f"expect a validation loss of <b>{best['loss']:.4f} nats per token</b>{sure}.</p>"
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
            _APPROACH[r["approach"]],
            f"{r['a']:.3f}",
            _span(r["a_95"], lambda v: f"{v:.3f}"),
            f"{r['b']:.3f}",
            _span(r["b_95"], lambda v: f"{v:.3f}"),
            count(r["params"]),
            _span(r.get("params_95")),
            count(r["tokens"]),
            count(r["tokens_per_param"]),
            _loss(r["loss"]) + (" (training)" if "training" in r["loss_law"] else ""),
            _span(r.get("loss_95"), _loss),
        )
        for r in facts["approaches"]
    ]
    head = ("Approach", "a", "95%", "b", "95%", "N*", "95%", "D*", "D*/N*", "Loss", "95%")
    return (
        f"<h2>Three approaches, side by side</h2>{_table(head, rows)}"
        f'<p class="note">N* ~ C<sup>a</sup>, D* ~ C<sup>b</sup>; N*, D* and loss for '
        f"{flops_text(facts['target_budget'])} FLOPs. Preset {facts['preset']}.</p>"
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
        rows = [[cell(column, _number(row.get(column))) for column in columns] for row in section["rows"]]
        notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in section["notes"])
        parts.append(f"<h3>{html.escape(section['title'])}</h3>{_table(columns, rows) if rows else ''}{notes}")
    return f"<h2>What else could be trained</h2>{''.join(parts)}" if parts else ""


def _number(value: Any) -> Any:
    """Infinite values are text in the facts, since JSON has none."""
    return float(value) if value in ("inf", "-inf", "nan") else value


def _presets(facts: Mapping[str, Any]) -> str:
    items = "".join(
        f"<li>{html.escape(_APPROACH[name])}: {html.escape('; '.join(lines))}.</li>"
        for name, lines in facts["differences"].items()
        if lines
    )
    return f"<h2>What preset {facts['preset']} does, and why</h2><ul>{items}</ul>" if items else ""


def _prediction(facts: Mapping[str, Any]) -> str:
    prediction = facts["prediction"]
    if not prediction:
        return ""
    rows = []
    for name, e in prediction["estimates"].items():
        mark = " (recommended)" if name == prediction["recommended"] else ""
        for quantity, label, form in (
            ("params", "Parameters N", count),
            ("tokens", "Tokens D", count),
            ("tokens_per_param", "D/N", count),
            ("loss", "Loss, nats/token", _loss),
        ):
            spans = e["intervals"].get(quantity, {})
            rows.append(
                (
                    _APPROACH[name] + mark if quantity == "params" else "",
                    label,
                    form(e[quantity]),
                    _span(spans.get("80%"), form),
                    _span(spans.get("95%"), form),
                )
            )
    table = _table(("Approach", "Quantity", "Prediction", "80% interval", "95% interval"), rows, text=(1,))
    rollouts = _table(
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
                _loss(r["predicted_loss"]),
                _loss(r["profile_loss"]),
                f"{r['loss_error']:+.2%}",
                f"{r['size_cost']:.2%}",
            )
            for r in prediction["rollouts"]
        ],
    )
    hidden = f"<p>Rollouts: larger budgets hidden and predicted from smaller ones; the last decide.</p>{rollouts}"
    return (
        f"<h2>Prediction for {flops_text(facts['target_budget'])} FLOPs</h2>{table}"
        f'<p class="note">Recommended: {html.escape(prediction["why"])}. Intervals are bootstrap percentiles; those of '
        "the loss are for a single trained run. Approach 2 fits N and D apart, so its D/N need not spend the budget "
        f"exactly.</p>{hidden if prediction['rollouts'] else ''}"
    )


def _figures(images: Mapping[str, bytes]) -> str:
    figures = "\n".join(
        f'<p><img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(data).decode()}"></p>'
        for title, data in images.items()
    )
    return f"<h2>Figures</h2>\n{figures}" if images else ""


def _isoflop(facts: Mapping[str, Any]) -> str:
    fit = facts["isoflop"]
    if not fit:
        return ""
    laws = _table(
        ("Law", "k", "Exponent", "80% interval", "95% interval"),
        [
            (
                law["form"] + (f", E = {law['irreducible']:.4f}" if "irreducible" in law else ""),
                f"{law['coefficient']:.4g}",
                f"{law['exponent']:.4f}",
                *(_span(law["intervals"].get(k), _loss) for k in ("80%", "95%")),
            )
            for law in fit["laws"].values()
        ],
    )
    profiles = _table(
        ("Budget, FLOPs", "Runs", "N*", "D*", "D*/N*", "Minimum loss", "Scatter", "Bootstrap draws usable"),
        [
            (
                flops_text(p["budget"]),
                p["runs"],
                count(p["params"]),
                count(p["tokens"]),
                count(p["tokens"] / p["params"]),
                _loss(p["loss"]),
                f"{p['scatter']:.2%}",
                f"{p['kept_draws']:.0%}",
            )
            for p in fit["profiles"]
        ],
    )
    bias = "".join(f'<p class="note">{html.escape(line)}.</p>' for line in fit["bias"])
    return f"<h2>Approach 2: IsoFLOP profiles</h2>{profiles}{laws}{bias}"


def _parametric(facts: Mapping[str, Any]) -> str:
    fit = facts["parametric"]
    if not fit:
        return ""
    table = _table(
        ("Constant", "Value", "80% interval", "95% interval", "95%, profile likelihood"),
        [
            (
                name,
                f"{value:.5g}",
                *(_span(fit["intervals"].get(name, {}).get(k), _short) for k in ("80%", "95%")),
                _span(fit["profile_likelihood"].get(name), _short),
            )
            for name, value in fit["values"].items()
        ],
    )
    return (
        f"<h2>Approach 3: L = E + A/N<sup>alpha</sup> + B/D<sup>beta</sup></h2>{table}"
        f'<p class="note">{fit["runs"]} runs, Huber threshold {fit["delta"]:g} on log loss; objective '
        f"{fit['objective']:.7g}, gradient {fit['gradient']:.1e}; "
        f"{fit['agreement']:.0%} of {fit['starts']} starts reached "
        f"this minimum; scatter of a run about the surface {fit['scatter']:.2%}. "
        "a and b are the exponents of the optimal N and D under C = 6ND. "
        f"Profile likelihood, 95%, for the target: {_profiled(fit['profiled_prediction'])}. "
        f"Constants known only together (correlation): {fit['flat'] or 'none'}; compare predictions.</p>"
    )


def _profiled(spans: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {cell(name, [_number(v) for v in span])}" for name, span in spans.items()) or "none"


def _warnings(facts: Mapping[str, Any]) -> str:
    items = list(facts["warnings"]) + [f"{name} refused: {why}" for name, why in facts["refused"].items()]
    items += [f"budget left out: {r['message']}" for r in (facts["isoflop"] or {}).get("refusals", [])]
    if facts["tokens_per_param_range"]:
        items.append(
            f"Support: D/N from {_span(facts['tokens_per_param_range'])}, C from "
            f"{_span(facts['flops_range'], flops_text)} FLOPs."
        )
    bad = _table(("Row", "Reason"), [(row["where"], row["reason"]) for row in facts["bad_rows"]], text=(1,))
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
    return f"<h2>Where the time went</h2><p>{total:,.0f} seconds of training in all.</p>" + _table(
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
            _loss(r["loss"]),
            _loss(r["bits_per_byte"]) if r["bits_per_byte"] is not None else "-",
            f"{r['seconds']:,.0f}" if r["seconds"] is not None else "-",
        )
        for r in facts["runs"]
    ]
    table = _table(("Run", "Role", "Budget", "N", "D", "D/N", "C", "Loss", "Bits/byte", "Seconds"), rows, text=(1,))
    reading = "".join(f"<li>{html.escape(line)}</li>" for line in facts["reading"])
    return (
        f"<h2>Runs</h2><ul>{reading}</ul>"
        f"<details open><summary>{len(rows)} runs</summary>{table}</details>"
    )


def _redo(facts: Mapping[str, Any]) -> str:
    return f"<h2>To make this report again</h2><p><code>{html.escape(facts['command'])}</code></p>"
