"""Tokens/s of the same random GPT-2 and LLaMA here and with transformers on this CPU, float32, all cores, alternating.

    pip install -e .[parity]
    python -m tests.benchmarks.generation [--torch_python=PYTHON] [--rounds=5]

transformers writes the models, they are imported here, and both must say the same: log-likelihoods of rows, the next
token of a prompt, greedy continuations. Each ratio is the median over rounds of theirs over our seconds; above 1 we are
faster. Decoding counts the tokens after the first: the time of a long continuation less that of one token.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

RUNNER = pathlib.Path(__file__).parent / "peer_runners" / "run_transformers.py"
SCORED, PROMPT, NEW = (8, 257), 256, 48


class Theirs:
    """The other process."""

    def __init__(self, python):
        self.process = subprocess.Popen([python, str(RUNNER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, work, **request):
        """Its answer to one request."""
        print(json.dumps({"work": work, **request}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit("torch and transformers are the extra [parity]: pip install -e .[parity], or name a Python that "
                     "has them: --torch_python=PYTHON")  # fmt: skip
        return json.loads(line)


class Ours:
    """The same work here."""

    def __init__(self, folder):
        from chinchilla_jax.generation.decode import ready
        from chinchilla_jax.interop.trained import open_model

        self.model = ready(open_model(folder))

    def score(self, rows):
        """Log-likelihoods of rows."""
        from chinchilla_jax.evaluation.score import make_score

        tokens = np.asarray(rows, np.int32)[None]
        batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:]}
        batch["weights"] = np.ones(batch["inputs"].shape, np.float32)
        found = make_score(self.model.config, self.model.mesh)(self.model.params, batch)
        return {"sums": np.asarray(found["log_likelihood"])[0].tolist()}

    def prefill(self, rows):
        """The likeliest next token."""
        return {"tokens": self.decode(rows, 1)["tokens"]}

    def decode(self, rows, new):
        """Greedy continuations."""
        from chinchilla_jax.generation.decode import generate

        return {"tokens": np.stack(list(generate(self.model, rows, new)), 1).tolist()}

    def ask(self, work, **request):
        """The answer, with its seconds."""
        start = time.perf_counter()
        answer = getattr(self, work)(**request)
        return answer | {"seconds": time.perf_counter() - start}


def compared(theirs, ours, rounds):
    """(what, tokens/s here, tokens/s there, ratios) of each kind of work."""
    rng = np.random.default_rng(0)
    scored = rng.integers(0, 30000, SCORED).tolist()
    prompts = rng.integers(0, 30000, (8, PROMPT)).tolist()
    works = {
        f"score {SCORED[0]} rows of {SCORED[1] - 1}": (SCORED[0] * (SCORED[1] - 1), "score", {"rows": scored}),
        f"prefill 1 x {PROMPT}": (PROMPT, "prefill", {"rows": prompts[:1]}),
        "decode 1 row": (NEW, "decode", {"rows": prompts[:1]}),
        "decode 8 rows": (8 * NEW, "decode", {"rows": prompts}),
    }
    for what, (tokens, work, request) in works.items():
        seconds = []
        for at in range(rounds + 1):
            pair = []
            for side in (theirs, ours):
                if work == "decode":
                    long, short = (side.ask(work, new=new, **request) for new in (NEW + 1, 1))
                    pair.append((long["seconds"] - short["seconds"], long))
                else:
                    answer = side.ask(work, **request)
                    pair.append((answer["seconds"], answer))
            if at == 0:
                check(what, pair[0][1], pair[1][1])
            else:
                seconds.append((pair[0][0], pair[1][0]))
        there, here = zip(*seconds, strict=True)
        yield what, tokens / statistics.median(here), tokens / statistics.median(there), [t / h for t, h in seconds]


def check(what, theirs, ours):
    """Stops unless both sides say the same."""
    if "sums" in theirs:
        worst = max(abs(a - b) for a, b in zip(theirs["sums"], ours["sums"], strict=True))
        if worst > 0.05:  # of sums over 256 tokens
            sys.exit(f"{what}: log-likelihoods differ by {worst}")
    elif np.ravel(theirs["tokens"]).tolist() != np.ravel(ours["tokens"]).tolist():
        sys.exit(f"{what}: tokens differ")


def main():
    """Prints a line for each model and kind of work, and the memory of the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    theirs = Theirs(arguments.torch_python)
    with tempfile.TemporaryDirectory() as folder:
        theirs.ask("make", folder=folder)
        for name in ("gpt2", "llama"):
            theirs.ask("load", folder=folder, name=name)
            ours = Ours(pathlib.Path(folder) / name)
            for what, here, there, ratios in compared(theirs, ours, arguments.rounds):
                rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"{name}, {what}: {here:,.1f} tokens/s here, {there:,.1f} with transformers; ratio "
                      f"{statistics.median(ratios):.2f} (rounds: {rounds})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
