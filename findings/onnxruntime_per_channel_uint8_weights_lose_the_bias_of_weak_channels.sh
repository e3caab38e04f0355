#!/usr/bin/env bash
# Finding (2026-11): onnxruntime's quantize_static(per_channel=True, weight_type=QUInt8) sets the output of channels
# with tiny weights to zero: their bias, which is all they have to say, does not fit its int32 and is lost.
#
# Expected: a channel whose weights are near zero gives its bias, as it does with weight_type=QInt8: there the quantizer
#   widens the channel's scale until the bias fits. QUInt8 weights differ by an offset only.
# Real: the bias is stored in steps of (activation scale * weight scale of the channel). With weights of 1e-7 a bias
#   of 1 takes more than 2^31 of these steps. The guard against it looks at signed weights only; with QUInt8 the
#   bias comes out as 0, in both formats. There is no warning. Weights that are exactly zero are right, and so is
#   per_channel=False, where the other channels keep the scale large.
# Why it matters: weight decay can drive gammas of batch norms to 1e-8 and below; folded into the convolution, such a
#   channel has no weights but a bias that the next layer counts on, and depthwise networks have the most of them.
#   QUInt8 for both is what the documentation suggests for CPUs where the product of uint8 and int8 saturates, and
#   per_channel is what one turns on to rescue depthwise layers. The loss is taken for the price of int8.
#
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   onnxruntime 1.32.0 onnx 1.23.2 numpy 2.4.6
#   mean of the weak channel (its bias is 1) / largest error of the other channels
#   gamma    format     uint8 per channel  int8 per channel  uint8 per tensor
#   0.001    QDQ           1.033 / 0.131     1.033 / 0.125     1.033 / 0.131
#   0.001    QOperator     1.033 / 0.125     1.033 / 0.125     1.033 / 0.131
#   1e-06    QDQ           1.035 / 0.144     1.035 / 0.134     1.035 / 0.144
#   1e-06    QOperator     1.035 / 0.134     1.035 / 0.134     1.035 / 0.144
#   1e-08    QDQ           0.000 / 0.146     0.997 / 0.139     0.997 / 0.138
#   1e-08    QOperator     0.000 / 0.139     0.997 / 0.139     0.997 / 0.138
#   1e-12    QDQ           0.000 / 0.121     0.981 / 0.113     0.981 / 0.122
#   1e-12    QOperator     0.000 / 0.113     0.981 / 0.113     0.981 / 0.122
#   0        QDQ           1.013 / 0.132     1.013 / 0.131     1.013 / 0.155
#   0        QOperator     1.013 / 0.131     1.013 / 0.131     1.013 / 0.155
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
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

logging.disable(logging.WARNING)
onnxruntime.set_default_logger_severity(4)
print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__, "numpy", np.__version__)
rng = np.random.default_rng(0)
folder = os.path.dirname(os.path.abspath(__file__))
channels = 8
x = rng.standard_normal((16, channels, 9, 9)).astype(np.float32)


class Batch(CalibrationDataReader):
    def __init__(self):
        self.batches = iter([{"x": x}])

    def get_next(self):
        return next(self.batches, None)


def depthwise(gamma):  # a batch norm with one weak gamma, folded: y = gamma * conv(x) + beta
    gammas = np.where(np.arange(channels) == 3, gamma, 1.0)
    weight = rng.standard_normal((channels, 1, 3, 3)) * gammas[:, None, None, None]
    bias = rng.standard_normal(channels)
    bias[3] = 1.0
    values = {"w": weight.astype(np.float32), "b": bias.astype(np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], group=channels)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, channels, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, channels, 7, 7])],
        [numpy_helper.from_array(v, n) for n, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, f"{folder}/float.onnx")
    views = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), (2, 3))
    return np.einsum("nchwij,cij->nchw", views, values["w"][:, 0].astype(np.float64)) + bias[:, None, None]


def quantized(form, per_channel, weight):
    quantize_static(
        f"{folder}/float.onnx",
        f"{folder}/int8.onnx",
        Batch(),
        quant_format=form,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=weight,
    )
    session = onnxruntime.InferenceSession(f"{folder}/int8.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


failures = []
print("mean of the weak channel (its bias is 1) / largest error of the other channels")
print("gamma    format     uint8 per channel  int8 per channel  uint8 per tensor")
for gamma in (1e-3, 1e-6, 1e-8, 1e-12, 0.0):
    want = depthwise(gamma)
    for form in (QuantFormat.QDQ, QuantFormat.QOperator):
        seen = []
        for per_channel, weight in ((True, QuantType.QUInt8), (True, QuantType.QInt8), (False, QuantType.QUInt8)):
            y = quantized(form, per_channel, weight)
            others = np.delete(np.abs(y - want), 3, axis=1).max()
            seen.append((float(y[:, 3].mean()), float(others)))
        print(f"{gamma:<8g} {form.name:9s}" + "".join(f"{a:10.3f} / {b:5.3f}" for a, b in seen))
        lost = gamma in (1e-8, 1e-12)
        right = [abs(mean - want[:, 3].mean()) < 0.15 for mean, _ in seen]
        if right != [not lost, True, True] or (lost and seen[0][0] != 0) or max(b for _, b in seen) > 0.5:
            failures.append(f"{gamma} {form.name}")
if failures:
    sys.exit("CHANGED: " + ", ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
