#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under eight minutes: tests, then benchmarks of operator and model.
#
#   bash scripts/gpu_check.sh OUTDIR
#
# OUTDIR gets at most 8 files: summary.md, summary.json, gpu_check.log, tests.xml and what the benchmarks write.
# Parts that fail do not stop the others. Exit status: 0 if all passed, 1 if any failed, 2 without a CUDA device.
# PYTHON names the interpreter; nothing has to be installed but torch, triton, timm, pytest and what they need.
# GPU_CHECK_WORKERS: processes for the tests (needs pytest-xdist; compiling kernels is most of the time).
set -uo pipefail

if [ $# -ne 1 ] || [ -z "$1" ] || [ "${1#-}" != "$1" ]; then
    echo "usage: bash scripts/gpu_check.sh OUTDIR" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

case ${PYTHON:-} in # a path is one from here, not from the folder of the checkout
    */*) PYTHON=$(cd "$(dirname "$PYTHON")" 2>/dev/null && pwd)/$(basename "$PYTHON") ;;
esac
python=
for candidate in ${PYTHON:+"$PYTHON"} python python3; do
    if "$candidate" -c 'import torch' 2>/dev/null; then
        python=$candidate
        break
    fi
    if [ -n "${PYTHON:-}" ]; then break; fi # what was asked for is not replaced in silence
done
if [ -z "$python" ]; then
    echo "gpu_check: ${PYTHON:-python} cannot import torch; set PYTHON to an interpreter that can" >&2
    exit 2
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "gpu_check: no CUDA device found; nothing was run" >&2
    exit 2
fi

mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$root" || exit 2
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
log=$out/gpu_check.log
parts=$(mktemp)
trap 'rm -f "$parts"' EXIT
: >"$log"
rm -f "$out"/{tests.xml,summary.json,summary.md,benchmarks.tar.gz} # of an earlier run

# The whole stays below eight minutes: a part gets its own limit or what is left, whichever is less.
total=465
run_part() { # NAME LIMIT COMMAND...
    local name=$1 limit=$2 start status left
    shift 2
    left=$((total - SECONDS))
    [ "$left" -lt "$limit" ] && limit=$left
    start=$SECONDS
    printf '\n=== %s (at most %s s): %s\n' "$name" "$limit" "$*" | tee -a "$log"
    if [ "$limit" -lt 5 ]; then
        echo "not run: the time is up" | tee -a "$log"
        status=124
    else
        # SIGINT first: pytest then still writes its report
        timeout --signal=INT --kill-after=15 "$limit" "$@" </dev/null 2>&1 | tee -a "$log"
        status=${PIPESTATUS[0]}
    fi
    printf '%s\t%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - start))" "$*" >>"$parts"
}

{
    date -u
    nvidia-smi || echo "nvidia-smi: not available"
    "$python" - <<'PY'
import importlib.metadata, sys, torch

print("python", sys.version, "cuda", torch.version.cuda)
for package in importlib.metadata.distributions():
    if package.name.startswith(("torch", "triton", "timm", "numpy", "pytest")):
        print(package.name, package.version)
print(torch.cuda.get_device_name(0), "capability", torch.cuda.get_device_capability(0))
PY
    git -C "$root" log -1 --format='commit %h %s' 2>/dev/null || echo "commit unknown"
} 2>&1 | tee -a "$log"

# A file that cannot be imported must not stop the others; long traces of many failures must not fill the log.
options=(-m gpu -q --tb=short --continue-on-collection-errors -p no:cacheprovider --durations=15)
if "$python" -c 'import xdist' 2>/dev/null; then
    cores=$(nproc 2>/dev/null || echo 1)
    workers=$((cores / 2 < 8 ? cores / 2 : 8))
    options+=(-n "${GPU_CHECK_WORKERS:-$((workers > 0 ? workers : 1))}" --dist loadgroup)
fi
if "$python" -c 'import pytest_timeout' 2>/dev/null; then
    options+=(--timeout 120)
fi
run_part tests 240 "$python" -m pytest tests/gpu "${options[@]}" --junitxml "$out/tests.xml"
# The most informative first: each gets what the parts before it have left of the eight minutes.
run_part benchmark_op 75 "$python" scripts/benchmarks/op.py --skip-compiled --shapes all --budget 0.2 --output "$out"
run_part benchmark_tiles 60 "$python" scripts/benchmarks/tiles.py --output "$out"
run_part benchmark_model 180 "$python" scripts/benchmarks/model.py --models ddf_mul_resnet50 resnet50 --output "$out"
compiled=$(mktemp -d)
run_part benchmark_op_compiled 60 "$python" scripts/benchmarks/op.py --only "ddf,ddf compiled,shifted compiled" \
    --budget 0.2 --output "$compiled"
for file in "$compiled"/benchmark_op.*; do
    [ -f "$file" ] && mv "$file" "$out/benchmark_op_compiled.${file##*.}"
done
rm -rf "$compiled"

"$python" - "$parts" "$out" <<'PY'
"""summary.json and summary.md; fails if a part did."""
import json
import pathlib
import sys
import tarfile
import xml.etree.ElementTree

import torch

out = pathlib.Path(sys.argv[2])
parts = []
for line in pathlib.Path(sys.argv[1]).read_text().splitlines():
    name, status, seconds, command = line.split("\t")
    parts.append({"name": name, "command": command, "exit_code": int(status), "seconds": int(seconds)})

failures = []
if (out / "tests.xml").exists():
    root = xml.etree.ElementTree.parse(out / "tests.xml").getroot()
    counts = {key: sum(int(suite.get(key, 0)) for suite in root.iter("testsuite"))
              for key in ("tests", "failures", "errors", "skipped")}
    counts["passed"] = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    parts[0]["counts"] = counts
    for case in root.iter("testcase"):
        for element in [*case.findall("failure"), *case.findall("error")]:
            message = (element.get("message") or "").replace("\n", " ")[:300]
            failures.append({"test": f"{case.get('classname')}::{case.get('name')}", "message": message})

# Only what benchmarks write is packed: OUTDIR may be a folder with other things in it.
endings = [".json", ".md", ".csv", ".txt", ".png"]
written = [path for name in ("benchmark_*", "trace_*") for ending in endings for path in sorted(out.glob(name + ending))]
room = 4  # beside summary.md, summary.json, gpu_check.log and tests.xml
if len(written) > room:
    with tarfile.open(out / "benchmarks.tar.gz", "w:gz") as archive:
        for path in written[room - 1 :]:
            archive.add(path, path.name)
            path.unlink()

device = torch.cuda.get_device_name(0)
failed = [part["name"] for part in parts if part["exit_code"]]
summary = {"device": device, "torch": torch.__version__, "parts": parts, "failed": failed, "failures": failures}
(out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
lines = [f"# GPU check on {device}, PyTorch {torch.__version__}", ""]
lines += ["| part | exit code | seconds | tests | command |", "| --- | --- | --- | --- | --- |"]
for part in parts:
    counts = ", ".join(f"{value} {key}" for key, value in part.get("counts", {}).items())
    lines.append(f"| {part['name']} | {part['exit_code']} | {part['seconds']} | {counts} | `{part['command']}` |")
lines += ["", "Exit code 124: out of time.", *(f"- {failure['test']}: {failure['message']}" for failure in failures)]
(out / "summary.md").write_text("\n".join(lines) + "\n")
print("\n" + "\n".join(lines[:40]))
sys.exit(bool(failed))
PY
