#!/usr/bin/env bash
# Run timm's own tests/test_models.py on the models of this package.
#
#   pip download --no-deps --no-binary timm timm==1.0.31 && tar xf timm-1.0.31.tar.gz
#   bash scripts/dev/timm_tests.sh timm-1.0.31
#   bash scripts/dev/timm_tests.sh timm-1.0.31 -k "ddf_mul_resnet50 and backward" -x
#   bash scripts/dev/timm_tests.sh timm-1.0.31 --record   # into docs/results/timm_tests.json, for models.md
#
# The source should be of the version of timm that is installed, whose wheel has no tests; a checkout does, too. Further
# arguments go to pytest. All take about five minutes of one core; those that need the network (test_*pretrained*) are
# left out.
set -euo pipefail

if [ $# -lt 1 ] || [ ! -f "$1/tests/test_models.py" ]; then
  echo "usage: bash scripts/dev/timm_tests.sh SOURCE_OF_TIMM [PYTEST ARGUMENTS]; SOURCE/tests/test_models.py is needed" >&2
  exit 2
fi
checkout=$(cd "$1" && pwd); shift
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp "$checkout/tests/test_models.py" "$folder/"  # alone: beside the checkout's own timm it would test that one
printf '[pytest]\nmarkers = \n  base\n  cfg\n  torchscript\n  features\n  fxforward\n  fxbackward\n  timeout\n' > "$folder/pytest.ini"
cd "$folder"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" python -m pytest -p scripts.dev.timm_models_plugin -c pytest.ini -q test_models.py "$@"
