"""Small models of every kind, exported, each with what this code computes with it: for other code to compare with.

    python -m tests.interop.exports FOLDER

Weights are random, but large, with gains and biases away from one and zero, so that no term is lost in the noise.
Beside each export lies `expected.npz`: `ids` int32 [2, 40], float32 `logits` [2, 40, V]; `prompts`, rows of 5 and of 9
tokens one after the other, and `greedy`, the 12 tokens that this code puts behind each, [2, 12].
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import jax
import numpy as np

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.generation.decode import generate
from chinchilla_jax.interop.convert import _convert
from chinchilla_jax.interop.folder import OWN, WeightsFolder
from chinchilla_jax.interop.layout import places, weights_by_path
from chinchilla_jax.interop.names import own_names
from chinchilla_jax.interop.trained import open_model
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.presets import preset
from tests.interop.arrays import Arrays

SMALL = ModelConfig(d_model=32, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48, vocab_size=96, max_position=64)
PROMPTS = (5, 9)


def shrunk(name: str) -> ModelConfig:
    """A published model, but small."""
    sizes = {key: getattr(SMALL, key) for key in ("n_layers", "d_model", "head_dim", "d_ff", "vocab_size")}
    model = preset(name).model
    groups = 4 * model.n_kv_heads // model.n_heads or 1
    return dataclasses.replace(model, **sizes, n_heads=4, n_kv_heads=groups, max_position=64)


def changed(**changes: object) -> ModelConfig:
    return dataclasses.replace(SMALL, **changes)


DECODER = {"position": "rope", "feed_forward": "swiglu", "biases": "none", "n_kv_heads": 2, "tie_embeddings": False}
LLAMA3 = "llama3 8.0 1.0 4.0 16.0"
# By name: the format, and the model.
CASES: dict[str, tuple[str, ModelConfig]] = {
    "chinchilla": (OWN, shrunk("chinchilla-70b")),
    "gopher": (OWN, shrunk("gopher-280b")),
    "relative, wide heads, muP": (OWN, changed(head_dim=16, base_width=8, base_head_dim=4, output_scale=1.5,
                                              norm="layernorm", biases="all", tie_embeddings=False)),
    "rope, llama3 scaling": (OWN, changed(**DECODER | {"biases": "attention"}, rope_scaling=LLAMA3)),
    "rope, linear scaling": (OWN, changed(**DECODER | {"biases": "gopher"}, rope_scaling="linear 4.0")),
    "xpos": (OWN, changed(**DECODER | {"position": "xpos", "biases": "feed_forward"})),
    "learned": (OWN, changed(position="learned", norm="layernorm", biases="all")),
    "no positions": (OWN, changed(position="none", feed_forward="swiglu", n_kv_heads=1)),
    "ds_moe": (OWN, changed(feed_forward="ds_moe", experts=4, attention_experts=2, n_kv_heads=2, position="rope",
                            router_width=8, biases="gopher")),
    "top_k": (OWN, changed(feed_forward="top_k", experts=4, active_experts=2, biases="gopher")),
    "top_k_swiglu": (OWN, changed(feed_forward="top_k_swiglu", experts=3, biases="all", position="rope")),
    "llama": ("llama", changed(**DECODER)),
    "llama, scaled, tied": ("llama", changed(**DECODER | {"tie_embeddings": True}, rope_scaling=LLAMA3, head_dim=16)),
    "llama, biases": ("llama", changed(**DECODER | {"biases": "all"}, rope_scaling="linear 4.0", norm_eps=1e-6)),
    "gpt2": ("gpt2", changed(position="learned", norm="layernorm", biases="all")),
    "mixtral": ("mixtral", changed(**DECODER | {"feed_forward": "top_k_swiglu"}, experts=4, active_experts=2)),
}  # fmt: skip


def drawn(model: ModelConfig, seed: int) -> Arrays:
    """Weights in our own layout."""
    rng, declared = np.random.default_rng(seed), weights_by_path(model)
    arrays = Arrays()
    for place in places(model, own_names(model)):
        value = 0.2 * rng.standard_normal(place.shape)
        if declared[place.path].deviation == 0.0:  # gains, biases, u and v
            value = 1.5 * value + declared[place.path].mean
        arrays[place.tensor] = value.astype(np.float32)
    return arrays


def export(name: str, folder: pathlib.Path, echo=print) -> pathlib.Path:
    """One case. Returns its folder."""
    format, model = CASES[name]
    folder = folder / name.replace(",", "").replace(" ", "_")
    weights, ends = drawn(model, list(CASES).index(name)), {"bos_token_id": 1, "eos_token_id": 2}
    source = WeightsFolder(folder, OWN, model, weights, own_names(model), "float32", ends)
    _convert(source, folder, format, "stored", echo)
    rng = np.random.default_rng(7)
    ids = rng.integers(3, model.vocab_size, (2, 40)).astype(np.int32)
    trained = open_model(folder, compute_dtype="float32")
    logits = jax.jit(Transformer(trained.config.model).apply)({"params": trained.params}, ids)[0]
    prompts = [ids[row, :length] for row, length in enumerate(PROMPTS)]
    greedy = np.stack(list(generate(trained, prompts, 12)), axis=1)
    np.savez(folder / "expected.npz", ids=ids, logits=logits, prompts=np.concatenate(prompts), greedy=greedy)
    return folder


if __name__ == "__main__":
    for case in CASES:
        export(case, pathlib.Path(sys.argv[1]), lambda line: None)
