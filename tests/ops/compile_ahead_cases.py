"""Kernels of a small network, compiled ahead or launched, for an H100 that is not there; test_compile_ahead.py runs it.

Prints what was compiled and what was found in Triton's cache.
"""

import json
import random
import sys

import torch
import triton
from torch import nn

SIZE = (2, 16, 8, 8)


def network():
    import ddfnet

    layers = [ddfnet.DDF(16), nn.SyncBatchNorm(16), nn.Dropout(0.5), Draw()]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


class Draw(nn.Module):
    def forward(self, x):
        return x * random.random() + torch.rand(())


def images():
    return torch.randn(SIZE).contiguous(memory_format=torch.channels_last)


def ahead():
    from tests.kernels.inductor_cases import pretend

    is_compiling = torch.compiler.is_compiling
    pretend()
    torch.compiler.is_compiling = is_compiling
    from triton.backends.compiler import GPUTarget

    from ddfnet.ops import compile_ahead
    from ddfnet.ops.compile_worker import pretend_device

    pretend_device(GPUTarget("cuda", 90, 32))
    model, x, lines, device = network(), images(), [], torch.device("cuda")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate()
    with torch.autocast("cuda", torch.bfloat16):
        compile_ahead._compile(model, (x,), {}, device, lines.append)
        compile_ahead._compile(model, (x,), {}, device, lines.append)
        model.eval()
        with torch.inference_mode():
            jobs = compile_ahead.record_jobs(model, (x,), {}, device)
    unchanged = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    unchanged &= all(parameter.grad is None for parameter in model.parameters())
    unchanged &= torch.equal(generators[0], torch.get_rng_state()) and generators[1] == random.getstate()
    return {"lines": lines, "missing": len(compile_ahead.missing(jobs)), "unchanged": unchanged}


def launch():
    from scripts.dev import stub_gpu

    launches, found = stub_gpu.install(), []

    def listen(*, cache_hit, **_):
        found.append(cache_hit)

    triton.knobs.compilation.listener = listen
    model, x = network()[0], images().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        model(x).sum().backward()
        with torch.inference_mode():
            model(x)
    return {"hits": found.count(True), "compiled": found.count(False), "launches": launches}


if __name__ == "__main__":
    print("RESULT " + json.dumps({"ahead": ahead, "launch": launch}[sys.argv[1]]()))
