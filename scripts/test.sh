#!/usr/bin/env bash
# The one check command, also CI's: style, import layers, tests. Arguments go to pytest,
# for example: bash scripts/test.sh --slow
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
prepare_environment "[test]"
ruff check .
ruff format --check .
lint-imports
# A process a core, and each file in one: fixtures and compiled programs are shared there.
python -m pytest -q -n auto --dist loadfile "$@"
