#!/usr/bin/env bash
# Environment, style and the whole suite, on a fresh machine without a GPU. Arguments go to pytest: test.sh -k config
set -euo pipefail
source "$(dirname "$0")/environment.sh"

ruff check .
ruff format --check .
python -m pytest "$@"
