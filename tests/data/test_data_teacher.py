"""Propositions become rows of which one position counts; the text beside them stays what it is."""

import dataclasses
import json

import numpy as np
import pytest

from chinchilla_jax.config import ConfigError, DataConfig
from chinchilla_jax.data import Batches, DataError, Teacher, TokenStore, prepare, store_path
from chinchilla_jax.data.teacher import DOMAIN, label_pieces, read_propositions
from chinchilla_jax.data.tokenizers import open_tokenizer
from chinchilla_jax.tools.parity import main, parity_propositions

WEIGHT, SHARE = 3.0, 0.25


def quiet(_):
    """An `echo` that says nothing."""


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def taught(data, tmp_path_factory):
    """The shipped text with propositions beside it, prepared."""
    file = written(tmp_path_factory.mktemp("teacher") / "parity.jsonl", parity_propositions(300, 3, seed=0))
    config = dataclasses.replace(data, teacher=file, teacher_share=SHARE, teacher_weight=WEIGHT)
    prepare(config, quiet)
    return config


@pytest.fixture(scope="module")
def teacher(taught, store):
    return Teacher(taught, store.tokenizer())


@pytest.fixture(scope="module")
def batches(store, teacher):
    return Batches(store, "proportional", seed=5, mask_documents=True, teacher=teacher)


@pytest.fixture
def prepared(data, tmp_path):
    """`prepared(propositions)`: the config with them, and what preparing it said."""

    def make(propositions, **settings):
        said = []
        file = written(tmp_path / "some.jsonl", propositions)
        config = dataclasses.replace(data, teacher=file, **settings)
        prepare(config, said.append)
        return config, "\n".join(said)

    return make


def test_every_proposition_is_a_row_of_one_split_with_its_label_behind_it(taught, teacher):
    tokenizer, found = teacher.store.tokenizer(), {}
    assert teacher.labels == (0, 3)
    for split in ("train", "validation"):
        for row in np.asarray(teacher.array(split), int):
            end = int(teacher.targets(row[None])[0])
            assert row[0] == tokenizer.separator and (row[end + 1 :] == tokenizer.separator).all()
            text = tokenizer.decode(row[1:end])
            assert text not in found
            found[text] = bool(row[end] == teacher.labels[0])
    assert found == {p.text: p.label for p in read_propositions(taught.teacher)} and len(found) == 300
    assert teacher.store.rows(DOMAIN, "validation") >= 1


def test_of_a_proposition_only_the_label_counts(batches, teacher):
    batch = batches.batch(0, 400)
    is_label = batch["other_labels"] >= 0
    propositions = is_label.any(axis=1)
    assert (is_label.sum(axis=1)[propositions] == 1).all() and abs(propositions.mean() - SHARE) < 0.02
    assert (batch["weights"][propositions] == np.where(is_label[propositions], WEIGHT, 0.0)).all()
    assert set(np.unique(batch["weights"][~propositions])) == {1.0}
    both = np.stack([batch["targets"][is_label], batch["other_labels"][is_label]])
    assert (np.sort(both, axis=0) == np.array([[0], [3]])).all() and len(np.unique(both[0])) == 2


def test_a_proposition_is_one_segment_and_what_follows_its_label_is_padding(batches):
    batch = batches.batch(0, 400)
    for row in np.flatnonzero((batch["other_labels"] >= 0).any(axis=1)):
        end = int(np.argmax(batch["other_labels"][row] >= 0)) + 1
        assert (batch["segment_ids"][row, :end] == 1).all() and not batch["segment_ids"][row, end:].any()


@pytest.mark.parametrize("hosts", [2, 3, 12])
def test_any_number_of_hosts_sees_the_same_global_batch(batches, hosts):
    share, whole = 12 // hosts, batches.batch(36, 12)
    parts = [batches.batch(36, 12, rows=slice(h * share, (h + 1) * share)) for h in range(hosts)]
    assert (whole["other_labels"] >= 0).any()
    for name, values in whole.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), values), name


@pytest.mark.parametrize("sequences", [0, 7, 1000, 65536, 200_000])
def test_propositions_are_counted_without_drawing_them(batches, sequences):
    domain, _, _ = batches.index.locate(np.arange(sequences))
    assert batches.propositions(sequences) == (domain == len(batches.weights)).sum()


