"""What Inductor makes of a DDF block for an H100 that is not there; test_inductor_code.py runs it as a process.

PyTorch is told of a device: enough of it to trace fake CUDA tensors and to generate code, none of which runs. Prints
as JSON, for each case, the generated kernels, name to source, and the names of those that are launched, in order.
"""

import contextlib
import json
import re
import sys
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget

H100 = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, warp_size=32,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20, gcnArchName="",
)  # fmt: skip


class Device(contextlib.nullcontext):
    def __init__(self, device):
        super().__init__()


def pretend():
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._conv_determine_backend_memory_format = lambda *_: torch.channels_last
    driver = {"get_current_target": lambda: GPUTarget("cuda", 90, 32), "get_current_device": lambda: 0}
    driver |= {"get_device_interface": lambda: torch.cuda, "is_active": lambda: True}
    triton.runtime.driver.set_active(SimpleNamespace(**driver))
    stream = SimpleNamespace(cuda_stream=0, stream_id=0, device_index=0)
    answers = {"is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": H100}
    answers |= {"get_device_capability": (9, 0), "get_device_name": H100.name, "is_bf16_supported": True}
    answers |= {"synchronize": None, "set_device": None, "_exchange_device": 0, "_maybe_exchange_device": 0}
    answers |= {"current_stream": stream, "_lazy_init": None, "is_initialized": False}
    answers |= {"get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None}
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    torch.cuda.device = Device

    from torch._dynamo.device_interface import CudaInterface
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
    from torch._inductor import config
    from torch._subclasses import fake_tensor

    answers = {"is_available": True, "current_device": 0, "get_compute_capability": 90, "get_device_properties": H100}
    answers |= {"synchronize": None, "is_triton_capable": True, "raise_if_triton_unavailable": None}
    for name, answer in (answers | {"is_bf16_supported": True}).items():
        setattr(CudaInterface, name, staticmethod(lambda *_, _answer=answer, **__: _answer))
    CudaInterface.Worker.get_device_properties = staticmethod(lambda *_: H100)
    CudaInterface.Worker.current_device = staticmethod(lambda: 0)

    fake_tensor.init_gpu_context = lambda device: None
    config.compile_threads = 1
    config.force_disable_caches = True
    torch.compiler.is_compiling = lambda: True  # the launches are recorded, not made
    type(kernel_side_table).reset_table = lambda self: None


class Block(nn.Module):
    """What stands around a DDF in a bottleneck."""

    def __init__(self):
        from ddfnet import DDF

        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(256, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            DDF(64), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 256, 1, bias=False),
        )  # fmt: skip

    def forward(self, x):
        with torch.autocast("cuda", torch.bfloat16):
            return (self.body(x),)


class Bottleneck(Block):
    """The same with the batch normalizations in the layer's kernels."""

    def forward(self, x):
        from ddfnet.layers.normalized_ddf import normalized_ddf

        conv, before, act, ddf, after, last_act, last_conv = self.body
        with torch.autocast("cuda", torch.bfloat16):
            return (last_conv(normalized_ddf(conv(x), before, act, ddf, after, nn.Identity().eval(), last_act)),)


class Trained(Block):
    """The same in training."""

    def forward(self, x):
        from ddfnet.layers.normalized_ddf import normalized_ddf

        conv, before, act, ddf, after, last_act, last_conv = self.body
        with torch.autocast("cuda", torch.bfloat16):
            y = normalized_ddf(conv(x), before, act, ddf, after, nn.Identity(), last_act, training=True)
            return (last_conv(y),)


class TrainedBackward(nn.Module):
    """Its backward pass as far as the layer and the normalizations go."""

    def forward(self, grad_z, x, *rest):
        return torch.ops.ddfnet.ddf_layer_trained_backward(grad_z * 2, x, *rest, 3, 1, 1, 1, True, 0.47)


class Backward(nn.Module):
    """The layer's backward pass between those of two ReLUs."""

    def forward(self, grad_y, y, x, *rest):
        grad_y = torch.where(y > 0, grad_y, 0)
        grad_x, *others = torch.ops.ddfnet.ddf_layer_backward(grad_y, x, *rest, 3, 1, 1, 1, True, 0.47, True, True)
        return torch.where(x > 0, grad_x, 0), *others


def code_of(which):
    """The kernels and launches of a case; after `pretend`."""
    from torch._functorch.aot_autograd import aot_export_module
    from torch._inductor import utils
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses import FakeTensorMode

    import ddfnet  # noqa: F401  registers the ops; after the pretence, which its imports ask

    def cuda(*size, dtype=torch.float32):
        return torch.empty(size, device="cuda", dtype=dtype)

    def image(channels):
        return cuda(256, 56, 56, channels, dtype=torch.bfloat16).permute(0, 3, 1, 2)

    kernels, define = {}, PythonWrapperCodegen.define_kernel

    def keep(self, name, body, *rest, **options):
        kernels[name] = body
        return define(self, name, body, *rest, **options)

    with torch.device("meta"):
        block = BLOCKS.get(which, Block)().to(memory_format=torch.channels_last)
    with (
        mock.patch.object(PythonWrapperCodegen, "define_kernel", keep),
        torch.no_grad(),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        if which in BLOCKS:
            module, inputs = block.to_empty(device="cuda").train("trained" in which), (image(256),)
        else:
            weights = [(9, 64, 1, 1), (12, 64, 1, 1), (576, 12, 1, 1), (576,)]
            activations = [(256, 1, 56, 56), (256, 64), (256, 12), (256, 576), (256, 9, 64)]
            filters = cuda(256, 9, 56, 56, dtype=torch.bfloat16)
            saved = (filters, *(cuda(*size) for size in activations))
            weights = [cuda(*size) for size in weights]
            if which == "backward":
                module, inputs = Backward(), (image(64), image(64), image(64), *weights, *saved)
            else:
                state = image(64), cuda(6, 64), cuda(6, 64)
                module, inputs = TrainedBackward(), (image(64), image(64), *weights, *state, *saved)
        graph, _ = aot_export_module(module, inputs, trace_joint=False, decompositions=select_decomp_table())
        given = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        code, *_ = utils.get_code(lambda: compile_fx_inner(graph, given, is_inference=True))
    launched = re.findall(r"\b(?:(\w+)\.run|extern_kernels\.(\w+))\(", code)
    return {"kernels": kernels, "launches": [ours or extern for ours, extern in launched]}


BLOCKS = {"forward": Block, "between": Bottleneck, "trained": Trained, "apart_trained": Block}


if __name__ == "__main__":
    pretend()
    print("KERNELS " + json.dumps({which: code_of(which) for which in sys.argv[1:]}))
