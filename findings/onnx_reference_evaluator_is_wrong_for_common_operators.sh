#!/usr/bin/env bash
# Finding (2026-11): onnx.reference.ReferenceEvaluator, the package's own arbiter, computes BatchNormalization of
# opset 7 to 13, LRN and several other ordinary operators wrongly. onnxruntime is right in each of them.
#
# Expected: where two runtimes disagree, the reference implementation of the standard says who is right. That is
#   what it is for, and what converters and runtimes are tested against.
# Real, each checked below against the operator's definition in float64, with models that pass the checker:
#   BatchNormalization below opset 14 normalizes with the statistics of the batch, as in training, since an
#     inference model of that age has the attribute momentum; from opset 14 on it is right.
#   LRN fills its sums for as many channels as the batch has images; the others are divided by the bias alone.
#   MaxPool with SAME_LOWER puts the odd pixel of padding at the end.
#   LogSoftmax is the logarithm of a float32 softmax: -inf, where the answer is a number like -100.
#   LpNormalization with p=1 divides by the sum, not by the sum of absolute values.
#   Softmax below opset 13 works along one axis instead of all axes from that one on.
# Why it matters: "it differs from onnx.reference" decides bug reports and picks the runtime to trust. Older
#   classifiers (ResNet with opset 9, AlexNet and GoogLeNet with LRN) give another class there, and a converter
#   that is tuned until it agrees with the reference is broken. A batch of as many images as channels hides
#   LRN's fault, and a model exported with opset 14 or later hides that of the normalization.
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   onnx 1.23.2 onnxruntime 1.32.0 numpy 2.4.6
#   largest error against the definition   onnx.reference  onnxruntime
#   BatchNormalization, opset 13                 0.144804     0.000000
#   BatchNormalization, opset 15                 0.000001     0.000000
#   LRN as in AlexNet                           10.804310     0.000006
#   MaxPool 3 stride 2 SAME_LOWER                0.655670     0.000000
#   LogSoftmax of large logits                        inf     0.000009
#   LpNormalization, p=1                        49.190335     0.000000
#   Softmax axis=1 of 3-D, opset 12              0.566790     0.000000
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import warnings

import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

warnings.simplefilter("ignore")
onnxruntime.set_default_logger_severity(4)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("onnx", "onnxruntime", "numpy")))
rng = np.random.default_rng(0)


def both(op, opset, x, *constants, **attributes):
    names = [f"c{i}" if c is not None else "" for i, c in enumerate(constants)]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * x.ndim)],
        [numpy_helper.from_array(c, n) for c, n in zip(constants, names, strict=True) if c is not None],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, {"x": x})[0], session.run(None, {"x": x})[0]


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


# What each operator is defined as, in float64.
def batch_norm(x, scale, bias, mean, var):
    mean, var, scale, bias = (v.astype(np.float64)[:, None, None] for v in (mean, var, scale, bias))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def lrn(x, size, alpha, beta, bias):
    out = np.empty(x.shape)
    for c in range(x.shape[1]):
        near = x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1].astype(np.float64)
        out[:, c] = x[:, c] / (bias + alpha / size * (near**2).sum(1)) ** beta
    return out


def max_pool_same_lower(x, k, stride):
    total = max((x.shape[2] - 1) // stride * stride + k - x.shape[2], 0)
    before = total - total // 2  # SAME_LOWER: the odd pixel of padding comes first
    padded = np.pad(x, [(0, 0), (0, 0), (before, total - before)], constant_values=-np.inf)
    starts = range(0, x.shape[2], stride)
    return np.stack([padded[:, :, start : start + k].max(-1) for start in starts], -1)


def log_softmax(x):
    x = x.astype(np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def softmax_of_all_behind(x):  # opset 1 to 12: the axes from `axis` on are flattened
    e = np.exp(x.astype(np.float64))
    return e / e.sum((1, 2), keepdims=True)


x, four, row = normal(2, 6, 5, 5), [normal(6) for _ in range(3)], normal(1, 2, 8)
logits, cube = normal(1, 4) * 90, normal(2, 3, 4)
var = np.abs(normal(6)) + 0.5
l1 = normal(3, 4)
cases = {
    "BatchNormalization, opset 13": (("BatchNormalization", 13, x, *four, var), {}, batch_norm(x, *four, var), True),
    "BatchNormalization, opset 15": (("BatchNormalization", 15, x, *four, var), {}, batch_norm(x, *four, var), False),
    "LRN as in AlexNet": (
        ("LRN", 13, 40 * x),
        {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 2.0},
        lrn(40 * x, 5, 1e-4, 0.75, 2.0),
        True,
    ),
    "MaxPool 3 stride 2 SAME_LOWER": (
        ("MaxPool", 20, row),
        {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_LOWER"},
        max_pool_same_lower(row, 3, 2),
        True,
    ),
    "LogSoftmax of large logits": (("LogSoftmax", 20, logits), {}, log_softmax(logits), True),
    "LpNormalization, p=1": (
        ("LpNormalization", 20, l1),
        {"p": 1, "axis": 1},
        l1 / np.abs(l1.astype(np.float64)).sum(1, keepdims=True),
        True,
    ),
    "Softmax axis=1 of 3-D, opset 12": (("Softmax", 12, cube), {"axis": 1}, softmax_of_all_behind(cube), True),
}
failures = []
print("largest error against the definition   onnx.reference  onnxruntime")
for name, (arguments, attributes, want, wrong) in cases.items():
    answers = both(*arguments, **attributes)
    with np.errstate(all="ignore"):
        off = [float(np.abs(y.astype(np.float64) - want).max()) for y in answers]
    print(f"{name:38s} {off[0]:14.6f}  {off[1]:11.6f}")
    if (off[0] > 1e-3) != wrong or off[1] > 1e-4:
        failures.append(f"{name}: {off}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
