"""`ddf` and `DDF` within PyTorch on CUDA: compilers, graphs, streams, memory, mixed precision, DDP, training."""

import copy
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_cases import DEVICE, arguments, assert_same_bits, needs_cuda, random_like, random_tensor
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from ddfnet import DDF, ddf
from ddfnet.ops.ddf import ddf_reference

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def training_arguments(channels=64, size=14, **options):
    """As in mixed precision: channels_last bfloat16, with the channel filter in float32."""
    x, channel, spatial = arguments(
        2, channels, size, size, dtype=torch.bfloat16, memory_format=torch.channels_last, **options
    )  # fmt: skip
    return [x, channel.detach().float().requires_grad_(), spatial]


def step(inputs, grad_y, function=ddf):
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad_y)]


class TinyNetwork(nn.Module):
    """Convolution, two DDF layers (one with a stride), classifier."""

    def __init__(self, layer=DDF):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            layer(16), nn.BatchNorm2d(16), nn.ReLU(),
            layer(16, stride=2, heads=2), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class DefinedDDF(DDF):
    """The same layer with the definition of the operator."""

    def forward(self, x):
        channel = self.channel_branch(x).view(-1, self.channels, self.kernel_size, self.kernel_size)
        spatial = self.spatial_branch(x)
        options = {"stride": self.stride, "dilation": self.dilation, "combine": self.combine}
        return ddf_reference(x, channel, spatial, kernel_size=self.kernel_size, **options)


def tiny_network(layer=DDF):
    torch.manual_seed(0)
    return TinyNetwork(layer).to(DEVICE, memory_format=torch.channels_last)


def batch(count=16):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 17, 15, generator=generator).contiguous(memory_format=torch.channels_last)
    return images.to(DEVICE), torch.randint(5, (count,), generator=generator).to(DEVICE)


def train(network, steps, dtype=None, scaler=None):
    """Losses on one batch, which the network learns by heart."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)  # larger rates enlarge rounding errors
    scaler = scaler or torch.amp.GradScaler(DEVICE.type, enabled=False)
    images, labels = batch()
    losses = []
    for _ in range(steps):
        with torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


OP = torch.ops.ddfnet.ddf.default
OP_BACKWARD = torch.ops.ddfnet.ddf_backward.default


def op_arguments(op, inputs, **settings):
    """Arguments in the order of the op's schema; what the schema does not have is left out."""
    values = dict(zip(("x", "channel_filter", "spatial_filter"), inputs, strict=True))
    values.update({"kernel_size": 1, "stride": 1, "dilation": 1, "multiply": True, "scale": 1, **settings})
    return tuple(values[argument.name] for argument in op._schema.arguments)


@pytest.mark.parametrize(
    "test", ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
)
def test_opcheck(test):
    """One tap keeps the traces short."""
    inputs = arguments(2, 8, 5, 6, kernel_size=1, stride=2, heads=2, memory_format=torch.channels_last)
    torch.library.opcheck(OP, op_arguments(OP, inputs, stride=2), test_utils=test)
    grad_y = torch.randn_like(ddf(*inputs, stride=2)).requires_grad_()
    needed = {"grad_y": grad_y, "need_x": True, "need_channel": True, "need_spatial": True}
    torch.library.opcheck(OP_BACKWARD, op_arguments(OP_BACKWARD, inputs, stride=2, **needed), test_utils=test)


@pytest.mark.parametrize("stride", [1, 2])
def test_compile_has_no_graph_break_and_the_same_results(stride):
    inputs = training_arguments(stride=stride)

    def function(*tensors):
        return ddf(*tensors, stride=stride).relu()

    grad_y = random_like(function(*inputs).detach())
    expected = step(inputs, grad_y, function)
    frames = CompileCounterWithBackend("inductor")
    actual = step(inputs, grad_y, torch.compile(function, fullgraph=True, backend=frames))
    assert frames.frame_count == 1
    assert not counters["graph_break"]
    assert actual[0].stride() == expected[0].stride()
    torch.testing.assert_close(actual, expected)


def test_compile_not_again_for_every_batch_size():
    frames = CompileCounterWithBackend("inductor")
    compiled = torch.compile(ddf, fullgraph=True, backend=frames)
    for count in (2, 3, 7):
        inputs = arguments(count, 8, 6, 5, memory_format=torch.channels_last)
        for tensor in inputs:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        grad_y = random_like(ddf(*inputs).detach())
        torch.testing.assert_close(step(inputs, grad_y, compiled), step(inputs, grad_y))
    assert frames.frame_count <= 2  # tiles may depend on whether a batch fills the device, not on each size


