"""Texts in pieces add up to the text of all tokens at once, and end before a stop string however it is spelt."""

import dataclasses

import pytest

from chinchilla_jax.config import ConfigError
from chinchilla_jax.data.prepare import store_path
from chinchilla_jax.data.store import TokenStore
from chinchilla_jax.generation.text import TextStream, continue_texts

TEXT = "What is it?  A naïve café — 東京 🚀🚀, x = [1,\n\t2];\n\nThe end. stopper"


@pytest.fixture(scope="module")
def tokenizer(tiny_run):
    return TokenStore(store_path(tiny_run.data)).tokenizer()


def pieces(tokenizer, prompt, text, **settings):
    stream = TextStream(tokenizer, tokenizer.encode(prompt), **settings)
    return [*map(stream.push, tokenizer.encode(text)), stream.flush()], stream


@pytest.mark.parametrize("prompt", ["", "Once", "a line\n"])
def test_the_pieces_add_up_to_the_text_and_none_holds_part_of_a_character(tokenizer, prompt):
    found, _ = pieces(tokenizer, prompt, TEXT)
    assert "".join(found) == TEXT and len([piece for piece in found if piece]) > 20
    assert "\ufffd" not in "".join(found)


@pytest.mark.parametrize("stop", ["stop", "\n\n", "🚀,", "T", "naïve café — 東"])
def test_a_text_ends_before_a_stop_string_and_nothing_of_it_is_shown(tokenizer, stop):
    found, stream = pieces(tokenizer, "x", TEXT, stop=[stop, "never there"])
    assert "".join(found) == TEXT[: TEXT.index(stop)] and stream.done
    assert stream.push(tokenizer.encode("a")[0]) == stream.flush() == ""


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not(tokenizer):
    stream = TextStream(tokenizer, [], stop=["###"])
    shown = ["".join(map(stream.push, tokenizer.encode(part))) for part in ("ab", "##", "c")]
    assert "".join(shown) + stream.flush() == "ab##c" and "#" not in shown[0] + shown[1]


def test_the_token_that_ends_a_text_is_not_part_of_it(tokenizer):
    stream = TextStream(tokenizer, [], ends=[tokenizer.separator])
    shown = [stream.push(token) for token in [*tokenizer.encode("one"), tokenizer.separator, *tokenizer.encode("two")]]
    assert "".join(shown) == "one" and stream.done


def test_prompts_are_continued_together_as_each_alone(trained, tokenizer):
    model = dataclasses.replace(trained("relative", vocab_size=600), tokenizer=tokenizer)  # rows that no text has
    heard = {0: "", 1: ""}
    prompts = ["What is", "The origin of the name is not known, but"]

    def hear(row, text):
        heard[row] += text

    texts = continue_texts(model, prompts, new_tokens=12, on_text=hear)
    assert texts == [heard[0], heard[1]] and all(texts)
    assert texts == [continue_texts(model, [prompt], new_tokens=12)[0] for prompt in prompts]
    stop = texts[1][3]
    assert continue_texts(model, prompts, new_tokens=12, stop=[stop])[1] == texts[1][: texts[1].index(stop)]
    with pytest.raises(ConfigError, match="--tokenizer=PATH"):
        continue_texts(trained("relative"), ["a"], new_tokens=1)
