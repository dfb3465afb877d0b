"""Tasks of the harness through the verb: offline, with your own tasks and data sets; suites; our tasks asked by it."""

import json
import os
import pathlib
import socket

import pytest

from chinchilla_jax import cli
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.evaluation.harness import evaluate as module
from chinchilla_jax.evaluation.harness import suites as suites_of
from chinchilla_jax.evaluation.harness.data_sets import OFFLINE, NotHere, found_in
from chinchilla_jax.evaluation.harness.evaluate import Tasks, evaluate, need_lm_eval
from chinchilla_jax.evaluation.harness.lm import TrainedLM
from chinchilla_jax.evaluation.harness.scorer import Scorer
from chinchilla_jax.evaluation.harness.suites import Asked, Suite, suite, suites
from chinchilla_jax.evaluation.tasks.ask import ask
from chinchilla_jax.evaluation.tasks.question import Choice, Given, Task

GOLDEN = pathlib.Path(__file__).parent / "golden"
WEIGHTS = GOLDEN.parents[2] / "interop" / "fixtures" / "grouped_tied"
QUESTIONS = [
    {"q": f"The {a} of the", "o": ["King", "old man", "b"], "y": i % 3}
    for i, a in enumerate(["hat", "ship", "end", "sun"])
]


def task_file(folder, name, path="tiny/questions", **more):
    """A multiple-choice task of a data set PATH."""
    lines = {"task": name, "dataset_path": path, "output_type": "multiple_choice", "test_split": "test"} | more
    lines |= {"doc_to_text": '"{{q}}"', "doc_to_choice": "o", "doc_to_target": "y"}
    text = "".join(f"{key}: {value}\n" for key, value in lines.items())
    (folder / f"{name}.yaml").write_text(text + "metric_list:\n  - metric: acc\n  - metric: acc_norm\n")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tasks, and their data sets in three forms."""
    need_lm_eval()  # before what may fetch things is imported
    import datasets

    tasks, data = tmp_path_factory.mktemp("tasks"), tmp_path_factory.mktemp("data")
    for name, path in (("as_lines", "tiny/questions"), ("as_saved", "tiny/saved"), ("as_parquet", "any/rows")):
        task_file(tasks, name, path)
    task_file(tasks, "nowhere", "tiny/lost", dataset_name="part")
    group = "group: both\ntask:\n  - as_lines\n  - as_saved\naggregate_metric_list:\n  - metric: acc\n"
    (tasks / "both.yaml").write_text(group)
    (data / "tiny" / "questions").mkdir(parents=True)
    (data / "tiny" / "questions" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    rows = datasets.Dataset.from_list(QUESTIONS)
    datasets.DatasetDict(test=rows).save_to_disk(data / "tiny" / "saved")
    (data / "rows").mkdir()
    rows.to_parquet(data / "rows" / "test-00000-of-00001.parquet")
    return tasks, data


def test_data_sets_are_found_in_a_folder_in_any_form(talking, folders):
    tasks, data = folders
    scorer, names = Scorer(talking()), ["as_lines", "as_saved", "as_parquet"]
    loaded = Tasks([*names, "nowhere"], tasks)
    records = [evaluate(scorer, loaded, Asked(name), data)[name].record for name in names]
    assert records[0] == records[1] == records[2] and records[0]["questions"] == 4
    with pytest.raises(NotHere, match="nowhere: the data set tiny/lost/part is neither in .*--data=FOLDER"):
        evaluate(scorer, loaded, Asked("nowhere"), data)
    with pytest.raises(NotHere, match="tiny/lost/part is not on this machine"):
        evaluate(scorer, loaded, Asked("nowhere"))
    with pytest.raises(UsageError, match="as_lines/9: its data have fewer examples than the shots"):
        evaluate(scorer, loaded, Asked("as_lines", shots=9), data)


def test_a_group_has_one_record_and_all_its_questions(talking, folders):
    tasks, data = folders
    scorer, loaded = Scorer(talking()), Tasks(["both", "as_lines"], tasks)
    (group,) = evaluate(scorer, loaded, Asked("both"), data).values()
    (alone,) = evaluate(scorer, loaded, Asked("as_lines"), data).values()
    assert group.record["questions"] == len(group.questions) == 8
    assert group.record["metrics"] == {"acc": alone.record["metrics"]["acc"]}  # both have the same questions


def test_our_own_questions_score_as_the_harness_scores_them(talking, folders):
    tasks, data = folders
    scorer = Scorer(talking())
    theirs = evaluate(scorer, Tasks(["as_lines"], tasks), Asked("as_lines"), data)["as_lines"]
    questions = [Choice(row["q"], tuple(row["o"]), row["y"]) for row in QUESTIONS]
    ours = ask(scorer, Task("ours", lambda given: questions, "acc"), Given())
    assert ours.record["metrics"] == pytest.approx(theirs.record["metrics"])
    for here, there in zip(ours.questions, theirs.questions, strict=True):
        assert here["log_likelihoods"] == pytest.approx([answer[0][0] for answer in there["resps"]], abs=1e-5)
        assert here["acc"] == there["acc"] and here["acc_norm"] == there["acc_norm"]


def test_the_verb_asks_tasks_of_yours_and_nothing_reaches_the_network(folders, tmp_path, capsys, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    tasks, data = folders
    words = ["evaluate", str(WEIGHTS), f"--tokenizer={GOLDEN / 'tokenizer.model'}", f"--include={tasks}"]
    out = tmp_path / "out"
    assert cli.main([*words, "--tasks=as_lines,as_saved", f"--data={data}", "--limit=3", f"--output={out}"]) == 0
    told = capsys.readouterr().out
    assert "as_lines: acc " in told and "3 questions" in told and "kept in" not in told  # weights are no run
    facts = json.loads((out / "results.json").read_text())
    assert (
        facts["tasks"]["as_saved"]["by"].startswith("lm-eval 0.4") and facts["tasks"]["as_saved"]["main"] == "acc_norm"
    )
    assert len((out / "as_lines.jsonl").read_text().splitlines()) == 3
    assert cli.main([*words, "--tasks=nowhere"]) == 2
    assert "the data set tiny/lost/part is not on this machine" in capsys.readouterr().err
    assert cli.main(words[:3]) == 2 and "--heldout=FOLDER" in capsys.readouterr().err


def test_a_suite_leaves_out_what_is_not_there_and_tells_it_once(folders, capsys, monkeypatch):
    asked = (Asked("as_lines", 0), Asked("nowhere", 0), Asked("nowhere", 1), Asked("as_saved"))
    monkeypatch.setattr(suites_of, "suites", lambda: {"mine": Suite(asked, ("RACE-m",))})
    tasks, data = folders
    words = ["evaluate", str(WEIGHTS), f"--tokenizer={GOLDEN / 'tokenizer.model'}", f"--include={tasks}"]
    assert cli.main([*words, "--suite=mine", f"--data={data}"]) == 0
    out = capsys.readouterr().out
    assert "does not have RACE-m" in out and out.count("left out: nowhere") == 1
    assert "as_lines/0: acc" in out and "as_saved: acc" in out
    assert cli.main([*words, "--suite=mine"]) == 2
    assert "no task of it can be asked here" in capsys.readouterr().err


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    def missing(name):
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", missing)
    with pytest.raises(module.UsageError, match=r"pip install 'chinchilla_jax\[evaluate\]'"):
        need_lm_eval()


def test_it_is_offline_unless_the_environment_says_otherwise(monkeypatch):
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    need_lm_eval()
    assert "HF_DATASETS_OFFLINE" not in os.environ
    monkeypatch.delenv("HF_HUB_OFFLINE")
    need_lm_eval()
    assert {os.environ[name] for name in OFFLINE} == {"1"}


def test_suites_are_those_of_the_papers():
    assert set(suites()) == {"chinchilla", "gopher", "llama"}
    chinchilla, llama = suite("chinchilla"), suite("llama")
    names = [asked.name for asked in chinchilla.tasks]
    assert len(names) == len(set(names)) and sum(name.startswith("pile_") for name in names) == 22
    assert {"mmlu/5", "nq_open/64", "hellaswag/0", "lambada_openai/0"} <= set(names) and "RACE-m" in chinchilla.missing
    assert {asked.task for asked in llama.tasks} >= {"gsm8k", "humaneval", "openbookqa", "crows_pairs_english"}
    assert "FEVER, two and three classes" in suite("gopher").missing


@pytest.mark.long
def test_every_task_of_a_suite_is_one_of_the_harness():
    Tasks(sorted({asked.task for of_paper in suites().values() for asked in of_paper.tasks}))


def test_settings_of_writing_are_read_as_the_harness_means_them(talking):
    settings = TrainedLM(Scorer(talking(seq_len=64)))._settings
    assert settings({"until": ["\n", "."], "max_gen_toks": 5}) == (5, ("\n", "."), settings({})[2])
    assert settings({"until": "x", "max_new_tokens": 300})[:2] == (32, ("x",)) and settings({})[0] == 32
    drawn = settings({"do_sample": True, "temperature": 0.5, "top_k": 3})[2]
    assert (drawn.temperature, drawn.top_k, drawn.top_p) == (0.5, 3, 1.0)
    assert settings({"do_sample": False, "temperature": 0.5})[2].temperature == 0.0
    with found_in(None):
        pass
