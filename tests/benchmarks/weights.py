"""What memory do weights take that are larger than the memory? A synthetic LLaMA, brought in under a hard limit.

    python -m tests.benchmarks.weights [--size=8] [--limit=3] [--room=FOLDER]

Layers of LLaMA 7B in bfloat16, as many as make up `--size` GB, are written in the files that Hugging Face has them in.
Another process, whose data may not grow beyond `--limit` GiB (RLIMIT_DATA: memory that is its own; what is mapped of
files or merely reserved does not count), then does two things with them:

    import    `import_model`, into files of our own layout
    place     every parameter into its shards on a mesh of eight devices (fsdp 4, tensor 2), one after the other: the
              memory of these devices is the process's own, so it cannot hold all of them

Printed are the memory of the process before (its baseline), its peak above that in units of the largest tensor, less
the parameter itself where it is placed, and how many tensors differ from the numbers that were written: files by the
public library, shards where they lie. Then the same of LLaMA 65B, from its shapes. It fails if the peak is more than
twice the largest tensor, or if one differs. Needs about twice `--size` on disk, which is free again afterwards.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
import zlib

import ml_dtypes
import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.interop.convert import import_model
from chinchilla_jax.interop.folder import open_weights
from chinchilla_jax.interop.hf.families import FAMILIES
from chinchilla_jax.interop.layout import places
from chinchilla_jax.interop.names import own_names
from chinchilla_jax.interop.safetensors import Planned, write_tensors
from chinchilla_jax.presets import preset

BF16, LLAMA, MOST, FILE = np.dtype(ml_dtypes.bfloat16), FAMILIES["llama"], 2.0, 2 * 10**9
PLACED_MOST = 0.5  # of the largest tensor, besides the parameter: pieces


def numbers(name, shape):
    """Those of a tensor by its name: random signs and fractions, between 0.0078 and 0.031."""
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
    bits = rng.integers(0, 2**16, math.prod(shape), np.uint16)
    np.bitwise_and(bits, 0x80FF, out=bits)
    return np.bitwise_or(bits, 0x3C00, out=bits).view(BF16).reshape(shape)


def of_size(size):
    """LLaMA 7B with as many layers as make so many bytes, but at least one."""
    model = dataclasses.replace(preset("llama-7b").model, scan_layers=False)
    ends, layer = 0, 0
    for place in places(dataclasses.replace(model, n_layers=1), LLAMA.names(model)):
        count = 2 * math.prod(place.shape)
        ends, layer = (ends + count, layer) if place.layer is None else (ends, layer + count)
    return dataclasses.replace(model, n_layers=max(1, round((size - ends) / layer)))


def write(model, folder):
    """The model as Hugging Face has it. Returns the bytes of its tensors."""
    shapes = {place.tensor: place.tensor_shape for place in places(model, LLAMA.names(model))}
    planned = [Planned(name, shape, BF16, lambda name=name, shape=shape: numbers(name, shape))
               for name, shape in shapes.items()]  # fmt: skip
    write_tensors(folder, planned, lambda line: None, FILE)
    files.write_json(folder / "config.json", {"model_type": "llama", "dtype": "bfloat16", **LLAMA.write(model)})
    return sum(tensor.bytes for tensor in planned), max(tensor.bytes for tensor in planned)


def expected(place):
    """The weight of a place as it lies in our layout."""
    stored = numbers(place.tensor, place.tensor_shape)
    return (stored.T if place.name.transposed else stored).reshape(place.shape)


def differing(model, folder):
    """How many tensors of a folder in our layout are not those that were written, as the public library reads them."""
    from safetensors import safe_open

    theirs = {place.at + (place.path,): place for place in places(model, LLAMA.names(model))}
    ours = {place.tensor: theirs[place.at + (place.path,)] for place in places(model, own_names(model))}
    wrong = set(ours)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():
                if np.array_equal(file.get_tensor(name).view(np.uint16), expected(ours[name]).view(np.uint16)):
                    wrong.discard(name)
    return len(wrong), len(ours)


def memory(field):
    """Of this process, bytes: `VmRSS` now, `VmHWM` at its peak."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


class Peak:
    """How much more memory a piece of work took at its peak than there was before it."""

    def __enter__(self):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.before = memory("VmRSS")
        self.started = time.perf_counter()
        return self

    def __exit__(self, *raised):
        self.seconds, self.above = time.perf_counter() - self.started, memory("VmHWM") - self.before


