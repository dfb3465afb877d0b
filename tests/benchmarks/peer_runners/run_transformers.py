"""One side of `tests/benchmarks/generation.py`: Hugging Face transformers with torch, in an environment of its own.

Standard input has one JSON request a line, standard output one JSON answer: `make` writes random models to folders,
`load` reads one, the others do the work and answer with its seconds.
"""

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, logging

logging.set_verbosity_error()
torch.set_num_threads(len(os.sched_getaffinity(0)))
LLAMA = dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
             num_key_value_heads=12, vocab_size=32000, max_position_embeddings=2048)  # fmt: skip
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config()),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
}
KINDS = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}


def make(folder):
    """Random models of 124M and 134M parameters, by name in a folder."""
    for name, model in MODELS.items():
        torch.manual_seed(0)
        model().save_pretrained(os.path.join(folder, name))
    return {}


class Loaded:
    """A model, and the work it is asked for."""

    def __init__(self, folder, name):
        self.model = KINDS[name].from_pretrained(os.path.join(folder, name), dtype=torch.float32).eval()

    def score(self, rows):
        """Log-likelihoods of rows: their sums over the tokens after the first."""
        tokens = torch.tensor(rows)
        logits = self.model(tokens[:, :-1], use_cache=False).logits
        found = torch.log_softmax(logits.float(), -1).gather(-1, tokens[:, 1:, None])[..., 0]
        return {"sums": found.sum(1).tolist()}

    def prefill(self, rows):
        """The likeliest next token of rows, with their keys and values kept."""
        out = self.model(torch.tensor(rows), use_cache=True, logits_to_keep=1)
        return {"tokens": out.logits[:, -1].argmax(-1).tolist()}

    def decode(self, rows, new):
        """Greedy continuations."""
        out = self.model.generate(torch.tensor(rows), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                                  pad_token_id=0, eos_token_id=None)  # fmt: skip
        return {"tokens": out[:, len(rows[0]) :].tolist()}


def main():
    """Answers until standard input ends."""
    loaded = None
    for line in sys.stdin:
        request = json.loads(line)
        work = request.pop("work")
        if work in ("make", "load"):
            answer = make(**request) if work == "make" else {}
            loaded = Loaded(**request) if work == "load" else loaded
        else:
            with torch.inference_mode():
                start = time.perf_counter()
                answer = getattr(loaded, work)(**request)
                answer["seconds"] = time.perf_counter() - start
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
