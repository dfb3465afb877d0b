"""`python -m chinchilla_jax.tools.tpu_meter MODULE:FUNCTION --gen v5e`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from chinchilla_jax.base.chips import kernel_chips
from chinchilla_jax.base.files import write_json
from chinchilla_jax.tools import tpu_meter as meter
from chinchilla_jax.tools.tpu_meter import MeterError
from chinchilla_jax.tools.tpu_meter.measure import measure
from chinchilla_jax.tools.tpu_meter.report import render
from chinchilla_jax.tools.tpu_meter.selftest import selftest


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a report. 0 if all is well, 1 above `--max-cycles`, 2 if it cannot be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m chinchilla_jax.tools.tpu_meter",
        description=meter.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("build", nargs="?", metavar="MODULE:FUNCTION", help="the builder")
    parser.add_argument("--gen", default="v5e", help=f"TPU generation: {', '.join(kernel_chips())} (default v5e)")
    parser.add_argument("--kwargs", default="{}", help="keyword arguments of the builder, a JSON object")
    parser.add_argument("-v", "--verbose", action="store_true", help="the costliest regions, not only the first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report here")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the program and the dumps here")
    parser.add_argument("--max-cycles", type=float, metavar="N", help="fail if the total is above this")
    parser.add_argument("--selftest", action="store_true", help="measure a matmul: are the dumps understood?")
    flags = parser.parse_args(arguments)
    if bool(flags.build) == flags.selftest:
        parser.error("name a builder, MODULE:FUNCTION, or give --selftest")
    try:
        kwargs = json.loads(flags.kwargs)
    except json.JSONDecodeError as error:
        parser.error(f"--kwargs is not JSON: {error}")
    if not isinstance(kwargs, dict):
        parser.error(f"--kwargs must be a JSON object, got {flags.kwargs}")
    try:
        report = selftest(flags.gen) if flags.selftest else measure(flags.build, flags.gen, kwargs, flags.keep)
    except MeterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if flags.json:
        write_json(flags.json, dataclasses.asdict(report))
    print(render(report, flags.verbose))
    if flags.max_cycles is not None and report.cycles > flags.max_cycles:
        print(f"error: {report.cycles:,} cycles, more than the {flags.max_cycles:,.0f} allowed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
