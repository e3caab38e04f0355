#!/usr/bin/env bash
# Finding (2026-11): torch.onnx.export leaves out arguments it has no ONNX attribute for: label_smoothing of
# cross_entropy, divisor_override of avg_pool2d and the mean of scatter_reduce; the export succeeds without a word.
#
# Expected: an operator whose arguments ONNX can't say in one node is composed of several or refused. The same exporter
#   refuses median, kthvalue and adaptive_max_pool2d to sizes other than 1, with an error that names the operator.
# Real: three functions are translated without looking at the argument.
#   F.cross_entropy(label_smoothing=0.1) becomes the plain loss; the smoothing is gone.
#   F.avg_pool2d(divisor_override=1), the usual way to sum a window, becomes the average. A 7x7 sum comes out
#   49 times too small, with the same shape.
#   scatter_reduce(reduce="mean") becomes ScatterElements without a reduction: the last value written wins, so a mean
#   over groups (superpixels, token merging, class centers) is one member of each group.
#   Opset and optimization don't matter. onnxruntime and the ONNX reference agree on the wrong result, as the file
#   itself is wrong.
# Why it matters: a comparison between two runtimes shows nothing, and where batch norm or an L2 norm follows, the
#   scale is swallowed and nobody notices until a layer without one is put there. A loss exported for scoring or for
#   training on a device is another one than that of the paper: it drives the network to overconfidence, against which
#   the smoothing was meant.
# Ways out, checked below: torch.onnx.export(..., verify=True) reports the difference (it only warns), or to write
#   avg_pool2d * (window / divisor), the smoothed loss and sum / count by hand.
#
# Versions: torch 2.14.1, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1 onnxscript 0.7.2 onnx 1.23.2 onnxruntime 1.32.0
#   function               eager      onnxruntime  reference
#   avg_pool2d               71.1568     1.4522       1.4522
#   avg_pool2d by hand       71.1568    71.1568      71.1568
#   cross_entropy             5.1079     5.1261       5.1261
#   cross_entropy by hand     5.1079     5.1079       5.1079
#   scatter_reduce           -0.3854    -0.6801      -0.6801
#   scatter_reduce by hand   -0.3854    -0.3854      -0.3854
#   scatter_reduce gives tokens 5, 6 and 7, the last of each group
#   verify=True logs: a large absolute difference of 76.238937.
#   median is refused: ConversionError
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 onnxscript==0.7.2 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import contextlib
import importlib.metadata
import io
import logging
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from torch import nn

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
onnxruntime.set_default_logger_severity(4)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "onnxscript", "onnx", "onnxruntime")))
torch.manual_seed(0)
features = torch.rand(2, 8, 14, 14) + 1
logits = 3 * torch.randn(16, 10)
labels = torch.arange(16) % 10
tokens = torch.randn(2, 8, 4)
groups = torch.tensor([0, 1, 0, 1, 2, 0, 1, 2])[None, :, None].expand(2, -1, 4)


def sums(x):
    return F.avg_pool2d(x, 7, divisor_override=1)


def sums_by_hand(x):
    return F.avg_pool2d(x, 7) * 49


def smoothed(x):
    return F.cross_entropy(x, labels, label_smoothing=0.1)


def smoothed_by_hand(x):
    logs = x.log_softmax(1)
    return 0.9 * F.nll_loss(logs, labels) - 0.1 * logs.mean()


def group_means(x):
    return torch.zeros(2, 3, 4).scatter_reduce(1, groups, x, "mean", include_self=False)


def group_means_by_hand(x):
    counts = torch.zeros(2, 3, 4).scatter_add(1, groups, torch.ones_like(x))
    return torch.zeros(2, 3, 4).scatter_add(1, groups, x) / counts


class Network(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def exported(function, x, opset=None, optimize=True):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model = Network(function).eval()
        program = torch.onnx.export(model, (x,), opset_version=opset, optimize=optimize, verbose=False)
    model = program.model_proto
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return session.run(None, feed)[0], ReferenceEvaluator(model).run(None, feed)[0]


failures = []
print("function               eager      onnxruntime  reference")
for name, function, by_hand, x in (
    ("avg_pool2d, divisor 1", sums, sums_by_hand, features),
    ("cross_entropy, 0.1", smoothed, smoothed_by_hand, logits),
    ("scatter_reduce, mean", group_means, group_means_by_hand, tokens),
):
    want = function(x).numpy()
    for suffix, variant in (("", function), (" by hand", by_hand)):
        by_runtime, by_reference = exported(variant, x)
        title = name.split(",")[0] + suffix
        print(f"{title:22s} {want.flat[0]:9.4f}  {by_runtime.flat[0]:9.4f}    {by_reference.flat[0]:9.4f}")
        wrong = [bool(np.abs(y - want).max() > 0.01) for y in (by_runtime, by_reference)]
        if wrong != [not suffix] * 2:
            failures.append(f"{name}{suffix}: {wrong}")
    for opset, optimize in ((18, True), (20, False)):
        if np.abs(exported(function, x, opset, optimize)[0] - want).max() < 0.01:
            failures.append(f"{name}: right with opset {opset}")
if not np.allclose(exported(sums, features)[0] * 49, sums(features), rtol=1e-4):
    failures.append("the pool no longer is the average")
if not np.allclose(exported(smoothed, logits)[0], F.cross_entropy(logits, labels), rtol=1e-4):
    failures.append("the loss no longer is the plain one")
last = exported(group_means, tokens)[0]
if not np.allclose(last, tokens.numpy()[:, [5, 6, 7]], rtol=1e-4):
    failures.append(f"scatter no longer gives the last value: {last}")
print("scatter_reduce gives tokens 5, 6 and 7, the last of each group")


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


logging.disable(logging.NOTSET)
lines = Lines()
logger = logging.getLogger("torch.onnx._internal.exporter._core")
logger.addHandler(lines)
logger.propagate = False
torch.onnx.export(Network(sums).eval(), (features,), verbose=False, verify=True)
logging.disable(logging.WARNING)
found = [line for line in lines.lines if "difference" in line]
print("verify=True logs:", found[0].split(" has ")[1] if found else "nothing")
if not found:
    failures.append("verify=True is silent")
try:
    exported(lambda x: x.median(dim=1).values, tokens)
    failures.append("median is exported now")
except torch.onnx.OnnxExporterError as error:
    print("median is refused:", type(error).__name__)
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