def test_a_share_of_nothing_is_text_alone(data, taught, store, batches):
    nothing = dataclasses.replace(taught, teacher_share=0.0, teacher="absent.jsonl")
    assert not nothing.has_teacher and prepare(nothing, quiet) == store.path == store_path(taught)
    assert TokenStore(store_path(taught)).content_hash() == store.content_hash()
    assert Batches(store, "proportional", seed=5).propositions(1000) == 0
    assert batches.weights == Batches(store, "proportional", seed=5).weights


def test_held_out_text_is_the_same_with_a_teacher(store, batches):
    plain = Batches(store, "proportional", seed=5, mask_documents=True)
    for domain in store.domains:
        for one, two in zip(plain.validation(domain, 4), batches.validation(domain, 4), strict=True):
            assert (two.pop("other_labels") == -1).all()
            assert all(np.array_equal(one[name], two[name]) for name in one) and one.keys() == two.keys()


def test_held_out_propositions_come_once_each(batches, teacher):
    rows = teacher.store.rows(DOMAIN, "validation")
    parts = list(batches.validation_of_teacher(4))
    assert all(part["inputs"].shape[0] == 4 for part in parts)
    assert sum((part["other_labels"] >= 0).sum() for part in parts) == rows
    assert sum(part["weights"].sum() for part in parts) == rows * WEIGHT
    assert sum((part["other_labels"] >= 0).sum() for part in batches.validation_of_teacher(4, 1)) == 1


def test_too_long_propositions_are_left_out_and_counted(prepared, store):
    short = [{"text": f"number {n}", "label": n % 2 == 0} for n in range(40)]
    config, said = prepared([*short, {"text": "long " * 40, "label": True}])
    teacher = Teacher(config, store.tokenizer())
    assert sum(len(teacher.array(split)) for split in ("train", "validation")) == 40
    assert "1 propositions do not fit into data.seq_len=32 and are left out" in said
    with pytest.raises(ConfigError, match="none fits with its label into data.seq_len=32"):
        prepared([{"text": f"{n} long " * 40, "label": True} for n in range(3)])
    with pytest.raises(DataError, match="some.jsonl: 1 propositions, all of them held out; add some"):
        prepared([{"text": "short", "label": True}])


def test_a_proposition_fits_to_the_last_target(prepared, store):
    """A row of S + 1 tokens holds the separator, S - 1 tokens of text, and the label."""
    tokenizer = store.tokenizer()
    texts = [word + "9" * (31 - len(tokenizer.encode(word))) for word in ("on ", "off ", "up ", "down ")]
    assert {len(tokenizer.encode(text)) for text in texts} == {31}
    config, said = prepared([{"text": text, "label": True} for text in texts])
    teacher = Teacher(config, tokenizer)
    assert "left out" not in said and (np.asarray(teacher.array())[:, -1] == teacher.labels[0]).all()


def test_the_order_of_the_file_says_nothing_about_the_split(taught, prepared, store, teacher):
    records = [json.loads(line) for line in open(taught.teacher)]
    config, _ = prepared(sorted(records, key=lambda record: record["label"]))
    again = Teacher(config, store.tokenizer())
    for split in ("train", "validation"):
        assert np.array_equal(again.array(split), teacher.array(split))


def test_a_file_that_changed_must_be_prepared_again_and_one_that_is_gone_need_not(prepared, store, tmp_path):
    propositions = [{"text": f"number {n}", "label": n % 2 == 0} for n in range(9)]
    config, _ = prepared(propositions)
    file = tmp_path / "some.jsonl"
    written(file, propositions[1:])
    with pytest.raises(DataError, match=r"no data prepared for data.teacher=.*some.jsonl \(or it changed since\)"):
        Teacher(config, store.tokenizer())
    file.unlink()
    assert len(Teacher(config, store.tokenizer()).array()) < 9
    prepared(propositions[1:])
    file.unlink()
    with pytest.raises(DataError, match="not on this machine, and 2 versions of it were prepared"):
        Teacher(config, store.tokenizer())


def test_what_an_interrupted_preparation_left_is_made_again(prepared, store):
    propositions = [{"text": f"figure {n}", "label": n % 2 == 0} for n in range(9)]
    config, _ = prepared(propositions)
    folder = Teacher(config, store.tokenizer()).store.path
    before = (folder / f"{DOMAIN}.train.npy").read_bytes()
    (folder / "store.json").unlink()
    (folder / f"{DOMAIN}.train.npy").write_bytes(before[:100])
    prepared(propositions)
    assert (folder / f"{DOMAIN}.train.npy").read_bytes() == before


