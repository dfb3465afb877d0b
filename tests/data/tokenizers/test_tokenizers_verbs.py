"""With a `tokenizer.json`: from text through a few steps of training to a generated text and an exported folder."""

import json
import pathlib
import random
import shutil

import pytest

from chinchilla_jax import cli
from chinchilla_jax.data import open_tokenizer
from chinchilla_jax.interop.trained import open_model

ROOT = pathlib.Path(__file__).resolve().parents[3]
WORDS = "the quick fox was lazy and 東京 café 🙂 cats".split()


@pytest.mark.parametrize("kind", ["byte level", "t5"])
def test_a_run_is_prepared_trained_used_and_exported(folders, tmp_path, capsys, kind):
    (tmp_path / "text").mkdir()
    words = random.Random(0)
    for n in range(30):
        text = " ".join(words.choices(WORDS, k=60))
        (tmp_path / "text" / f"{n}.txt").write_text(f"{n}: {text}<|endoftext|></s>\n")
    given = shutil.copytree(folders[kind], tmp_path / "given")
    data = [f"--config.data.source=text:{tmp_path / 'text'}", f"--config.data.data_dir={tmp_path / 'data'}",
            f"--config.data.tokenizer={given}", "--config.data.vocab_size=384",
            "--config.data.validation_fraction=0.2", "--config.data.seq_len=16",
            "--config.model.vocab_size=384"]  # fmt: skip
    train = ["--config.train.batch_size=8", "--config.train.train_tokens=512", "--config.train.eval_sequences=8"]
    config = [f"--config={ROOT}/configs/isoflop.py:tiny", *data, *train]
    assert cli.main(["data", *config]) == 0
    assert "tokenizer: " in capsys.readouterr().out
    assert cli.main(["train", *config, f"--workdir={tmp_path / 'run'}"]) == 0
    assert 0 < json.loads((tmp_path / "run" / "result.json").read_text())["bits_per_byte"] < 20
    capsys.readouterr()
    assert cli.main(["generate", str(tmp_path / "run"), "the quick", "--new_tokens=8", "--temperature=1"]) == 0
    assert capsys.readouterr().out.startswith("the quick")
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    run, out = open_model(tmp_path / "run"), open_model(tmp_path / "out")
    assert out.need_tokenizer().fingerprint() == run.need_tokenizer().fingerprint()
    assert (run.begin, run.ends) == (out.begin, out.ends)
    assert open_tokenizer(given).vocab_size < 384  # rows that no text has are never drawn
    shutil.rmtree(given)
    assert cli.main(["generate", str(tmp_path / "run"), "the"]) == 2
    assert "has none; name one with --tokenizer=PATH" in capsys.readouterr().err
    named = [f"--tokenizer={tmp_path / 'out'}", "--new_tokens=2"]
    assert cli.main(["generate", str(tmp_path / "run"), "the", *named]) == 0
