#!/usr/bin/env bash
# Finding (2026-11): prepare_pt2e of torchao folds a batch normalization into the convolution in front of it
# without looking who else uses that convolution, its output or its weight. The network is another one before
# anything is quantized, and no observer, calibration or bit width brings it back.
#
# Expected: folding keeps the function: it is done where the normalization is the only reader of the convolution, as
#   in torch.jit.freeze, or is left out. A quantizer that asks for nothing leaves the float network alone.
# Real, with a quantizer that annotates nothing, so that all is float32, and with the x86 one unless it refuses:
#   a convolution read by its BN and by a skip connection: the skip gets the normalized values;
#   one convolution with two BNs: both branches get the first BN, and the second is thrown away;
#   one convolution applied at two levels, each with its own BN: both levels get the first level's;
#   two layers that share one weight, one with a BN: the other layer's weight is scaled as well;
#   two BNs in a row: the second is thrown away.
#   One convolution with one BN is right, also with groups, without bias, without affine, and used at two levels.
# Why it matters: the first is the stem of CIFAR's pre-activation ResNets (its output goes into the first block's BN
#   and into the skip), the third is the head of EfficientDet. The shapes and scales are plausible, so the loss is taken
#   for the price of int8: one tries other observers, quantization-aware training, more bits. It is the conversion.
#
# Versions: torch 2.14.1, torchao 0.18.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1+cu130 torchao 0.18.0
#   relative error against float64    freeze   prepared, float   converted, float   x86 int8
#   one convolution, one BN           0.0000            0.0000             0.0000     0.0053
#   same, groups, no bias             0.0000            0.0000             0.0000     0.0077
#   two levels, same BN               0.0000            0.0000             0.0000    refused
#   BN and skip (pre-activation)      0.0000            0.6257             0.6257     0.6257
#   two BNs side by side              0.0000            0.9508             0.9508     0.9509
#   two levels, own BNs (head)        0.0000            1.1047             1.1047    refused
#   tied weights, one BN              0.0000            0.2266             0.2266     0.2271
#   two BNs in a row                  0.0000            0.6680             0.6680     0.6680
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchao==0.18.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import copy
import logging
import sys
import warnings

import torch
import torchao
from torch import nn

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer, x86_inductor_quantizer as x86

print("torch", torch.__version__, "torchao", torchao.__version__)


class Nothing(Quantizer):
    def annotate(self, model):
        return model

    def validate(self, model):
        pass


class Net(nn.Module):
    def __init__(self, forward, **layers):
        super().__init__()
        self.how = forward
        self.layers = nn.ModuleDict(layers)

    def forward(self, x):
        return self.how(x, **self.layers)


def conv(**keys):
    return nn.Conv2d(8, 8, 3, padding=1, **keys)


def bn(**keys):
    return nn.BatchNorm2d(8, **keys)


def skip(x, a, n):
    y = a(x)
    return n(y) + y


def branches(x, a, n, m):
    y = a(x)
    return n(y).relu() + m(y)


def tied(x, a, n, b):
    return n(a(x)) + b(x.flip(1))


def make(name):
    nets = {
        "one convolution, one BN": lambda: Net(lambda x, a, n: n(a(x)), a=conv(), n=bn()),
        "same, groups, no bias": lambda: Net(lambda x, a, n: n(a(x)), a=conv(groups=4, bias=False), n=bn(affine=False)),
        "two levels, same BN": lambda: Net(lambda x, a, n: n(a(x)) + n(a(x.flip(1))), a=conv(), n=bn()),
        "BN and skip (pre-activation)": lambda: Net(skip, a=conv(), n=bn()),
        "two BNs side by side": lambda: Net(branches, a=conv(), n=bn(), m=bn()),
        "two levels, own BNs (head)": lambda: Net(
            lambda x, a, n, m: n(a(x)) + m(a(x.flip(1))), a=conv(), n=bn(), m=bn()
        ),
        "tied weights, one BN": lambda: Net(tied, a=conv(), n=bn(), b=conv()),
        "two BNs in a row": lambda: Net(lambda x, a, n, m: m(n(a(x))), a=conv(), n=bn(), m=bn()),
    }
    if name is None:
        return list(nets)
    torch.manual_seed(0)
    net = nets[name]()
    if name.startswith("tied"):
        net.layers["b"].weight = net.layers["a"].weight
    for layer in net.modules():  # statistics and affine parameters as a trained network has them
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.5)
            layer.running_var.uniform_(0.5, 3)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 2)
                nn.init.normal_(layer.bias, 0, 0.5)
    return net.eval()


def distance(y, want):
    return float((y.double() - want).norm() / want.norm())


int8 = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
right = make(None)[:3]
failures = []
print("relative error against float64    freeze   prepared, float   converted, float   x86 int8")
for name in make(None):
    net = make(name)
    x = torch.randn(8, 8, 10, 10)
    with torch.no_grad():
        want = copy.deepcopy(net).double()(x.double())
        # Another folding of the same network, as a control. It traces, so the net is what it was.
        errors = [distance(torch.jit.freeze(torch.jit.trace(net, x).eval())(x), want)]
        prepared = prepare_pt2e(torch.export.export(copy.deepcopy(net), (x,)).module(), Nothing())
        errors.append(distance(prepared(x), want))
        errors.append(distance(convert_pt2e(prepared)(x), want))
        try:
            prepared = prepare_pt2e(torch.export.export(copy.deepcopy(net), (x,)).module(), int8)
            prepared(x)
            errors.append(distance(convert_pt2e(prepared)(x), want))
            shown = f"{errors[-1]:.4f}"
        except ValueError:  # this quantizer refuses a convolution with two outputs
            shown = "refused"
    print(f"{name:32s} {errors[0]:7.4f} {errors[1]:17.4f} {errors[2]:18.4f} {shown:>10s}")
    fine = name in right
    if errors[0] > 1e-4 or any((e < 1e-4) != fine for e in errors[1:3]) or any((e < 0.05) != fine for e in errors[3:]):
        failures.append(name)
if failures:
    sys.exit("CHANGED: " + ", ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
