"""Workers that are started before there is work, to import JAX and compile while text is prepared or a fit is made.

On its standard input such a worker gets a line of JSON, what to get ready for; then, when there is work, an empty line.
The end of the input means that there will be none.
"""

from __future__ import annotations

import json
import pathlib
import select
import sys

from chinchilla_jax.config import RunConfig
from chinchilla_jax.study.execute.worker import Stopped, pin, use_compilation_cache
from chinchilla_jax.study.folder import PlannedRun

GO = b"\n"


def preparation(template: RunConfig, first: PlannedRun | None) -> bytes:
    """The line for a worker of the study `template`, whose first run will be `first`; None if nobody knows yet."""
    run = first and {"name": first.name, "config": first.config}
    return json.dumps({"template": template.to_dict(), "first": run}).encode() + b"\n"


def stand_by(study: pathlib.Path, worker: int, workers: int) -> str | None:
    """Gets this process ready and waits until it is needed; the name of the run that it is ready for.

    Raises:
      Stopped: it is not needed.
      StudyError: see `worker.pin`.
    """
    line = sys.stdin.buffer.readline()
    if not line:
        raise Stopped("not needed")
    message = json.loads(line)
    pin(RunConfig.from_dict(message["template"]), worker, workers)
    use_compilation_cache(study)
    from chinchilla_jax.training import loop  # noqa: F401  a second or two, which the first run need not wait for
    from chinchilla_jax.training.machine.warm import warm

    first = message["first"]
    needed_already = select.select([sys.stdin.buffer], [], [], 0.0)[0]
    if first and not needed_already:
        warm(RunConfig.from_dict(first["config"]))
    if sys.stdin.buffer.readline() != GO:
        raise Stopped("not needed")
    return first["name"] if first else None
