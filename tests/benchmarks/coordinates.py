"""Do activations keep their size as a model gets wider? The coordinate check, under muP and without it.

    python -m tests.benchmarks.coordinates [--plot=FILE.png] [--seeds=4] [--lr=0.01] [--depth=1]

Models of several widths take three Adam steps on one batch, and of each kind of activation the mean of its size is
measured. In the standard parametrisation some grow with the width, so a rate that suits one width is too large for the
next (Yang et al. 2022, arXiv 2203.03466, appendix D.1). Queries and, where it is a matrix of its own, the readout start
at zero: what they are at the start falls with the width in any parametrisation, and hides what the steps do. Prints for
each family and parametrisation the slope of ln(mean size) against ln(width), for every kind of activation.
"""

import argparse
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model.parts import NORMS, Weight, block_weights, end_weights, rates, vectors
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.training.optimizer import make_optimizer
from chinchilla_jax.training.step import TrainState, train_step

WIDTHS = (64, 128, 256, 512)
BASE_WIDTH, STEPS, ROWS, LENGTH, VOCABULARY = 64, 3, 8, 64, 64
FAMILIES = {
    # wider models have more heads
    "gopher": {"position": "relative", "norm": "rmsnorm", "feed_forward": "gelu", "biases": "gopher"},
    "gpt3": {"position": "learned", "norm": "layernorm", "feed_forward": "gelu", "biases": "all"},
    # wider models have wider heads; the readout is a matrix of its own
    "llama": {"position": "rope", "feed_forward": "swiglu", "biases": "none", "tie_embeddings": False},
}


def shape(family: str, width: int, mup: bool, depth: int = 1) -> ModelConfig:
    """A model of a family, in the parametrisation of muP or the standard one."""
    grows = family == "llama"
    heads, head_dim = (4, width // 4) if grows else (width // 16, 16)
    base = {"base_width": BASE_WIDTH, "base_head_dim": BASE_WIDTH // 4 if grows else 0} if mup else {}
    sizes = {"n_layers": depth, "d_model": width, "n_heads": heads, "n_kv_heads": heads, "head_dim": head_dim}
    sizes |= {"d_ff": 4 * width, "vocab_size": VOCABULARY, "max_position": LENGTH}
    return ModelConfig(**sizes, **FAMILIES[family], **base, scan_layers=False, attention="plain")


def sizes(model: ModelConfig, lr: float, seed: int = 0) -> dict[str, float]:
    """Mean size of each kind of activation after the last step, mean over layers."""
    config = RunConfig(
        model=model,
        data=DataConfig(vocab_size=VOCABULARY, seq_len=LENGTH, tokenizer="any.model"),
        optimizer=OptimizerConfig(weight_decay=0.0, clip_norm=1e9),
        train=TrainConfig(batch_size=ROWS, train_tokens=10**6),
    )
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.3, (ROWS, LENGTH + 1)), VOCABULARY).astype(np.int32) - 1
    params = _start(model, rng)
    optimizer = make_optimizer(config.optimizer, vectors(model), rates(model))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    for _ in range(STEPS):
        state, kinds = _step(config, state, tokens, lr)
    return {kind: float(size) for kind, size in kinds.items()}


