#!/usr/bin/env bash
# Environment, style, types and the whole suite, on a fresh machine without a GPU. Arguments go to pytest: test.sh -k config
# TEST_WORKERS: processes for the tests (default: one more than cores, as many tests wait, at most 8); 0 runs them in this
# one, for a debugger.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

ruff check .
ruff format --check .
mypy
cores='len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1'
workers=${TEST_WORKERS:-$(python -c "import os; print(min(8, 1 + ($cores)))")}
python -m pytest -n "$workers" --dist loadfile "$@"
