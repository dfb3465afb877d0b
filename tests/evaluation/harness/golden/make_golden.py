"""Writes `golden.json` beside it: what the harness's own Hugging Face backend says of every question of the tasks here.

    python -m venv hf && hf/bin/pip install torch==2.14.1 transformers==5.24.0 lm-eval[hf]==0.4.13 sentencepiece==0.2.3
    hf/bin/python -m tests.evaluation.harness.golden.make_golden

The model is `tests/interop/fixtures/grouped_tied`, a LLaMA of random weights with rows of 64 tokens; its tokenizer, 96
pieces, is trained on the tasks' text, and lies here as both kinds of file. Of `plain` texts begin with no token, of
`begun` with the one that begins texts; rolling windows are not asked there, where the backend would put it twice.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import shutil
import sys
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import sentencepiece

from chinchilla_jax.interop.hf.sentencepiece import tokenizer_json

FOLDER = pathlib.Path(__file__).resolve().parent
WEIGHTS = FOLDER.parents[2] / "interop" / "fixtures" / "grouped_tied"
TASKS = ("tiny_choice", "tiny_ending", "tiny_rolling", "tiny_write")


def train_tokenizer() -> None:
    texts = [line for path in sorted(FOLDER.glob("*.jsonl")) for line in path.read_text().splitlines()]
    written = [text for line in texts for value in json.loads(line).values() for text in _strings(value)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(written), model_writer=model, vocab_size=96, model_type="bpe", unk_id=0, bos_id=1,
        eos_id=2, pad_id=-1, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, character_coverage=1.0, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (FOLDER / "tokenizer.model").write_bytes(model.getvalue())
    said = tokenizer_json(FOLDER / "tokenizer.model")
    begun = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    said["post_processor"] = {"type": "TemplateProcessing", "single": begun, "pair": begun, "special_tokens": tokens}
    (FOLDER / "tokenizer.json").write_text(json.dumps(said))


def _strings(value: object) -> list[str]:
    return [value] if isinstance(value, str) else value if isinstance(value, list) else []


def ask(begin: bool, names: tuple[str, ...]) -> dict:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(WEIGHTS, folder, dirs_exist_ok=True)
        shutil.copy(FOLDER / "tokenizer.json", folder)
        words = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                 "unk_token": "<unk>", "clean_up_tokenization_spaces": False}  # fmt: skip
        pathlib.Path(folder, "tokenizer_config.json").write_text(json.dumps(words))
        model = HFLM(folder, device="cpu", dtype="float32", batch_size=1, add_bos_token=begin)
        os.chdir(FOLDER)
        manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
        found = lm_eval.simple_evaluate(
            model, tasks=list(names), task_manager=manager, bootstrap_iters=0, num_fewshot=2
        )
    answers = {
        name: [sample["resps"] for sample in sorted(found["samples"][name], key=lambda sample: sample["doc_id"])]
        for name in names
    }
    results = {name: {k: v for k, v in found["results"][name].items() if isinstance(v, float)} for name in names}
    return {"answers": answers, "results": results}


if __name__ == "__main__":
    import torch
    import transformers

    train_tokenizer()
    golden = {"plain": ask(False, TASKS), "begun": ask(True, TASKS[:2] + TASKS[3:])}
    golden["versions"] = {m.__name__: m.__version__ for m in (torch, transformers)} | {"python": sys.version.split()[0]}
    (FOLDER / "golden.json").write_text(json.dumps(golden) + "\n")
