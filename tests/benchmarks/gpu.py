"""Train steps on one NVIDIA GPU, here and with PyTorch, in one run: time, tokens/s, memory.

    pip install -e .[cuda,parity]
    python -m tests.benchmarks.gpu [--torch_python=PYTHON] [--rounds=2] [--tiny]

bfloat16 compute, float32 weights, AdamW, clipping at 1, rows of 2048, vocabulary 32,000. PyTorch: `torch.compile`, its
scaled dot-product attention, fused AdamW, autocast. Each timing is a process of its own; the sides alternate. TFLOP/s
count matrices alone, 6 N' D with one vocabulary matrix. `relative` has no PyTorch side. The last line says whether two
runs of a few steps are equal to the bit as they are, and with XLA_FLAGS that ask for it, and what those cost. `--tiny`
runs small shapes on whatever device is there, to see that the script works.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time

DETERMINISTIC = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
LLAMA = dict(position="rope", feed_forward="swiglu", biases="none", tie_embeddings=False, norm_eps=1e-6)
SHAPES = {
    "llama 160M": (LLAMA | dict(n_layers=12, d_model=768, n_heads=12, head_dim=64, d_ff=2048), 32, "none"),
    "llama 1.4B": (LLAMA | dict(n_layers=24, d_model=2048, n_heads=16, head_dim=128, d_ff=5504), 16, "dots"),
    "relative 160M": (dict(n_layers=12, d_model=768, n_heads=12, head_dim=64, d_ff=3072), 32, "none"),
}
TINY = {name: (shape | dict(n_layers=2, d_model=64, n_heads=2, head_dim=32, d_ff=128), 4, remat)
        for name, (shape, _, remat) in SHAPES.items()}  # fmt: skip
STEPS, WARMING, LIMIT = 8, 3, 240


def sizes(tiny: bool) -> dict:
    """Length of a row, and vocabulary."""
    return {"seq_len": 128, "vocab_size": 512} if tiny else {"seq_len": 2048, "vocab_size": 32_000}


def ours(name: str, tiny: bool) -> dict:
    """Seconds of a step here, peak bytes, and a hash of the weights after all steps."""
    import jax
    import numpy as np

    from chinchilla_jax.config import ModelConfig
    from tests.benchmarks.steps import Steps

    shape, rows, remat = (TINY if tiny else SHAPES)[name]
    size = sizes(tiny)
    model = ModelConfig(n_kv_heads=shape["n_heads"], vocab_size=size["vocab_size"], **shape)
    steps = Steps(model, size["seq_len"], rows, 2, compute_dtype="bfloat16", remat=remat)
    steps.seconds(WARMING)
    seconds = steps.seconds(STEPS)
    stats = jax.local_devices()[0].memory_stats() or {}
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(steps.state.params):
        weights.update(np.asarray(leaf).tobytes())
    return {"seconds": seconds, "peak": stats.get("peak_bytes_in_use"), "bits": weights.hexdigest()[:12],
            "device": jax.local_devices()[0].device_kind}  # fmt: skip


def theirs(name: str, tiny: bool) -> dict:
    """The same with `LlamaForCausalLM`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape, rows, _ = (TINY if tiny else SHAPES)[name]
    size, device = sizes(tiny), "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=size["vocab_size"], hidden_size=shape["d_model"], intermediate_size=shape["d_ff"],
        num_hidden_layers=shape["n_layers"], num_attention_heads=shape["n_heads"], head_dim=shape["head_dim"],
        num_key_value_heads=shape["n_heads"], max_position_embeddings=size["seq_len"], tie_word_embeddings=False,
        use_cache=False, attn_implementation="sdpa")).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1,
                                  fused=device == "cuda")  # fmt: skip
    compiled = torch.compile(model) if device == "cuda" else model
    tokens = torch.randint(0, size["vocab_size"], (2, rows // 2, size["seq_len"]), device=device)
    taken = []
    for _ in range(WARMING + STEPS):
        start = time.perf_counter()
        for microbatch in tokens:
            with torch.autocast(device, torch.bfloat16):
                loss = compiled(input_ids=microbatch, labels=microbatch).loss / len(tokens)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"seconds": statistics.median(taken[WARMING:]), "peak": peak}


def measure(python: str, side: str, name: str, tiny: bool, flags: str = "") -> dict:
    """One side in a process of its own."""
    command = [python, "-m", "tests.benchmarks.gpu", f"--side={side}", f"--shape={name}", *(["--tiny"] if tiny else [])]
    more = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(), "HF_HUB_OFFLINE": "1"}
    try:
        found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **more}, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {LIMIT} s"}
    if found.returncode:
        return {"failed": (found.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return json.loads(found.stdout.strip().splitlines()[-1])


def line(name: str, side: str, found: list[dict], tiny: bool) -> float | None:
    """Prints the median of a side; returns its seconds."""
    if failed := next((one["failed"] for one in found if "failed" in one), None):
        print(f"{name}, {side}: failed: {failed}", flush=True)
        return None
    shape, rows, _ = (TINY if tiny else SHAPES)[name]
    size, width = sizes(tiny), shape["d_model"]
    matrices = 2 if shape.get("feed_forward") != "swiglu" else 3
    per_layer = 4 * width * shape["n_heads"] * shape["head_dim"] + matrices * width * shape["d_ff"]
    counted, tokens = shape["n_layers"] * per_layer + width * size["vocab_size"], rows * size["seq_len"]
    seconds = statistics.median(one["seconds"] for one in found)
    peak = f", {found[0]['peak'] / 2**30:.1f} GiB at most" if found[0]["peak"] else ""
    peak += f" ({found[0]['device']})" if found[0].get("device") else ""
    print(f"{name}, {side}: {1e3 * seconds:,.1f} ms a step, {tokens / seconds:,.0f} tokens/s, "
          f"{6 * counted * tokens / seconds / 1e12:,.1f} TFLOP/s{peak}", flush=True)  # fmt: skip
    return seconds


def main() -> None:
    """Runs one side, or all and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("here", "torch"))
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if given.side:
        print(json.dumps({"here": ours, "torch": theirs}[given.side](given.shape, given.tiny)))
        return
    plain = None
    for name in SHAPES:
        sides = {"here": sys.executable} | ({} if name.startswith("relative") else {"torch": given.torch_python})
        found = {side: [] for side in sides}
        for _ in range(given.rounds):
            for side, python in sides.items():
                found[side].append(measure(python, side, name, given.tiny))
        seconds = {side: line(name, side, found[side], given.tiny) for side in sides}
        if all(seconds.values()) and len(seconds) == 2:
            print(f"{name}: {seconds['torch'] / seconds['here']:.2f} of PyTorch's speed", flush=True)
        plain = plain or (seconds["here"], [one.get("bits") for one in found["here"]])
    name = next(iter(SHAPES))
    fixed = [measure(sys.executable, "here", name, given.tiny, DETERMINISTIC) for _ in range(2)]
    seconds = line(name, f"here with {DETERMINISTIC}", fixed, given.tiny)
    if seconds and plain[0]:
        same = "not compared (--rounds=1)" if len(plain[1]) == 1 else "equal" if len(set(plain[1])) == 1 else "differ"
        then = "equal" if len({one["bits"] for one in fixed}) == 1 else "differ"
        cost = f"which cost {seconds / plain[0]:.2f} of the time"
        print(f"bits of two runs: {same} as they are, {then} with the flags, {cost}")


if __name__ == "__main__":
    main()
