#!/usr/bin/env bash
# The API reference: HTML pages in build/api, made from the docstrings by pdoc.
#   bash scripts/api_reference.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
prepare_environment "[docs]"
# Every public module by name, since pdoc leaves out what an __all__ does not list.
mapfile -t modules < <(find fliqs_jax -name '*.py' -not -name '_[!_]*' |
  sed 's|/__init__||; s|\.py$||; s|/|.|g' | sort)
# --math: docstrings hold equations. A package and its modules both name the modules.
python -W "ignore:The module specification" -m pdoc --docformat=google --math --output-directory="${1:-build/api}" \
  "${modules[@]}"
echo "open ${1:-build/api}/index.html"
