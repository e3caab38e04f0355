#!/usr/bin/env bash
# Finding (2026-11): OpenCV 5's dnn module computes tanh(45) as NaN, softplus(89) as infinity and log_softmax of a lead
# of 100 as -infinity.
#
# Expected: these functions are harmless: tanh of a large number is 1, softplus and logsumexp of large x are about x,
#   and log_softmax falls linearly. onnxruntime gives that, and OpenCV itself for Sigmoid, Softmax, Mish and Gelu nodes.
# Real: four operators behave as the textbook formula does in float32. Tanh is NaN from 44.3 on, where exp(2x)
#   overflows. Softplus and ReduceLogSumExp (without the maximum taken off) are infinite from 88.8 on, and
#   ReduceLogSumExp of large negative numbers is -infinity. LogSoftmax is the logarithm of Softmax and is -infinity
#   for a lead of 88 and more, where Softmax is taken for 0. Both engines of OpenCV 5, the new and the classic one, do
#   it. A test with a handful of numbers does not find it: Tanh of a tensor of 6 values is right, of 96 values (the
#   vectorized loop) it is NaN.
# Why it matters: 45 is not far away. GELU in its tanh form (SigLIP and other transformers), which exporters write as
#   single operators up to opset 19, takes tanh of 0.8 x + 0.036 x^3: NaN for an activation above 10.1, and single
#   channels of trained transformers do get there. One such value makes all outputs NaN, on some images only.
#   ReduceLogSumExp over logits is the free energy used to find out-of-distribution inputs: it is infinite for
#   confident networks and every threshold fires. A cross entropy built on LogSoftmax becomes infinite by one wrong
#   but confident image.
# Ways out, checked below: clip in front of Tanh; Gelu as one node (opset 20); subtract the maximum by hand.
#
# Versions: opencv-python-headless 5.0.0.93, onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, Python 3.11, x86-64.
# Date: 2026-11.
# Output that was seen:
#   opencv-python-headless 5.0.0.93 onnxruntime 1.32.0 onnx 1.23.2
#   the first row alone, tanh of -100, 1, 44, 45, 80, 100
#     onnxruntime      -1.000    0.762    1.000    1.000    1.000    1.000
#     new engine       -1.000    0.762    1.000    1.000    1.000    1.000
#     classic engine   -1.000    0.762    1.000    1.000    1.000    1.000
#   16 rows, tanh of -100, 1, 44, 45, 80, 100
#     onnxruntime      -1.000    0.762    1.000    1.000    1.000    1.000
#     new engine       -1.000    0.762    1.000      nan      nan      nan
#     classic engine   -1.000    0.762    1.000      nan      nan      nan
#   the same behind a clip to 20
#     onnxruntime      -1.000    0.762    1.000    1.000    1.000    1.000
#     new engine       -1.000    0.762    1.000    1.000    1.000    1.000
#     classic engine   -1.000    0.762    1.000    1.000    1.000    1.000
#   sigmoid
#     onnxruntime       0.000    0.731    1.000    1.000    1.000    1.000
#     new engine        0.000    0.731    1.000    1.000    1.000    1.000
#     classic engine    0.000    0.731    1.000    1.000    1.000    1.000
#   mish
#     onnxruntime      -0.000    0.865   44.000   45.000   80.000  100.000
#     new engine        0.000    0.865   44.000   45.000   80.000  100.000
#     classic engine    0.000    0.865   44.000   45.000   80.000  100.000
#   softplus of -100, 1, 80, 88, 89, 100
#     onnxruntime       0.000    1.313   80.000   88.000   89.000  100.000
#     new engine        0.000    1.313   80.000   88.000      inf      inf
#     classic engine    0.000    1.313   80.000   88.000      inf      inf
#   log_softmax of three rows
#     onnxruntime    -100.000  -50.000  -20.000    0.000 -110.000  -90.000  -20.000    0.000   -7.408   -2.408   -1.408   -0.408
#     new engine         -inf  -50.000  -20.000    0.000     -inf     -inf  -20.000    0.000   -7.408   -2.408   -1.408   -0.408
#     classic engine     -inf  -50.000  -20.000    0.000     -inf     -inf  -20.000    0.000   -7.408   -2.408   -1.408   -0.408
#   softmax
#     onnxruntime       0.000    0.000    0.000    1.000    0.000    0.000    0.000    1.000    0.001    0.090    0.245    0.665
#     new engine        0.000    0.000    0.000    1.000    0.000    0.000    0.000    1.000    0.001    0.090    0.245    0.665
#     classic engine    0.000    0.000    0.000    1.000    0.000    0.000    0.000    1.000    0.001    0.090    0.245    0.665
#   logsumexp, the free energy, of three rows
#     onnxruntime      30.000  100.000 -110.000
#     new engine       30.000      inf     -inf
#     classic engine   30.000      inf     -inf
#   the same with the maximum taken off
#     onnxruntime      30.000  100.000 -110.000
#     new engine       30.000  100.000 -110.000
#     classic engine   30.000  100.000 -110.000
#   gelu, tanh form, of -12, 1, 5, 10, 10.2, 50
#     onnxruntime      -0.000    0.841    5.000   10.000   10.200   50.000
#     new engine       -0.000    0.841    5.000   10.000      nan      nan
#     classic engine   -0.000    0.841    5.000   10.000      nan      nan
#   the same as one node of opset 20
#     onnxruntime      -0.000    0.841    5.000   10.000   10.200   50.000
#     new engine       -0.000    0.841    5.000   10.000   10.200   50.000
#     classic engine   -0.000    0.841    5.000   10.000   10.200   50.000
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  opencv-python-headless==5.0.0.93 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys

