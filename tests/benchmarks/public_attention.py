"""What do the public TPU attention kernels compile to? Builders of causal attention programs, and their best blocks.

Each builder returns for the cycle meter {"fn", "args", "flops"}: a function to compile, the shapes of its arguments and
the causal-useful FLOPs; bf16, batch 1, queries, keys and values [heads, seq, head_dim]. `blocks` maps each kernel of
the program, "forward" and the backward kernels, to its block sizes. With `gradients` the program is a forward that
keeps what its backward needs, and that backward; without, the forward that keeps nothing.

    splash    jax.experimental.pallas.ops.tpu.splash_attention, with its fused backward
    flash     jax.experimental.pallas.ops.tpu.flash_attention
    tokamax   tokamax 0.0.12 (pip install -e .[benchmarks]), the kernel under tokamax.dot_product_attention on TPU,
              called without that wrapper, which refuses v4 and transposes its arguments
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

Blocks = Mapping[str, Sequence[int]]
BACKWARD_COST = 2.5  # five matrix products against the forward's two

# Blocks that a search tries, by kernel of the program.
_USUAL = ((512, 512, 512), (512, 1024, 512), (512, 1024, 1024), (1024, 512, 512), (1024, 1024, 256), (1024, 1024, 512),
           (1024, 1024, 1024), (1024, 2048, 512), (2048, 1024, 256))  # fmt: skip
CANDIDATES = {
    "splash": {"forward": _USUAL, "backward": _USUAL},
    "flash": {
        "forward": (*_USUAL, (1024, 2048, 1024)),
        "dkv": tuple((1024, 1024, q, k) for q, k in itertools.product((256, 512, 1024), (512, 1024))),
        "dq": _USUAL,
    },
    "tokamax": {
        "forward": tuple((*blocks, scheduler) for blocks in _USUAL for scheduler in (0, 1)),
        "backward": _USUAL,
    },
}

# The best of them, by fewest cycles: (kernel, generation, seq, head_dim).
BEST: dict[tuple[str, str, int, int], Blocks] = {
    ("splash", "v4", 2048, 128): {"forward": (1024, 1024, 256), "backward": (1024, 1024, 1024)},
    ("splash", "v5e", 2048, 128): {"forward": (1024, 1024, 512), "backward": (1024, 1024, 1024)},
    ("splash", "v5p", 2048, 128): {"forward": (1024, 1024, 256), "backward": (1024, 1024, 1024)},
    ("splash", "v6e", 2048, 128): {"forward": (1024, 1024, 512), "backward": (1024, 1024, 1024)},
    ("splash", "v4", 8192, 128): {"forward": (1024, 1024, 256), "backward": (1024, 1024, 1024)},
    ("splash", "v5e", 8192, 128): {"forward": (1024, 1024, 512), "backward": (1024, 1024, 1024)},
    ("splash", "v5p", 8192, 128): {"forward": (1024, 2048, 512), "backward": (1024, 1024, 1024)},
    ("splash", "v6e", 8192, 128): {"forward": (1024, 2048, 512), "backward": (1024, 2048, 512)},
    ("splash", "v4", 2048, 64): {"forward": (1024, 1024, 256), "backward": (1024, 1024, 1024)},
    ("splash", "v5e", 2048, 64): {"forward": (1024, 1024, 512), "backward": (1024, 1024, 1024)},
    ("splash", "v5p", 2048, 64): {"forward": (1024, 1024, 256), "backward": (1024, 1024, 1024)},
    ("splash", "v6e", 2048, 64): {"forward": (1024, 1024, 512), "backward": (1024, 1024, 1024)},
    ("flash", "v4", 2048, 128): {
        "forward": (1024, 1024, 1024), "dkv": (1024, 1024, 256, 1024), "dq": (1024, 1024, 1024)},
    ("flash", "v5e", 2048, 128): {
        "forward": (512, 512, 512), "dkv": (1024, 1024, 512, 1024), "dq": (1024, 1024, 256)},
    ("flash", "v5p", 2048, 128): {
        "forward": (1024, 1024, 512), "dkv": (1024, 1024, 512, 1024), "dq": (1024, 1024, 256)},
    ("flash", "v6e", 2048, 128): {
        "forward": (1024, 1024, 1024), "dkv": (1024, 1024, 256, 1024), "dq": (1024, 1024, 256)},
    ("flash", "v4", 8192, 128): {
        "forward": (1024, 1024, 1024), "dkv": (1024, 1024, 256, 1024), "dq": (1024, 1024, 1024)},
    ("flash", "v5e", 8192, 128): {
        "forward": (1024, 1024, 512), "dkv": (1024, 1024, 512, 1024), "dq": (1024, 1024, 256)},
    ("flash", "v5p", 8192, 128): {
        "forward": (1024, 1024, 512), "dkv": (1024, 1024, 512, 1024), "dq": (1024, 1024, 256)},
    ("flash", "v6e", 8192, 128): {
        "forward": (1024, 2048, 1024), "dkv": (1024, 1024, 256, 1024), "dq": (1024, 1024, 256)},
    ("flash", "v4", 2048, 64): {
        "forward": (1024, 1024, 1024), "dkv": (1024, 1024, 256, 1024), "dq": (1024, 1024, 1024)},
    ("flash", "v5e", 2048, 64): {
        "forward": (512, 512, 512), "dkv": (1024, 1024, 512, 1024), "dq": (1024, 1024, 256)},
    ("flash", "v5p", 2048, 64): {
        "forward": (1024, 1024, 512), "dkv": (1024, 1024, 512, 1024), "dq": (1024, 1024, 256)},
    ("flash", "v6e", 2048, 64): {
        "forward": (1024, 1024, 1024), "dkv": (1024, 1024, 1024, 512), "dq": (1024, 1024, 256)},
    ("tokamax", "v4", 2048, 128): {"forward": (512, 512, 512, 0), "backward": (512, 512, 512)},
    ("tokamax", "v5e", 2048, 128): {"forward": (1024, 1024, 256, 0), "backward": (512, 512, 512)},
    ("tokamax", "v5p", 2048, 128): {"forward": (1024, 1024, 256, 0), "backward": (1024, 1024, 1024)},
    ("tokamax", "v6e", 2048, 128): {"forward": (1024, 1024, 512, 0), "backward": (1024, 1024, 1024)},
    ("tokamax", "v4", 8192, 128): {"forward": (1024, 1024, 256, 0), "backward": (1024, 1024, 1024)},
    ("tokamax", "v5e", 8192, 128): {"forward": (2048, 1024, 256, 0), "backward": (1024, 1024, 1024)},
    ("tokamax", "v5p", 8192, 128): {"forward": (2048, 1024, 256, 0), "backward": (1024, 1024, 1024)},
    ("tokamax", "v6e", 8192, 128): {"forward": (1024, 1024, 512, 0), "backward": (1024, 1024, 1024)},
    ("tokamax", "v4", 2048, 64): {"forward": (512, 512, 512, 0), "backward": (512, 512, 512)},
    ("tokamax", "v5e", 2048, 64): {"forward": (1024, 1024, 256, 0), "backward": (512, 512, 512)},
    ("tokamax", "v5p", 2048, 64): {"forward": (1024, 1024, 256, 0), "backward": (1024, 1024, 1024)},
    ("tokamax", "v6e", 2048, 64): {"forward": (1024, 1024, 512, 0), "backward": (1024, 1024, 1024)},
}


def useful_flops(seq: int, head_dim: int, heads: int, gradients: bool) -> float:
    """FLOPs of the unmasked half of causal attention, 2 H S^2 D forward and 2.5 times that backward."""
    forward = 2.0 * heads * seq**2 * head_dim
    return forward * (1 + BACKWARD_COST) if gradients else forward


def program(attend: Callable, shapes: Sequence[jax.ShapeDtypeStruct], flops: float, gradients: bool) -> dict:
    """`attend` itself, or its output and the gradients of all its arguments for a given cotangent of the output."""

    def with_gradients(cotangent, *args):
        out, pull_back = jax.vjp(attend, *args)
        return out, pull_back(cotangent)

    if not gradients:
        return {"fn": attend, "args": tuple(shapes), "flops": flops}
    return {"fn": with_gradients, "args": (jax.eval_shape(attend, *shapes), *shapes), "flops": flops}


def _heads_first(attend: Callable, seq: int, head_dim: int, heads: int, gradients: bool) -> dict:
    """The program of a kernel that takes [heads, seq, head_dim]."""
    shape = jax.ShapeDtypeStruct((heads, seq, head_dim), jnp.bfloat16)
    return program(attend, (shape,) * 3, useful_flops(seq, head_dim, heads, gradients), gradients)


def splash(seq: int, head_dim: int, heads: int, blocks: Blocks, gradients: bool = True) -> dict:
    """Splash attention; blocks (q, kv, kv_compute) of the kernels "forward" and "backward"."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    q, kv, compute = blocks["forward"]
    q_dkv, kv_dkv, compute_dkv = blocks["backward"]
    sizes = splash_attention_kernel.BlockSizes(
        block_q=q, block_kv=kv, block_kv_compute=compute, use_fused_bwd_kernel=True,
        block_q_dkv=q_dkv, block_kv_dkv=kv_dkv, block_kv_dkv_compute=compute_dkv)  # fmt: skip
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((seq, seq))] * heads)
    kernel = splash_attention_kernel.make_splash_mha_single_device(mask, block_sizes=sizes)
    return _heads_first(lambda q, k, v: kernel(q * head_dim**-0.5, k, v), seq, head_dim, heads, gradients)


