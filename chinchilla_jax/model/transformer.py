"""The decoder: embeddings, L pre-norm blocks, a final norm, logits. Gopher, Chinchilla, GPT-3 and LLaMA are values of
`ModelConfig`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model.attention import Attention
from chinchilla_jax.model.layers import (
    RESIDUAL,
    WHOLE_ROWS,
    FeedForward,
    Norm,
    dense_transposed,
    gathered,
    parameter,
    reshard,
    vector,
)

_POLICIES = jax.checkpoint_policies
# Names that the kernels give to what their backward pass needs of the forward pass.
_ATTENTION = _POLICIES.save_only_these_names("attention_output", "attention_lse")


def _all_but_gathered(primitive, *_, **__) -> bool:
    return primitive.name != "sharding_constraint"


REMAT = {
    "gathered": _all_but_gathered,
    "full": _POLICIES.nothing_saveable,
    "attention": _ATTENTION,
    "dots": _POLICIES.save_from_both_policies(_POLICIES.dots_with_no_batch_dims_saveable, _ATTENTION),
}


def logits(x_BxSxD: jax.Array, output_VxD: jax.Array, bias_V: jax.Array | None) -> jax.Array:
    """Float32 logits `[B, S, V]`."""
    logits_BxSxV = dense_transposed(x_BxSxD, output_VxD).astype(jnp.float32)
    if bias_V is not None:
        logits_BxSxV += bias_V
    return nn.with_logical_constraint(logits_BxSxV, ("batch", "length", "vocab"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    config: ModelConfig
    dtype: jnp.dtype
    attend: Callable = attention

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array, segment_ids_BxS: jax.Array | None) -> tuple[jax.Array, None]:
        args = (self.config, self.dtype)
        normed_BxSxD = Norm(*args, name="attention_norm")(x_BxSxD)
        x_BxSxD += Attention(*args, self.attend, name="attention")(normed_BxSxD, segment_ids_BxS)
        x_BxSxD = nn.with_logical_constraint(x_BxSxD, RESIDUAL)
        x_BxSxD += FeedForward(*args, name="feed_forward")(Norm(*args, name="feed_forward_norm")(x_BxSxD))
        return nn.with_logical_constraint(x_BxSxD, RESIDUAL), None


class Transformer(nn.Module):
    """A causal language model.

    Attributes:
      config: the shape.
      dtype: compute type; weights, softmax, norms' statistics and logits are float32.
      remat: what the backward pass recomputes: `none`; `gathered` (only what was gathered from other devices: whole
        weights and rows are not kept); `full` (keep only block inputs); `attention` (keep besides the output and
        log-sum-exp of attention, so that its forward pass runs once, unless it is the plain one); `dots` (keep besides
        the products with weights).
      attend: a function with the arguments of `kernels.attention.attention`.
      lookup: rows of a table `[V, D]` for tokens `[B, S]`.
    """

    config: ModelConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attend: Callable = attention
    lookup: Callable = functools.partial(jnp.take, axis=0)

    @nn.compact
    def __call__(self, tokens_BxS: jax.Array, segment_ids_BxS: jax.Array | None = None,
                 read_out: Callable = logits) -> Any:  # fmt: skip
        """Float32 logits `[B, S, V]` of the next token, or what `read_out` makes of the last layer's output.

        Args:
          tokens_BxS: integer tokens.
          segment_ids_BxS: documents of a packed row; None lets attention cross documents.
          read_out: a function of that output `[B, S, D]`, the output matrix `[V, D]` and the bias `[V]` or None. One
            that knows what logits are wanted for need not make them all at once.
        """
        c, dtype = self.config, self.dtype
        axes = ("vocab", "embed")
        embedding_VxD = gathered(parameter(self, "embedding", (c.vocab_size, c.d_model), axes, c.d_model), axes, dtype)
        x_BxSxD = self.lookup(embedding_VxD, tokens_BxS)
        if c.position == "learned":
            table = parameter(self, "position", (c.max_position, c.d_model), (None, "embed"), c.d_model)
            x_BxSxD += gathered(table, (None, "embed"), dtype)[: tokens_BxS.shape[1]]
        x_BxSxD = nn.with_logical_constraint(x_BxSxD, RESIDUAL)

        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=not c.scan_layers)
        if c.scan_layers:
            layers = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast,
                             length=c.n_layers, metadata_params={nn.PARTITION_NAME: "layers"})  # fmt: skip
            x_BxSxD, _ = layers(c, dtype, self.attend, name="layers")(x_BxSxD, segment_ids_BxS)
        else:
            for layer in range(c.n_layers):
                x_BxSxD, _ = block(c, dtype, self.attend, name=f"layer_{layer}")(x_BxSxD, segment_ids_BxS)

        x_BxSxD = reshard(Norm(c, dtype, name="final_norm")(x_BxSxD), WHOLE_ROWS, RESIDUAL)
        if c.tie_embeddings:
            output_VxD = embedding_VxD
        else:
            axes = ("embed", "vocab")
            output_VxD = gathered(parameter(self, "output", (c.d_model, c.vocab_size), axes, c.d_model), axes, dtype).T
        bias_V = vector(self, "output_bias", (c.vocab_size,), ("vocab",)) if c.biases == "gopher" else None
        return read_out(x_BxSxD, output_VxD, bias_V)
