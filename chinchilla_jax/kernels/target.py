"""Which TPU generation is a kernel being compiled for?

Block sizes and two instructions differ between generations, and a kernel has to know while it is traced. On a TPU the
devices say so. Where a program is compiled ahead of time, on a machine without one, `compile_for` says it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import jax

from chinchilla_jax.base.chips import CHIPS, chip_of, kernel_chips
from chinchilla_jax.kernels.call import AttentionError

# Part of the key of JAX's caches: what was traced for one generation is not used for another.
_compile_for = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def compile_for(device_kind: str) -> Iterator[None]:
    """Kernels traced inside are for devices of this kind, whatever this machine has.

    Args:
      device_kind: as devices name it, `device.device_kind`, or the short name of a generation, `v5e`.

    Raises:
      AttentionError: a short name that is not in the table of chips.
    """
    known = kernel_chips()
    if re.fullmatch(r"v\d\w*", device_kind) and device_kind not in known:
        raise AttentionError(
            "device_kind", f"{device_kind!r} is no TPU generation known here; one of {', '.join(sorted(known))}"
        )
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
    chip = CHIPS.get(kind) or chip_of(kind)
    if chip is not None and chip.core is not None:
        return chip.name
    return kind if kind.startswith("TPU") else None
