#!/usr/bin/env bash
# Finding (2026-11): onnxoptimizer's default passes merge a Pad into the pooling layer behind it, and change its values.
#
# Expected: an optimizer keeps what the network computes. A border of zeros may move into a convolution, whose own
#   padding is zeros too; a pooling layer's own padding is something else, so there the Pad has to stay.
# Real: fuse_pad_into_pool, one of the default passes, adds the widths of the Pad to the pads of the pooling layer.
#   MaxPool: its padding counts as minus infinity, so the zeros of the border no longer take part in the maximum.
#   AveragePool with pads of its own that are not counted (count_include_pad 0): all padding is counted afterwards.
#   Either with auto_pad="VALID": the Pad is removed and its widths are not applied, so the map comes out smaller.
#   The checker of ONNX passes each result. Right are a plain AveragePool (count_include_pad is set), and convolutions,
#   for which the pass of that name leaves auto_pad alone.
# Why it matters: ZeroPad2d((0, 1, 0, 1)) before a MaxPool is how networks of TensorFlow and Darknet are imitated. After
#   a ReLU nothing changes; after leaky ReLU, SiLU, GELU or a bare batch norm the map changes along its borders only,
#   an error too small to look like a broken file and not caught by the check of a single output size.
# Way out, checked below: name the passes and leave fuse_pad_into_pool out.
#
# Versions: onnxoptimizer 0.4.2, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6, Python 3.11, x86-64. Date: 2026-11.
# Output that was seen:
#   onnxoptimizer 0.4.2 onnx 1.23.2 onnxruntime 1.32.0
#     Pad of 1 and a 3x3 window of stride 2   optimizer  nodes left  size   farthest value
#       MaxPool                                  default    1  (5, 5) to (5, 5)   1.47
#       MaxPool pads=1                           default    1  (6, 6) to (6, 6)   1.98
#       MaxPool auto_pad=VALID                   default    1  (5, 5) to (4, 4)   -
#       AveragePool                              default    1  (5, 5) to (5, 5)   0.00
#       AveragePool pads=1 count_include_pad=1   default    1  (6, 6) to (6, 6)   0.00
#       AveragePool pads=1                       default    1  (6, 6) to (6, 6)   0.40
#       AveragePool auto_pad=VALID               default    1  (5, 5) to (4, 4)   -
#       Conv                                     default    1  (5, 5) to (5, 5)   0.00
#       Conv pads=1                              default    1  (6, 6) to (6, 6)   0.00
#       Conv auto_pad=VALID                      default    2  (5, 5) to (5, 5)   0.00
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  onnxoptimizer==0.4.2 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import sys
import warnings

import numpy as np
import onnx
import onnxoptimizer
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

warnings.simplefilter("ignore")
print(*(f"{module.__name__} {module.__version__}" for module in (onnxoptimizer, onnx, onnxruntime)))
onnxruntime.set_default_logger_severity(3)  # it warns of sizes that differ from the declared ones
random = np.random.default_rng(0)
WEIGHTS = random.normal(size=(4, 4, 3, 3)).astype(np.float32)


def network(kind, border, **attributes):
    """Pad(border rows and columns of 0) and then one pooling layer or convolution of 3x3, stride 2."""
    inputs = ["padded"] + ["weights"] * (kind == "Conv")
    nodes = [
        helper.make_node("Pad", ["image", "widths"], ["padded"]),
        helper.make_node(kind, inputs, ["result"], kernel_shape=[3, 3], strides=[2, 2], **attributes),
    ]
    widths = np.array([0, 0, border, border, 0, 0, border, border], np.int64)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 9, 9])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, ["N", "C", "H", "W"])],
        [numpy_helper.from_array(widths, "widths"), numpy_helper.from_array(WEIGHTS, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return onnx.shape_inference.infer_shapes(model)


def run(model, image):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def by_hand(kind, border, image, pads=0, count_include_pad=0):
    """The two layers as the standard words them, window by window. The border is part of the image, pads are not."""
    image = np.pad(image, ((0, 0), (0, 0), (border, border), (border, border)))
    image = np.pad(image, ((0, 0), (0, 0), (pads, pads), (pads, pads)), constant_values=np.nan)
    size = (image.shape[2] - 3) // 2 + 1
    result = np.empty((1, 4, size, size), np.float32)
    for row in range(size):
        for column in range(size):
            window = image[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            if kind == "MaxPool":
                result[:, :, row, column] = np.nanmax(window, (2, 3))
            elif kind == "Conv":
                result[:, :, row, column] = np.einsum("nchw,ochw->no", np.nan_to_num(window), WEIGHTS)
            elif count_include_pad:
                result[:, :, row, column] = np.nansum(window, (2, 3)) / 9
            else:
                result[:, :, row, column] = np.nanmean(window, (2, 3))
    return result


def main():
    changed = []
    image = random.normal(size=(1, 4, 9, 9)).astype(np.float32) - 1  # mostly below 0, as it is before a ReLU
    print("  Pad of 1 and a 3x3 window of stride 2   optimizer  nodes left  size   farthest value")
    every = onnxoptimizer.get_fuse_and_elimination_passes()
    without = [name for name in every if name != "fuse_pad_into_pool"]
    if "fuse_pad_into_pool" not in every:
        changed.append("fuse_pad_into_pool is no default pass")
    for kind, attributes, wrong in (
        ("MaxPool", {}, True),
        ("MaxPool", {"pads": [1, 1, 1, 1]}, True),
        ("MaxPool", {"auto_pad": "VALID"}, True),
        ("AveragePool", {}, False),
        ("AveragePool", {"pads": [1, 1, 1, 1], "count_include_pad": 1}, False),
        ("AveragePool", {"pads": [1, 1, 1, 1]}, True),
        ("AveragePool", {"auto_pad": "VALID"}, True),
        ("Conv", {}, False),
        ("Conv", {"pads": [1, 1, 1, 1]}, False),
        ("Conv", {"auto_pad": "VALID"}, False),
    ):
        model = network(kind, 1, **attributes)
        pads = attributes.get("pads", [0])[0]
        truth = by_hand(kind, 1, image, pads, attributes.get("count_include_pad", 0))
        before = run(model, image)
        if before.shape != truth.shape or np.abs(before - truth).max() > 1e-5:
            changed.append(f"{kind} {attributes}: onnxruntime is not the reference")
        for passes in (None, without):
            optimized = onnxoptimizer.optimize(model, passes)
            onnx.checker.check_model(optimized)
            after = run(optimized, image)
            name = kind + "".join(f" {key}={value[0] if isinstance(value, list) else value}" for key, value in attributes.items())
            same = after.shape == truth.shape
            far = f"{np.abs(after - truth).max():.2f}" if same else "-"
            if passes is None:
                print(f"    {name:40s} default    {len(optimized.graph.node)}  {before.shape[2:]} to {after.shape[2:]}   {far}")
            is_wrong = not same or np.abs(after - truth).max() > 1e-5
            if is_wrong != (wrong and passes is None):
                changed.append(f"{name} {'default' if passes is None else 'without the pass'}: wrong {is_wrong}")
    if changed:
        sys.exit("CHANGED: " + "; ".join(changed))
    print("OK: behavior is as described")


if __name__ == "__main__":
    main()
PY
"$work/venv/bin/python" "$work/check.py"
