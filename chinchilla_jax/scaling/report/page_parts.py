"""What are the pages of a report made of: the style, tables, spans of numbers?

A table never widens the page: it stands in a box of its own that scrolls where the window is narrow.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from chinchilla_jax.base.words import count

STYLE = """
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1d2430;
  margin: 0; background: #f5f6f8 }
main { max-width: 1000px; margin: 0 auto; padding: 28px 32px 60px; background: #fff }
h1 { font-size: 1.7em; margin: .2em 0; overflow-wrap: anywhere }
h2 { font-size: 1.25em; margin: 2em 0 .5em; border-bottom: 1px solid #d9dde3; padding-bottom: .2em }
h3 { font-size: 1.05em; margin: 1.4em 0 .3em }
p, li, summary, .verdict div { overflow-wrap: anywhere }
p.lead { font-size: 1.1em }
table { border-collapse: collapse; margin: .7em 0; font-size: .88em; font-variant-numeric: tabular-nums }
td, th { padding: .25em 0 .25em .9em; text-align: right; border-bottom: 1px solid #eceef1; white-space: nowrap;
  vertical-align: top }
td:first-child, th:first-child { padding-left: 0 }
td:first-child, th:first-child, td.text, th.text { text-align: left }
td.text { white-space: normal; min-width: 9em }
td small { display: block; color: #5f6670; font-size: .92em }
tr.best td { background: #eef6fb; font-weight: 600 }
tr.best small { font-weight: 400 }
th { color: #5f6670; font-weight: 600 }
sup { line-height: 0 }
.scroll { overflow-x: auto; max-width: 100% }
.figure { overflow-x: auto; margin: 1.2em 0 }
.figure img { display: block; width: 100%; min-width: 620px; height: auto }
.verdict { display: flex; gap: 14px; padding: .5em 0; align-items: baseline }
.tag { flex: none; width: 6em; text-align: center; border-radius: 4px; font-weight: 700; font-size: .82em;
  padding: .15em 0 }
.pass { background: #cfe8f7; color: #003f66 }
.fail { background: #f9dccb; color: #7a2f00 }
.pending { background: #e6e8ec; color: #444b55 }
.note { color: #5f6670; font-size: .9em }
code { background: #eef0f3; padding: .15em .35em; border-radius: 3px; font-size: .88em; overflow-wrap: anywhere }
summary { cursor: pointer; font-weight: 600 }
@media (max-width: 600px) {
  main { padding: 14px 14px 40px }
  h1 { font-size: 1.35em }
  td.text { min-width: 6em }
  .verdict { gap: 10px }
}
"""
APPROACH = {
    "envelope": "Approach 1 (training curves)",
    "isoflop": "Approach 2 (IsoFLOP profiles)",
    "parametric": "Approach 3 (parametric surface)",
}


def table(
    head: Iterable[str], rows: Iterable[Iterable[Any]], text: Iterable[int] = (), best: Iterable[int] = ()
) -> str:
    """A table in its own box. A cell (value, below) has a second line in small print.

    Args:
      text: columns of words, which may wrap.
      best: rows that are marked.
    """
    text, best = set(text), set(best)

    def cells(tag: str, row: Iterable[Any]) -> str:
        return "".join(f"<{tag}{' class=text' if i in text else ''}>{_cell(v)}</{tag}>" for i, v in enumerate(row))

    lines = "\n".join(f"<tr{' class=best' if i in best else ''}>{cells('td', row)}</tr>" for i, row in enumerate(rows))
    return f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{html.escape(str(value[0]))}<small>{html.escape(str(value[1]))}</small>"
    return html.escape(str(value))


def span(pair: Iterable[float] | None, form=count) -> str:
    """`low to high`, or a dash."""
    return f"{form(pair[0])} to {form(pair[1])}" if pair else "-"


def number(value: Any) -> Any:
    """Infinite values are text in the facts, since JSON has none."""
    return float(value) if value in ("inf", "-inf", "nan") else value


def short(value: float | str) -> str:
    """Four digits, and text as it is."""
    return value if isinstance(value, str) else f"{value:.4g}"


def notes(lines: Iterable[str]) -> str:
    """Paragraphs in small print."""
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in lines)
