"""Which TPU generation is a kernel being compiled for?

Block sizes and two instructions differ between generations, and a kernel has to know while it is traced. On a TPU the
devices say so. Where a program is compiled ahead of time, on a machine without one, `compile_for` says it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import jax

from chinchilla_jax.kernels.arguments import AttentionError

# Names of `device.device_kind`.
DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "v7x",
}
# Part of the key of JAX's caches: what was traced for one generation is not used for another.
_compile_for = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def compile_for(device_kind: str) -> Iterator[None]:
    """Kernels traced inside are for devices of this kind, whatever this machine has.

    Args:
      device_kind: as devices name it, `device.device_kind`, or the short name of a generation, `v5e`.

    Raises:
      AttentionError: a short name that is not in the table.
    """
    if re.fullmatch(r"v\d\w*", device_kind) and device_kind not in DEVICE_KINDS.values():
        raise AttentionError("device_kind", f"{device_kind!r} is no TPU generation known here; one of "
                             f"{', '.join(sorted(set(DEVICE_KINDS.values())))}")  # fmt: skip
    with _compile_for(device_kind):
        yield


def generation() -> str | None:
    """The TPU generation that is compiled for, `v4`, `v5e`, `v5p`, `v6e` or `v7x`; None if it is not a TPU.

    Asks `compile_for` first, then the mesh in use, then the default device. A kind of TPU that is not in the table
    keeps the name its devices have, so that whoever looks up its block sizes can say what is missing.
    """
    kind = _compile_for.value
    if kind is None:
        device = jax.sharding.get_abstract_mesh().abstract_device
        kind = device.device_kind if device is not None else jax.devices()[0].device_kind
    if kind in DEVICE_KINDS.values():
        return kind
    return DEVICE_KINDS.get(kind, kind if kind.startswith("TPU") else None)
