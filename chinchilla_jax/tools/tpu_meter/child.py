"""The process that compiles: the only part of the meter that imports jax. `compile.py` starts it.

A process of its own, because libtpu reads what it shall dump once, when it is loaded.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlib import _hlo

from chinchilla_jax.base.files import write_json, write_text
from chinchilla_jax.parallel.topology import topology
from chinchilla_jax.tools.tpu_meter.compile import META, PROGRAM


def main(build: str, chip: str, kwargs: dict, folder: Path) -> None:
    """Compiles what `build(**kwargs)` returns for the one chip of a topology, operands replicated."""
    devices = topology(chip).devices[:1]
    mesh = Mesh(devices, ("chip",))
    # Under the abstract mesh a kernel that asks for its TPU while it is traced sees this one, and eager operations of
    # the builder still run on the CPU; under the mesh itself they would go to a TPU that is not there.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        module, _, name = build.partition(":")
        built = getattr(importlib.import_module(module), name)(**kwargs)
        if isinstance(built, tuple) and len(built) == 2:
            built = dict(zip(("fn", "args"), built, strict=True))
        if not isinstance(built, dict):
            raise TypeError(f"{build} must return (fn, args) or a dict of fn, args and perhaps flops")
        replicated = NamedSharding(mesh, PartitionSpec())
        args = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated), tuple(built["args"]))
        compiled = jax.jit(built["fn"]).lower(*args).compile()
    options = _hlo.HloPrintOptions()
    options.print_large_constants = True  # as_text() leaves out what the meter reads
    write_text(folder / PROGRAM, compiled.runtime_executable().hlo_modules()[0].to_string(options))
    write_json(
        folder / META, {"flops": built.get("flops"), "jax": jax.__version__, "device_kind": devices[0].device_kind}
    )


def describe(error: Exception) -> str:
    """The beginning of an error's message, which in the compiler's is what matters, after the lines of the builder
    and kernel that led to it."""
    libraries = ("site-packages", "<frozen", os.path.dirname(os.__file__), __file__)
    frames = [
        f"  {frame.filename}:{frame.lineno}: {frame.line}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(library in frame.filename for library in libraries)
    ]
    return "\n".join([*frames[-8:], *f"{type(error).__name__}: {error}".splitlines()[:24]])


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), Path(sys.argv[4]))
    except Exception as error:
        sys.exit(describe(error))
