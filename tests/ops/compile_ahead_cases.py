"""Kernels of a small network, compiled ahead or launched, for an H100 that is not there; test_compile_ahead.py runs it.

    compile_ahead_cases.py ahead|launch layer|norms

Prints what was compiled and what was found in Triton's cache. The network is a layer, or a block of which the layer's
kernels compute the batch normalizations in training as well.
"""

import json
import random
import sys

import torch
import triton
from torch import nn

SIZE = (2, 16, 2, 2)  # no blocks of several pixels: what is compiled is small


def network(which):
    import ddfnet
    from ddfnet.models.ddf_resnet import DDFBottleneck

    block = ddfnet.DDF(16)
    if which == "norms":
        block = DDFBottleneck(16, 4, ddf_args={"squeeze_ratio": 0.5}, fused_norms="all")
        block = nn.Sequential(nn.Conv2d(16, 16, 1), block)  # whose shortcut autocast makes as narrow as the rest
    layers = [block, nn.SyncBatchNorm(16), nn.Dropout(0.5), Draw()]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


class Draw(nn.Module):
    def forward(self, x):
        return x * random.random() + torch.rand(())


def images():
    return torch.randn(SIZE).contiguous(memory_format=torch.channels_last)


def ahead(which):
    from tests.kernels.inductor_cases import pretend

    is_compiling = torch.compiler.is_compiling
    pretend()
    torch.compiler.is_compiling = is_compiling
    from triton.backends.compiler import GPUTarget

    from ddfnet.ops import compile_ahead
    from ddfnet.ops.compile_worker import pretend_device

    pretend_device(GPUTarget("cuda", 90, 32))
    model, x, lines, device = network(which), images(), [], torch.device("cuda")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate()
    with torch.autocast("cuda", torch.bfloat16):
        compile_ahead._compile(model, (x,), {}, device, lines.append)
        compile_ahead._compile(model, (x,), {}, device, lines.append)
        model.eval()
        with torch.inference_mode():
            if which == "norms":  # which has other kernels there
                compile_ahead._compile(model, (x,), {}, device, lines.append)
            jobs = compile_ahead.record_jobs(model, (x,), {}, device)
    unchanged = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    unchanged &= all(parameter.grad is None for parameter in model.parameters())
    unchanged &= torch.equal(generators[0], torch.get_rng_state()) and generators[1] == random.getstate()
    return {"lines": lines, "missing": len(compile_ahead.missing(jobs)), "unchanged": unchanged}


def launch(which):
    from scripts.dev import stub_gpu

    launches, found = stub_gpu.install(), []

    def listen(*, cache_hit, **_):
        found.append(cache_hit)

    triton.knobs.compilation.listener = listen
    model, x = network(which)[0], images().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        model(x).sum().backward()
        with torch.inference_mode():
            model.eval()(x)
    return {"hits": found.count(True), "compiled": found.count(False), "launches": launches}


if __name__ == "__main__":
    print("RESULT " + json.dumps({"ahead": ahead, "launch": launch}[sys.argv[1]](sys.argv[2])))
