"""The `DDF` layer on CUDA against the same layer on the CPU in float64, outputs and all gradients."""

import copy

import pytest
import torch
from ddf_cases import FORMATS, relative_error
from gpu_cases import DEVICE
from torch.utils._python_dispatch import TorchDispatchMode

from ddfnet import CARAFE, DDF, DDFUp

pytestmark = pytest.mark.gpu

# Relative L2. Filter normalization divides by a standard deviation of few taps, which enlarges what rounding left.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2}


def make(channels=24, size=(15, 13), memory_format=torch.contiguous_format, **options):
    """A layer in float64 on the CPU, its input, and a gradient of its output."""
    torch.manual_seed(0)
    layer = DDF(channels, **options).double()
    x = torch.randn(4, channels, *size, dtype=torch.float64).float().double().contiguous(memory_format=memory_format)
    with torch.no_grad():
        for parameter in layer.parameters():  # the numbers that float32 holds, on both sides
            parameter.copy_(parameter.float())
        grad_y = torch.randn_like(layer(x)).bfloat16().double()
    return layer, x, grad_y


def run(layer, x, grad_y, autocast=False):
    """Output and the gradients of x and of every parameter, by name."""
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
        y = layer(x)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    grads = torch.autograd.grad(y, (x, *parameters), grad_y.to(y.dtype))
    return dict(zip(("y", "x", *names), (y.detach(), *grads), strict=True))


def on_device(layer, *tensors):
    """Copies in float32; `.to` keeps the memory format."""
    return copy.deepcopy(layer).float().to(DEVICE), *(tensor.float().to(DEVICE) for tensor in tensors)


def assert_close(actual, exact, limit):
    errors = {name: relative_error(actual[name].cpu(), exact[name]) for name in exact}
    assert all(error <= limit for error in errors.values()), errors  # false for NaN too


OPTIONS = [
    (3, 1, 1, "mul"), (3, 2, 1, "mul"), (3, 1, 2, "mul"), (3, 2, 2, "add"), (3, 1, 1, "add"),
    (5, 1, 1, "mul"), (5, 2, 2, "mul"), (5, 1, 2, "add"),
]  # fmt: skip


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize(("kernel_size", "stride", "heads", "combine"), OPTIONS)
def test_float32_against_the_cpu(kernel_size, stride, heads, combine, format_name):
    layer, x, grad_y = make(
        kernel_size=kernel_size, stride=stride, heads=heads, combine=combine, memory_format=FORMATS[format_name]
    )
    actual = run(*on_device(layer, x, grad_y))
    assert actual["y"].is_contiguous(memory_format=FORMATS[format_name])
    assert_close(actual, run(layer, x, grad_y), TOLERANCE[torch.float32])


@pytest.mark.parametrize(("kernel_size", "stride", "heads"), [(3, 1, 1), (3, 2, 1), (3, 1, 2), (5, 1, 1)])
def test_bfloat16_autocast_against_the_cpu(kernel_size, stride, heads):
    layer, x, grad_y = make(
        kernel_size=kernel_size, stride=stride, heads=heads, memory_format=torch.channels_last
    )  # fmt: skip
    actual = run(*on_device(layer, x, grad_y), autocast=True)
    assert actual["y"].dtype == torch.bfloat16
    assert_close(actual, run(layer, x, grad_y), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("kernel_size", "stride", "heads"), [(3, 1, 1), (3, 2, 1), (3, 1, 2), (5, 2, 1)])
def test_fused_and_separate_filters_agree(kernel_size, stride, heads, autocast):
    """Each against float64, so that the one that is wrong shows."""
    layer, x, grad_y = make(
        64, kernel_size=kernel_size, stride=stride, heads=heads, memory_format=torch.channels_last
    )  # fmt: skip
    layer.fused_filters = False
    exact = run(layer, x, grad_y)
    for fused in (False, True):
        device_layer, *tensors = on_device(layer, x, grad_y)
        device_layer.fused_filters = fused
        actual = run(device_layer, *tensors, autocast=autocast)
        assert_close(actual, exact, TOLERANCE[torch.bfloat16 if autocast else torch.float32])


class Dispatched(TorchDispatchMode):
    """Sees every op, and remembers the names of those of this package."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith("ddfnet."):
            self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", [False, True])
def test_calls_through_the_dispatcher_give_the_same_bits(fused):
    """Eager calls skip it; under a mode of it the registered ops are called."""
    layer, *tensors = on_device(*make(80, heads=2, memory_format=torch.channels_last))
    layer.fused_filters = fused
    direct = run(layer, *tensors, autocast=True)
    with Dispatched() as mode:
        dispatched = run(layer, *tensors, autocast=True)
    op = "ddf_layer" if fused and DEVICE.type == "cuda" else "ddf"
    assert {f"ddfnet.{op}.default", f"ddfnet.{op}_backward.default"} <= mode.names
    for name, tensor in direct.items():
        assert torch.equal(tensor, dispatched[name]), name


def test_odd_channels_and_other_memory_formats():
    """72 channels are more than one tile; a transposed image is neither contiguous nor channels_last."""
    layer, x, grad_y = make(72, size=(14, 14), heads=2)
    x, grad_y = x.transpose(2, 3), grad_y.transpose(2, 3)
    actual = run(*on_device(layer, x, grad_y))
    assert_close(actual, run(layer, x, grad_y), TOLERANCE[torch.float32])


def test_eval_mode_gives_the_same():
    layer, x, _ = on_device(*make(64, memory_format=torch.channels_last))
    with torch.no_grad():
        trained = layer(x)
        torch.testing.assert_close(layer.eval()(x), trained, rtol=1e-5, atol=1e-5)


VARIANTS = [
    {"filters": "spatial", "heads": 2},
    {"filters": "channel", "stride": 2},
    {"normalization": "batch"},
    {"normalization": "sigmoid", "stride": 2},
]


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_variants_of_the_ablations(options, format_name):
    layer, x, grad_y = make(memory_format=FORMATS[format_name], **options)
    exact = run(layer, x, grad_y)
    # a bias before a batch norm does nothing: its gradient is rounding alone
    exact = {name: grad for name, grad in exact.items() if grad.norm() > 1e-9}
    assert_close(run(*on_device(layer, x, grad_y)), exact, TOLERANCE[torch.float32])


@pytest.mark.parametrize("guided", [False, True])
def test_upsampling_layers(guided):
    torch.manual_seed(0)
    layer = DDFUp(16, 2, guidance_channels=8 if guided else None).double()
    tensors = [torch.randn(2, 16, 7, 9, dtype=torch.float64).float().double()]
    tensors += [torch.randn(2, 8, 14, 18, dtype=torch.float64).float().double()] if guided else []
    for module in (layer, CARAFE(16).double()) if not guided else (layer,):
        exact = module.float().double()(*tensors)
        actual = copy.deepcopy(module).float().to(DEVICE)(*(tensor.float().to(DEVICE) for tensor in tensors))
        assert relative_error(actual.cpu(), exact) <= TOLERANCE[torch.float32]
