"""What does the sharding of a large model cost, now and at another revision? Memory, traffic, cycles, by the compiler.

    python -m tests.benchmarks.sharding [--revision 1973a81] [--preset chinchilla-70b] [--slice v5p:8x8x8]
        [--fsdp 64] [--tensor 8] [--sequences 1536] [--layers N]

1973a81 has the rules this began with: weights and batch split, everything else left to the partitioner. Each revision
is checked out into a temporary folder and compiles its own step there; both programs are read by today's reader. A
compile takes minutes. Cycles are the compiler's estimate of fusions, a ranking; nothing here ran on a TPU.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from chinchilla_jax.base.chips import GIB
from chinchilla_jax.preflight.program.program import StepProgram, read_program

ROOT = Path(__file__).parents[2]
# Runs in a checkout of any revision since train steps could be compiled ahead.
CHILD = """
import dataclasses, json, sys
from chinchilla_jax.config import DataConfig, MeshConfig, RunConfig, TrainConfig
from chinchilla_jax.parallel.topology import topology_mesh
from chinchilla_jax.presets import preset
try:
    from chinchilla_jax.training.machine.ahead import compile_train_step
except ModuleNotFoundError:  # where it was at first
    from chinchilla_jax.training.ahead import compile_train_step
a = json.loads(sys.argv[1])
model = preset(a["preset"]).model
model = dataclasses.replace(model, n_layers=a["layers"] or model.n_layers)
train = TrainConfig(batch_size=a["sequences"], compute_dtype="bfloat16", train_tokens=10**12, remat="attention")
config = RunConfig(model, data=DataConfig(vocab_size=model.vocab_size, seq_len=2048), train=train,
                   mesh=MeshConfig(fsdp=a["fsdp"], tensor=a["tensor"]))
mesh = topology_mesh(a["slice"], config.mesh)
compiled = compile_train_step(config, mesh)
with open(a["text"], "w", encoding="utf-8") as file:
    file.write(compiled.as_text())
print(json.dumps({"peak": compiled.memory_analysis().peak_memory_in_bytes, "mesh": dict(mesh.shape)}))
"""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step as one revision compiles it: peak HBM of a chip, and its program."""

    revision: str
    peak: int
    program: StepProgram


def compile_at(revision: str | None, arguments: dict, folder: Path) -> Compiled:
    """The step at a revision, or as the files are now; compiled by a process of its own."""
    tree, name = ROOT, revision or "now"
    if revision:
        tree = folder / "tree"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, revision], check=True)
    try:
        text = folder / f"{name}.txt"
        found = subprocess.run([sys.executable, "-c", CHILD, json.dumps(arguments | {"text": str(text)})], check=True,
                               env=os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}, cwd=tree,
                               stdout=subprocess.PIPE, text=True).stdout  # fmt: skip
    finally:
        if revision:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
    facts = json.loads(found.splitlines()[-1])
    return Compiled(name, facts["peak"], read_program(text.read_text(encoding="utf-8"), facts["mesh"]))


def rows(compiled: Compiled) -> dict[str, float]:
    """What is compared, a step and chip."""
    sent: dict[str, float] = {}
    for c in compiled.program.collectives:
        how = "asynchronous" if c.asynchronous else "synchronous"
        sent[f"{c.kind} over {'+'.join(c.axes)}, {how}, GiB"] = (
            sent.get(f"{c.kind} over {'+'.join(c.axes)}, {how}, GiB", 0.0) + c.trips * c.wire_bytes / GIB)  # fmt: skip
    total = sum(sent.values())
    waited = sum(size for name, size in sent.items() if ", synchronous" in name)
    return {"peak HBM, GiB": compiled.peak / GIB, "largest temporary, GiB": compiled.program.largest[0].bytes / GIB,
            "fusions, 10^9 cycles": compiled.program.cycles / 1e9,
            "HBM traffic, GiB": compiled.program.hbm_bytes / GIB, "collectives send, GiB": total,
            "of which synchronously, GiB": waited,
            **dict(sorted(sent.items(), key=lambda item: -item[1]))}  # fmt: skip


def main() -> None:
    """Prints both, side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", default="1973a81")
    parser.add_argument("--preset", default="chinchilla-70b")
    parser.add_argument("--slice", default="v5p:8x8x8")
    parser.add_argument("--fsdp", type=int, default=64)
    parser.add_argument("--tensor", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=1536)
    parser.add_argument("--layers", type=int, default=0, help="of the model; default: all of them")
    arguments = vars(parser.parse_args())
    revision = arguments.pop("revision")
    with tempfile.TemporaryDirectory() as folder:
        columns = [rows(compile_at(which, arguments, Path(folder))) for which in (revision, None)]
    print(f"{'a step and chip':56} {revision:>10} {'now':>10}")
    for name in dict.fromkeys(name for column in columns for name in column):
        if max(column.get(name, 0.0) for column in columns) >= 1.0:
            print(f"{name:56} " + " ".join(f"{column.get(name, 0.0):10.2f}" for column in columns))


if __name__ == "__main__":
    main()
