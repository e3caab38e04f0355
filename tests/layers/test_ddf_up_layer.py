"""The DDF-Up layer: against one `ddf` per branch, official parameter names, guidance, cost, errors, compilation."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ddfnet.layers.ddf_up import DDFUp
from ddfnet.ops.ddf import ddf_reference

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def make(mode, *, size=(5, 7), batch=2, channels=8, scale=2, dtype=torch.float64, **options):
    """A layer and its inputs; modes are `plain`, `low` and `high`, after the resolution of the guidance."""
    torch.manual_seed(0)
    options = {"squeeze_ratio": 0.5, "guidance_channels": None if mode == "plain" else 3, **options}
    layer = DDFUp(channels, scale, dtype=dtype, **options)
    inputs = [torch.randn(batch, channels, *size, dtype=dtype)]
    if mode != "plain":
        times = scale if mode == "high" else 1
        inputs.append(torch.randn(batch, 3, size[0] * times, size[1] * times, dtype=dtype))
    return layer, inputs


def naive(layer, x, guidance=None):
    """Each branch on its own as the official code writes it, `ddf` by its definition, stack, pixel shuffle."""
    s, k = layer.scale, layer.kernel_size
    outputs = []
    for i, (spatial, channel) in enumerate(zip(layer.spatial_branch, layer.channel_branch, strict=True)):
        if guidance is None:
            depthwise, predict = spatial
            padding = depthwise.weight.shape[-1] // 2
            source = F.conv2d(x, depthwise.weight, depthwise.bias, padding=padding, groups=layer.channels)
        else:
            predict, source = spatial, guidance
            if guidance.shape[2:] != x.shape[2:]:
                rows, columns = torch.arange(x.shape[2]) * s + i // s, torch.arange(x.shape[3]) * s + i % s
                source = guidance[:, :, rows[:, None], columns]
        spatial_filter = predict[1](F.conv2d(source, predict[0].weight, predict[0].bias))
        hidden = torch.relu(channel[1](x.mean((2, 3), keepdim=True)))
        channel_filter = channel[4](channel[3](hidden)).view(-1, layer.channels, k, k)
        options = {"dilation": layer.dilation, "combine": layer.combine}
        outputs.append(ddf_reference(x, channel_filter, spatial_filter, **options))
    return F.pixel_shuffle(torch.stack(outputs, 2).flatten(1, 2), s)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("mode", ["plain", "low", "high"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": 2, "combine": "add", "scale": 3},
        {"kernel_size": 5, "scale": 3, "dilation": 2},
        {"kernel_size": 5, "heads": 4, "depthwise_kernel_size": 5, "size": (3, 5)},
        {"scale": 4, "combine": "add", "size": (3, 1), "nonlinearity": "relu"},
        {"normalization": "batch"},
        {"normalization": "sigmoid", "heads": 2},
    ],
    ids=str,
)
def test_forward_is_a_ddf_per_branch_and_a_pixel_shuffle(options, mode, memory_format):
    layer, inputs = make(mode, **options)
    inputs = [tensor.contiguous(memory_format=FORMATS[memory_format]) for tensor in inputs]
    y = layer(*inputs)
    torch.testing.assert_close(y, naive(layer, *inputs), rtol=1e-12, atol=1e-12)
    assert y.is_contiguous(memory_format=FORMATS[memory_format])


def test_replaced_layers_are_called():
    layer, (x,) = make("plain")
    y = layer(x)
    torch.nn.utils.parametrizations.weight_norm(layer.channel_branch[0][3])
    torch.testing.assert_close(layer(x), y)
    layer.channel_branch[1][3] = torch.nn.Sequential(layer.channel_branch[1][3])
    torch.testing.assert_close(layer(x), y)


def test_the_pooling_is_done_once():
    layer, (x,) = make("plain")
    seen = []
    for branch in layer.channel_branch:
        branch.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[2:])))
    layer(x)
    assert seen == [(1, 1)] * 4


@pytest.mark.parametrize("mode", ["plain", "low", "high"])
def test_gradcheck(mode):
    layer, inputs = make(mode, size=(2, 3), channels=2, heads=2)
    names, values = zip(*layer.named_parameters(), strict=True)

    def call(*tensors):
        parameters = dict(zip(names, tensors[len(inputs) :], strict=True))
        return torch.func.functional_call(layer, parameters, tensors[: len(inputs)])

    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradcheck(call, (*inputs, *values), fast_mode=True)


@pytest.mark.parametrize("mode", ["plain", "low", "high"])
def test_gradients_reach_every_parameter(mode):
    layer, inputs = make(mode, squeeze_ratio=2.0)
    layer(*inputs).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("guidance_channels", [None, 64, 16])
def test_official_state_dict_names_and_shapes(guidance_channels):
    expected = {}
    for i in range(4):
        spatial = f"spatial_branch.{i}"
        if guidance_channels is None:
            expected |= {f"{spatial}.0.weight": (64, 1, 3, 3), f"{spatial}.0.bias": (64,)}
            spatial += ".1"
        expected |= {f"{spatial}.0.weight": (9, guidance_channels or 64, 1, 1), f"{spatial}.0.bias": (9,)}
        channel = f"channel_branch.{i}"
        expected |= {f"{channel}.1.weight": (12, 64, 1, 1), f"{channel}.1.bias": (12,)}
        expected |= {f"{channel}.3.weight": (576, 12, 1, 1), f"{channel}.3.bias": (576,), f"{channel}.4.std": (576,)}
    layer = DDFUp(64, guidance_channels=guidance_channels)
    assert {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} == expected
    layer.load_state_dict({name: torch.zeros(shape) for name, shape in expected.items()}, strict=True)


def test_filters_start_with_the_gain_of_a_linear_layer():
    layer = DDFUp(64)
    assert layer.spatial_branch[0][1][1].std == pytest.approx(1 / 3)
    assert layer.channel_branch[3][4].std.std().item() == pytest.approx(1 / 3, rel=0.15)


def test_multiply_adds_are_those_of_table_6():
    # 256 channels, x2, the three upsampled levels of a feature pyramid for a 1280x800 image: 0.58 B in the paper
    channels, hidden, sizes = 256, 51, [(25, 40), (50, 80), (100, 160)]
    layer = DDFUp(channels, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for size in sizes:
            layer(torch.empty(1, channels, *size, device="meta"))
    per_image = 4 * (channels * hidden + hidden * channels * 9)  # the channel branches, on one pooled pixel
    per_pixel = 4 * (9 + 9 + 9) * channels
    assert per_pixel == 27_648
    assert counter.get_total_flops() / 2 - len(sizes) * per_image == 21_000 * per_pixel == 580_608_000


@pytest.mark.parametrize("mode", ["plain", "low", "high"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_autocast_and_memory_format(mode, memory_format):
    layer, inputs = make(mode, size=(6, 6), channels=16, dtype=torch.float32)
    inputs = [tensor.contiguous(memory_format=FORMATS[memory_format]) for tensor in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(*inputs)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=FORMATS[memory_format])
    y.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())
    exact = layer(*inputs)
    assert (y.float() - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("mode", ["plain", "low", "high"])
def test_compile(mode, backend):
    torch._dynamo.reset()
    layer, inputs = make(mode, dtype=torch.float32)
    results = []
    for call in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        y = call(*inputs)
        results.append([y, *torch.autograd.grad(y.square().sum(), layer.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["plain", "low", "high"])
def test_export(mode):
    layer, inputs = make(mode, dtype=torch.float32)
    program = torch.export.export(layer, tuple(inputs))
    torch.testing.assert_close(program.module()(*inputs), layer(*inputs))


@pytest.mark.parametrize("mode", ["plain", "low", "high"])
def test_meta_device_and_empty_batch(mode):
    layer, inputs = make(mode, scale=3)
    assert layer(*[tensor[:0] for tensor in inputs]).shape == (0, 8, 15, 21)
    layer, inputs = layer.to("meta"), [tensor.to("meta") for tensor in inputs]
    assert layer(*inputs).shape == (2, 8, 15, 21)
    built = DDFUp(8, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in built.parameters()} == {("meta", torch.float64)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": 1}, ValueError, "scale: got 1, expected at least 2"),
        ({"scale": 2.0}, TypeError, "scale: got 2.0 of type float, expected an int"),
        ({"kernel_size": 4}, ValueError, "kernel_size must be odd and at least 3, got 4"),
        ({"heads": 3}, ValueError, "heads must divide the channels: got 3 for 8 channels"),
        ({"squeeze_ratio": 0.1}, ValueError, "squeeze_ratio=0.1 leaves no hidden channel: give at least 0.125"),
        ({"combine": "sub"}, ValueError, "combine must be 'mul' or 'add', got 'sub'"),
        ({"normalization": "layer"}, ValueError, "normalization must be .* got 'layer'"),
        ({"guidance_channels": 0}, ValueError, "guidance_channels: got 0, expected at least 1, or None"),
        ({"depthwise_kernel_size": 2}, ValueError, "depthwise_kernel_size: got 2, expected an odd number"),
        ({"dilation": 0}, ValueError, "dilation: got 0, expected at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        DDFUp(8, **arguments)


def test_bad_inputs_are_named():
    x = torch.zeros(2, 8, 5, 7)
    plain, joint = DDFUp(8), DDFUp(8, guidance_channels=3)
    for call, words in [
        (lambda: plain(x[0]), ["x: got shape (8, 5, 7)", "(B, 8, H, W)"]),
        (lambda: joint(x[:, :4], x[:, :3]), ["x: got shape (2, 4, 5, 7)", "(B, 8, H, W)"]),
        (lambda: plain(x, x), ["guidance: got shape (2, 8, 5, 7)", "expected None", "guidance_channels"]),
        (lambda: joint(x), ["guidance: got None", "(2, 3, 5, 7) or (2, 3, 10, 14)", "None: needs no guidance"]),
        (lambda: joint(x, x), ["guidance: got shape (2, 8, 5, 7)", "(2, 3, 5, 7)", "guidance_channels"]),
        (lambda: joint(x, x[:1, :3]), ["guidance: got shape (1, 3, 5, 7)", "(2, 3, 10, 14)", "resize"]),
        (lambda: joint(x, torch.zeros(2, 3, 9, 13)), ["(2, 3, 9, 13)", "(2, 3, 10, 14)", "scale 2; resize"]),
        (lambda: joint(x, torch.zeros(2, 3, 20, 28)), ["(2, 3, 20, 28)", "(2, 3, 10, 14)"]),
    ]:
        with pytest.raises(ValueError, match=r"^(x|guidance): got") as caught:
            call()
        for word in words:
            assert word in str(caught.value)
