"""What does attention to a row that is split over devices cost on a TPU, one way against the other? No TPU needed.

    pip install -e .[compiler] -c constraints.txt
    python -m tests.benchmarks.context_attention [--gen v5e v5p] [--devices 4 8] [--seq 32768] [--relative] [--steps]

bf16, 8 heads of 128, one row, causal, forward and backward. Of a device:

    Kcycles   of the Pallas kernels' schedules (`chinchilla_jax.tools.tpu_meter`), thousands; of the slowest device
    even      the same over an even split of what one device alone would take
    XLA       Kcycles that the compiler estimates for what is around the kernels: copies, casts, sums
    sent      MiB over the interconnect; `waits` is the part of it that nothing can be scheduled beside
    temp      MiB of temporaries

Ways: `heads` and `keys` of `parallel/context.py`; `contiguous`, keys gathered but every device with its own queries;
`ring`, keys sent round, of which only kernels and bytes are counted here (`attention_notes.md` has the rest). With
`--steps` also the temporaries of a whole train step of two layers, against those of a device with all tokens.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chinchilla_jax.config import DataConfig, MeshConfig, ModelConfig, RunConfig, TrainConfig
from chinchilla_jax.parallel import attention, context
from chinchilla_jax.parallel.topology import topology_mesh
from chinchilla_jax.preflight.program.program import StepProgram, read_program
from chinchilla_jax.training.machine.ahead import compile_train_step
from chinchilla_jax.training.step import step_options
from tests.benchmarks import our_attention, split_attention
from tests.benchmarks.measured import KERNELS, Bench, Program, sources, total, versions

HEADS, HEAD_DIM = 8, 128
SLICES = {("v5e", 1): "v5e:1x1", ("v5e", 4): "v5e:2x2", ("v5e", 8): "v5e:2x4",
          ("v5p", 1): "v5p:1x1x1", ("v5p", 4): "v5p:2x2x1", ("v5p", 8): "v5p:2x2x2"}  # fmt: skip
WAYS = {"heads": context.exchange_heads, "keys": context.gather_keys}


def kernel_cycles(bench: Bench, gen: str, way: str, seq: int, devices: int, relative: bool) -> int:
    """Of the slowest device, forward and backward. The first and the last have the extremes."""
    return max(_cycles(bench, gen, way, seq, devices, device, relative) for device in {0, devices - 1})


def _cycles(bench: Bench, gen: str, way: str, seq: int, devices: int, device: int, relative: bool) -> int:
    if way == "ring":
        start, turn = (_cycles(bench, gen, f"ring_{part}", seq, devices, 0, relative) for part in ("start", "turn"))
        return start + (devices - 1) * turn
    if way in ("heads", "ring_start", "ring_turn"):
        device = 0  # all are alike
    arguments = dict(seq=seq, head_dim=HEAD_DIM, heads=HEADS, devices=devices, device=device, relative=relative)
    source = sources(Path(split_attention.__file__), Path(our_attention.__file__), *sorted(KERNELS.glob("*.py")),
                     *sorted(KERNELS.parent.glob("tables/attention*.json")))  # fmt: skip
    program = Program(f"{split_attention.__name__}:{way}", json.dumps(arguments), gen, source)
    found = bench.kernels(program)
    if not found:
        raise SystemExit(f"{program}: {bench.refused[program]}")
    return total(found.values()).cycles


def compile_attention(mesh: Mesh, way: str, seq: int, relative: bool) -> jax.stages.Compiled:
    """Attention and its gradients for the devices of a mesh, with the options of a train step. Heads lie side by side,
    as products with weights leave them."""
    tokens, width = NamedSharding(mesh, PartitionSpec(None, "context")), HEADS * HEAD_DIM
    arrays = {name: jax.ShapeDtypeStruct((1, seq, width), jnp.bfloat16, sharding=tokens)
              for name in ("q_BxSxHxK", "k_BxTxGxK", "v_BxTxGxK")}  # fmt: skip
    if relative:
        everywhere = NamedSharding(mesh, PartitionSpec())
        shapes = {"r_NxHxK": (seq, width), "content_bias_HxK": (width,), "position_bias_HxK": (width,)}
        arrays |= {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=everywhere)
                   for name, shape in shapes.items()}  # fmt: skip

    def with_gradients(arrays, cotangent):
        def attend(arrays):
            heads = {name: x.reshape(*x.shape[:-1], HEADS, HEAD_DIM) for name, x in arrays.items()}
            return attention.sharded_attention(mesh.abstract_mesh)(**heads).reshape(1, seq, width)

        out, pull_back = jax.vjp(attend, arrays)
        return out, pull_back(cotangent)[0]

    with (jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
          mock.patch.object(attention, "_way", lambda *_: WAYS[way])):  # fmt: skip
        lowered = jax.jit(with_gradients).lower(arrays, arrays["q_BxSxHxK"])
    return lowered.compile(step_options(mesh.devices.flat[0].device_kind))


def sent(program: StepProgram) -> tuple[float, float]:
    """MiB that a device sends, and the part of it that nothing can be scheduled beside."""
    sizes = [(c.wire_bytes * c.trips / 2**20, c.asynchronous) for c in program.collectives]
    return sum(size for size, _ in sizes), sum(size for size, asynchronous in sizes if not asynchronous)


def ring_sent(seq: int, devices: int) -> float:
    """MiB that a device of a ring sends: keys and values in bfloat16, their gradients in float32 but for the way home,
    and before and after all pieces of queries, keys, values and outputs and their gradients."""
    numbers, turns = seq // devices * HEADS * HEAD_DIM / 2**20, devices - 1
    return numbers * (2 * 2 * turns + 2 * 4 * turns + 2 * 2 + 8 * 2)


def table(bench: Bench, gen: str, devices: int, seq: int, relative: bool) -> str:
    """All ways at one size."""
    alone = _cycles(bench, gen, "heads", seq, 1, 0, relative)
    lines = ["", f"{SLICES[gen, devices]}, {devices} devices, {seq} tokens, {HEADS} heads of {HEAD_DIM}"
             f"{', relative' if relative else ''}; one device alone: {alone / 1e3:.0f} Kcycles",
             f"{'':10} {'Kcycles':>8} {'even':>5} {'XLA':>7} {'sent':>6} {'waits':>6} {'temp':>6}"]  # fmt: skip
    for way in ("heads", "keys", "contiguous", *(() if relative else ("ring",))):
        cycles = kernel_cycles(bench, gen, way, seq, devices, relative)
        row = f"{way:10} {cycles / 1e3:8.0f} {cycles * devices / alone:5.2f}"
        if way in WAYS:
            mesh = topology_mesh(SLICES[gen, devices], MeshConfig(context=devices))
            compiled = compile_attention(mesh, way, seq, relative)
            program = read_program(compiled.as_text(), dict(mesh.shape))
            everything, waits = sent(program)
            temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
            row += f" {program.cycles / 1e3:7.0f} {everything:6.0f} {waits:6.0f} {temporaries:6.0f}"
        elif way == "ring":
            row += f" {'':7} {ring_sent(seq, devices):6.0f}"
        lines.append(row)
    return "\n".join(lines)


def steps(gen: str, seq: int, devices: list[int]) -> str:
    """Temporaries of a train step of two layers, one row a step."""
    model = ModelConfig(n_layers=2, d_model=1024, n_heads=HEADS, n_kv_heads=HEADS, head_dim=HEAD_DIM, d_ff=4096,
                        vocab_size=8192, position="rope")  # fmt: skip
    lines, alone = ["", f"{gen}: train step of two layers of {model.d_model}, one row of {seq} tokens"], None
    for context_devices in (1, *devices):
        config = RunConfig(model, data=DataConfig(vocab_size=model.vocab_size, seq_len=seq),
                           mesh=MeshConfig(context=context_devices),
                           train=TrainConfig(batch_size=1, compute_dtype="bfloat16", remat="attention",
                                             train_tokens=10**9))  # fmt: skip
        compiled = compile_train_step(config, topology_mesh(SLICES[gen, context_devices], config.mesh))
        temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
        alone = alone or temporaries
        lines.append(f"{context_devices} devices: {temporaries:6.0f} MiB of temporaries, "
                     f"{temporaries * context_devices / alone:.2f} of an even split")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Prints a table per generation and number of devices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gen", nargs="+", default=["v5e", "v5p"], choices=sorted({gen for gen, _ in SLICES}))
    parser.add_argument("--devices", nargs="+", type=int, default=[4, 8], choices=(4, 8))
    parser.add_argument("--seq", type=int, default=32768)
    parser.add_argument("--relative", action="store_true", help="with Transformer-XL's relative term")
    parser.add_argument("--steps", action="store_true", help="also the temporaries of whole train steps")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "chinchilla_jax" / "attention_cycles")
    options = parser.parse_args()
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    bench = Bench(options.cache)
    for gen in options.gen:
        for devices in options.devices:
            print(table(bench, gen, devices, options.seq, options.relative), flush=True)
        if options.steps:
            print(steps(gen, options.seq, options.devices), flush=True)


if __name__ == "__main__":
    main()