GOOD = b'{"text": "a", "label": true}\n'


@pytest.mark.parametrize(("line", "told"), [
    (b'{"text": "b", "label": tru}', "not valid JSON"),
    (b'["b", true]', "no object; write"),
    (b'{"text": "b"}', "no 'label', it has text; write"),
    (b'{"label": true}', "no 'text', it has label"),
    (b"{}", "no 'text', it has nothing"),
    (b'{"text": "b", "label": 1}', "'label' is 1 and not true or false"),
    (b'{"text": "b", "label": "true"}', "'label' is 'true' and not true or false"),
    (b'{"text": 7, "label": true}', "'text' is 7 and not text"),
    (b'{"text": " ", "label": true}', "an empty text"),
    (b'{"text": "\\ud800", "label": true}', "half a surrogate pair"),
    (b'{"text": "a", "label": false}', "calls false what line 1 calls true"),
    (b'{"text": "\xff", "label": true}', "not valid JSON"),
])  # fmt: skip
def test_a_line_that_is_no_proposition_is_named(tmp_path, line, told):
    file = tmp_path / "some.jsonl"
    file.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(DataError, match=told) as error:
        read_propositions(file)
    assert str(error.value).startswith(f"{file}, line 3: ") and "\n" not in str(error.value)


def test_a_file_that_is_absent_or_empty_is_named_and_repeats_count_once(tmp_path):
    file = tmp_path / "some.jsonl"
    with pytest.raises(DataError, match="some.jsonl: no such file; data.teacher is a file of propositions"):
        read_propositions(file)
    file.write_bytes(b"\n")
    with pytest.raises(DataError, match="no propositions in it"):
        read_propositions(file)
    file.write_bytes(GOOD * 3)
    assert len(read_propositions(file)) == 1


def test_labels_are_spare_control_pieces_or_those_that_are_named(store, foreign_model):
    foreign, own = open_tokenizer(foreign_model), store.tokenizer()
    assert label_pieces(own, ()) == (0, 3)
    with pytest.raises(ConfigError, match=r"data.teacher_labels: .*foreign.model has 1 control pieces besides .* two"):
        label_pieces(foreign, ())
    yes, no = (foreign.piece_id(f"<0x{byte:02X}>") for byte in (0, 1))
    assert label_pieces(foreign, ("<0x00>", "<0x01>")) == (yes, no) and label_pieces(own, ("<pad>", "<s>")) == (0, 3)
    with pytest.raises(ConfigError, match="has no piece '<yes>'"):
        label_pieces(own, ("<yes>", "<pad>"))
    with pytest.raises(ConfigError, match="separates the documents"):
        label_pieces(own, ("</s>", "<pad>"))


def test_a_named_piece_may_be_in_a_text_as_well(foreign_model, tmp_path):
    """The label is the last of them."""
    texts = [{"text": f"a sentence about {animal}", "label": True} for animal in ("cats", "dogs", "birds")]
    foreign = open_tokenizer(foreign_model)
    used = foreign._model.id_to_piece(foreign.encode("about")[-1])
    data = DataConfig(source="shipped", data_dir=str(tmp_path), tokenizer=str(foreign_model), vocab_size=400,
                      seq_len=24, teacher=written(tmp_path / "some.jsonl", texts),
                      teacher_labels=(used, "<0x01>"))  # fmt: skip
    assert foreign.piece_id(used) in foreign.encode(texts[0]["text"])
    tokenizer = TokenStore(prepare(data, quiet)).tokenizer()
    teacher = Teacher(data, tokenizer)
    rows = np.concatenate([teacher.array("train"), teacher.array("validation")]).astype(int)
    assert sorted(teacher.targets(rows)) == sorted(len(tokenizer.encode(t["text"])) + 1 for t in texts)


def test_parity_propositions_are_balanced_different_and_true(tmp_path, capsys):
    file = tmp_path / "parity.jsonl"
    main([str(file), "--count=676", "--letters=2"])
    propositions = read_propositions(file)
    assert len(propositions) == 676 and sum(p.label for p in propositions) == 338
    for text, label in propositions:
        assert label == (sum(letter < "n" for letter in text.split(": ")[1].split()) % 2 == 0)
    for argument in ("--count=677", "--letters=6"):
        with pytest.raises(SystemExit):
            main([str(file), "--letters=2", argument])
    assert "there are 676 words of 2 letters" in capsys.readouterr().err