def flash(seq: int, head_dim: int, heads: int, blocks: Blocks, gradients: bool = True) -> dict:
    """Flash attention; blocks (q, k_major, k) of "forward" and "dq", (q_major, k_major, q, k) of "dkv"."""
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

    q, k_major, k = blocks["forward"]
    q_major_dkv, k_major_dkv, q_dkv, k_dkv = blocks["dkv"]
    q_dq, k_major_dq, k_dq = blocks["dq"]
    sizes = BlockSizes(
        block_b=1, block_q=q, block_k_major=k_major, block_k=k,
        block_q_major_dkv=q_major_dkv, block_k_major_dkv=k_major_dkv, block_q_dkv=q_dkv, block_k_dkv=k_dkv,
        block_q_dq=q_dq, block_k_major_dq=k_major_dq, block_k_dq=k_dq)  # fmt: skip

    def attend(q, k, v):
        # Scaled outside, as for the others: inside it costs up to 6% more.
        return flash_attention(q[None] * head_dim**-0.5, k[None], v[None], causal=True, block_sizes=sizes)[0]

    return _heads_first(attend, seq, head_dim, heads, gradients)


def tokamax(seq: int, head_dim: int, heads: int, blocks: Blocks, gradients: bool = True) -> dict:
    """Tokamax; blocks (q, kv, kv_compute, 1 with its experimental scheduler, else 0) of "forward" and (q, kv,
    kv_compute) of "backward"."""
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    q, kv, compute, scheduler = blocks["forward"]
    q_dkv, kv_dkv, compute_dkv = blocks["backward"]
    config = splash_attention_kernel.SplashConfig(
        block_q=q, block_kv=kv, block_kv_compute=compute, use_experimental_scheduler=bool(scheduler),
        block_q_dkv=q_dkv, block_kv_dkv=kv_dkv, block_kv_dkv_compute=compute_dkv)  # fmt: skip
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.CausalMask((seq, seq)), config=config,
        downcast_smem_data=False)  # fmt: skip  # the meter reads tables of int32, and scalar loads cost the same
    return _heads_first(lambda q, k, v: kernel(q * head_dim**-0.5, k, v), seq, head_dim, heads, gradients)


def pass_of(kernel: str, name: str) -> str:
    """The key in `blocks` of a kernel in the program, from the name that the library gave it."""
    if kernel == "flash":
        return "dkv" if "bwd_dkv" in name else "dq" if "bwd_dq" in name else "forward"
    return "backward" if "dkv" in name else "forward"


def best_blocks(kernel: str, gen: str, seq: int, head_dim: int) -> Blocks:
    """The best blocks found; for a shape that was not searched those of the nearest one, cut to `seq`."""
    searched = [key for key in BEST if key[:2] == (kernel, gen)]
    if not searched:
        raise SystemExit(f"no blocks of {kernel} were searched on {gen}: add --search, or --public for ours alone")
    nearest = min(searched, key=lambda key: (abs(key[3] - head_dim), abs(key[2] - seq)))
    return {name: tuple(min(block, seq) for block in blocks) for name, blocks in BEST[nearest].items()}
