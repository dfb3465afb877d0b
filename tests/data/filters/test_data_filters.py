"""The filters decide as huggingface/datatrove does on the same words, and each rule turns at its threshold."""

import importlib.util
import json
import pathlib
import sys

import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.config_data import FILTERS as NAMES
from chinchilla_jax.config_data import FILTERS_WITH_VALUE
from chinchilla_jax.data import clean
from chinchilla_jax.data.filters.named import FILTERS, WITH_VALUE, check_filters, identity, verdict
from chinchilla_jax.data.filters.quality import quality
from chinchilla_jax.data.filters.repetition import repetition
from chinchilla_jax.data.filters.words import Text
from chinchilla_jax.data.sources import registry

HERE = pathlib.Path(__file__).parent
GOLDENS = json.loads((HERE / "datatrove_goldens.json").read_text())
THEIR_NAMES = {
    "": "", "gopher_short_doc": "few_words", "gopher_long_doc": "many_words",
    "gopher_below_avg_threshold": "short_words", "gopher_above_avg_threshold": "long_words",
    "gopher_too_many_hashes": "hashes", "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet_lines", "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "few_letters", "gopher_enough_stop_words": "few_stop_words",
    "dup_para_frac": "paragraphs", "dup_para_char_frac": "paragraph_characters", "dup_line_frac": "lines",
    "dup_line_char_frac": "line_characters",
    **{f"top_{n}_gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_grams" for n in range(5, 11)},
}  # fmt: skip