def child(limit, source, folder):
    """The work under the limit. Prints what it measured as JSON."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        np.ones(limit, np.uint8)
        sys.exit("RLIMIT_DATA limits nothing on this machine")
    except MemoryError:
        pass
    baseline = memory("VmRSS")
    with Peak() as peak:
        import_model(source, folder, lambda line: None)
    found = {"baseline": baseline, "import": peak.above, "import_seconds": peak.seconds}
    print(json.dumps(found | place_all(source)))


def place_all(source):
    """Every parameter into its shards: the most memory that one took besides its own, and what each shard holds."""
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    from chinchilla_jax.config import DataConfig, MeshConfig, RunConfig, TrainConfig
    from chinchilla_jax.parallel.mesh import make_mesh
    from chinchilla_jax.training.step import make_program

    found, mesh = open_weights(source), MeshConfig(fsdp=4, tensor=2)
    model = dataclasses.replace(found.model, scan_layers=False)
    data = DataConfig(tokenizer="none", vocab_size=model.vocab_size, seq_len=128)
    config = RunConfig(model, data=data, train=TrainConfig(batch_size=8), mesh=mesh)
    abstract = make_program(config, make_mesh(mesh)).abstract.params
    most, seconds, baseline, sums = 0, 0.0, memory("VmRSS"), {}
    for place in places(model, found.names):
        path = place.path.split("/")
        keys = path if place.layer is None else [f"layer_{place.layer}", *path]
        leaf = abstract
        for key in keys:
            leaf = leaf[key]
        one = jax.ShapeDtypeStruct(leaf.shape, BF16, sharding=leaf.sharding)
        for key in reversed(keys):
            one = {key: one}
        with Peak() as peak:
            loaded = jax.tree.leaves(found.load(model, one))[0]
        most, seconds = max(most, peak.above - loaded.nbytes), seconds + peak.seconds
        sums[place.tensor] = [
            ([axis.indices(size)[:2] for axis, size in zip(shard.index, leaf.shape, strict=True)], checksum(shard.data))
            for shard in loaded.addressable_shards
        ]
        del loaded
    return {"place_baseline": baseline, "place": most, "place_seconds": seconds, "shards": sums}


def checksum(array):
    """Of the numbers in C order."""
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def misplaced(model, shards):
    """How many parameters have a shard that is not what was written there."""
    wrong = 0
    for place in places(model, LLAMA.names(model)):
        whole = expected(place)
        wrong += any(
            checksum(whole[tuple(slice(*limits) for limits in index)]) != known for index, known in shards[place.tensor]
        )
    return wrong


def largest(model):
    """Bytes of the largest tensor in bfloat16, from the shapes alone."""
    return max(2 * math.prod(place.tensor_shape) for place in places(model, LLAMA.names(model)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=8.0)
    parser.add_argument("--limit", type=float, default=3.0)
    parser.add_argument("--room")
    given = parser.parse_args()
    limit = int(given.limit * 2**30)
    model = of_size(given.size * 1e9)
    with tempfile.TemporaryDirectory(dir=given.room) as room:
        source, ours = pathlib.Path(room) / "theirs", pathlib.Path(room) / "ours"
        size, one = write(model, source)
        what = f"{model.n_layers} layers, {size / 1e9:.2f} GB, largest tensor {one / 1e6:.0f} MB"
        print(f"{what}; limit {given.limit:g} GiB", flush=True)
        command = [sys.executable, "-m", "tests.benchmarks.weights", "child", str(limit), str(source), str(ours)]
        # What is freed goes back to the system at once: otherwise the peak is of all that there ever was.
        at_once = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1048576"}
        environment = os.environ | {"JAX_PLATFORMS": "cpu"} | at_once
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"the process under the limit failed with {done.returncode}")
        found = json.loads(done.stdout.splitlines()[-1])
        wrong, count = differing(model, ours)
    misplaced_ones = misplaced(model, found["shards"])
    rows = [("import", found["baseline"], found["import"], wrong)]
    rows += [("place", found["place_baseline"], found["place"], misplaced_ones)]
    for work, baseline, above, differ in rows:
        rate, beyond = size / found[f"{work}_seconds"] / 1e6, "it and the parameter" if work == "place" else "it"
        print(f"{work}: baseline {baseline / 1e6:.0f} MB, peak {above / 1e6:.0f} MB above {beyond}, {above / one:.2f} "
              f"times the largest tensor; {rate:.0f} MB/s; {differ} of {count} tensors differ")  # fmt: skip
    far = largest(preset("llama-65b").model)
    print(f"LLaMA 65B: largest tensor {far / 1e6:.0f} MB, so at most {MOST * far / 1e9:.2f} GB above the baseline")
    fine = found["import"] <= MOST * one * 1.02 and found["place"] <= PLACED_MOST * one
    sys.exit(0 if fine and not wrong and not misplaced_ones else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(int(sys.argv[2]), pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4]))
    else:
        main()
