"""Where a study's wall time went, and the share of it spent training.

    python -m tests.benchmarks.study_time studies/cpu [workers]
"""

import pathlib
import sys

from chinchilla_jax.study.pipeline import where_the_time_went


def main() -> None:
    """Prints the table of a finished or stopped study."""
    if len(sys.argv) not in (2, 3) or not pathlib.Path(sys.argv[1], "manifest.jsonl").exists():
        sys.exit("usage: python -m tests.benchmarks.study_time STUDY [workers]; STUDY holds a manifest.jsonl")
    for line in where_the_time_went(pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 2):
        print(line)


if __name__ == "__main__":
    main()
