"""A DDF between batch normalizations as one operator on CUDA, against the layers on the CPU in float64."""

import copy

import pytest
import torch
from ddf_cases import relative_error
from gpu_cases import DEVICE, DRY_RUN, needs_cuda, poisoned_memory
from torch import nn
from torch._dynamo.utils import counters

from ddfnet import DDF
from ddfnet.layers.normalized_ddf import normalized_ddf, one_by_one
from ddfnet.layers.normalized_sum import normalized_sum
from ddfnet.models.ddf_resnet import DDFBottleneck

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# Roundings decide what the ReLUs let through, and gradients of the small layers are sums of much that cancels.
GRADIENT_TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.2, torch.float16: 6e-2}


def randomize(network):
    """Statistics as after training, and weights of which some are negative and some 0."""
    generator = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
            norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) * 2 + 0.1)
            norm.weight.data.copy_(torch.randn(norm.num_features, generator=generator))
            norm.weight.data[1::5] = 0
            norm.bias.data.copy_(torch.randn(norm.num_features, generator=generator) + 0.5)
    return network.eval()


def make(channels, **options):
    torch.manual_seed(0)
    return randomize(
        nn.Sequential(
            *(nn.BatchNorm2d(channels), nn.ReLU(), DDF(channels, **options)),
            *(nn.BatchNorm2d(channels), nn.Identity(), nn.ReLU()),
        )
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("channels", "size", "options"),
    [
        (64, (56, 56), {}),
        (128, (28, 28), {"stride": 2}),
        (72, (15, 13), {"heads": 1, "combine": "add"}),
        (512, (7, 7), {}),
        (24, (9, 8), {"dilation": 2}),
    ],
    ids=str,
)
def test_against_the_layers_on_the_cpu(channels, size, options, dtype):
    layers = make(channels, **options)
    x = torch.randn(2, channels, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = one_by_one(x.double(), *copy.deepcopy(layers).double())
        on_device = copy.deepcopy(layers).to(DEVICE)
        autocast = torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32)
        with autocast, poisoned_memory():
            y = normalized_ddf(x.to(DEVICE), *on_device)
    assert y.dtype == dtype
    assert relative_error(y.cpu(), exact) <= TOLERANCE[dtype]


def block(**options):
    torch.manual_seed(0)
    network = randomize(DDFBottleneck(256, 64, **options)).to(DEVICE, memory_format=torch.channels_last)
    # as narrow as autocast makes the rest: the shortcut is x, and one of another dtype leaves the sum to the layers
    x = torch.randn(4, 256, 14, 14).to(DEVICE, torch.bfloat16, memory_format=torch.channels_last)
    return network, x


def test_a_compiled_block_has_no_graph_break():
    counters.clear()
    torch._dynamo.reset()
    network, x = block()
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
        expected = network(x)
        y = torch.compile(network, fullgraph=True)(x)
    assert not counters["graph_break"]
    assert relative_error(y.cpu(), expected.cpu().double()) <= 2e-2


@needs_cuda
def test_a_block_launches_less():
    network, x = block()
    launched = {}
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for network.fused_norms in ("inference", "none"):
            network(x)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                network(x)
                torch.cuda.synchronize()
            launched[network.fused_norms] = [event.key for event in profile.key_averages()]
    for kernel in ("batch_norm_affine_kernel", "batch_norm_kernel"):  # the latter for sum and ReLU as well
        assert kernel in launched["inference"]
        assert kernel not in launched["none"]


