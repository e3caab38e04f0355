#!/usr/bin/env bash
# Finding (2026-11): with AOTI_RUNTIME_CHECK_INPUTS=1 a package exported for any batch size refuses a batch of one.
#
# Expected: the check refuses what the program was not exported for, and takes the rest.
# Real: the generated check asks for at least 2, whatever the declared minimum: "dim value is too small at 0,
#   expected it to be >= 2, but got: 1". Without the check the same call gives the right output, while strides,
#   dtypes and sizes that differ give wrong outputs silently (a permuted image, float64).
# Why it matters: the check is the only guard there is against a channels_last image being read as another image.
#   Whoever turns it on for that, in a service that sends single images, gets an error for each of them, and
#   whoever turns it off again is unguarded. Export a second package with the batch fixed to 1, or check yourself.
#
# Versions: torch 2.14.1, numpy 2.4.6, Python 3.11, x86-64, g++. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1
#   range of the program: VR[1, int_oo]
#   check off, batch of three: right
#   check off, batch of one: right
#   check off, channels_last: wrong output
#   check on, batch of three: right
#   check on, batch of one: refused (input_handles[0]: dim value is too small at 0, expected it to be >= 2, but got: 1)
#   check on, channels_last: refused (input_handles[0]: unmatched stride value at 1, expected: 64, but got: 1)
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cat > "$work/export.py" <<'PY'
import sys

import torch
from torch import nn
from torch.export import Dim

print("torch", torch.__version__.split("+")[0])
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
with torch.no_grad():
    program = torch.export.export(network, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: Dim("batch", min=1)},))
    print("range of the program:", *program.range_constraints.values())
    torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[1] + "/model.pt2")
    image = torch.randn(3, 3, 8, 8)
    torch.save((image, network(image)), sys.argv[1] + "/expected.pt")
PY
cat > "$work/check.py" <<'PY'
import os
import sys

import torch

checked = os.environ["AOTI_RUNTIME_CHECK_INPUTS"] == "1"
package = torch._inductor.aoti_load_package(sys.argv[1] + "/model.pt2")
image, expected = torch.load(sys.argv[1] + "/expected.pt")
seen = {}
cases = {
    "batch of three": image,
    "batch of one": image[:1],
    "channels_last": image.contiguous(memory_format=torch.channels_last),
}
for name, x in cases.items():
    try:
        off = (package(x) - expected[: len(x)]).abs().max().item()
        seen[name] = "right" if off < 1e-4 else "wrong output"
    except RuntimeError as error:
        seen[name] = f"refused ({str(error).strip().splitlines()[0][:90]})"
    print(f"check {'on' if checked else 'off'}, {name}: {seen[name]}")
first = {name: text.split()[0] for name, text in seen.items()}
want = {"batch of three": "right", "batch of one": "right", "channels_last": "wrong"}
if checked:
    want |= {"batch of one": "refused", "channels_last": "refused"}
sys.exit(0 if first == want else f"CHANGED: {first}")
PY
"$work/venv/bin/python" "$work/export.py" "$work"
for check in 0 1; do
  AOTI_RUNTIME_CHECK_INPUTS=$check "$work/venv/bin/python" "$work/check.py" "$work"
done 2> "$work/err" || { cat "$work/err" >&2; exit 1; }
echo "OK: behavior is as described"
