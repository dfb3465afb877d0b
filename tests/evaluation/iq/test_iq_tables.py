"""A user's table becomes a task of symbolic mapping, or a line that says why not."""

import json

import pytest

from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.evaluation.iq.symbols import PUBLISHED_SIZES
from chinchilla_jax.evaluation.iq.tables import read_tasks
from chinchilla_jax.evaluation.iq.tasks import all_tasks
from tests.evaluation.iq.oracles import ORACLES


def _numbers(path, count, separator=","):
    lines = [separator.join(("idx", "number", "label"))]
    lines += [separator.join((str(i), str(i * 7), ("even", "odd")[i * 7 % 2])) for i in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind, separator", [(".csv", ","), (".tsv", "\t")])
def test_a_table_is_asked_without_its_labels_and_solved_by_its_rule(tmp_path, kind, separator):
    (task,) = read_tasks(_numbers(tmp_path / f"parity{kind}", 40, separator))
    questions = task.questions()
    assert task.name == "symbolic_parity" and len({question.asked for question in questions}) == task.size == 40
    for question in questions:
        assert question.answer == ORACLES["symbolic_parity"](question.prompt)
        assert "idx" not in question.prompt.lower() and question.asked not in dict(question.shots)
        assert not any(word in question.prompt for word in ("even", "odd"))


def test_names_of_published_tasks_have_their_sizes(tmp_path):
    for name in ("BoolQ", "wsc", "Mine"):
        _numbers(tmp_path / f"{name}.csv", 400)
    _numbers(tmp_path / "csl.csv", 60)
    (tmp_path / "notes.txt").write_text("not a table")
    sizes = {task.name: task.size for task in read_tasks(tmp_path)}
    assert sizes == {"symbolic_boolq": 299, "symbolic_wsc": 103, "symbolic_mine": 300, "symbolic_csl": 60}
    assert sum(PUBLISHED_SIZES.values()) == 299 + 300 + 277 + 103 + 300 + 208 + 300 + 300
    assert not {"symbolic_passage", "symbolic_word"} & set(all_tasks(tmp_path))


def test_json_lines_may_hold_truths_objects_lists_and_line_ends(tmp_path):
    rows = [{"text": f"row\n {i}", "target": {"span1": f"s{i}"}, "keyword": ["a", "b"], "label": i % 2 == 0}
            for i in range(8)]  # fmt: skip
    path = tmp_path / "wsc.jsonl"
    path.write_text("\n\n".join(map(json.dumps, [*rows, rows[0]])), encoding="utf-8")
    (task,) = read_tasks(path)
    asked = {question.asked for question in task.questions()}
    assert asked == {f"Text: row {i}\nSpan1: s{i}\nKeyword: a, b\nLabel:" for i in range(8)}


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("a.csv", "text,answer\nx,1\n", "line 2: no column 'label'; it has text, answer"),
        ("a.csv", "text,label\nx,1,2\n", "line 2: more values than columns"),
        ("a.csv", "text,label\nx,\n", "line 2: no label"),
        ("a.csv", "text,label\n,1\n", "line 2: no text"),
        ("a.csv", "text,label\n", "it has no rows"),
        ("a.csv", 'text,label\n"x,1\n', "line 1: unexpected end of data"),
        ("a.csv", "text,label\nx,1\ny,1\nz,1\n", "all rows have the label '1'"),
        ("a.csv", "text,label\nx,1\ny,1\nz,1\nu,0\nu,0\nu,0\n", "only 1 different rows have the label '0'; "
         "of a label at least 3 are needed, for a question and its examples"),
        ("a.jsonl", '{"label": 1}\n[1]', "line 1: no text"),
        ("a.jsonl", "[1]", "line 1: no JSON object; a file has one in each line"),
        ("a.jsonl", "{", "line 1: no JSON object; a file has one in each line"),
        ("a.xlsx", "x", "a table of this kind is not read; it takes .csv, .tsv, .jsonl, .json"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_told_in_a_line(tmp_path, name, text, told):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read_tasks(path)
    assert str(error.value) == f"--rules={path}: {told}"


def test_no_file_no_table_and_two_of_a_name_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.csv").write_bytes(b"text,label\n\xe9,1\n")
    for path, told in (("none", "no such file"), ("empty", "no table in this folder"), ("latin.csv", "can't decode")):
        with pytest.raises(UsageError, match=told):
            read_tasks(tmp_path / path)
    for name in ("two/a.csv", "two/A.tsv"):
        (tmp_path / "two").mkdir(exist_ok=True)
        _numbers(tmp_path / name, 20, "\t" if name.endswith("tsv") else ",")
    with pytest.raises(UsageError, match="two tables make the task symbolic_a; rename one"):
        read_tasks(tmp_path / "two")
