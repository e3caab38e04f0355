#!/usr/bin/env bash
# Finding (2026-11): OpenVINO reads ONNX pooling with ceil_mode=1 by a rule of its own: MaxPool gets one more row and
# column, filled with -3.4e38, and AveragePool other numbers at the border.
#
# Expected: PyTorch and ONNX define ceil_mode alike. A last window that would start in the padding on the right is
#   left out, and count_include_pad counts the padding but not what lies beyond it. onnxruntime and onnx's
#   reference do so.
# Real: OpenVINO keeps the last window although it holds padding only: MaxPool 3 stride 3 padding 1 of a 32x32
#   map gives 12x12 instead of 11x11, and as nothing was seen in the extra windows, they hold the lowest float32.
#   AveragePool has the right shape but divides the last row and column by the full kernel size: an image of
#   nines has 3.0 at its right border instead of 4.5. All is right with ceil_mode=0, without padding, or where
#   the last window touches the image, so it depends on the image size: the average of 3x3 with stride 2 and
#   padding 1 is hit at even sizes only.
#   onnxruntime computes 11x11 but its shape inference says 12x12, so it warns of a model that is right.
# Why it matters: behind convolutions and a global average the extra row gives huge logits and no error; in front of
#   a Reshape or a skip connection it stops the network. Either comes at some input sizes only, and the wrong
#   averages change the border alone. The file, the checker, PyTorch and onnxruntime agree with
#   each other. Padding by hand in front of a pool with ceil_mode=0 (with -inf for the maximum) avoids it.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   openvino 2026.4.1 onnx 1.23.2 onnxruntime 1.32.0
#   op           size kernel stride pad ceil count_pad  defined  onnxruntime  openvino
#   MaxPool        56      3      2   1    1         0  29x29    off 0.000    off 0.000
#   MaxPool        55      3      2   0    1         0  27x27    off 0.000    off 0.000
#   MaxPool        32      3      3   1    1         0  11x11    off 0.000    12x12
#   MaxPool         7      2      2   1    1         0  4x4     off 0.000    5x5
#   MaxPool         7      2      2   1    0         0  4x4     off 0.000    off 0.000
#   AveragePool    56      3      2   1    0         1  28x28    off 0.000    off 0.000
#   AveragePool    56      3      2   1    1         0  29x29    off 0.000    off 0.000
#   AveragePool    56      3      2   1    1         1  29x29    off 0.000    off 0.323
#   AveragePool     8      3      2   1    1         1  5x5     off 0.000    off 0.326
#   maximum of an 8x8 image of ones, reference: top row [1.0, 1.0, 1.0], mean of all 1
#   maximum of an 8x8 image of ones, onnxruntime: top row [1.0, 1.0, 1.0], mean of all 1
#   maximum of an 8x8 image of ones, openvino: top row [1.0, 1.0, 1.0, -3.4028234663852886e+38], mean of all -1.49e+38
#   averages of an image of nines, reference: [6.0, 9.0, 9.0, 9.0, 4.5]
#   averages of an image of nines, onnxruntime: [6.0, 9.0, 9.0, 9.0, 4.5]
#   averages of an image of nines, openvino: [6.0, 9.0, 9.0, 9.0, 3.0]
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import itertools
import sys

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, checker, helper
from onnx.reference import ReferenceEvaluator

onnxruntime.set_default_logger_severity(4)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("openvino", "onnx", "onnxruntime")))
core = openvino.Core()
rng = np.random.default_rng(0)


def three(op, x, **attributes):
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * x.ndim)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    text = model.SerializeToString()
    compiled = openvino.compile_model(core.read_model(text), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])
    return ReferenceEvaluator(model).run(None, {"x": x})[0], session.run(None, {"x": x})[0], compiled({"x": x})[0]


