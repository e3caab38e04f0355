"""CARAFE against the paper's definition, with the channel order of published weights; cost, errors, compilation."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ddfnet.layers.carafe import CARAFE

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def make(*, size=(5, 7), channels=8, dtype=torch.float64, **options):
    torch.manual_seed(0)
    layer = CARAFE(channels, compressed_channels=6, dtype=dtype, **options)
    for parameter in layer.parameters():
        parameter.data.normal_()  # at its start the softmax is all but flat, and would hide a wrong order
    return layer, torch.randn(2, channels, *size, dtype=dtype)


def naive(layer, x):
    """Predicted kernels on the new grid (pixel shuffle, softmax), each on the k x k neighborhood of its old pixel."""
    s, k, groups = layer.scale, layer.kernel_size, layer.groups
    encoder = layer.content_encoder
    logits = F.conv2d(x, layer.channel_compressor.weight, layer.channel_compressor.bias)
    logits = F.conv2d(logits, encoder.weight, encoder.bias, padding=encoder.weight.shape[-1] // 2)
    logits = F.pixel_shuffle(logits, s)
    kernels = logits.view(len(x), groups, 1, k * k, *logits.shape[2:]).softmax(3)
    patches = F.unfold(x, k, padding=k // 2).view(len(x), -1, *x.shape[2:])
    patches = patches.repeat_interleave(s, 2).repeat_interleave(s, 3)
    patches = patches.view(len(x), groups, x.shape[1] // groups, k * k, *logits.shape[2:])
    return (patches * kernels).sum(3).flatten(1, 2)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 3, "kernel_size": 3, "encoder_kernel_size": 1, "groups": 2},
        {"scale": 4, "kernel_size": 3, "groups": 8, "size": (3, 1)},
        {"kernel_size": 7, "encoder_kernel_size": 5, "groups": 4},
    ],
    ids=str,
)
def test_forward_is_the_definition(options, memory_format):
    layer, x = make(**options)
    x = x.contiguous(memory_format=FORMATS[memory_format])
    y = layer(x)
    torch.testing.assert_close(y, naive(layer, x), rtol=1e-12, atol=1e-12)
    assert y.is_contiguous(memory_format=FORMATS[memory_format])


def test_published_names_and_shapes():
    # the upsampler of the authors' FPN: 256 channels, x2, 5x5 taps
    layer = CARAFE(256)
    shapes = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    assert shapes == {
        "channel_compressor.weight": (64, 256, 1, 1),
        "channel_compressor.bias": (64,),
        "content_encoder.weight": (100, 64, 3, 3),
        "content_encoder.bias": (100,),
    }
    layer.load_state_dict({name: torch.zeros(shape) for name, shape in shapes.items()}, strict=True)


def test_it_starts_as_a_box_filter():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 6, 6)
    box = F.avg_pool2d(x, 5, stride=1, padding=2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(CARAFE(16)(x), box, rtol=0, atol=0.05)


def test_a_constant_stays_constant_away_from_the_border():
    layer, _ = make()
    y = layer(torch.full((1, 8, 9, 9), 3.0, dtype=torch.float64))
    torch.testing.assert_close(y[..., 4:14, 4:14], torch.full((1, 8, 10, 10), 3.0, dtype=torch.float64))


def test_gradcheck():
    layer, x = make(size=(2, 3), channels=2, kernel_size=3, groups=2)
    names, values = zip(*layer.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),))
    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)


def test_multiply_adds():
    # the count of DDF-Up's 0.58 B; the DDF paper prints 2.14 B for CARAFE (its table 6)
    layer = CARAFE(256, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for size in [(25, 40), (50, 80), (100, 160)]:
            layer(torch.empty(1, 256, *size, device="meta"))
    multiply_adds = counter.get_total_flops() // 2
    assert multiply_adds == 21_000 * (256 * 64 + 64 * 100 * 9 + 4 * 25 * 256) == 2_091_264_000
    assert multiply_adds == pytest.approx(2.14e9, rel=0.025)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_autocast_and_memory_format(memory_format):
    torch.manual_seed(0)
    layer = CARAFE(16)
    x = torch.randn(2, 16, 6, 6).contiguous(memory_format=FORMATS[memory_format])
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=FORMATS[memory_format])
    y.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())
    exact = layer(x)
    assert (y.float() - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend):
    torch._dynamo.reset()
    layer, x = make(dtype=torch.float32)
    results = []
    for call in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        y = call(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), layer.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_export_meta_device_and_empty_batch():
    layer, x = make(dtype=torch.float32, groups=2)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    assert layer(x[:0]).shape == (0, 8, 10, 14)
    layer = CARAFE(8, 3, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
    assert layer(torch.empty(2, 8, 5, 7, device="meta", dtype=torch.float64)).shape == (2, 8, 15, 21)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": 1}, ValueError, "scale: got 1, expected at least 2"),
        ({"scale": 1.5}, TypeError, "scale: got 1.5 of type float, expected an int"),
        ({"kernel_size": 1}, ValueError, "kernel_size must be odd and at least 3, got 1"),
        ({"encoder_kernel_size": 2}, ValueError, "encoder_kernel_size: got 2, expected an odd number"),
        ({"compressed_channels": 0}, ValueError, "compressed_channels: got 0, expected at least 1"),
        ({"groups": 3}, ValueError, "groups must divide the channels: got 3 for 8 channels; give a divisor"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        CARAFE(8, **arguments)
