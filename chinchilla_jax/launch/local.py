"""Training on this machine: the pool of workers that `work` starts."""

from __future__ import annotations

import dataclasses
import shlex

from chinchilla_jax.launch.backend import Job
from chinchilla_jax.launch.command import Tools


@dataclasses.dataclass(frozen=True)
class Local:
    """`workers` processes at a time; None is as many as there are cores for."""

    workers: int | None = None

    def launch(self, job: Job, tools: Tools) -> None:
        """Trains all runs, and returns when they are finished."""
        command = ["python", "-m", "chinchilla_jax", "work", f"--study={job.study}", f"--manifest={job.manifest}"]
        command += [f"--workers={self.workers}"] if self.workers else []
        if tools.dry:
            tools.echo(shlex.join(command))
            return
        from chinchilla_jax.study.execute.backend import LOCAL, run_manifest

        run_manifest(LOCAL, job.folder, job.manifest, self.workers, tools.echo)

    def status(self, job: Job, tools: Tools) -> None:
        tools.echo("local: workers live as long as the command that started them")

    def stop(self, job: Job, tools: Tools) -> None:
        tools.echo("local: stop the command that started them (Ctrl-C); it saves what is in progress")