def defined(op, x, k, stride, pad, ceil, counts):
    """PyTorch's and ONNX's definition, pixel by pixel."""
    size = x.shape[2]
    count = (size + 2 * pad - k + (stride - 1 if ceil else 0)) // stride + 1
    if (count - 1) * stride >= size + pad:
        count -= 1  # a window that would start in the padding on the right is left out
    out = np.empty((*x.shape[:2], count, count), np.float32)
    for i, j in itertools.product(range(count), repeat=2):
        low, high = [max(v * stride - pad, 0) for v in (i, j)], [min(v * stride - pad + k, size) for v in (i, j)]
        window = x[:, :, low[0] : high[0], low[1] : high[1]]
        if op == "MaxPool":
            out[:, :, i, j] = window.max((2, 3))
            continue
        # Padding counts, what is beyond it does not.
        sides = [min(v * stride + k, size + 2 * pad) - v * stride for v in (i, j)]
        divisor = sides[0] * sides[1] if counts else window[0, 0].size
        out[:, :, i, j] = window.sum((2, 3)) / divisor
    return out


failures = []
print("op           size kernel stride pad ceil count_pad  defined  onnxruntime  openvino")
for op, size, k, stride, pad, ceil, counts, wrong in (
    ("MaxPool", 56, 3, 2, 1, 1, 0, None),
    ("MaxPool", 55, 3, 2, 0, 1, 0, None),
    ("MaxPool", 32, 3, 3, 1, 1, 0, "shape"),
    ("MaxPool", 7, 2, 2, 1, 1, 0, "shape"),
    ("MaxPool", 7, 2, 2, 1, 0, 0, None),
    ("AveragePool", 56, 3, 2, 1, 0, 1, None),
    ("AveragePool", 56, 3, 2, 1, 1, 0, None),
    ("AveragePool", 56, 3, 2, 1, 1, 1, "values"),
    ("AveragePool", 8, 3, 2, 1, 1, 1, "values"),
):
    x = rng.random((1, 4, size, size), np.float32) + 1
    options = {"kernel_shape": [k, k], "strides": [stride, stride], "pads": [pad] * 4, "ceil_mode": ceil}
    if op == "AveragePool":
        options["count_include_pad"] = counts
    want = defined(op, x, k, stride, pad, ceil, counts)
    texts, verdicts = [], []
    for y in three(op, x, **options)[1:]:
        if y.shape != want.shape:
            verdicts.append("shape")
            texts.append(f"{y.shape[2]}x{y.shape[3]}")
        else:
            off = float(np.abs(y - want).max())
            verdicts.append("values" if off > 1e-3 else None)
            texts.append(f"off {off:.3f}")
    print(
        f"{op:12s} {size:4d} {k:6d} {stride:6d} {pad:3d} {ceil:4d} {counts:9d}  {want.shape[2]}x{want.shape[3]:<4d}  "
        f"{texts[0]:11s}  {texts[1]}"
    )
    if verdicts != [None, wrong]:
        failures.append(f"{op} {size}: {verdicts}")
ones = np.ones((1, 1, 8, 8), np.float32)
options = {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1] * 4, "ceil_mode": 1}
for name, y in zip(("reference", "onnxruntime", "openvino"), three("MaxPool", ones, **options), strict=True):
    mean = y.mean(dtype=np.float64)
    print(f"maximum of an 8x8 image of ones, {name}: top row {y[0, 0, 0].tolist()}, mean of all {mean:.3g}")
if not mean < -1e37:  # of OpenVINO, the last
    failures.append(f"the extra row of MaxPool: {y[0, 0, -1]}")
nines = np.broadcast_to(np.full(8, 9, np.float32), (1, 1, 8, 8)).copy()
options = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1, "count_include_pad": 1}
edge = [y[0, 0, 2].tolist() for y in three("AveragePool", nines, **options)]
for name, values in zip(("reference", "onnxruntime", "openvino"), edge, strict=True):
    print(f"averages of an image of nines, {name}: {[round(v, 3) for v in values]}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
