"""What does our fused attention compile to? Builders of the same programs as those of the public kernels.

As in `public_attention`: bf16, batch 1, causal, FLOPs of the unmasked half; queries [1, seq, heads, head_dim]. The
kernels are told apart by their names, `attention_forward...` and `attention_backward...`.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.kernels.attention import attention
from tests.benchmarks.public_attention import program, useful_flops

DOCUMENT = 512  # tokens: four documents in a row of 2048


def available() -> bool:
    """Whether there is a fused kernel to measure."""
    return importlib.util.find_spec("chinchilla_jax.kernels.fused") is not None


def visible_blocks(seq: int, document: int, size: int) -> int:
    """How many blocks of `size` x `size` scores hold a visible pair, in a row of documents of `document` tokens."""
    position = np.arange(seq)
    same = position[:, None] // document == position // document
    visible = (position[:, None] >= position) & same
    return int(visible.reshape(seq // size, size, seq // size, size).any(axis=(1, 3)).sum())


def _fused(q, k, v, r=None, u=None, w=None, segment_ids=None):
    return attention(q, k, v, r_NxHxK=r, u_HxK=u, w_HxK=w, segment_ids_BxT=segment_ids, implementation="fused")


def _tokens(seq: int, head_dim: int, heads: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, seq, heads, head_dim), jnp.bfloat16)


def plain(seq: int, head_dim: int, heads: int, gradients: bool = True) -> dict:
    """Queries, keys, values."""
    shapes = (_tokens(seq, head_dim, heads),) * 3
    return program(_fused, shapes, useful_flops(seq, head_dim, heads, gradients), gradients)


def relative(seq: int, head_dim: int, heads: int, gradients: bool = True) -> dict:
    """And Transformer-XL's r of `seq` rows, u and w, with their gradients. FLOPs are those of `plain`."""
    r = jax.ShapeDtypeStruct((seq, heads, head_dim), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((heads, head_dim), jnp.bfloat16)
    shapes = (*(_tokens(seq, head_dim, heads),) * 3, r, bias, bias)
    return program(_fused, shapes, useful_flops(seq, head_dim, heads, gradients), gradients)


def packed(seq: int, head_dim: int, heads: int, gradients: bool = True) -> dict:
    """Queries, keys and values of documents of `DOCUMENT` tokens, known when compiling: so is what can be skipped."""
    segment_ids = np.repeat(np.arange(seq // DOCUMENT, dtype=np.int32), DOCUMENT)[None]

    def attend(q, k, v):
        return _fused(q, k, v, segment_ids=segment_ids)

    flops = useful_flops(DOCUMENT, head_dim, heads, gradients) * (seq // DOCUMENT)
    return program(attend, (_tokens(seq, head_dim, heads),) * 3, flops, gradients)
