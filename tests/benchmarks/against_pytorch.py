"""Tokens/s of the same LLaMA-shaped models trained here and with PyTorch (`transformers`), all cores, alternating.

    pip install -e .[parity]
    python -m tests.benchmarks.against_pytorch [--torch_python=PYTHON]

Both sides: float32, AdamW, clipping at norm 1, batch 16 x 256, forward, backward and update. Each timing is a process
of its own, so that neither library's threads disturb the other; `--torch_python` names an interpreter that has torch
and transformers, if this one has not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SHAPES = {
    "width 64, 4 layers, vocabulary 1024": dict(d_model=64, n_layers=4, n_heads=2, d_ff=176, vocab_size=1024),
    "width 128, 6 layers, vocabulary 2048": dict(d_model=128, n_layers=6, n_heads=4, d_ff=344, vocab_size=2048),
}
BATCH, SEQ_LEN, ROUNDS, STEPS = 16, 256, 3, 12


def time_jax(shape: dict) -> float:
    """Seconds per step, one emulated device per core and two sequences per microbatch and device."""
    import jax

    cores = len(os.sched_getaffinity(0))
    devices = next(n for n in range(min(cores, BATCH), 0, -1) if BATCH % n == 0)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    from chinchilla_jax.config import ModelConfig
    from tests.benchmarks.steps import Steps

    model = ModelConfig(position="rope", feed_forward="swiglu", biases="none", tie_embeddings=False, norm_eps=1e-6,
                        head_dim=shape["d_model"] // shape["n_heads"], n_kv_heads=shape["n_heads"], scan_layers=False,
                        **shape)  # fmt: skip
    steps = Steps(model, SEQ_LEN, BATCH, max(1, BATCH // (2 * devices)), devices)
    steps.seconds(3)
    return steps.seconds(STEPS)


def time_torch(shape: dict) -> float:
    """Seconds per step with `LlamaForCausalLM` and torch's AdamW on all cores."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=shape["vocab_size"], hidden_size=shape["d_model"], intermediate_size=shape["d_ff"],
        num_hidden_layers=shape["n_layers"], num_attention_heads=shape["n_heads"], max_position_embeddings=SEQ_LEN,
        num_key_value_heads=shape["n_heads"], tie_word_embeddings=False, use_cache=False))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.randint(0, shape["vocab_size"], (BATCH, SEQ_LEN))
    taken = []
    for _ in range(3 + STEPS):
        start = time.perf_counter()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[3:])


def _measure(python: str, side: str, name: str) -> float:
    command = [python, "-m", "tests.benchmarks.against_pytorch", f"--side={side}", f"--shape={name}"]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if found.returncode:
        sys.exit(f"{side} side failed: {found.stderr.strip().splitlines()[-1]}\n"
                 "torch and transformers are the extra [parity]: pip install -e .[parity]")  # fmt: skip
    return json.loads(found.stdout.strip().splitlines()[-1])


def main() -> None:
    """Runs one side, or alternates both and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("jax", "torch"))
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--torch_python", default=sys.executable)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({"jax": time_jax, "torch": time_torch}[arguments.side](SHAPES[arguments.shape])))
        return
    for name in SHAPES:
        pairs = [(_measure(sys.executable, "jax", name), _measure(arguments.torch_python, "torch", name))
                 for _ in range(ROUNDS)]  # fmt: skip
        ours, theirs = (BATCH * SEQ_LEN / statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{name}: {ours:,.0f} tokens/s here, {theirs:,.0f} with PyTorch; ratio {ours / theirs:.2f} "
              f"(rounds: {', '.join(f'{t / j:.2f}' for j, t in pairs)})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
