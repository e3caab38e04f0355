#!/usr/bin/env bash
# Finding (2026-11): with CalibMaxIntermediateOutputs=N, onnxruntime's calibration throws its images away in packs of
# N; the activation ranges come from those left over after the last full pack, with 10 images and N=9 from one image.
#
# Expected: the option bounds the memory of the minimum/maximum calibration, and its description promises the result
#   that one gets without it: after N images their range is worked out and kept, and the next N are merged with it.
# Real: after N images the list of their results is emptied, and no range is computed. At the end the range is that of the
#   (number of images mod N) last ones. Nothing is said. Only if N divides the number of images there is an error,
#   "No data is collected.", which sounds as if the reader were at fault, and goes away with one image more or less.
#   Without the option, or with N larger than the set, all is right.
# Why it matters: the option is taken for large calibration sets, where the usual call runs out of memory. A power
#   of two and a thousand images leave a few; all activations above what these happened to reach are cut off. The
#   quantized network is a few points, or much, worse, and the blame goes to 8 bits or to the choice of images; more
#   calibration images do not help.
# Way out, checked below: CalibStridedMinMax, which does compute a range per pack.
#
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   onnxruntime 1.32.0 onnx 1.23.2
#     brightest pixels of the images: 1 2 8 1 1 4 1 1 2 1
#     N=None: range up to 8.00, that of the last 10 images is 8; largest error 0.52
#     N=16: range up to 8.00, that of the last 10 images is 8; largest error 0.52
#     N=9: range up to 1.00, that of the last  1 images is 1; largest error 75.89
#     N=8: range up to 2.00, that of the last  2 images is 2; largest error 68.60
#     N=4: range up to 2.00, that of the last  2 images is 2; largest error 68.60
#     N=3: range up to 1.00, that of the last  1 images is 1; largest error 75.89
#     N=5: No data is collected.
#     N=2: No data is collected.
#     CalibStridedMinMax=5: range up to 8.00; largest error 0.52
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  onnxruntime==1.32.0 onnx==1.23.2 sympy==1.14.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import contextlib
import io
import logging
import sys
import warnings

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
print("onnxruntime", ort.__version__, "onnx", onnx.__version__)
folder = sys.argv[1]
rng = np.random.default_rng(0)
IMAGES = 10
images = [rng.random((1, 3, 8, 8), dtype=np.float32) for _ in range(IMAGES)]
for number, top in enumerate((1, 2, 8, 1, 1, 4, 1, 1, 2, 1)):  # the brightest pixel of each image
    images[number] *= top / images[number].max()

kernel = numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["y"])],
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
    [kernel],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnx.checker.check_model(model)
onnx.save(model, folder + "/net.onnx")


class Reader(CalibrationDataReader):
    def __init__(self):
        self.set_range(0, IMAGES)

    def __len__(self):
        return IMAGES

    def set_range(self, start_index, end_index):
        self.rest = iter(images[start_index:end_index])

    def get_next(self):
        image = next(self.rest, None)
        return None if image is None else {"x": image}


def outputs(path):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": image})[0] for image in images])


float_outputs = outputs(folder + "/net.onnx")


def calibrated(**options):
    """Upper end of the range of the input, and the largest error of the quantized network on the images."""
    path = folder + "/int8.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            folder + "/net.onnx",
            path,
            Reader(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=options,
        )
    scale = next(item for item in onnx.load(path).graph.initializer if item.name == "x_scale")
    return float(numpy_helper.to_array(scale)) * 255, float(np.abs(outputs(path) - float_outputs).max())


changed = []
print("  brightest pixels of the images:", *(f"{image.max():.0f}" for image in images))
for limit in (None, 16, 9, 8, 4, 3, 5, 2):
    options = {} if limit is None else {"CalibMaxIntermediateOutputs": limit}
    left = IMAGES if limit is None else IMAGES % limit
    try:
        top, error = calibrated(**options)
    except ValueError as reason:
        print(f"  N={limit}: {reason}")
        if left:
            changed.append(f"N={limit}: {reason}")
        continue
    wished = max(image.max() for image in images[IMAGES - left :]) if left else 0
    print(f"  N={limit}: range up to {top:.2f}, that of the last {left:2d} images is {wished:.0f}", end="; ")
    print(f"largest error {error:.2f}")
    if abs(top - wished) > 0.05:
        changed.append(f"N={limit}: {top}")
top, error = calibrated(CalibStridedMinMax=5)
print(f"  CalibStridedMinMax=5: range up to {top:.2f}; largest error {error:.2f}")
if abs(top - 8) > 0.05:
    changed.append(f"strided: {top}")
if changed:
    sys.exit("CHANGED: " + "; ".join(changed))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py" "$work"
