"""The command line: flags in, exit code out. `verbs.py` lists the verbs, the others hold what they do."""

from chinchilla_jax.cli.verbs import main as main