import cv2
import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
packages = ("opencv-python-headless", "onnxruntime", "onnx")
print(*(f"{name} {importlib.metadata.version(name)}" for name in packages))
node = helper.make_node
ENGINES = {"new engine": cv2.dnn.ENGINE_NEW, "classic engine": cv2.dnn.ENGINE_CLASSIC}


def outputs(nodes, x, shape, opset, **constants):
    """What onnxruntime and the two engines of OpenCV give, as float32 arrays of that shape."""
    tensors = []
    for name, value in constants.items():
        value = np.asarray(value)
        kind = TensorProto.INT64 if value.dtype.kind == "i" else TensorProto.FLOAT
        tensors.append(helper.make_tensor(name, kind, value.shape, value.ravel()))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    checker.check_model(model)
    data = model.SerializeToString()
    results = {"onnxruntime": onnxruntime.InferenceSession(data).run(None, {"x": x})[0]}
    for name, engine in ENGINES.items():
        network = cv2.dnn.readNetFromONNX(np.frombuffer(data, np.uint8), engine)
        network.setInput(x)
        results[name] = network.forward().reshape(results["onnxruntime"].shape)
    return results


def unary(op, x, opset=18, **attributes):
    return outputs([node(op, ["x"], ["y"], **attributes)], x, x.shape, opset)


def rows(*values):
    """The values 16 times, so that vectorized code sees all of them."""
    return np.tile(np.array(values, np.float32), (16, 1))


def show(title, results, correct):
    """Prints the first values of each and notes what is not as expected."""
    print(title)
    for name, values in results.items():
        print(f"  {name:14s} {' '.join(f'{value:8.3f}' for value in values.ravel()[: 6 if values.size > 12 else 12])}")
    want = results["onnxruntime"]
    same = [bool(np.allclose(values, want, rtol=1e-3, atol=1e-3)) for values in results.values()]
    if not np.isfinite(want).all() or same != [True, correct, correct]:
        failures.append(title)


failures = []
x = rows(-100, 1, 44, 45, 80, 100)
show("the first row alone, tanh of -100, 1, 44, 45, 80, 100", unary("Tanh", x[:1]), True)
show("16 rows, tanh of -100, 1, 44, 45, 80, 100", unary("Tanh", x), False)
bounds = {"low": np.float32(-20), "high": np.float32(20)}
clipped = [node("Clip", ["x", "low", "high"], ["c"]), node("Tanh", ["c"], ["y"])]
show("the same behind a clip to 20", outputs(clipped, x, x.shape, 18, **bounds), True)
show("sigmoid", unary("Sigmoid", x), True)
show("mish", unary("Mish", x), True)
x = rows(-100, 1, 80, 88, 89, 100)
show("softplus of -100, 1, 80, 88, 89, 100", unary("Softplus", x), False)

x = np.array([[0, 50, 80, 100], [0, 20, 90, 110], [-5, 0, 1, 2]], np.float32)
show("log_softmax of three rows", unary("LogSoftmax", x, axis=1), False)
show("softmax", unary("Softmax", x, axis=1), True)
x = np.array([[10, 20, 30], [100, 20, 30], [-120, -110, -130]], np.float32)
axes = {"axes": np.array([1])}
direct = [node("ReduceLogSumExp", ["x", "axes"], ["y"], keepdims=0)]
show("logsumexp, the free energy, of three rows", outputs(direct, x, [3], 18, **axes), False)
shifted = [
    node("ReduceMax", ["x", "axes"], ["m"], keepdims=1),
    node("Sub", ["x", "m"], ["d"]),
    node("ReduceLogSumExp", ["d", "axes"], ["s"], keepdims=1),
    node("Add", ["s", "m"], ["y"]),
]
show("the same with the maximum taken off", outputs(shifted, x, [3, 1], 18, **axes), True)

# 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), as exporters write it.
gelu = [
    node("Pow", ["x", "three"], ["cube"]),
    node("Mul", ["cube", "a"], ["third"]),
    node("Add", ["x", "third"], ["sum"]),
    node("Mul", ["sum", "b"], ["inside"]),
    node("Tanh", ["inside"], ["t"]),
    node("Add", ["t", "one"], ["u"]),
    node("Mul", ["x", "half"], ["v"]),
    node("Mul", ["v", "u"], ["y"]),
]
numbers = {"three": 3, "a": 0.044715, "b": 0.7978846, "one": 1, "half": 0.5}
constants = {name: np.float32(value) for name, value in numbers.items()}
x = rows(-12, 1, 5, 10, 10.2, 50)
show("gelu, tanh form, of -12, 1, 5, 10, 10.2, 50", outputs(gelu, x, x.shape, 18, **constants), False)
show("the same as one node of opset 20", unary("Gelu", x, opset=20, approximate="tanh"), True)
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
