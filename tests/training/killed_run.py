"""Trains in a process of its own and kills it: `killed_run.py SETTINGS.json WORKDIR WHERE [STEP]`.

WHERE: `never`; `step` (dispatching STEP); `line` (half-way through a line of STEP); `evaluated` (evaluation of STEP
written, not yet saved); `saving` (STEP on its way to disk); `restored` (metrics about to be cut off); `result` (all but
the result written).
"""

import json
import os
import pathlib
import signal
import sys

import jax

SETTINGS, WORKDIR, WHERE = json.loads(pathlib.Path(sys.argv[1]).read_text()), sys.argv[2], sys.argv[3]
STEP = int(sys.argv[4]) if len(sys.argv) > 4 else 0
for name, value in SETTINGS["jax"].items():
    jax.config.update(name, value)

from chinchilla_jax.config import RunConfig  # noqa: E402
from chinchilla_jax.training import checkpoint, loop  # noqa: E402
from chinchilla_jax.training.record import directory, metrics  # noqa: E402


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def hook(owner, name, condition, before=None, after=None):
    """Makes `owner.name` do `before` first, or `after` last, when `condition` holds for its arguments."""
    function = getattr(owner, name)

    def instead(*args):
        concerns = condition(*args)
        if before and concerns:
            before(*args)
        result = function(*args)
        if after and concerns:
            after(*args)
        return result

    setattr(owner, name, instead)


def half_a_line(writer, kind, record):
    writer._files[kind].write(json.dumps(record)[:40])
    writer._files[kind].flush()
    die()


if WHERE == "step":
    hook(loop, "learning_rate", lambda optimizer, steps, step: step == STEP, before=die)
elif WHERE == "line":
    hook(metrics.MetricWriter, "write", lambda writer, kind, record: record["step"] == STEP, before=half_a_line)
elif WHERE == "evaluated":
    hook(metrics.RunLog, "evaluation", lambda log, validation: log._position.step == STEP, after=die)
elif WHERE == "saving":
    hook(checkpoint.Checkpoints, "save", lambda checkpoints, state, position, *loss: position.step == STEP, after=die)
elif WHERE == "restored":
    hook(metrics, "_truncate", lambda directory, position, echo: True, before=die)
elif WHERE == "result":
    hook(directory.files, "write_json", lambda path, value: path.name == "result.json", before=die)

if __name__ == "__main__":
    loop.train(RunConfig.from_dict(SETTINGS["config"]), WORKDIR)
