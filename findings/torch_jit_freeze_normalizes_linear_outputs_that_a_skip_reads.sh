#!/usr/bin/env bash
# Finding (2026-11): torch.jit.freeze folds a BatchNorm1d into the linear layer in front of it also where somebody
# else reads that layer's output. The other reader then gets normalized values, or two normalizations become mixed.
#
# Expected: freezing keeps the function. Of a convolution it does: where its output has a second reader, nothing is
#   folded, and torch.jit.freeze is the fuser to trust where torch.fx's is not.
# Real: the pass for linear layers lacks that check. A skip around the norm, a head that returns the embedding and
#   its normalized form, two norms over one linear layer: the linear layer's weights are scaled and shifted by the
#   norm, and every reader sees it. Scripted or traced, and in torch.jit.optimize_for_inference, which freezes first.
#   A linear layer that is called twice with two norms is right (the weights are copied), as is a sole reader.
# Why it matters: an embedding that is taken before its norm for the metric loss and behind it for the classifier is
#   a usual head of retrieval and re-identification; here the frozen model serves the same vector for both.
#   Outputs keep their shape and order of size; a check with a ResNet, whose norms follow convolutions, passes.
# Way out, checked below: freeze(optimize_numerics=False). An nn.Identity in the skip does not help, it is inlined.
#
# Versions: torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1+cu130
#   relative error against float64               eager   freeze  (traced)  optimize_for_inference  numerics off
#   linear, SoleReader                          0.0000   0.0000    0.0000                  0.0000        0.0000
#   linear, CalledTwice                         0.0000   0.0000    0.0000                  0.0000        0.0000
#   linear, Skip                                0.0000   0.4546    0.4546                  0.4546        0.0000
#   linear, IdentitySkip                        0.0000   0.4546    0.4546                  0.4546        0.0000
#   linear, EmbeddingAndNormalized              0.0000   0.5853    0.5853                  0.5853        0.0000
#   linear, TwoNorms                            0.0000   1.0000    1.0000                  1.0000        0.0000
#   convolution, SoleReader                     0.0000   0.0000    0.0000                  0.0000        0.0000
#   convolution, CalledTwice                    0.0000   0.0000    0.0000                  0.0000        0.0000
#   convolution, Skip                           0.0000   0.0000    0.0000                  0.0000        0.0000
#   convolution, IdentitySkip                   0.0000   0.0000    0.0000                  0.0000        0.0000
#   convolution, EmbeddingAndNormalized         0.0000   0.0000    0.0000                  0.0000        0.0000
#   convolution, TwoNorms                       0.0000   0.0000    0.0000                  0.0000        0.0000
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import copy
import sys
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")
print("torch", torch.__version__)


class Head(nn.Module):
    def __init__(self, layer, norm):
        super().__init__()
        self.layer = layer
        self.first, self.second = norm(8), norm(8)
        self.nothing = nn.Identity()
        for norm in (self.first, self.second):  # statistics and parameters as a trained network has them
            norm.running_mean.normal_(0, 0.5)
            norm.running_var.uniform_(0.5, 3)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias, 0, 0.5)


class SoleReader(Head):
    def forward(self, x):
        return self.first(self.layer(x))


class CalledTwice(Head):
    def forward(self, x):
        return self.first(self.layer(x)) + self.second(self.layer(x.flip(0)))


class Skip(Head):
    def forward(self, x):
        y = self.layer(x)
        return self.first(y) + y


class IdentitySkip(Head):
    def forward(self, x):
        y = self.layer(x)
        return self.first(y) + self.nothing(y)


class EmbeddingAndNormalized(Head):
    def forward(self, x):
        y = self.layer(x)
        return torch.stack([y, self.first(y)])


class TwoNorms(Head):
    def forward(self, x):
        y = self.layer(x)
        return self.first(y).relu() - self.second(y).relu()


def linear():
    return nn.Linear(6, 8), nn.BatchNorm1d, torch.randn(32, 6)


def convolution():
    return nn.Conv2d(6, 8, 3), nn.BatchNorm2d, torch.randn(4, 6, 7, 7)


failures = []
print("relative error against float64               eager   freeze  (traced)  optimize_for_inference  numerics off")
for build in (linear, convolution):
    for kind in (SoleReader, CalledTwice, Skip, IdentitySkip, EmbeddingAndNormalized, TwoNorms):
        torch.manual_seed(0)
        layer, norm, x = build()
        net = kind(layer, norm).eval()
        with torch.no_grad():
            want = copy.deepcopy(net).double()(x.double())
            models = [
                net,
                torch.jit.freeze(torch.jit.script(net)),
                torch.jit.freeze(torch.jit.trace(net, x)),
                torch.jit.optimize_for_inference(torch.jit.script(net)),
                torch.jit.freeze(torch.jit.script(net), optimize_numerics=False),
            ]
            errors = [float((model(x).double() - want).norm() / want.norm()) for model in models]
        name = f"{build.__name__}, {kind.__name__}"
        print(f"{name:42s} {errors[0]:7.4f} {errors[1]:8.4f} {errors[2]:9.4f} {errors[3]:23.4f} {errors[4]:13.4f}")
        broken = build is linear and kind not in (SoleReader, CalledTwice)
        if max(errors[0], errors[4]) > 1e-5 or any((e > 0.05) != broken for e in errors[1:4]):
            failures.append(name)
if failures:
    sys.exit("CHANGED: " + ", ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