@needs_cuda
def test_in_a_cuda_graph():
    network, x = block()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        expected = network(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = network(x)
        graph.replay()
        assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("channels", "size", "options"),
    [
        (64, (56, 56), {}),
        (128, (28, 28), {"stride": 2}),
        (72, (15, 13), {"heads": 1, "combine": "add"}),
        (512, (7, 7), {}),
        (24, (9, 8), {"dilation": 2}),
    ],
    ids=str,
)
def test_a_training_step_against_the_layers_on_the_cpu(channels, size, options, dtype):
    """z, the gradients of x and of all parameters, running statistics; and the same bits every time."""
    layers = make(channels, **options).train()
    x = torch.randn(2, channels, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    twin = copy.deepcopy(layers).double()
    leaf = x.double().requires_grad_()
    exact = one_by_one(leaf, *twin)
    grad_z = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = [exact, *torch.autograd.grad(exact, [leaf, *twin.parameters()], grad_z.double())]
    results = []
    for _ in range(2):
        on_device = copy.deepcopy(layers).to(DEVICE)
        leaf = x.to(DEVICE).requires_grad_()
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32), poisoned_memory():
            z = normalized_ddf(leaf, *on_device, training=True)
            grads = torch.autograd.grad(z, [leaf, *on_device.parameters()], grad_z.to(DEVICE))
        results.append([z, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    names = ["z", "x", *(name for name, _ in layers.named_parameters())]
    for name, a, e in zip(names, results[0], exact, strict=True):
        assert relative_error(a.cpu(), e) <= (TOLERANCE if name == "z" else GRADIENT_TOLERANCE)[dtype], name
    for (name, buffer), (_, e) in zip(on_device.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(buffer.cpu().to(e.dtype), e, rtol=1e-2, atol=1e-2, msg=name)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("channels", "size", "relu", "residual"),
    [
        (256, (56, 56), True, True),
        (2048, (7, 7), True, True),
        (72, (15, 13), True, True),
        (64, (30, 30), True, False),
        (512, (28, 28), False, False),
    ],
    ids=str,
)
def test_the_end_of_a_block_against_the_layers_on_the_cpu(channels, size, relu, residual, dtype):
    """y, all gradients, running statistics, and y in inference; and the same bits every time."""
    norm, act = randomize(nn.Sequential(nn.BatchNorm2d(channels)))[0].train(), nn.ReLU() if relu else None
    generator = torch.Generator().manual_seed(0)
    maps = (torch.randn(4, channels, *size, generator=generator).to(dtype) for _ in range(3))
    x, shortcut, grad_y = (tensor.contiguous(memory_format=torch.channels_last) for tensor in maps)
    with torch.no_grad():
        before = copy.deepcopy(norm).double()(x.double()) + (shortcut.double() if residual else 0)
    # Of millions of elements some are so near to 0 that rounding decides what a ReLU lets through; one makes an error
    # of some 5e-4 in the gradients.
    grad_y = grad_y.masked_fill(before.abs() < 1e-5, 0)

    def steps(norm, device, wide):
        leaves = [tensor.to(device, wide).requires_grad_() for tensor in ((x, shortcut) if residual else (x,))]
        y = normalized_sum(leaves[0], norm, leaves[1] if residual else None, act, training=True)
        grads = torch.autograd.grad(y, [*leaves, *norm.parameters()], grad_y.to(device, wide))
        with torch.no_grad():
            other = leaves[1] if residual else None
            return [y, normalized_sum(leaves[0], norm.eval(), other, act), *grads, *norm.buffers()]

    exact = steps(copy.deepcopy(norm).double(), "cpu", torch.float64)
    with poisoned_memory():
        results = [steps(copy.deepcopy(norm).to(DEVICE), DEVICE, dtype) for _ in range(2)]
    assert DRY_RUN or "_Trained" in type(results[0][0].grad_fn).__name__  # not the layers
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    for index, (a, e) in enumerate(zip(results[0], exact, strict=True)):
        limit = (GRADIENT_TOLERANCE if index > 1 else TOLERANCE)[dtype]
        assert relative_error(a.cpu().double(), e.double()) <= limit, index


def trained(network, x):
    with torch.autocast(DEVICE.type, torch.bfloat16):
        y = network(x)
    return [y, *torch.autograd.grad(y.float().sin().sum(), list(network.parameters()))]


@needs_cuda
def test_a_compiled_training_step_has_no_graph_break():
    counters.clear()
    torch._dynamo.reset()
    network, x = block(fused_norms="all")
    network.train()
    eager = copy.deepcopy(network)
    for a, b in zip(trained(torch.compile(network, fullgraph=True), x), trained(eager, x), strict=True):
        assert relative_error(a.cpu(), b.cpu().double()) <= 5e-2
    assert not counters["graph_break"]


@needs_cuda
def test_a_block_trains_with_its_norms_in_the_kernels():
    network, x = block(fused_norms="all")
    network.train()
    apart = copy.deepcopy(network)
    apart.fused_norms = "none"
    trained(network, x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        results = trained(network, x)
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["batch_norm_moments_kernel"] == 2  # of the first normalization and the last
    assert counts["batch_norm_backward_sums_kernel"] == 2  # of the second and the last
    trained(apart, x)
    for a, b in zip(results, trained(apart, x), strict=True):
        assert relative_error(a.cpu(), b.cpu().double()) <= 5e-2
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffer, apart.get_buffer(name), rtol=2e-2, atol=2e-2)
