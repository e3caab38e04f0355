#!/usr/bin/env bash
# Everything that needs a GPU, in one command: tests, then benchmarks of operator and model.
#
#   bash scripts/gpu_check.sh OUTDIR          under eight minutes
#   bash scripts/gpu_check.sh OUTDIR quick    under four: eager models with a profile, then tests; nothing of Inductor
#
# OUTDIR gets summary.md, summary.json, gpu_check.log, tests.xml and benchmarks.tar.gz. Parts that fail do not stop the
# others. Exit status: 0 if none failed, 1 if any failed, 2 without a CUDA device. A part that ran out of time is called
# cut, not failed: what it measured until then counts. scripts/dev/gpu_check.py has the list of parts.
# PYTHON names the interpreter; nothing has to be installed but torch, triton, timm, pytest and what they need.
# GPU_CHECK_WORKERS: processes for the tests (needs pytest-xdist; compiling kernels is most of the time).

profile=${2-full}
case $profile in full | quick) ;; *) profile= ;; esac
if [ $# -lt 1 ] || [ $# -gt 2 ] || [ -z "$1" ] || [ "${1#-}" != "$1" ] || [ -z "$profile" ]; then
    echo "usage: bash scripts/gpu_check.sh OUTDIR [full|quick]" >&2
    exit 2
fi
candidates=(python python3)
if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi # an interpreter that was asked for has no substitute
for python in "${candidates[@]}"; do
    if "$python" -c 'import torch' 2>/dev/null; then
        exec "$python" "$(dirname "${BASH_SOURCE[0]}")/dev/gpu_check.py" "$1" "$profile"
    fi
done
echo "gpu_check: ${PYTHON:-python} cannot import torch; set PYTHON to an interpreter that can" >&2
exit 2