@pytest.mark.parametrize("heads", [1, pytest.param(2, marks=needs_cuda)])
def test_compile_the_layer(heads):
    torch.manual_seed(0)
    layer = DDF(32, stride=2, heads=heads).to(DEVICE)
    x = arguments(2, 32, 13, 11, memory_format=torch.channels_last)[0]
    inputs = [x, *layer.parameters()]
    y = layer(x)
    grad_y = random_like(y.detach())
    expected = [y.detach(), *torch.autograd.grad(y, inputs, grad_y)]
    compiled = torch.compile(layer, fullgraph=True)(x)
    actual = [compiled.detach(), *torch.autograd.grad(compiled, inputs, grad_y)]
    assert not counters["graph_break"]
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).norm() <= 1e-4 * e.norm()


@needs_cuda
def test_compile_with_cuda_graphs():
    inputs = training_arguments()
    grad_y = random_like(ddf(*inputs).detach())
    expected = step(inputs, grad_y)
    compiled = torch.compile(ddf, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):  # warm-up, recording, replays
        torch.compiler.cudagraph_mark_step_begin()
        actual = [tensor.clone() for tensor in step(inputs, grad_y, compiled)]
        torch.testing.assert_close(actual, expected)
    assert counters["inductor"]["cudagraph_skips"] == 0


@needs_cuda
def test_cuda_graph_of_forward_and_backward():
    inputs = training_arguments()
    grad_y = random_like(ddf(*inputs).detach())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(inputs, grad_y)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(inputs, grad_y)
    for seed in (5, 6):
        with torch.no_grad():
            for tensor in inputs:
                tensor.copy_(random_like(tensor, seed=seed))
        graph.replay()
        assert_same_bits(captured, step(inputs, grad_y))


@needs_cuda
def test_the_current_stream_is_used():
    """The input arrives late, on the current stream: a launch on another stream would read NaN."""
    inputs = training_arguments()
    grad_y = random_like(ddf(*inputs).detach())
    expected = step(inputs, grad_y)
    late = [torch.full_like(tensor, float("nan")) for tensor in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # cycles: some 50 ms
        for tensor, values in zip(late, inputs, strict=True):
            tensor.copy_(values.detach())
        actual = step([tensor.requires_grad_() for tensor in late], grad_y)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits(actual, expected)


@needs_cuda
def test_the_host_never_waits():
    for inputs in (training_arguments(), arguments(2, 72, 9, 9)):
        grad_y = random_like(ddf(*inputs).detach())
        expected = step(inputs, grad_y)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            actual = step(inputs, grad_y)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert_same_bits(actual, expected)


@needs_cuda
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_peak_memory(memory_format):
    """Inputs, output and gradients, and at most a tenth more: no copy of an image, no unfolded tensor."""
    shapes = ((64, 64, 56, 56), (64, 64, 3, 3), (64, 9, 56, 56), (64, 64, 56, 56))
    inputs = [
        random_tensor(shape, torch.bfloat16, seed=i, memory_format=memory_format if i != 1 else torch.contiguous_format)
        for i, shape in enumerate(shapes)
    ]
    *inputs, grad_y = inputs
    inputs = [tensor.requires_grad_() for tensor in inputs]
    step(inputs, grad_y)  # compiles
    gc.collect()
    torch.cuda.empty_cache()
    others = torch.cuda.memory_allocated() - sum(tensor.nbytes for tensor in (*inputs, grad_y))
    torch.cuda.reset_peak_memory_stats()
    results = step(inputs, grad_y)
    peak = torch.cuda.max_memory_allocated() - others
    needed = sum(tensor.nbytes for tensor in (*inputs, grad_y, *results))
    assert peak <= 1.1 * needed, f"{peak / 2**20:.1f} MiB for {needed / 2**20:.1f} MiB of tensors"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_training(dtype):
    network = tiny_network()
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10, enabled=dtype == torch.float16)
    losses = train(network, 12, dtype, scaler)
    expected = train(tiny_network(), 12)
    assert expected[-1] < 0.97 * expected[0], expected
    assert losses == pytest.approx(expected, rel=1e-2)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    if scaler.is_enabled():
        assert scaler.get_scale() == 2.0**10  # no step was skipped for an infinite gradient


def test_training_follows_the_definition():
    losses = train(tiny_network(), 30)
    expected = train(tiny_network(DefinedDDF), 30)
    assert expected[-1] < 0.9 * expected[0], expected
    assert losses == pytest.approx(expected, rel=1e-3)


def test_distributed_data_parallel(tmp_path):
    """A process of its own: a communication library that hangs must not take the other tests with it."""
    command = [sys.executable, __file__, str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "gradients agree" in run.stdout


def distributed_step(store):
    """One process with NCCL (gloo on the CPU): the gradients of the wrapped network are those of the plain one."""
    backend = "nccl" if DEVICE.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
    if DEVICE.type == "cuda":
        torch.cuda.set_device(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    images, labels = batch()
    plain = tiny_network()
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
    for network in (plain, wrapped):
        nn.functional.cross_entropy(network(images), labels).backward()
    for a, e in zip(wrapped.module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, e.grad, rtol=1e-4, atol=1e-6)
    torch.distributed.destroy_process_group()
    print("gradients agree")


if __name__ == "__main__":
    distributed_step(sys.argv[1])
