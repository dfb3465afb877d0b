"""Sections as text and as a page: the same words in both, in the same order."""

import re
from html import unescape

from chinchilla_jax.scaling.answers import answers
from chinchilla_jax.scaling.report import report
from chinchilla_jax.scaling.report.facts import facts_of
from chinchilla_jax.scaling.report.sections import Section, Table, answer_section, of_prediction
from chinchilla_jax.scaling.report.text import tell

ROWS = [{"Law": "one <b>", "N": ("70B", "60B to 80B")}, {"Law": "two", "N": ("7B", "-")}]
SECTION = Section("Title", ["an item"], ["A sentence."], [Table(ROWS, words=("Law",), marked=(1,))], ["A note."])


def lines(*sections):
    found = []
    tell(sections, found.append)
    return found


def page(monkeypatch, *sections):
    monkeypatch.setattr(report, "of_page", lambda facts: (list(sections), []))
    return report.render({"source": "here"}, {})


def test_text_shows_small_print_below_and_marks_rows():
    assert lines(SECTION) == [
        "",
        "Title",
        "  an item",
        "  A sentence.",
        "  Law                 N",
        "    one <b>         70B",
        "             60B to 80B",
        "  * two              7B",
        "                      -",
        "  A note.",
    ]


def test_a_label_goes_before_each_item():
    assert lines(Section("Warnings", items=["one"], label="warning: ")) == ["", "Warnings", "warning: one"]


def test_the_page_says_what_the_text_says_in_the_same_order(monkeypatch):
    text = unescape(re.sub(r"<[^>]+>", " ", page(monkeypatch, SECTION).split("<body>")[1]))
    words = [word for line in lines(SECTION) for word in line.split() if word not in ("*", "-")]
    assert sorted(words) == sorted(word for word in text.split()[3:] if word != "-")
    assert [text.index(part) for part in ("an item", "A sentence", "70B", "A note")] == sorted(
        text.index(part) for part in ("an item", "A sentence", "70B", "A note")
    )


def test_what_is_read_is_escaped_on_the_page(monkeypatch):
    found = page(monkeypatch, SECTION)
    assert "one &lt;b&gt;" in found and "one <b>" not in found
    assert "<td class=text>two</td><td>7B<small>-</small></td>" in found and found.count("class=best") == 1


def test_an_answer_is_worded_by_its_columns():
    row = {"law": "x", "N": 7e10, "loss": 2.0, "extra FLOPs": "inf"}
    section = answer_section({"title": "T", "rows": [row], "notes": ["n"]})
    assert section.tables[0].rows == [{"law": "x", "N": "70B", "loss": "2.0000", "extra FLOPs": "never"}]
    assert section.notes == ["n."]


def test_laws_alone_give_the_answers_alone():
    found = [answers.optimum(answers.published_laws(), 1e21)]
    assert [section.title for section in of_prediction(facts_of(answers=found))] == [found[0].title]
