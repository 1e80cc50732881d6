#!/usr/bin/env bash
# From a fresh checkout to a finished format search on the built-in digits images:
# makes a virtual environment, installs, searches, prints the result. No download of data.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
prepare_environment ""
python -m experiments.fliqs --flagfile=experiments/presets/digits.flags \
  --workdir="${WORKDIR:-runs/demo}" "$@"
