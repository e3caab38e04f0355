#!/usr/bin/env bash
# Finding (2026-11): safetensors 0.8.0 writes a transposed NumPy array in the wrong order, silently;
# 0.7.0 wrote the same array correctly.
#
# Expected: safetensors.numpy.save({"w": a.T}) stores the values of a.T, as it did up to 0.7.0, or
#   raises, as safetensors.torch.save does for a tensor that is not contiguous.
# Real: since 0.8.0 the raw memory of the array is written under the shape of the view. The file is
#   valid, has the right name, shape and dtype, and loads without complaint, but the numbers are those
#   of the array before the transposition, cut into other rows. Arrays in Fortran order (what
#   np.asfortranarray gives, and several numeric libraries hand out) are hit too. The doc string asks
#   for contiguous arrays; nothing checks it.
# Why it matters: transposing is the heart of every converter of weights between frameworks: Flax and
#   TensorFlow keep kernels as HWIO and dense layers as (in, out), PyTorch as OIHW and (out, in). Such
#   a converter, unchanged for years, now writes a model that loads strictly, every name and shape
#   right, and is at chance level. np.ascontiguousarray before saving avoids it.
#
# Versions: safetensors 0.7.0 and 0.8.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   safetensors 0.7.0 numpy 2.4.6
#     contiguous array        kept: True
#     dense (in,out)->(out,in) kept: True
#     conv HWIO->OIHW         kept: True
#     Fortran order           kept: True
#     transposed, then copied kept: True
#   safetensors 0.8.0 numpy 2.4.6
#     contiguous array        kept: True
#     dense (in,out)->(out,in) kept: False
#     conv HWIO->OIHW         kept: False
#     Fortran order           kept: False
#     transposed, then copied kept: True
#     [[0. 3.] [1. 4.] [2. 5.]] was saved, [[0. 1.] [2. 3.] [4. 5.]] was loaded
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cat > "$work/check.py" <<'PY'
import sys

import numpy as np
import safetensors
from safetensors import safe_open
from safetensors.numpy import save_file

print("safetensors", safetensors.__version__, "numpy", np.__version__)
path = sys.argv[1] + "/weights.safetensors"
matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
kernel = np.arange(3 * 3 * 2 * 4, dtype=np.float32).reshape(3, 3, 2, 4)
cases = {
    "contiguous array": matrix,
    "dense (in,out)->(out,in)": matrix.T,
    "conv HWIO->OIHW": kernel.transpose(3, 2, 0, 1),
    "Fortran order": np.asfortranarray(matrix),
    "transposed, then copied": np.ascontiguousarray(matrix.T),
}
kept = []
for name, array in cases.items():
    save_file({"w": array}, path)
    with safe_open(path, framework="np") as handle:
        loaded = handle.get_tensor("w")
    assert loaded.shape == array.shape and loaded.dtype == array.dtype
    kept.append(bool(np.array_equal(loaded, array)))
    print(f"  {name:23s} kept: {kept[-1]}")
    if name.startswith("dense"):
        shown = [str(item).replace("\n", "") for item in (array, loaded)]
expected = {"0.7.0": [True] * 5, "0.8.0": [True, False, False, False, True]}[safetensors.__version__]
if not all(kept):
    print(f"  {shown[0]} was saved, {shown[1]} was loaded")
if kept != expected:
    sys.exit(f"CHANGED: safetensors {safetensors.__version__} gave {kept}, expected {expected}")
PY

for version in 0.7.0 0.8.0; do
  python3 -m venv "$work/venv-$version"
  "$work/venv-$version/bin/python" -m pip install --quiet --disable-pip-version-check \
    "safetensors==$version" numpy==2.4.6
  "$work/venv-$version/bin/python" "$work/check.py" "$work"
done
echo "OK: behavior is as described"
