"""`python -m chinchilla_jax VERB`."""

import sys

from chinchilla_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
