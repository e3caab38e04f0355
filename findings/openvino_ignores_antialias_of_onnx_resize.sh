#!/usr/bin/env bash
# Finding (2026-11): OpenVINO reads an ONNX Resize with antialias=1 and computes it without antialiasing,
# without a word.
#
# Expected: Resize-18 and later have the attribute antialias (what torch's interpolate(antialias=True)
#   is exported to, and how preprocessing that must match Pillow is put into the graph). A runtime that
#   loads such a model either filters, as onnxruntime and onnx's reference do, or refuses the node.
# Real: OpenVINO loads it, and the output equals that of the same model with antialias=0 to the bit,
#   for linear and for cubic. exclude_outside=1 is dropped as well (the border of the last line below).
#   When enlarging, where antialias means nothing, linear agrees everywhere, so a test that only
#   enlarges passes. OpenVINO can do it: its own
#   preprocessing has Pillow modes; only the ONNX path forgets.
# Why it matters: an exported classifier with its resize inside gets aliased pictures in OpenVINO only.
#   On strong texture single pixels are off by more than 100 of 255 levels and the contrast of noise
#   after shrinking by four is 3.2 times too high: the distribution shift that antialiasing is used
#   against. The file, the checker and onnxruntime all say that the model is right.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.32.0, Pillow 13.0.0, numpy 2.4.6, Python 3.11.
# Date: 2026-11.
# Output that was seen:
#   openvino 2026.4.1 onnx 1.23.2 onnxruntime 1.32.0 pillow 13.0.0
#   linear 96-> 24  off from Pillow: reference 0.000, onnxruntime 0.000, openvino 144.413; openvino same as antialias=0: True; contrast 3.21 of onnxruntime's
#   linear 96-> 56  off from Pillow: reference 0.000, onnxruntime 0.001, openvino 146.917; openvino same as antialias=0: True; contrast 1.72 of onnxruntime's
#   linear 96->192  off from Pillow: reference 0.000, onnxruntime 0.000, openvino 0.000; openvino same as antialias=0: True; contrast 1.00 of onnxruntime's
#   cubic  96-> 24  off from Pillow: reference 0.000, onnxruntime 0.000, openvino 199.882; openvino same as antialias=0: True; contrast 3.44 of onnxruntime's
#   cubic  96-> 56  off from Pillow: reference 0.000, onnxruntime 0.001, openvino 193.347; openvino same as antialias=0: True; contrast 1.73 of onnxruntime's
#   cubic  96->192  off from Pillow: reference 0.000, onnxruntime 0.000, openvino 7.568; openvino same as antialias=0: True; contrast 1.00 of onnxruntime's
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 pillow==13.0.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("openvino", "onnx", "onnxruntime", "pillow")))
core = openvino.Core()
SIZE = 96
image = np.random.default_rng(0).integers(0, 2, (SIZE, SIZE)).astype(np.float32) * 255


def build(mode, size, antialias):
    node = helper.make_node(
        "Resize",
        ["x", "", "", "sizes"],
        ["y"],
        mode=mode,
        antialias=antialias,
        exclude_outside=1,
        cubic_coeff_a=-0.5,
        coordinate_transformation_mode="half_pixel",
    )
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, size, size])],
        [numpy_helper.from_array(np.array([1, 1, size, size], np.int64), "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def by_reference(model):
    return ReferenceEvaluator(model).run(None, {"x": image[None, None]})[0][0, 0]


def by_onnxruntime(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": image[None, None]})[0][0, 0]


def by_openvino(model):
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"x": image[None, None]})[0][0, 0]


failures = []
for mode, pillow_mode in (("linear", Image.Resampling.BILINEAR), ("cubic", Image.Resampling.BICUBIC)):
    for size in (SIZE // 4, 56, 2 * SIZE):
        want = np.asarray(Image.fromarray(image).resize((size, size), pillow_mode))
        on, off = build(mode, size, 1), build(mode, size, 0)
        away = {
            name: float(np.abs(run(on) - want).max())
            for name, run in (("reference", by_reference), ("onnxruntime", by_onnxruntime), ("openvino", by_openvino))
        }
        plain = bool(np.array_equal(by_openvino(on), by_openvino(off)))
        spread = by_openvino(on).std() / by_onnxruntime(on).std()
        print(
            f"{mode:6s} {SIZE}->{size:3d}  off from Pillow: "
            + ", ".join(f"{name} {value:.3f}" for name, value in away.items())
            + f"; openvino same as antialias=0: {plain}; contrast {spread:.2f} of onnxruntime's"
        )
        if away["reference"] > 0.01 or away["onnxruntime"] > 0.01:
            failures.append(f"{mode} {size}: reference or onnxruntime left Pillow")
        if not plain:
            failures.append(f"{mode} {size}: openvino now tells antialias=1 from 0")
        if size < SIZE and away["openvino"] < 30:
            failures.append(f"{mode} {size}: openvino is near Pillow now")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
