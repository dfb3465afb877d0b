#!/usr/bin/env bash
# Runs the tests in the same environment that the quick start uses, with the test tools and the TPU compiler added:
#
#   bash tests/run.sh [arguments of pytest]        e.g. bash tests/run.sh -m long, or tests/study -k lease
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
. launch/venv.sh
make_venv '[test,compiler]' || exit $?
export JAX_PLATFORMS=cpu
unset PYTHONDONTWRITEBYTECODE # tests start a hundred processes, each of which would compile the package anew
# The tests of a file stay in one process and share what its fixtures prepare and compile; in the order of the files, since
# with the largest first a long test that is alone in its file would be the last one, on one core.
exec python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
