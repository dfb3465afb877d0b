"""Launching a study where the chips are. In: a manifest, and where to train it. Out: commands, specs, running workers.

Every back-end starts workers, `python -m chinchilla_jax work`, which pull runs from the manifest: `local.py` on this
machine, `tpu_vm.py` on queued resources of Google Cloud, `gke.py` on Kubernetes, `slurm.py` on a cluster, `ssh.py` on
hosts that are listed. `backend.py` says what they have in common, `money.py` and `pack.py` what it will take.
"""
