"""How is every weight of every family laid out? Written down, to be compared with what the code does today.

    python -m tests.parallel.shardings           what differs from tests/parallel/goldens
    python -m tests.parallel.shardings --update  write it down anew

A line per weight: its shape, the mesh axes each of its axes is split over, and what one device holds.
"""

import argparse
import dataclasses
import difflib
from pathlib import Path

import jax

from chinchilla_jax.config import DataConfig, MeshConfig, RunConfig, TrainConfig
from chinchilla_jax.presets import preset
from chinchilla_jax.training.machine.ahead import abstract_mesh
from chinchilla_jax.training.step import make_program

FOLDER = Path(__file__).parent / "goldens"
FAMILIES = {"chinchilla": "chinchilla-70b", "gopher": "gopher-280b", "gpt3": "gpt3-175b", "llama": "llama-65b"}
MESHES = {
    "fsdp": MeshConfig(fsdp=256),
    "fsdp_tensor": MeshConfig(fsdp=64, tensor=8),
    "data_fsdp_context_tensor": MeshConfig(data=2, fsdp=16, context=4, tensor=4),
}
COMMAND = "if this is what you meant: python -m tests.parallel.shardings --update"


def describe(family: str, mesh: str) -> str:
    """The layout of the family's largest model on a mesh, a line per weight."""
    model = preset(FAMILIES[family]).model
    rows = -(-model.vocab_size // 128) * 128  # GPT-3's 50,257 tokens divide over nothing
    model = dataclasses.replace(model, attention="plain", vocab_size=rows)
    config = RunConfig(model, mesh=MESHES[mesh], data=DataConfig(vocab_size=rows, seq_len=2048),
                       train=TrainConfig(batch_size=1024, train_tokens=10**12))  # fmt: skip
    params = make_program(config, abstract_mesh(config.mesh, "cpu")).abstract.params
    rows = [_row(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows]
    mesh_line = ", ".join(f"{axis} {size}" for axis, size in config.mesh.axes.items())
    return "\n".join([f"{FAMILIES[family]} on {mesh_line}", *lines]) + "\n"


def _row(path, leaf) -> tuple[str, str, str, str]:
    name = "/".join(key.key for key in path)
    spec = tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))
    split = ["-" if axes is None else "+".join((axes,) if isinstance(axes, str) else axes) for axes in spec]
    held = leaf.sharding.shard_shape(leaf.shape)
    return name, " x ".join(map(str, leaf.shape)), " | ".join(split), "a device: " + " x ".join(map(str, held))


def difference(family: str, mesh: str) -> str:
    """Unified diff from what is written down to what the code does; empty where they agree."""
    path = FOLDER / f"{family}.{mesh}.txt"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    return "".join(difflib.unified_diff(before.splitlines(True), describe(family, mesh).splitlines(True),
                                        f"goldens/{path.name}", "now"))  # fmt: skip


def main() -> None:
    """Prints differences, or writes the layouts down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the layouts down")
    update = parser.parse_args().update
    FOLDER.mkdir(exist_ok=True)
    for family in FAMILIES:
        for mesh in MESHES:
            if update:
                (FOLDER / f"{family}.{mesh}.txt").write_text(describe(family, mesh), encoding="utf-8")
            else:
                print(difference(family, mesh), end="")


if __name__ == "__main__":
    main()
