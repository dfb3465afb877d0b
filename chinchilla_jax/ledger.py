"""The one place that counts parameters N, training FLOPs C and bytes. Pure arithmetic on shapes: no JAX.

Every number is under a named *convention*, since the literature does not agree with itself (Hoffmann et al. 2022 is
"the paper"; a multiply-accumulate is 2 FLOPs and a backward pass costs two forward passes in all of them):

    table_a4    appendix F without the embedding and logit terms. It is what the paper's Table A4 was computed with:
                it gives the six printed ratios, while the formula as printed does not.
    appendix_f  appendix F of the paper as printed, embedding look-up counted as a dense product.
    6nd         6 * N * D, N being every parameter.
    executed    what this code multiplies: appendix_f without the embedding product, with the relative-position
                projection and scores, gated feed-forward and grouped keys where the model has them. Attention is
                counted over the full S x S square, as a dense implementation computes it.
"""

from __future__ import annotations

import dataclasses

from chinchilla_jax.config import CONVENTIONS, ConfigError, ModelConfig, RunConfig


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
    m = model
    layers, d, a, kv = m.n_layers, m.d_model, m.d_attn, m.n_kv_heads * m.head_dim
    attention = d * a + 2 * d * kv + a * d
    if m.position == "relative":
        attention += d * a + 2 * a  # the projection W_R of the sinusoids, and the biases u and v
    if m.biases == "all":
        attention += a + 2 * kv
    if m.biases != "none":
        attention += d
    matrices = 3 if m.feed_forward == "swiglu" else 2
    feed_forward = matrices * d * m.d_ff
    if m.biases != "none":
        feed_forward += (matrices - 1) * m.d_ff + d
    norm = 2 * d if m.norm == "layernorm" else d
    output = 0 if m.tie_embeddings else m.vocab_size * d
    if m.biases == "gopher":
        output += m.vocab_size  # the bias on the logits
    return Parameters(
        embedding=m.vocab_size * d + (m.max_position * d if m.position == "learned" else 0),
        output=output,
        attention=layers * attention,
        feed_forward=layers * feed_forward,
        norms=(2 * layers + 1) * norm,
    )


def forward_flops_per_sequence(model: ModelConfig, seq_len: int, convention: str) -> dict[str, float]:
    """Forward FLOPs of one sequence of `seq_len` tokens, by term, for the conventions that count operations."""
    m, s = model, seq_len
    d, a, layers = m.d_model, m.d_attn, m.n_layers
    kv = m.n_kv_heads * m.head_dim
    matrices = 3 if m.feed_forward == "swiglu" and convention == "executed" else 2
    terms = {
        "embedding": 2.0 * s * m.vocab_size * d if convention == "appendix_f" else 0.0,
        "qkv": layers * 2.0 * s * d * (a + 2 * kv if convention == "executed" else 3 * a),
        "scores": layers * 2.0 * s * s * a,
        "softmax": layers * 3.0 * m.n_heads * s * s,
        "values": layers * 2.0 * s * s * a,
        "attention_output": layers * 2.0 * s * a * d,
        "feed_forward": layers * matrices * 2.0 * s * d * m.d_ff,
        "logits": 0.0 if convention == "table_a4" else 2.0 * s * d * m.vocab_size,
    }
    if convention == "executed" and m.position == "relative":
        terms["relative_scores"] = layers * 2.0 * s * s * a
    return terms


def train_flops_per_token(model: ModelConfig, seq_len: int, convention: str, sequences: int = 1) -> float:
    """Training FLOPs per token: forward and backward.

    Args:
      sequences: sequences per forward pass. Only `executed` depends on it: the relative-position projection is
        computed once per pass, whatever the number of sequences.
    """
    if convention not in CONVENTIONS:
        raise ConfigError("convention", f"unknown convention {convention!r}; one of {', '.join(CONVENTIONS)}")
    if convention == "6nd":
        return 6.0 * count_parameters(model).total
    flops = 3.0 * sum(forward_flops_per_sequence(model, seq_len, convention).values())
    if convention == "executed" and model.position == "relative":
        # The sinusoids are constants, so the backward pass has one product here and not two.
        flops += 2.0 * model.n_layers * 2.0 * seq_len * model.d_model * model.d_attn / sequences
    return flops / seq_len


@dataclasses.dataclass(frozen=True)
class Ledger:
    """N, D and C of one run, and the bytes it keeps. `flops` has one entry per convention."""

    parameters: Parameters
    tokens: int
    flops: dict[str, float]
    bytes_parameters: int
    bytes_optimizer: int

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "params": self.parameters.total,
                "params_non_embedding": self.parameters.non_embedding,
                "tokens_per_param": self.tokens / self.parameters.total}  # fmt: skip


def count_run(config: RunConfig, tokens: int | None = None) -> Ledger:
    """The ledger of a run: float32 master weights and two float32 Adam moments, C under every convention."""
    tokens = config.train.train_tokens if tokens is None else tokens
    parameters = count_parameters(config.model)
    sequences = config.train.batch_size // config.train.microbatches
    return Ledger(
        parameters=parameters,
        tokens=tokens,
        flops={c: tokens * train_flops_per_token(config.model, config.data.seq_len, c, sequences) for c in CONVENTIONS},
        bytes_parameters=4 * parameters.total,
        bytes_optimizer=8 * parameters.total,
    )