def _start(model: ModelConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Weights as they are declared, drawn by NumPy: compiling the random numbers of JAX takes longer than the steps."""

    def draw(weights: dict[str, Weight], zero: str) -> dict[str, np.ndarray]:
        drawn = {name: w.mean + w.deviation * rng.standard_normal(w.shape) for name, w in weights.items()}
        return {name: np.float32(array * (name != zero)) for name, array in drawn.items()}

    blocks, norm = block_weights(model), NORMS[model.norm].weights(model)
    layers = {
        f"layer_{i}": {name: draw(weights, "query") for name, weights in blocks.items()} for i in range(model.n_layers)
    }
    return draw(end_weights(model), "output") | {"final_norm": draw(norm, "")} | layers


# Compiling would take far longer than three steps of small models do.
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _step(
    config: RunConfig, state: TrainState, tokens: jax.Array, lr: float
) -> tuple[TrainState, dict[str, jax.Array]]:
    batch = {"inputs": tokens[None, :, :-1], "targets": tokens[None, :, 1:]}
    state, _ = train_step(config, state, batch | {"weights": jnp.ones(batch["targets"].shape)}, lr)
    return state, _kinds(config.model, state.params, tokens[:, :-1])


def _kinds(model: ModelConfig, params: dict, tokens: jax.Array) -> dict[str, jax.Array]:
    """Mean size of what attention and feed-forward layers add, of scores, of the residual stream and of the logits."""
    scores = []

    def attend(q, k, v, **named):
        scale = named["scale"] or q.shape[-1] ** -0.5
        scores.append(scale * jnp.einsum("bshk,bthk->bhst", q, jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)))
        return attention(q, k, v, **named)

    module = Transformer(model, attend=attend)
    (logits, _, _), inner = module.apply(
        {"params": params}, tokens, capture_intermediates=True, mutable=["intermediates"]
    )
    layers = [inner["intermediates"][f"layer_{i}"] for i in range(model.n_layers)]
    found = {
        "embedding": [params["embedding"]],
        "scores": scores,
        "attention": [layer["attention"]["__call__"][0][0] for layer in layers],
        "feed-forward": [layer["feed_forward"]["__call__"][0][0] for layer in layers],
        "residual stream": [layer["__call__"][0][0] for layer in layers],
        "logits": [logits],
    }
    return {kind: jnp.mean(jnp.stack([jnp.mean(jnp.abs(x)) for x in xs])) for kind, xs in found.items()}


def over_widths(models: Sequence[ModelConfig], lr: float, seeds: int) -> dict[str, np.ndarray]:
    """Mean size of each kind of activation in each model, geometric mean over seeds."""
    each = [[sizes(model, lr, seed) for seed in range(seeds)] for model in models]
    return {kind: np.exp([np.mean([np.log(one[kind]) for one in ones]) for ones in each]) for kind in each[0][0]}


def slopes(models: Sequence[ModelConfig], means: Mapping[str, np.ndarray]) -> dict[str, float]:
    """d ln(mean size) / d ln(width) by kind of activation."""
    widths = np.log([model.d_model for model in models])
    return {kind: float(np.polyfit(widths, np.log(of_kind), 1)[0]) for kind, of_kind in means.items()}


def plot(found: dict[tuple[str, str], dict[str, np.ndarray]], path: pathlib.Path) -> None:
    """Mean size after the last step against width: a row for each family, a column for each parametrisation."""
    from chinchilla_jax.scaling.report.plots import style

    families, ways = list(dict.fromkeys(f for f, _ in found)), list(dict.fromkeys(w for _, w in found))
    colours = (style.GREY, style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, "#000000")
    with style.drawing(
        path, 3.4 * len(families), len(families), len(ways), sharex=True, sharey="row", squeeze=False
    ) as (_, panels):
        for (family, way), kinds in found.items():
            axes = panels[families.index(family)][ways.index(way)]
            for (kind, means), colour, marker in zip(kinds.items(), colours, "osD^vP", strict=True):
                axes.plot(WIDTHS, means, color=colour, marker=marker, ms=5, label=kind)
            axes.set(xscale="log", yscale="log", title=f"{family}, {way}", xlabel="d_model", ylabel="mean size")
            axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
            axes.minorticks_off()
        style.legend_below(panels[-1][0], 3)


def main() -> None:
    """Prints a line for each family and parametrisation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--depth", type=int, default=1)
    values = parser.parse_args()
    found = {}
    for family in FAMILIES:
        for way in ("standard", "muP"):
            models = [shape(family, width, way == "muP", values.depth) for width in WIDTHS]
            found[family, way] = over_widths(models, values.lr, values.seeds)
            told = ", ".join(f"{kind} {slope:+.2f}" for kind, slope in slopes(models, found[family, way]).items())
            print(f"{family:7} {way:9} {told}", flush=True)
    if values.plot:
        plot(found, values.plot)
        print(f"written: {values.plot}")


if __name__ == "__main__":
    main()
