"""Do activations keep their size as a model gets wider? The coordinate check of muP, beside the standard parametrisation.

    python -m tests.benchmarks.coordinates [--plot=FILE.png] [--seeds=4] [--lr=0.03]

Models of several widths take three Adam steps on one batch, and of each kind of activation the mean of its size is
measured. In the standard parametrisation some grow with the width, so a rate that suits one width is too large for the
next (Yang et al. 2022, arXiv 2203.03466, appendix D.1). Queries and, where it is a matrix of its own, the readout start
at zero: what they are at the start falls with the width in any parametrisation, and hides what the steps do. Prints for
each family and parametrisation the slope of ln(mean size) against ln(width), for every kind of activation.
"""

import argparse
import dataclasses
import functools
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.training.step import init_state, train_step

WIDTHS = (64, 128, 256, 512)
BASE_WIDTH, STEPS, ROWS, LENGTH, VOCABULARY = 64, 3, 4, 32, 64
FAMILIES = {
    # wider models have more heads
    "gopher": {"position": "relative", "norm": "rmsnorm", "feed_forward": "gelu", "biases": "gopher"},
    "gpt3": {"position": "learned", "norm": "layernorm", "feed_forward": "gelu", "biases": "all"},
    # wider models have wider heads; the readout is a matrix of its own
    "llama": {"position": "rope", "feed_forward": "swiglu", "biases": "none", "tie_embeddings": False},
}


def shape(family: str, width: int, mup: bool, depth: int = 2) -> ModelConfig:
    """A model of a family, in the parametrisation of muP or the standard one."""
    grows = family == "llama"
    heads, head_dim = (4, width // 4) if grows else (width // 16, 16)
    base = {"base_width": BASE_WIDTH, "base_head_dim": BASE_WIDTH // 4 if grows else 0} if mup else {}
    sizes = {"n_layers": depth, "d_model": width, "n_heads": heads, "n_kv_heads": heads, "head_dim": head_dim}
    sizes |= {"d_ff": 4 * width, "vocab_size": VOCABULARY, "max_position": LENGTH}
    return ModelConfig(**sizes, **FAMILIES[family], **base, scan_layers=False, attention="plain")


def sizes(model: ModelConfig, lr: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Mean size of each kind of activation `[STEPS + 1]`, before the first step and after each, mean over layers."""
    config = RunConfig(
        model=model,
        data=DataConfig(vocab_size=VOCABULARY, seq_len=LENGTH, tokenizer="any.model"),
        optimizer=OptimizerConfig(weight_decay=0.0, clip_norm=1e9),
        train=TrainConfig(batch_size=ROWS, train_tokens=10**6),
    )
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.3, (ROWS, LENGTH + 1)), VOCABULARY).astype(np.int32) - 1
    return {kind: np.asarray(values) for kind, values in _measure(config, lr, tokens, jax.random.key(seed)).items()}


@functools.partial(jax.jit, static_argnums=0)
def _measure(config: RunConfig, lr: float, tokens: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    batch = {"inputs": tokens[None, :, :-1], "targets": tokens[None, :, 1:]}
    batch["weights"] = jnp.ones(batch["targets"].shape)
    state = flax.linen.meta.unbox(init_state(config, key))
    start = jax.tree_util.tree_map_with_path(_zeroed, state.params)

    def step(state, _):
        state, _ = train_step(config, state, batch, lr)
        return state, _kinds(config.model, state.params, tokens[:, :-1])

    _, after = jax.lax.scan(step, state.replace(params=start), None, length=STEPS)
    before = _kinds(config.model, start, tokens[:, :-1])
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), before, after)


def _zeroed(path: tuple, weight: jax.Array) -> jax.Array:
    names = tuple(entry.key for entry in path)
    return 0.0 * weight if names[-1] == "query" or names == ("output",) else weight


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


def slopes(family: str, mup: bool, lr: float, seeds: int = 1, widths: tuple[int, ...] = WIDTHS) -> dict[str, float]:
    """d ln(mean size after the last step) / d ln(width) by kind of activation, over `widths`."""
    return {kind: _slope(widths, last[:, -1]) for kind, last in over_widths(family, mup, lr, seeds, widths).items()}


def _slope(widths: tuple[int, ...], means: np.ndarray) -> float:
    return float(np.polyfit(np.log(widths), np.log(means), 1)[0])


def over_widths(family: str, mup: bool, lr: float, seeds: int, widths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Mean sizes `[widths, STEPS + 1]` by kind of activation, geometric mean over seeds."""
    by_width = []
    for width in widths:
        each = [sizes(shape(family, width, mup), lr, seed) for seed in range(seeds)]
        by_width.append({kind: np.exp(np.mean([np.log(one[kind] + 1e-30) for one in each], axis=0)) for kind in each[0]})
    return {kind: np.array([one[kind] for one in by_width]) for kind in by_width[0]}


def plot(found: dict[tuple[str, str], dict[str, np.ndarray]], path: pathlib.Path) -> None:
    """Mean size after the last step against width: a row for each family, a column for each parametrisation."""
    from chinchilla_jax.scaling.report.plots import style

    families, ways = list(dict.fromkeys(f for f, _ in found)), list(dict.fromkeys(w for _, w in found))
    colours = (style.GREY, style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, "#000000")
    with style.drawing(path, 3.4 * len(families), len(families), len(ways), sharex=True, squeeze=False) as (_, panels):
        for (family, way), kinds in found.items():
            axes = panels[families.index(family)][ways.index(way)]
            for (kind, means), colour, marker in zip(kinds.items(), colours, "osD^vP", strict=True):
                axes.plot(WIDTHS, means[:, -1], color=colour, marker=marker, ms=5, label=kind)
            axes.set(xscale="log", yscale="log", title=f"{family}, {way}", xlabel="d_model", ylabel="mean size")
            axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
            axes.minorticks_off()
        style.legend_below(panels[-1][0], 3)


def main() -> None:
    """Prints a line for each family and parametrisation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.03)
    values = parser.parse_args()
    found = {}
    for family in FAMILIES:
        for way in ("standard", "muP"):
            kinds = found[family, way] = over_widths(family, way == "muP", values.lr, values.seeds, WIDTHS)
            told = ", ".join(f"{kind} {_slope(WIDTHS, means[:, -1]):+.2f}" for kind, means in kinds.items())
            print(f"{family:7} {way:9} {told}", flush=True)
    if values.plot:
        plot(found, values.plot)
        print(f"written: {values.plot}")


if __name__ == "__main__":
    main()
