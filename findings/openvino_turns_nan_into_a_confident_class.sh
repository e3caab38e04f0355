#!/usr/bin/env bash
# Finding (2026-11): a network whose first layer is all NaN gives finite logits and a class in OpenVINO.
#
# Expected: NaN spreads. A picture of NaN, or weights of NaN (a diverged run, a broken file, an overflow
#   in half precision) end in NaN logits, as in PyTorch, NumPy and onnxruntime, and the usual
#   isfinite check on the logits catches it.
# Real: OpenVINO's Relu and Clip (ReLU6) return 0 for NaN and HardSigmoid returns 1, so the first such
#   layer wipes the NaN away. Everything behind it sees a black feature map, and the network answers
#   with its last bias: finite, the same for each picture. HardSwish, LeakyRelu, Sigmoid and Tanh keep
#   NaN, so it depends on the activation of the family whether a fault is visible.
#   onnxruntime keeps NaN in activations but drops it in Max-like nodes: GlobalMaxPool, ReduceMax and
#   ArgMax skip NaN there, while onnx's own reference returns it (or its index).
# Why it matters: the last check before an upload is often "the converted model gives finite numbers",
#   and services watch for NaN to find a bad model or camera. In OpenVINO both stay silent and the
#   service keeps reporting one class. Compare with another runtime on real pictures, and check
#   weights and inputs, not outputs.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6, Python 3.11, x86-64.
# Date: 2026-11.
# Output that was seen:
#   openvino 2026.4.1 onnx 1.23.2 onnxruntime 1.32.0
#   Relu      NaN in weights: finite logits reference False, onnxruntime False, openvino True
#             openvino's logits: [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
#   Relu      NaN in picture: finite logits reference False, onnxruntime False, openvino True
#   Clip      NaN in weights: finite logits reference False, onnxruntime False, openvino True
#   Clip      NaN in picture: finite logits reference False, onnxruntime False, openvino True
#   LeakyRelu NaN in weights: finite logits reference False, onnxruntime False, openvino False
#   LeakyRelu NaN in picture: finite logits reference False, onnxruntime False, openvino False
#   HardSwish NaN in weights: finite logits reference False, onnxruntime False, openvino False
#   HardSwish NaN in picture: finite logits reference False, onnxruntime False, openvino False
#   HardSigmoid with a NaN: reference nan, onnxruntime nan, openvino 1.0
#   GlobalMaxPool with a NaN: reference nan, onnxruntime 3.0, openvino 3.0
#   ReduceMax with a NaN: reference nan, onnxruntime 3.0, openvino 3.0
#   ArgMax with a NaN: reference 1, onnxruntime 2, openvino 2
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import math
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("openvino", "onnx", "onnxruntime")))
core = openvino.Core()
options = onnxruntime.SessionOptions()
options.log_severity_level = 3


def build(nodes, shape, kind=TensorProto.FLOAT, rank=2, **weights):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", kind, [None] * rank)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def run(model, x):
    blob = model.SerializeToString()
    session = onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    compiled = core.compile_model(core.read_model(blob), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {
        "reference": ReferenceEvaluator(model).run(None, {"x": x})[0],
        "onnxruntime": session.run(None, {"x": x})[0],
        "openvino": compiled({"x": x})[0],
    }


def network(activation, broken):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(8, 3, 3, 3))
    if broken:
        first[:] = math.nan
    act = (lambda a, b: helper.make_node("Clip", [a, "low", "high"], [b])) if activation == "Clip" else (
        lambda a, b: helper.make_node(activation, [a], [b])
    )
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], pads=[1] * 4),
        act("a", "b"),
        helper.make_node("Conv", ["b", "second"], ["c"], pads=[1] * 4),
        act("c", "d"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "head", "bias"], ["y"], transB=1),
    ]
    clip = {"low": 0.0, "high": 6.0} if activation == "Clip" else {}
    return build(
        nodes,
        [1, 3, 16, 16],
        first=first,
        second=rng.normal(size=(8, 8, 3, 3)) / 8,
        head=rng.normal(size=(10, 8)),
        bias=np.arange(10) / 10,
        **clip,
    )


failures = []
picture = np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)
for activation, hidden in (("Relu", True), ("Clip", True), ("LeakyRelu", False), ("HardSwish", False)):
    for name, broken, x in (("weights", True, picture), ("picture", False, picture * math.nan)):
        out = run(network(activation, broken), x)
        finite = {runtime: bool(np.isfinite(value).all()) for runtime, value in out.items()}
        print(f"{activation:9s} NaN in {name}: finite logits " + ", ".join(f"{k} {v}" for k, v in finite.items()))
        if finite != {"reference": False, "onnxruntime": False, "openvino": hidden}:
            failures.append(f"{activation}, {name}")
        if activation == "Relu":
            if name == "weights":
                print("          openvino's logits:", [round(float(v), 1) for v in out["openvino"][0]])
            if not np.allclose(out["openvino"], np.arange(10) / 10, atol=1e-5):
                failures.append("openvino's logits are no longer the last bias")

x = np.array([[1, math.nan, 3, -2]], np.float32)
wide = x.reshape(1, 1, 2, 2)
for name, node, data, kind, rank in (
    ("HardSigmoid", helper.make_node("HardSigmoid", ["x"], ["y"]), x, TensorProto.FLOAT, 2),
    ("GlobalMaxPool", helper.make_node("GlobalMaxPool", ["x"], ["y"]), wide, TensorProto.FLOAT, 4),
    ("ReduceMax", helper.make_node("ReduceMax", ["x"], ["y"], axes=[1]), x, TensorProto.FLOAT, 2),
    ("ArgMax", helper.make_node("ArgMax", ["x"], ["y"], axis=1), x, TensorProto.INT64, 2),
):
    out = {runtime: value.ravel().tolist() for runtime, value in run(build([node], list(data.shape), kind, rank), data).items()}
    if name == "HardSigmoid":
        out = {runtime: round(value[1], 3) for runtime, value in out.items()}
        good = math.isnan(out["reference"]) and math.isnan(out["onnxruntime"]) and out["openvino"] == 1
    else:
        out = {runtime: value[0] for runtime, value in out.items()}
        want = 2 if name == "ArgMax" else 3
        good = out["onnxruntime"] == want and out["reference"] != want
    print(f"{name} with a NaN: " + ", ".join(f"{k} {v}" for k, v in out.items()))
    if not good:
        failures.append(name)
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
