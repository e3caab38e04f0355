#!/usr/bin/env bash
# Environment, style, types and the whole suite, on a fresh machine without a GPU. Arguments go to pytest: test.sh -k config
# TEST_WORKERS: processes for the tests (default: one per core, at most 8); 0 runs them in this one, for a debugger.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

ruff check .
ruff format --check .
mypy
python -m pytest -n "${TEST_WORKERS:-auto}" --maxprocesses 8 --dist loadfile "$@"
