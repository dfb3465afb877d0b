"""One host of several: `host.py RECORD MISHAP... -- COMMAND` is `python -m chinchilla_jax COMMAND`, with a mishap.

RECORD: a file that gets the numbers and hashes of the training rows this host built.
MISHAP: `none`; `terminated STEP` (SIGTERM arrives when STEP is about to start, and steps take their time afterwards);
`killed STEP` (SIGKILL likewise); `blind STEP` (cannot read its part of checkpoint STEP); `failing` (an error of its
own, in the middle of the run); `elsewhere` (sees another directory under the same name).
"""

import hashlib
import json
import os
import pathlib
import signal
import sys
import time

from chinchilla_jax import cli
from chinchilla_jax.parallel.job import distributed

CUT = sys.argv.index("--")
RECORD, MISHAPS, COMMAND = pathlib.Path(sys.argv[1]), " ".join(sys.argv[2:CUT]).split(","), sys.argv[CUT + 1 :]


def hook(owner, name, before):
    """Makes `owner.name` do `before` first, with the same arguments."""
    function = getattr(owner, name)

    def instead(*args, **options):
        before(*args, **options)
        return function(*args, **options)

    setattr(owner, name, instead)


def record(batches, first_sequence, n, rows):
    """Writes what the next batch is made of on this host."""
    made = BATCH(batches, first_sequence, n, rows)
    hashes = [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in made["inputs"]]
    rows = dict(zip(map(int, rows), hashes, strict=True))
    with RECORD.open("a") as file:
        file.write(json.dumps({"first": first_sequence, "n": n, "rows": rows}) + "\n")
    return made


def arrange(mishap, step):
    from chinchilla_jax.training import checkpoint, loop

    def terminate(optimizer, steps, now):
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        elif now > step:
            time.sleep(0.02)

    def kill(optimizer, steps, now):
        if now == step:
            os.kill(os.getppid(), signal.SIGKILL)  # the process that was started; this one goes with it
            time.sleep(60.0)

    def blind(manager, there, abstract):
        if there == step:
            raise OSError("no such shard on this host")

    def fail(*_):
        raise OSError("the data are gone")

    if mishap == "terminated":
        hook(loop, "learning_rate", terminate)
    elif mishap == "killed":
        hook(loop, "learning_rate", kill)
    elif mishap == "blind":
        hook(checkpoint, "_read", blind)
    elif mishap == "failing":
        hook(loop.Checkpoints, "save", fail)
    elif mishap == "elsewhere":
        hook(distributed, "check_shared", lambda directory: os.chdir(RECORD.parent))


def after_joining(found):
    """Only then may JAX be imported."""
    global BATCH
    START(found)
    from chinchilla_jax.data import Batches

    BATCH, Batches.batch = Batches.batch, record
    for mishap in MISHAPS:
        arrange(mishap.split()[0], int(mishap.split()[1]) if " " in mishap.strip() else 0)


if __name__ == "__main__":
    START, distributed._start = distributed._start, after_joining
    sys.exit(cli.main(COMMAND))
