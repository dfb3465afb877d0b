#!/usr/bin/env bash
# From a fresh clone to a finished study:
#
#   bash launch/quickstart.sh [cpu|cpu_long|tiny] [flags of the verb study]
#   bash launch/quickstart.sh methods [flags of the verb methods]
#
# Makes .venv, fetches text, plans an IsoFLOP study, trains it, predicts the next budget, checks the prediction and writes
# studies/NAME/report.html. With `methods` it compares ways to train at equal compute (growth, patches, mixtures of
# experts) and writes studies/methods/comparison.html. Stop it whenever you like; the same command goes on where it was
# and does only what is missing.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
name="${1:-cpu}"
[ $# -gt 0 ] && shift
case "$name" in
  cpu | cpu_long | tiny) verb=(study --config="configs/isoflop.py:$name") ;;
  methods) verb=(methods --config=configs/methods.py:cpu) ;;
  -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) echo "error: unknown study '$name'; use cpu, cpu_long, tiny or methods" >&2; exit 2 ;;
esac
. launch/venv.sh
make_venv '' || exit $?
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
python -m chinchilla_jax "${verb[@]}" --study="studies/$name" "$@" || exit $?
# What the best run says: a few words that the largest budget taught it.
echo "text of the best run (python -m chinchilla_jax generate studies/$name [PROMPT...]):"
exec python -m chinchilla_jax generate "studies/$name" "The " --temperature=0.7 --top_p=0.95 --new_tokens=80
