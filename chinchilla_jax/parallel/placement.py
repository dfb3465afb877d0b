"""How does a process put its part of a global batch on its devices, without building the rest?"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Sharding

from chinchilla_jax.data.batches import Batch


def local_rows(shape: tuple[int, int, int], sharding: Sharding, devices: set | None = None) -> list[np.ndarray]:
    """Row numbers of a global batch that devices hold, one array a distinct block.

    Args:
      shape: `[M, B/M, S]` of the global batch; row `[m, b]` has number `m * B/M + b`.
      devices: default this process's.

    Returns:
      int arrays `[m, b]`, in the order of their first rows. Together they cover each row once.
    """
    numbers = np.arange(shape[0] * shape[1]).reshape(shape[:2])
    indices = sharding.devices_indices_map(shape)
    mine = sharding.addressable_devices if devices is None else devices
    blocks = {numbers[indices[device][:2]].tobytes(): numbers[indices[device][:2]] for device in mine}
    return sorted(blocks.values(), key=lambda rows: rows[0, 0])


def place(build: Callable[..., Batch], shape: tuple[int, int, int], sharding: Sharding) -> dict[str, jax.Array]:
    """The global arrays `[M, B/M, S]` of a batch on the devices.

    Args:
      build: host arrays `[n, S]` of the batch's rows with these numbers; without an argument of all rows.
    """
    if jax.process_count() > 1:
        return assemble(build, shape, sharding)
    return jax.device_put({name: rows.reshape(shape) for name, rows in build().items()}, sharding)


def assemble(
    build: Callable[[np.ndarray], Batch], shape: tuple[int, int, int], sharding: Sharding
) -> dict[str, jax.Array]:
    """The global arrays `[M, B/M, S]` of a batch, of which this process builds only what its devices hold.

    Args:
      build: row numbers `[n]` -> arrays `[n, S]` by name; in all processes a view of the same global batch.
    """
    numbers = np.arange(shape[0] * shape[1]).reshape(shape[:2])
    blocks = {rows.tobytes(): build(rows.ravel()) for rows in local_rows(shape, sharding)}
    names = next(iter(blocks.values()))

    def part(name: str, index: tuple[slice, ...]) -> np.ndarray:
        rows = numbers[index[:2]]
        return blocks[rows.tobytes()][name].reshape(*rows.shape, shape[2])[..., index[2]]

    return {
        name: jax.make_array_from_callback(shape, sharding, lambda index, name=name: part(name, index))
        for name in names
    }
