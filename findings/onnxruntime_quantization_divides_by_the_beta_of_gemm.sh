#!/usr/bin/env bash
# Finding (2026-11): onnxruntime's quantize_static changes the bias of a Gemm whose alpha or beta is not 1: beta = 2
# halves the bias instead of doubling it, and in QOperator format alpha multiplies the bias, too.
#
# Expected: Gemm is alpha * x w + beta * b; quantized it is that within a step of int8.
# Real: the quantizer divides the bias by beta before it is stored. In QDQ format the node multiplies by beta again, so
#   the bias counts once, whatever beta is; with the session's default optimizations the nodes are fused into QGemm
#   (seen with alpha 1), which knows no beta, and the bias counts 1 / beta times. So the same file gives two answers,
#   both wrong, depending on the level of optimization. In QOperator format it counts alpha / beta times.
#   quantize_dynamic, which leaves the bias in float32, is right.
# Why it matters: torch.addmm(b, x, w, beta=..., alpha=...) is exported as one such Gemm, for instance a classifier with
#   a temperature in alpha, or a scaled low-rank update of a head. The scores keep their spread, and only the offsets
#   between the classes change: the accuracy falls as by a coarse quantization, and neither more calibration data,
#   16-bit activations nor per-channel weights change it.
#
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   onnxruntime 1.32.0 onnx 1.23.2 numpy 2.4.6
#   alpha * x w + beta * b is right       alpha, beta that come out
#   alpha beta         float32       dynamic    QDQ, fused    QDQ, as is   QDQ 16 bits     QOperator
#      1     1      1.00, 1.00    1.00, 1.00    1.00, 1.00    1.00, 1.00    1.00, 1.00    1.00, 1.00
#    0.5     1      0.50, 1.00    0.50, 1.00    0.50, 1.00    0.50, 1.00    0.50, 1.00    0.50, 0.50
#      1     2      1.00, 2.00    1.00, 2.00    1.00, 0.50    1.00, 1.00    1.00, 1.00    1.00, 0.50
#      1  0.75      1.00, 0.75    1.00, 0.75    0.99, 1.33    1.00, 1.00    1.00, 1.00    0.99, 1.33
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import logging
import os
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

logging.disable(logging.WARNING)
onnxruntime.set_default_logger_severity(4)
print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__, "numpy", np.__version__)
rng = np.random.default_rng(0)
folder = os.path.dirname(os.path.abspath(__file__))
x = rng.standard_normal((64, 12)).astype(np.float32)
weight = rng.standard_normal((12, 10)).astype(np.float32)
bias = (3 * rng.standard_normal(10)).astype(np.float32)
products = x.astype(np.float64) @ weight.astype(np.float64)
ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
OFF = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


class Batch(CalibrationDataReader):
    def __init__(self):
        self.batches = iter([{"x": x}])

    def get_next(self):
        return next(self.batches, None)


def factors(name, level):  # least squares: how often the products and how often the bias is in the answer
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(f"{folder}/{name}", options, providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x})[0].astype(np.float64)
    columns = np.stack([products.ravel(), np.broadcast_to(bias, products.shape).ravel()], 1)
    return tuple(float(v) for v in np.linalg.lstsq(columns, y.ravel(), rcond=None)[0])


def static(form, **types):
    quantize_static(f"{folder}/float.onnx", f"{folder}/int.onnx", Batch(), quant_format=form, **types)
    return "int.onnx"


def dynamic():
    quantize_dynamic(f"{folder}/float.onnx", f"{folder}/int.onnx")
    return "int.onnx"


wide = {"activation_type": QuantType.QUInt16, "weight_type": QuantType.QInt16}
ways = {  # name: how, the level, the bias' factor that comes out
    "float32": (lambda: "float.onnx", ALL, lambda a, b: b),
    "dynamic": (dynamic, ALL, lambda a, b: b),
    "QDQ, fused": (lambda: static(QuantFormat.QDQ), ALL, lambda a, b: 1 / b),
    "QDQ, as is": (lambda: static(QuantFormat.QDQ), OFF, lambda a, b: 1.0),
    "QDQ 16 bits": (lambda: static(QuantFormat.QDQ, **wide), ALL, lambda a, b: 1.0),
    "QOperator": (lambda: static(QuantFormat.QOperator), ALL, lambda a, b: a / b),
}
failures = []
print("alpha * x w + beta * b is right       alpha, beta that come out")
print("alpha beta  " + "".join(f"{way:>14s}" for way in ways))
for alpha, beta in ((1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (1.0, 0.75)):
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=alpha, beta=beta)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 10])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, f"{folder}/float.onnx")
    line = f"{alpha:4g} {beta:5g}  "
    for way, (how, level, wrong) in ways.items():
        seen = factors(how(), level)
        line += f"{seen[0]:8.2f},{seen[1]:5.2f}"
        if abs(seen[0] - alpha) > 0.1 or abs(seen[1] - wrong(alpha, beta)) > 0.08:
            failures.append(f"{way}, alpha {alpha}, beta {beta}")
    print(line)
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
