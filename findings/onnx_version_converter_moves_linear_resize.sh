#!/usr/bin/env bash
# Finding (2026-11): onnx.version_converter changes what a bilinear Upsample or Resize computes when it
# lifts a model over opset 11.
#
# Expected: converting a model to a newer opset keeps its numbers; that is what the tool is for. Opset 9
#   and 10 sample at x / scale ("asymmetric"), opset 11 can say so with
#   coordinate_transformation_mode="asymmetric", so an exact conversion exists.
# Real: the converter adds the new roi input but not the attribute. The default of opset 11 is
#   "half_pixel", so the whole grid moves by up to half a pixel. The result passes the checker and runs
#   everywhere. Mode "nearest" with whole factors is not affected (its default rounding happens to
#   give the same pixels), so a test on nearest neighbors shows nothing.
# Why it matters: opset 9 and 10 files of older classifiers, feature pyramids and segmentation heads are
#   still around, and the quantizers of today ask for opset 11 or 13, which is what this converter is
#   for. The accuracy lost in the conversion is then blamed on quantization. Setting the attribute by hand after
#   the conversion restores the numbers, which the script checks.
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   onnx 1.23.2 onnxruntime 1.32.0
#   Upsample 9, linear, x2: [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
#     as opset 11: [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
#     as opset 13: [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
#     as opset 21: [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
#     as opset 21 with the attribute set: [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
#   Resize 10, linear, x0.5: [0.0, 2.0, 4.0, 6.0]
#     as opset 11: [0.5, 2.5, 4.5, 6.5]
#     as opset 13: [0.5, 2.5, 4.5, 6.5]
#     as opset 21: [0.5, 2.5, 4.5, 6.5]
#     as opset 21 with the attribute set: [0.0, 2.0, 4.0, 6.0]
#   random 1x8x14x14 map, x2: largest change 1.93, nearest: 0.0
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)


def build(operator, opset, mode, shape, factor):
    out = [shape[0], shape[1], int(shape[2] * factor[0]), int(shape[3] * factor[1])]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "scales"], ["y"], mode=mode)],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.array([1, 1, *factor], np.float32), "scales")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=5)
    onnx.checker.check_model(model)
    return model


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def convert(model, opset):
    converted = version_converter.convert_version(model, opset)
    onnx.checker.check_model(converted)
    return converted


failures = []
for operator, opset, size, factor in (("Upsample", 9, 4, 2.0), ("Resize", 10, 8, 0.5)):
    x = np.arange(size, dtype=np.float32).reshape(1, 1, 1, size)
    model = build(operator, opset, "linear", [1, 1, 1, size], (1.0, factor))
    before = run(model, x)
    print(f"{operator} {opset}, linear, x{factor:g}: {before.ravel().tolist()}")
    for target in (11, 13, 21):
        converted = convert(model, target)
        after = run(converted, x)
        print(f"  as opset {target}: {after.ravel().tolist()}")
        if np.abs(after - before).max() < 0.2:
            failures.append(f"{operator} to {target} keeps the numbers")
    for node in converted.graph.node:
        if node.op_type == "Resize":
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
    repaired = run(converted, x)
    print(f"  as opset 21 with the attribute set: {repaired.ravel().tolist()}")
    if np.abs(repaired - before).max() > 1e-6:
        failures.append("the attribute does not restore the numbers")

x = np.random.default_rng(0).normal(size=(1, 8, 14, 14)).astype(np.float32)
change = {}
for mode in ("linear", "nearest"):
    model = build("Upsample", 9, mode, [1, 8, 14, 14], (2.0, 2.0))
    change[mode] = float(np.abs(run(convert(model, 13), x) - run(model, x)).max())
print(f"random 1x8x14x14 map, x2: largest change {change['linear']:.2f}, nearest: {change['nearest']}")
if change["linear"] < 0.5 or change["nearest"] != 0:
    failures.append("the changes on a random map differ")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
