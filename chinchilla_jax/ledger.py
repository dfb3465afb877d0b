"""The one place that counts parameters N, training FLOPs C and bytes. Pure arithmetic on shapes: no JAX.

Every number is under a named *convention*, since the literature does not agree with itself (Hoffmann et al. 2022 is
"the paper"; a multiply-accumulate is 2 FLOPs and a backward pass costs two forward passes in all of them):

    table_a4    appendix F without the embedding and logit terms. It is what the paper's Table A4 was computed with:
                it gives the six printed ratios, while the formula as printed does not.
    appendix_f  appendix F of the paper as printed, embedding look-up counted as a dense product.
    6nd         6 * N * D, N being every parameter that a token meets in training: all but those of the experts that it
                is not sent to (`count_active`).
    executed    what this code multiplies: appendix_f without the embedding product, with the relative-position
                projection and scores, gated feed-forward and grouped keys where the model has them. Attention is
                counted over the full S x S square, as a dense implementation computes it. Experts are counted for the
                tokens that they are given, whatever a backend fills up.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from chinchilla_jax.config import CONVENTIONS, ConfigError, ModelConfig, RunConfig
from chinchilla_jax.model.parts import (
    FEED_FORWARDS,
    POSITIONS,
    attention_flops,
    attention_router,
    block_weights,
    count,
    end_weights,
)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Parameter counts of one model, by part. `total` is the paper's N: embeddings included, a tied one once."""

    embedding: int
    output: int
    attention: int
    feed_forward: int
    norms: int

    @property
    def total(self) -> int:
        """All trained parameters."""
        return self.embedding + self.output + self.attention + self.feed_forward + self.norms

    @property
    def non_embedding(self) -> int:
        """Total less the token, position and output matrices (Kaplan et al. 2020 count this N)."""
        return self.attention + self.feed_forward + self.norms


def count_parameters(model: ModelConfig) -> Parameters:
    """Exact counts for a shape. Chinchilla's 50 + 1 sizes follow from N = L(5dh + 2df + 8d + 2h) + Vd + d + V."""
    ends, layers = end_weights(model), model.n_layers
    block = {name: count(weights.values()) for name, weights in block_weights(model).items()}
    embedding = count(weight for name, weight in ends.items() if name in ("embedding", "position"))
    output = count(weight for name, weight in ends.items() if name in ("output", "output_bias"))
    norms = layers * (block["attention_norm"] + block["feed_forward_norm"]) + block["attention_norm"]
    return Parameters(embedding, output, layers * block["attention"], layers * block["feed_forward"], norms)


def count_active(model: ModelConfig) -> int:
    """How many parameters a token meets in training; all of them, unless it is sent to some experts only."""
    feed_forward = FEED_FORWARDS[model.feed_forward]
    unused = count(feed_forward.weights(model).values()) - count(feed_forward.used(model).values())
    return count_parameters(model).total - model.n_layers * unused


def forward_flops_per_sequence(model: ModelConfig, seq_len: int, convention: str) -> dict[str, float]:
    """Forward FLOPs of one sequence of `seq_len` tokens, by term, for the conventions that count operations."""
    d, tokens = model.d_model, 2.0 * seq_len
    block, feed_forward = attention_flops(model, seq_len), FEED_FORWARDS[model.feed_forward]
    if convention == "executed":
        block["feed_forward"] = feed_forward.flops(model, seq_len)
        if experts := attention_router(model):
            block["attention_router"] = tokens * count(experts.values())
        block |= POSITIONS[model.position].flops(model, seq_len)
    else:  # as the paper's own models are, whatever the parts
        block |= {"qkv": tokens * d * 3 * model.d_attn, "feed_forward": tokens * 2 * d * feed_forward.width(model)}
    matrix = tokens * d * model.vocab_size
    terms = {"embedding": matrix if convention == "appendix_f" else 0.0}
    terms |= {term: model.n_layers * flops for term, flops in block.items()}
    return terms | {"logits": 0.0 if convention == "table_a4" else matrix}


def train_flops_per_token(model: ModelConfig, seq_len: int, convention: str, sequences: int = 1) -> float:
    """Training FLOPs per token: forward and backward.

    `sequences` per forward pass matter to `executed` only: the relative-position projection is computed once per pass.
    """
    if convention not in CONVENTIONS:
        raise ConfigError("convention", f"unknown convention {convention!r}; one of {', '.join(CONVENTIONS)}")
    if convention == "6nd":
        return 6.0 * count_active(model)
    flops = 3.0 * sum(forward_flops_per_sequence(model, seq_len, convention).values())
    if convention == "executed":
        flops += model.n_layers * POSITIONS[model.position].pass_flops(model, seq_len) / sequences
    return flops / seq_len


@dataclasses.dataclass(frozen=True)
class Ledger:
    """N, D and C of one run, and the bytes it keeps. `flops` has one entry per convention."""

    parameters: Parameters
    tokens: int
    flops: dict[str, float]
    bytes_parameters: int
    bytes_optimizer: int
    params_active: int  # that a token meets in training

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        total, non_embedding = self.parameters.total, self.parameters.non_embedding
        counts = {"params": total, "params_non_embedding": non_embedding, "tokens_per_param": self.tokens / total}
        return dataclasses.asdict(self) | counts


def flops_per_token(config: RunConfig, convention: str, patch: int = 1) -> float:
    """Training FLOPs of a token of a run, the mean over its legs if it has a method.

    `patch`: tokens that share a position. S tokens pass S / K positions then, so `6nd` counts 6 N / K (Shao et al.
    2024, arXiv 2407.12665, section 2.3). A model that grows is counted leg by leg, each with its own N.
    """
    if config.method is None:
        sequences = config.train.batch_size // config.train.microbatches
        return train_flops_per_token(config.model, config.data.seq_len // patch, convention, sequences) / patch
    legs = config.method.legs(config)
    tokens = [leg.config.train.train_tokens for leg in legs]
    prices = [flops_per_token(leg.config, convention, leg.patch) for leg in legs]
    return sum(n * price for n, price in zip(tokens, prices, strict=True)) / sum(tokens)


def count_run(config: RunConfig, tokens: int | None = None) -> Ledger:
    """The ledger of a run: float32 master weights and two float32 Adam moments, C under every convention.

    N and bytes are those of `config.model`: of a model that grows, the last shape.
    """
    tokens = config.train.train_tokens if tokens is None else tokens
    parameters = count_parameters(config.model)
    flops = {name: tokens * flops_per_token(config, name) for name in CONVENTIONS}
    return Ledger(parameters, tokens, flops, 4 * parameters.total, 8 * parameters.total, count_active(config.model))


def flops_at(config: RunConfig, tokens: float, convention: str) -> float:
    """FLOPs of a run when it has seen so many of its tokens: of one with a method, piece by piece."""
    if config.method is None:
        return tokens * flops_per_token(config, convention)
    total, left = 0.0, tokens
    *legs, last = config.method.legs(config)
    for leg in legs:
        seen = min(left, leg.config.train.train_tokens)
        total, left = total + seen * flops_per_token(leg.config, convention, leg.patch), left - seen
    return total + left * flops_per_token(last.config, convention, last.patch)
