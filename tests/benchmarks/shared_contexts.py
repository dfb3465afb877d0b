"""How much sooner are options scored that share one pass over their context? Random LLaMA of 4M parameters, on a CPU.

    python -m tests.benchmarks.shared_contexts [--rounds=3]

Each line is a kind of questions with four options: tokens of a context, and of an option. The ratio is the median over
rounds of the seconds with every option in a row of its own over those with shared contexts, alternating, after both are
compiled; the scores of both are compared. Below it the most that can be gained: tokens read one way over the other.
"""

import argparse
import dataclasses
import statistics
import time

import jax
import numpy as np

from chinchilla_jax.config import ModelConfig, RunConfig
from chinchilla_jax.evaluation.harness.pairs import Pair
from chinchilla_jax.evaluation.harness.scorer import Scorer
from chinchilla_jax.interop.trained import Trained, for_use
from chinchilla_jax.parallel.mesh import make_mesh

# Like MMLU in five shots, ARC in 25, HellaSwag without any, PIQA without any.
KINDS = {
    "a letter": (480, 1, 1),
    "short, many shots": (480, 2, 12),
    "sentences": (100, 16, 40),
    "short context": (24, 8, 40),
}
QUESTIONS, OPTIONS = 8, 4


def random_model():
    """A LLaMA with weights as they are drawn."""
    shape = {"n_layers": 4, "d_model": 256, "n_heads": 4, "n_kv_heads": 4, "head_dim": 64, "d_ff": 688}
    model = ModelConfig(
        **shape, vocab_size=4096, position="rope", feed_forward="swiglu", biases="none", max_position=512
    )
    data = dataclasses.replace(RunConfig().data, vocab_size=4096, seq_len=512)
    config = for_use(RunConfig(model=model, data=data), compute_dtype="float32")
    made = Trained(config, {}, make_mesh(config.mesh), None, "random")
    return dataclasses.replace(made, params=made.program.init(jax.random.key(0)).params)


def questions(kind, seed):
    """Pairs of one kind; contexts differ by a tenth in their lengths."""
    context, least, most = KINDS[kind]
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(QUESTIONS):
        before = tuple(rng.integers(0, 4096, int(context * rng.uniform(0.9, 1.0))).tolist())
        options = [tuple(rng.integers(0, 4096, rng.integers(least, most + 1)).tolist()) for _ in range(OPTIONS)]
        pairs += [Pair(before, option) for option in options]
    return pairs


def seconds(scorer, pairs):
    """Of scoring, and the scores."""
    start = time.perf_counter()
    scores = scorer.scores(pairs)
    return time.perf_counter() - start, [score.log_likelihood for score in scores]


def main():
    """Prints a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    model = random_model()
    shared, apart = Scorer(model), Scorer(model, share=False)
    for kind in KINDS:
        pairs = questions(kind, 0)
        difference = np.abs(np.subtract(seconds(shared, pairs)[1], seconds(apart, pairs)[1])).max()
        ratios = [seconds(apart, pairs)[0] / seconds(shared, pairs)[0] for _ in range(rounds)]
        read = sum(len(pair.context) + len(pair.continuation) - 1 for pair in pairs)
        once = read - sum(len(pair.context) for pair in pairs) * (OPTIONS - 1) // OPTIONS
        print(
            f"{kind:18} {statistics.median(ratios):.2f}x, {min(ratios):.2f} to {max(ratios):.2f}; "
            f"tokens {read / once:.2f}x; scores differ by {difference:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
