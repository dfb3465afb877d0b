# Sourced by launch/quickstart.sh and tests/run.sh: makes or reuses the environment .venv and activates it.
#   make_venv EXTRAS     e.g. make_venv '' or make_venv '[test]'

make_venv() {
  local extras="$1" python="" candidate stamp
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$candidate"; break; fi
  done
  if [ -z "$python" ]; then
    echo "error: Python 3.11 or newer is needed; install it, or name it: PYTHON=/path/to/python $0" >&2
    return 2
  fi
  # JAX 0.11 and newer need Python 3.12; both sets of versions are tested.
  local constraints=constraints.txt
  [ -x .venv/bin/python ] && python=.venv/bin/python
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' && constraints=constraints-py312.txt
  # What was installed is known by the files that decide it: if none has changed, there is nothing to do.
  stamp="$(cat $constraints setup.py | cksum) $extras"
  if [ -x .venv/bin/python ] && grep -qxF "$stamp" .venv/installed 2>/dev/null; then
    echo "environment: .venv is up to date"
  else
    echo "environment: installing into .venv with $("$python" --version)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv || { echo "error: could not make .venv; remove it" >&2; return 2; }
    .venv/bin/python -m pip install --quiet --upgrade pip &&
      .venv/bin/python -m pip install --quiet -c "$constraints" -e ".$extras" ||
      { echo "error: installing failed; the last lines above say why. Run again to retry" >&2; return 2; }
    # The extras include the plain installation, so remember both.
    printf '%s\n%s\n' "$stamp" "$(cat $constraints setup.py | cksum) " >.venv/installed
    echo "environment: installed"
  fi
  . .venv/bin/activate
}
