#!/usr/bin/env bash
# Finding (2026-11): quantize_static with QuantFormat.QOperator gives a convolution that is used twice, on inputs of different
# size, a bias that is right at the first use only.
#
# Expected: the bias of QLinearConv is an integer in units of input scale x weight scale, so a bias that two convolutions share
#   needs one integer tensor for each. QuantFormat.QDQ, the other format of the same function, has them (its error below
#   stays at a step of the quantization).
# Real: the integers are made at the first use, kept under the name of the bias, and handed to every later convolution with
#   that bias, whose scale is another one. The bias is then off by the ratio of the two inputs' scales. Nothing is
#   reported, every optimization level gives the same, and the float model in and the calibration are right.
# Why it matters: one head for all levels of a feature pyramid, one gate for several branches (OSNet), recursive and siamese
#   networks: exporters keep one copy of the weights. Their levels differ in size by a few times, so that accuracy is
#   lost in some branches and not in others, which looks like 8 bits that do not suffice.
# Way out, checked below: QuantFormat.QDQ, or a copy of the bias for each use before quantization.
#
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, Python 3.11, x86-64. Date: 2026-11.
# Output that was seen:
#   onnxruntime 1.32.0
#   level 1 / level 2   format      bias      largest error of level 1, level 2   bias of level 2 as it acts, channel by channel
#       1               QOperator   shared         0.021      0.263                       2.82  -1.88   0.94  -3.75
#       1               QOperator   own            0.021      0.022                       3.00  -2.00   1.00  -4.00
#       1               QDQ         shared         0.021      0.022                       3.00  -2.00   1.00  -4.00
#       4               QOperator   shared         0.019      2.974                       0.78  -0.52   0.26  -1.04
#       4               QOperator   own            0.019      0.015                       3.00  -2.00   1.00  -4.00
#       4               QDQ         shared         0.019      0.015                       3.00  -2.00   1.00  -4.00
#     100               QOperator   shared         0.023      3.977                       0.03  -0.03  -0.00  -0.03
#     100               QOperator   own            0.023      0.014                       3.00  -2.01   0.99  -4.00
#     100               QDQ         shared         0.023      0.014                       3.00  -2.01   0.99  -4.00
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
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

logging.disable(logging.WARNING)
print("onnxruntime", onnxruntime.__version__)
SHAPE = [1, 8, 8, 8]
BIAS = np.array([3, -2, 1, -4], np.float32)
generator = np.random.default_rng(0)
WEIGHT = generator.normal(0, 0.1, (4, 8, 1, 1)).astype(np.float32)


class Images(CalibrationDataReader):
    def __init__(self, batches):
        self.left = list(batches)

    def get_next(self):
        return self.left.pop() if self.left else None


def head(own_bias):
    """The same 1x1 convolution on two levels; with own_bias the second one has a copy of the bias."""
    second = "bias of level 2" if own_bias else "bias"
    nodes = [
        helper.make_node("Conv", ["level 1", "weight", "bias"], ["output 1"], name="first", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["level 2", "weight", second], ["output 2"], name="second", kernel_shape=[1, 1]),
    ]
    constants = [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(BIAS, "bias")]
    if own_bias:
        constants.append(numpy_helper.from_array(BIAS, second))
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info(f"level {level}", TensorProto.FLOAT, SHAPE) for level in (1, 2)],
        [helper.make_tensor_value_info(f"output {level}", TensorProto.FLOAT, [1, 4, 8, 8]) for level in (1, 2)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def features(ratio):
    first, second = generator.normal(0, 1, (2, *SHAPE)).astype(np.float32)
    return {"level 1": first, "level 2": second / np.float32(ratio)}


def truth(x):
    return np.einsum("oi,nihw->nohw", WEIGHT[:, :, 0, 0], x) + BIAS[:, None, None]


failures = []
print("level 1 / level 2   format      bias      largest error of level 1, level 2   bias of level 2 as it acts, channel by channel")
with tempfile.TemporaryDirectory() as folder:
    plain, quantized = os.path.join(folder, "float.onnx"), os.path.join(folder, "int8.onnx")
    for ratio in (1, 4, 100):
        calibration, test = [features(ratio) for _ in range(8)], features(ratio)
        for form, own_bias in ((QuantFormat.QOperator, False), (QuantFormat.QOperator, True), (QuantFormat.QDQ, False)):
            onnx.save(head(own_bias), plain)
            quantize_static(plain, quantized, Images(calibration), quant_format=form)
            session = onnxruntime.InferenceSession(quantized, providers=["CPUExecutionProvider"])
            outputs = session.run(None, test)
            wanted = [truth(test["level 1"]), truth(test["level 2"])]
            errors = [float(np.abs(output - want).max()) for output, want in zip(outputs, wanted, strict=True)]
            acting = (outputs[1] - wanted[1]).mean((0, 2, 3)) + BIAS
            kind = "own" if own_bias else "shared"
            print(f"  {ratio:3d}               {form.name:9s}   {kind:6s}      {errors[0]:8.3f}   {errors[1]:8.3f}                     {' '.join(f'{value:6.2f}' for value in acting)}")
            wrong = ratio > 1 and form == QuantFormat.QOperator and not own_bias
            if errors[0] > 0.1 or (errors[1] > 0.5) != wrong:
                failures.append(f"ratio {ratio}, {form.name}, {kind}: {errors}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
