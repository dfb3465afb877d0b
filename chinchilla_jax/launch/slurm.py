"""Training on a Slurm cluster: an array of jobs, a task of it for each slice, that share the folder of the study.

The script is made here and given to `sbatch` on its standard input; options of the cluster (partition, account, GPUs,
time) go through `--sbatch`. Hosts find each other by the variables that `parallel/job/hosts.py` reads.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex

import chinchilla_jax
from chinchilla_jax.launch.backend import MOST_VAIN_STARTS, Job
from chinchilla_jax.launch.command import LaunchError, Tools
from chinchilla_jax.launch.ssh import PORT

# The loop is that of `launch/README.md`: 42 and a lost machine start again, three times without a new checkpoint; what
# is preempted as a whole is queued again by Slurm.
_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --nodes={hosts}
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={log}
cd {root} || exit 2
export PYTHONUNBUFFERED=1 JAX_NUM_PROCESSES=$SLURM_JOB_NUM_NODES
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export JAX_COORDINATOR_ADDRESS=$first:$(({port} + SLURM_ARRAY_TASK_ID))
mark() {{
  find {runs} \\( -path '*/checkpoints/step_*' -o -name result.json \\) -prune -print 2>/dev/null | sort | cksum
}}
vain=0
while :; do
  before=$(mark)
  srun --kill-on-bad-exit=1 bash -c 'JAX_PROCESS_ID=$SLURM_PROCID exec "$@"' worker {work}"$SLURM_ARRAY_TASK_ID"
  code=$?
  [ $code -eq 42 ] || [ $code -ge 126 ] || exit $code
  if [ "$(mark)" = "$before" ]; then vain=$((vain + 1)); else vain=0; fi
  if [ $vain -ge {vain} ]; then echo "started $vain times without a new checkpoint" >&2; exit 1; fi
done
"""


@dataclasses.dataclass(frozen=True)
class Slurm:
    """`hosts` nodes for each slice; `options` are further ones of sbatch."""

    hosts: int = 1
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in self.options:
            if not option.startswith("-"):
                raise LaunchError(f"--sbatch={option}: an option of sbatch begins with a dash")

    def script(self, job: Job) -> str:
        """What sbatch is given."""
        study = pathlib.Path(job.study).absolute()
        root = pathlib.Path(chinchilla_jax.__file__).resolve().parent.parent
        words = dataclasses.replace(job, study=str(study)).work("", ".venv/bin/python")
        return _SCRIPT.format(
            name=job.name,
            last=job.slices - 1,
            hosts=self.hosts,
            log=study / "logs" / "slurm-%a.log",
            root=shlex.quote(str(root)),
            port=PORT,
            runs=shlex.quote(str(study / "runs")),
            work=shlex.join(words),
            vain=MOST_VAIN_STARTS,
        )

    def launch(self, job: Job, tools: Tools) -> None:
        """Hands the array over to Slurm, and returns."""
        if job.study.startswith("gs://"):
            raise LaunchError(f"--study={job.study}: on Slurm a study lies in a folder that all nodes share")
        if not tools.dry:
            from chinchilla_jax.base import files

            files.make_folder(job.folder / "logs")
        done = tools.call(["sbatch", "--parsable", *self.options], stdin=self.script(job), answer="1")
        if not done.ok:
            raise LaunchError(f"sbatch: {done.why()}")
        if not tools.dry:
            tools.echo(f"submitted as {done.out.strip() or '?'}; `status` shows the runs")

    def status(self, job: Job, tools: Tools) -> None:
        """Prints what squeue says of the array."""
        tools.echo(tools.call(["squeue", "--me", f"--name={job.name}"], reads=True).out.rstrip())

    def stop(self, job: Job, tools: Tools) -> None:
        """Ends the array: workers get SIGTERM and save."""
        done = tools.call(["scancel", "--me", f"--name={job.name}"])
        if not done.ok:
            raise LaunchError(f"scancel: {done.why()}")
