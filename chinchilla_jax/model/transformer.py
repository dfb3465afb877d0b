"""The decoder: embeddings, L pre-norm blocks, a final norm, logits. Gopher and LLaMA are values of `ModelConfig`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.kernels.attention import attention
from chinchilla_jax.model import positions
from chinchilla_jax.model.attention import Attention
from chinchilla_jax.model.cache import Cache, Past
from chinchilla_jax.model.experts import Selection
from chinchilla_jax.model.grouped import mix
from chinchilla_jax.model.layers import RESIDUAL, WHOLE_ROWS, Layer, create, dense, dense_transposed, gathered, reshard
from chinchilla_jax.model.parts import FEED_FORWARDS, NORMS, Part, end_weights

_POLICIES = jax.checkpoint_policies
# Names that the kernels give to what their backward pass needs of the forward pass.
_ATTENTION = _POLICIES.save_only_these_names("attention_output", "attention_lse")


REMAT = {
    "gathered": lambda primitive, *_, **__: primitive.name != "sharding_constraint",
    "full": _POLICIES.nothing_saveable,
    "attention": _ATTENTION,
    "dots": _POLICIES.save_from_both_policies(_POLICIES.dots_with_no_batch_dims_saveable, _ATTENTION),
}


def logits(x_BxSxD: jax.Array, output_VxD: jax.Array, bias_V: jax.Array | None, tied: bool = True) -> jax.Array:
    """Float32 logits `[B, S, V]`.

    `tied` False: the matrix lies as `[D, V]`, and is taken so. The values are the same, but for a few rows the CPU
    backend would copy the whole matrix first.
    """
    product_BxSxV = dense_transposed(x_BxSxD, output_VxD) if tied else dense(x_BxSxD, output_VxD.T)
    logits_BxSxV = product_BxSxV.astype(jnp.float32)
    if bias_V is not None:
        logits_BxSxV += bias_V
    return nn.with_logical_constraint(logits_BxSxV, ("batch", "length", "vocab"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    config: ModelConfig
    dtype: jnp.dtype
    attend: Callable = attention
    project: Callable = positions.project
    select: Selection = Selection()
    mix: Callable = mix
    norms: Mapping[str, Part] = flax.core.FrozenDict(NORMS)

    @nn.compact
    def __call__(
        self, x_BxSxD: jax.Array, segment_ids_BxS: jax.Array | None, past: Past | None = None
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """The residual stream after this layer; and what its attention returns besides, with all auxiliary sums."""
        args = (self.config, self.dtype)
        norm, feed_forward = self.norms[self.config.norm], FEED_FORWARDS[self.config.feed_forward]
        more = (getattr(self, feed_forward.takes),) if feed_forward.takes else ()
        attention = Attention(*args, self.attend, self.project, self.select, name="attention")
        normed_BxSxD = Layer(norm, *args, name="attention_norm")(x_BxSxD)
        y_BxSxD, (new, sums) = attention(normed_BxSxD, segment_ids_BxS, past)
        x_BxSxD = nn.with_logical_constraint(x_BxSxD + y_BxSxD, RESIDUAL)
        normed_BxSxD = Layer(norm, *args, name="feed_forward_norm")(x_BxSxD)
        y_BxSxD, aux = Layer(feed_forward, *args, more, name="feed_forward")(normed_BxSxD)
        sums = {name: sums.get(name, 0.0) + aux.get(name, 0.0) for name in sums | aux}
        return nn.with_logical_constraint(x_BxSxD + y_BxSxD, RESIDUAL), (new, sums)


class Transformer(nn.Module):
    """A causal language model.

    Attributes:
      dtype: compute type; weights, softmax, norms' statistics and logits are float32.
      remat: what the backward pass recomputes: `none`; `gathered` (whole weights and rows that were gathered from other
        devices); `full` (all but block inputs); `attention` (as `full`, but the output and log-sum-exp of attention are
        kept: unless it is the plain one, its forward pass runs once); `dots` (as `attention`, but the products with
        weights are kept too).
      attend: a function with the arguments of `kernels.attention.attention`.
      lookup: rows of a table `[V, D]` for tokens `[B, S]`.
      project: a function with the arguments of `positions.project`.
      select: which experts of DS-MoE are used.
      mix: a function with the arguments of `grouped.mix`.
      norms: the parts by the words of `config.norm`.
    """

    config: ModelConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attend: Callable = attention
    lookup: Callable = functools.partial(jnp.take, axis=0)
    project: Callable = positions.project
    select: Selection = Selection()
    mix: Callable = mix
    norms: Mapping[str, Part] = flax.core.FrozenDict(NORMS)

    @nn.compact
    def __call__(
        self,
        tokens_BxS: jax.Array,
        segment_ids_BxS: jax.Array | None = None,
        read_out: Callable = logits,
        cache: Cache | None = None,
    ) -> tuple[Any, Cache | None, dict[str, jax.Array]]:
        """Float32 logits `[B, S, V]` of the next token, or what `read_out` makes of the last layer's output.

        Args:
          tokens_BxS: integer tokens.
          segment_ids_BxS: documents of a packed row; None lets attention cross documents.
          read_out: a function of that output `[B, S, D]`, the output matrix `[V, D]` and the bias `[V]` or None. It
            need not make all logits at once.
          cache: of the tokens before these, or an empty one to begin with. Documents cannot be packed then, and
            `segment_ids_BxS` is not used.

        Returns:
          That; the cache with these tokens in it, None without one; and the auxiliary sums of all layers by name.
        """
        c, dtype = self.config, self.dtype
        w = create(self, end_weights(c))
        embedding_VxD = gathered(w["embedding"], ("vocab", "embed"), dtype)
        x_BxSxD = self.lookup(embedding_VxD, tokens_BxS)
        if "position" in w:
            start, first = (None, None) if cache is None else (cache.length, cache.starts)
            x_BxSxD += positions.rows(w["position"], x_BxSxD.shape[1], start, first, dtype)
        x_BxSxD = nn.with_logical_constraint(x_BxSxD, RESIDUAL)
        x_BxSxD, (new, aux) = self._layers(x_BxSxD, segment_ids_BxS, cache)
        cache = None if cache is None else cache.append(new, tokens_BxS.shape[1])

        x_BxSxD = Layer(self.norms[c.norm], c, dtype, name="final_norm")(x_BxSxD)
        if (factor := c.output_scale / c.widening) != 1.0:  # on this side of the product: the matrix may be tied
            x_BxSxD = (x_BxSxD.astype(jnp.float32) * factor).astype(dtype)
        x_BxSxD = reshard(x_BxSxD, WHOLE_ROWS, RESIDUAL)
        output_VxD = embedding_VxD if c.tie_embeddings else gathered(w["output"], ("embed", "vocab"), dtype).T
        sums = jax.tree.map(lambda by_layer: jnp.sum(by_layer, axis=0), aux)
        return read_out(x_BxSxD, output_VxD, w.get("output_bias")), cache, sums

    def _layers(
        self, x_BxSxD: jax.Array, segment_ids_BxS: jax.Array | None, cache: Cache | None
    ) -> tuple[jax.Array, Any]:
        """All blocks, one after the other; what each returns besides x is stacked."""
        c, block = self.config, Block
        args = (c, self.dtype, self.attend, self.project, self.select, self.mix, self.norms)
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=not c.scan_layers)
        if c.scan_layers:
            layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, 0 if cache is None else Past(0, 0, 0, nn.broadcast, nn.broadcast)),
                length=c.n_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            past = None if cache is None else cache.scanned()
            return layers(*args, name="layers")(x_BxSxD, segment_ids_BxS, past)
        new, sums = [], []
        for layer in range(c.n_layers):
            past = None if cache is None else cache.layer(layer)
            x_BxSxD, (one, aux) = block(*args, name=f"layer_{layer}")(x_BxSxD, segment_ids_BxS, past)
            new.append(one)
            sums.append(aux)
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *sums)
        return x_BxSxD, (None if cache is None else tuple(zip(*new, strict=True)), stacked)
