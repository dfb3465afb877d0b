"""What digests of arrays cost a save: the time that steps wait for it, and that until it is on disk, to those without.

    python -m tests.benchmarks.digests [--numbers=3e7] [--rounds=5]

A state of float32 numbers, saved with and without digests in turn; medians and their ratios.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp

from chinchilla_jax.training import checkpoint
from chinchilla_jax.training.checkpoint import Checkpoints, Position
from chinchilla_jax.training.step import TrainState


def saved(state, folder):
    """Seconds until `save` returns, and until the checkpoint is there."""
    checkpoints, start = Checkpoints(folder), time.perf_counter()
    checkpoints.save(state, Position(1))
    returned = time.perf_counter() - start
    checkpoints.wait()
    there = time.perf_counter() - start
    checkpoints.close()
    return returned, there


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=float, default=3e7)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    width = int((arguments.numbers / 30) ** 0.5)
    layers = {f"layer_{i}": jax.random.normal(jax.random.key(i), (width, width)) for i in range(10)}
    moments = jax.tree.map(jnp.square, layers)
    state = TrainState(jnp.int32(1), layers, (moments, moments))
    seconds = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2 * arguments.rounds + 2):
            with_digests = number % 2 == 0
            digests = checkpoint.digests_of if with_digests else lambda tree: {}
            with mock.patch.object(checkpoint, "digests_of", digests):
                times = saved(state, pathlib.Path(folder) / str(number))
            if number >= 2:  # the first two warm up
                seconds[with_digests].append(times)
    gigabytes = 30 * width * width * 4 / 1e9
    for index, what in enumerate(("steps wait", "on disk after")):
        with_, without = (statistics.median(times[index] for times in seconds[on]) for on in (True, False))
        print(f"{what}: {with_:.3f} s with digests, {without:.3f} s without, of {gigabytes:.2f} GB: "
              f"{(with_ - without) / gigabytes:+.3f} s/GB, ratio {with_ / without:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