@pytest.fixture(scope="module")
def documents():
    """The documents that the goldens are about."""
    spec = importlib.util.spec_from_file_location("generated", HERE / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [module.document(n) for n in range(len(GOLDENS["our_words"]["quality"]))]


@pytest.mark.parametrize("name", ["quality", "repetition"])
def test_decisions_are_those_of_datatrove_on_the_same_words(documents, name):
    expected = [THEIR_NAMES[reason] for reason in GOLDENS["our_words"][name]]
    assert [FILTERS[name](Text(text)) for text in documents] == expected
    assert len(set(expected)) >= 10  # every rule but that of 100,000 words


@pytest.mark.parametrize("name", ["quality", "repetition"])
def test_its_own_words_decide_otherwise_in_two_documents_of_a_thousand_at_most(documents, name):
    expected = [THEIR_NAMES[reason] for reason in GOLDENS["its_words"][name]]
    differ = sum(FILTERS[name](Text(text)) != reason for text, reason in zip(documents, expected, strict=True))
    assert differ <= 2e-3 * len(documents)


def _prose(count, word="word"):
    """So many words, no two neighbours the same pair twice; two stop words are among them."""
    return ["the", "of", *(f"{word}{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10 % 10]}" for n in range(count - 2))]


@pytest.mark.parametrize(
    ("kept", "refused", "rule"),
    [
        (_prose(50), _prose(49), "few_words"),
        (_prose(100_000), _prose(100_001), "many_words"),
        (["the", "of"] * 50 + ["word"] * 50, ["the", "of"] * 50 + ["word"] * 49, "short_words"),
        (["the", "of"] + ["w" * 10] * 98 + ["w" * 25], ["the", "of"] + ["w" * 10] * 98 + ["w" * 26], "long_words"),
        # Signs are words too: 11 of 110, and 12 of 112 and 111.
        (_prose(99) + ["#"] * 11, _prose(99) + ["#"] * 12, "hashes"),
        (["\u2026"] * 11 + _prose(99), ["..."] * 12 + _prose(99), "ellipses"),
        (["the", "of"] + ["word"] * 78 + ["12"] * 20, ["the", "of"] + ["word"] * 78 + ["12"] * 21, "few_letters"),
        (_prose(60), _prose(60)[1:], "few_stop_words"),
    ],
)  # fmt: skip
def test_a_rule_of_quality_turns_at_its_threshold(kept, refused, rule):
    assert quality(Text(" ".join(kept))) == ""
    assert quality(Text(" ".join(refused))) == rule


@pytest.mark.parametrize(("mark", "allowed", "rule"), [("- %s", 9, "bullet_lines"), ("%s...", 3, "ellipsis_lines")])
def test_lines_of_a_kind_are_allowed_up_to_a_share(mark, allowed, rule):
    lines = [" ".join(_prose(12)) for _ in range(10)]
    for marked, expected in ((allowed, ""), (allowed + 1, rule)):
        text = "\n".join(mark % line if n < marked else line for n, line in enumerate(lines))
        assert quality(Text(text)) == expected


def test_lines_and_paragraphs_that_came_before_are_counted():
    lines = [" ".join(_prose(30, word=f"w{n}")) for n in range(40)]
    for between, rule in (("\n", "lines"), ("\n\n", "paragraphs")):
        assert repetition(Text(between.join([*lines[:30], "x"] + ["x"] * 13))) == ""  # 13 of 44
        assert repetition(Text(between.join([*lines[:30], "x"] + ["x"] * 14))) == rule
    assert repetition(Text("\n".join([*lines, *lines[:9]]))) == "duplicate_8_grams"  # no longer lines: 9 of 49
    assert repetition(Text("\n".join([*lines, *lines[:13]]))) == "line_characters"  # 13 of 53
    assert repetition(Text("\n\n".join([*lines, *lines[:13]]))) == "paragraph_characters"


@pytest.mark.parametrize("n", range(5, 11))
def test_duplicate_grams_agree_with_counting_one_by_one(n):
    """By the definition, in a few lines, on words drawn from so few that grams repeat and overlap."""
    import random

    from chinchilla_jax.data.filters import repetition as module

    for seed in range(40):
        words = random.Random(seed).choices(["a", "bcd"], k=80)
        met, place, expected = set(), 0, 0
        while place + n <= len(words):
            gram = tuple(words[place : place + n])
            expected += len("".join(gram)) if gram in met else 0
            place += n if gram in met else 1
            met.add(gram)
        rules, size = dict(module.TOP), len(" ".join(words))
        document, share = Text(" ".join(words)), expected / size
        for threshold, broken in ((share - 1e-9, True), (share, False)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "DUPLICATE", {n: threshold})
                patch.setattr(module, "TOP", dict.fromkeys(rules, 9.0))
                assert dict(module._grams(document)).get(f"duplicate_{n}_grams", False) == (broken and expected > 0)


def test_short_texts_and_texts_without_words_are_refused_not_met_with_an_error():
    for text in ("", " \n", "...", "one", "\u4e16\u754c", "#" * 100):
        assert verdict(text, NAMES) == "quality.few_words"
        assert isinstance(verdict(text, ["repetition"]), str)


def test_every_name_that_a_config_may_say_is_a_filter():
    assert set(NAMES) == set(FILTERS) and set(FILTERS_WITH_VALUE) == set(WITH_VALUE)


def test_a_corpus_is_cleaned_of_what_filters_refuse_and_says_why(tmp_path, documents):
    source = registry.Source("test", lambda: (registry.Document("a", text) for text in documents[:200]), {})
    result = clean.clean(source, 0.2, tmp_path, lambda _: None, ("repetition", "quality"))
    kept = {text for split in ("train", "validation") for text in clean.read_cleaned(tmp_path, "a", split)}
    refused = [rule for text in documents[:200] if (rule := verdict(text, ("repetition", "quality")))]
    assert result["filtered"] == {rule: refused.count(rule) for rule in set(refused)} and len(refused) > 20
    assert kept <= {text for text in documents[:200] if not verdict(text, ("quality", "repetition"))}
    assert len(kept) + result["repeated_in_training"] + len(refused) + result["duplicates"] == 200


def test_languages_are_told_apart_and_an_unknown_one_is_refused():
    english = "It was a quiet evening, and the people of the town were walking home along the river. " * 4
    german = "Es war ein ruhiger Abend, und die Leute der Stadt gingen am Fluss entlang nach Hause. " * 4
    assert verdict(english, ["language=en"]) == verdict(german, ["language=de"]) == ""
    assert verdict(english, ["language=de"]) == verdict(german, ["language=en"]) == "language.other"
    with pytest.raises(ConfigError, match=r"language=xx: py3langid knows no such language; one of .*\bde\b"):
        check_filters(["quality", "language=xx"])


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(ConfigError, match=r"pip install 'chinchilla_jax\[language\]'"):
        check_filters(["language=ga"])


@pytest.fixture
def benchmark(tmp_path):
    """A file of three texts that training must not see: a short question, one of 40 words, one of 400."""
    path = tmp_path / "benchmark.jsonl"
    texts = [" ".join(f"kept{count}x{n}" for n in range(count)) for count in (6, 40, 400)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path, [text.split() for text in texts]


def test_what_is_much_like_a_text_to_be_kept_out_goes(benchmark, documents):
    path, (short, middle, long) = benchmark
    name = [f"unlike={path}"]
    other = documents[13].split()
    of_grams = lambda count: count + 12  # noqa: E731  words of so many 13-grams
    for leaked in (
        other + middle + other,
        other + middle[: of_grams(14)] + other,  # half of its 28 grams
        long[100:150],  # a piece of it
        [word.upper() + "," for word in long],
        short,
    ):
        assert verdict(" ".join(leaked), name) == "unlike.overlap"
    for kept in (other, other + middle[: of_grams(13)] + other, other + long[:100] + other, short + other):
        assert verdict(" ".join(kept), name) == ""


def test_texts_to_be_kept_out_count_in_the_name_of_a_corpus_by_their_content(benchmark, tmp_path):
    path, _ = benchmark
    copy = tmp_path / "copy.jsonl"
    copy.write_text(path.read_text())
    assert identity(f"unlike={path}") == identity(f"unlike={copy}") != identity(f"unlike={HERE / 'generated.py'}")
    assert identity("quality") == "quality"


@pytest.mark.parametrize(("content", "told"), [(None, "no such file"), ("{", "JSON lines"), ("[1]", "JSON lines")])
def test_a_file_of_texts_that_cannot_be_read_is_named(tmp_path, content, told):
    path = tmp_path / "texts.jsonl"
    if content:
        path.write_text(content)
    with pytest.raises(ConfigError, match=rf"data.filters: unlike={path}: .*{told}"):
        check_filters([f"unlike={path}"])
