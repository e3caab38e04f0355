"""The layer between batch normalizations in training, in Triton's interpreter; run by test_interpreter.py.

No bfloat16 for whole layers: the interpreter's matrix product of it is wrong.
"""

import copy
from unittest import mock

import pytest
import torch
from ddf_cases import relative_error
from interpreter_cases import _poison, launches, recording  # noqa: F401  fixtures
from interpreter_norm_cases import exchanged, make
from torch import nn

from ddfnet import DDF
from ddfnet.layers.normalized_ddf import normalized_ddf, one_by_one
from ddfnet.models.ddf_resnet import DDFBottleneck
from ddfnet.ops.batch_norm import triton as norm_launch
from ddfnet.ops.batch_norm.arguments import INVERSE, MEAN, SCALE, SHIFT, TRUE_SCALE, VARIANCE, TrainedNorm
from ddfnet.ops.ddf import ddf_reference, tiling
from ddfnet.ops.ddf import triton as operator_launch
from ddfnet.ops.ddf.arguments import Arguments, Needed
from ddfnet.ops.ddf_layer import triton as layer_launch
from ddfnet.ops.ddf_layer import triton_channel
from ddfnet.ops.ddf_layer.arguments import Settings

MERGE = "batch_norm_merge_kernel"
FORWARD = ["batch_norm_moments_kernel", MERGE, "spatial_filters_kernel", "channel_squeeze_kernel"]
FORWARD += ["channel_filters_kernel", "ddf_forward_kernel", MERGE, "batch_norm_apply_kernel"]
BACKWARD = ["batch_norm_backward_sums_kernel", "batch_norm_backward_kernel", "ddf_backward_filters_kernel"]
BACKWARD += ["channel_filters_backward_kernel", "channel_squeeze_backward_kernel"]
LOGITS = "spatial_filters_backward_kernel"  # behind these
LAST = ["ddf_backward_x_kernel", "batch_norm_backward_kernel", "channel_weights_backward_kernel"]


@pytest.fixture(autouse=True)
def _record_the_layer(launches, monkeypatch):  # noqa: F811
    for module in (layer_launch, triton_channel, norm_launch):
        monkeypatch.setattr(module, "launch", recording(module.launch, launches))


def step(layers, x, **options):
    """z, gradients of x and of all parameters; the statistics of `layers` are updated."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    z = normalized_ddf(x, *layers, training=True, **options)
    weights = torch.cos(torch.arange(float(z.numel()))).view(z.shape).to(z.dtype)
    return [z, *torch.autograd.grad(z, [x, *layers.parameters()], weights)]


def exact(layers, x):
    """The same by the layers one by one, in float64, and the layers."""
    layers = copy.deepcopy(layers).double()
    layers[2].fused_filters = False
    with mock.patch("ddfnet.layers.ddf.ddf", ddf_reference):  # the public one would come here as well
        return step(layers, x.double()), layers


def compare(layers, actual, expected, twin, tolerance):
    names = ["z", "x", *(name for name, _ in layers.named_parameters())]
    for name, a, e in zip(names, actual, expected, strict=True):
        assert relative_error(a, e) <= tolerance, name
    for (name, buffer), (_, e) in zip(layers.named_buffers(), twin.named_buffers(), strict=True):
        if buffer.is_floating_point():
            assert relative_error(buffer, e) <= min(tolerance, 1e-3), name
        else:
            assert buffer == e, name


CASES = [
    # channels, kernel_size, heads, stride, dilation, combine, dtype, size
    (20, 3, 1, 1, 1, "mul", torch.float32, (9, 8)),
    (70, 3, 1, 2, 1, "add", torch.float32, (5, 7)),
    (40, 3, 1, 1, 2, "mul", torch.float16, (7, 5)),
    (24, 3, 3, 2, 1, "mul", torch.float16, (9, 8)),
    (12, 5, 2, 1, 1, "add", torch.float16, (5, 4)),
]


@pytest.mark.parametrize("channels, kernel_size, heads, stride, dilation, combine, dtype, size", CASES)  # noqa: PT006
def test_a_step_is_that_of_the_layers(channels, kernel_size, heads, stride, dilation, combine, dtype, size, launches):  # noqa: F811
    """Odd sizes, several images, negative and zero weights of the normalizations; against float64."""
    options = {"kernel_size": kernel_size, "heads": heads, "stride": stride, "dilation": dilation, "combine": combine}
    layers, x = make(channels, dtype, size, 2, **options)
    layers.float().train()  # as under autocast: the operator takes x in half precision and weights in float32
    expected, twin = exact(layers, x)
    launches.clear()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        actual = step(layers, x)
    at_once = kernel_size == 3 and heads == 1
    added = [] if at_once else ["spatial_filters_backward_x_kernel"]
    logits = [] if channels == 40 else [LOGITS]  # by the filter kernel
    assert launches == FORWARD + BACKWARD + logits + LAST[:1] + added + LAST[1:]
    assert actual[0].is_contiguous(memory_format=torch.channels_last)
    assert actual[1].is_contiguous(memory_format=torch.channels_last)
    assert [t.dtype for t in actual] == [dtype, dtype, *(p.dtype for p in layers.parameters())]
    compare(layers, actual, expected, twin, 4e-6 if dtype == torch.float32 else 4e-3)


def test_large_means_do_not_swallow_the_variance():
    """In float32 their squares would, and relu's mask depends on it."""
    layers, x = make(8, size=(5, 6))
    layers.train()
    x = x + 3000 * torch.arange(1.0, 9).view(8, 1, 1)
    expected, twin = exact(layers, x)
    compare(layers, step(layers, x), expected, twin, 2e-3)  # x itself has 13 bits behind the point
    statistics = norm_launch.merge(norm_launch.moments(x), TrainedNorm(*layers[0].parameters(), 1e-5))
    variance, mean = torch.var_mean(x.double(), (0, 2, 3))
    assert relative_error(statistics[MEAN], mean) <= 1e-7
    assert relative_error(statistics[VARIANCE], variance) <= 3e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_statistics_of_many_parts(dtype, monkeypatch, launches):  # noqa: F811
    """More parts than one program merges, of which the last has few rows and another level of them one part."""
    monkeypatch.setattr(norm_launch, "ITERATIONS", 1)
    monkeypatch.setattr(norm_launch, "_GROUP", 32)
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 5, 19, 19, generator=generator) * 3 + 50).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.tensor([1.5, -2, 0, 1e-3, 1]), torch.arange(5.0)
    statistics = norm_launch.merge(norm_launch.moments(x), TrainedNorm(weight, bias, 1e-3))
    assert launches == ["batch_norm_moments_kernel", MERGE, MERGE]
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    inverse, count = (variance + 1e-3).rsqrt(), 3 * 19 * 19
    rows = {MEAN: mean, INVERSE: inverse, VARIANCE: variance * count / (count - 1), TRUE_SCALE: weight * inverse}
    rows |= {SHIFT: bias - mean * weight * inverse, SCALE: weight * inverse}
    for row, expected in rows.items():
        assert relative_error(statistics[row], expected) <= 1e-6, row
    assert statistics[TRUE_SCALE, 2] == 0 < statistics[SCALE, 2]


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}], ids=str)
def test_moments_and_filters_of_bfloat16(options):
    """The operator's kernels alone: moments of y as it was stored, gradients of filters of the activated x."""
    generator = torch.Generator().manual_seed(0)
    make_random = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    x = make_random(2, 20, 7, 9).bfloat16().contiguous(memory_format=torch.channels_last)
    stride = options.get("stride", 1)
    size = (7 - 1) // stride + 1, (9 - 1) // stride + 1
    channel, spatial = make_random(2, 9, 20), make_random(2, 9, *size).bfloat16()
    affine = torch.stack([make_random(20), make_random(20)])
    args = Arguments(x, channel, spatial, 3, stride, options.get("dilation", 1), True, 1)
    moments = norm_launch.empty_moments(x, operator_launch.forward_parts(args))
    y = operator_launch.forward_dense(args, affine, y_moments=moments)
    grad_y = make_random(*y.shape).bfloat16().contiguous(memory_format=torch.channels_last)
    partials = operator_launch.filter_partials(grad_y, args, Needed(False, True, True), affine)

    active = (x.double() * affine[0, :, None, None] + affine[1, :, None, None]).relu()
    filters = channel.double().transpose(1, 2).reshape(2, 20, 3, 3).requires_grad_(), spatial.double().requires_grad_()
    expected = ddf_reference(active, *filters, **options)
    grad_c, grad_s = torch.autograd.grad(expected, filters, grad_y.double())
    assert relative_error(y, expected) <= 2**-7
    assert relative_error(partials[0].sum((1, 2)), grad_c.flatten(2).transpose(1, 2)) <= 1e-5
    assert relative_error(partials[1].sum(1), grad_s) <= 2**-7
    mean, squares, count, unread = moments.double().split((20, 20, 1, 3), 1)
    assert unread.isnan().all()
    assert count.sum() == y.numel() // 20
    center = (count * mean).sum(0) / count.sum(0)
    variance, exact_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    assert relative_error(center, exact_mean) <= 1e-6
    total = (squares + count * (mean - center) ** 2).sum(0) / count.sum(0)
    assert relative_error(total, variance) <= 1e-6


@pytest.mark.parametrize("kernel_size, heads, stride, parts", [(3, 1, 1, 1), (3, 2, 2, 5), (5, 1, 1, 3)])  # noqa: PT006
def test_the_gradients_of_logits_from_any_number_of_parts(kernel_size, heads, stride, parts):
    """Against autograd through the normalization in float64; with the sums for the bias."""
    generator = torch.Generator().manual_seed(0)
    area, size = kernel_size**2, ((7 - 1) // stride + 1, (9 - 1) // stride + 1)
    logits = torch.randn(2, heads, area, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    gradients = torch.randn(2, parts, heads * area, *size, generator=generator)
    deviation = logits.std(2, keepdim=True)
    filters = 0.5 * (logits - logits.mean(2, keepdim=True)) / deviation
    (expected,) = torch.autograd.grad(filters, logits, gradients.double().sum(1).view_as(logits))
    every = torch.zeros(heads * area, 2, 7, 9, dtype=torch.float64)
    every[..., ::stride, ::stride] = expected.flatten(1, 2).transpose(0, 1)

    saved = filters.detach().float().flatten(1, 2), 1 / deviation.detach().float()[:, :, 0]
    settings = Settings(kernel_size, stride, 1, heads, True, 0.5)
    grad, sums = layer_launch.spatial_logits_backward(gradients, *saved, torch.empty(2, 4, 7, 9), settings)
    assert relative_error(grad.view_as(every), every) <= 2e-6
    assert relative_error(sums.sum(0), every.sum((1, 2, 3))) <= 1e-5


OF_LOGITS = [
    # channels, heads, size, dilation, dtype, 64-bit offsets
    (40, 1, (5, 7), 2, torch.bfloat16, False),
    (128, 2, (5, 7), 1, torch.float16, True),
    (64, 1, (2, 2), 1, torch.float16, False),  # few blocks: more lanes share a pixel
]


@pytest.mark.parametrize("channels, heads, size, dilation, dtype, int64", OF_LOGITS)  # noqa: PT006
def test_the_gradients_of_logits_by_the_filter_kernel(channels, heads, size, dilation, dtype, int64, monkeypatch):
    """Against autograd through normalization and operator in float64; several images and programs, odd sizes."""
    monkeypatch.setattr(tiling, "_CHUNK_PIXELS", 16)
    monkeypatch.setattr(operator_launch, "_INT32_ELEMENTS", 1 if int64 else 2**31)
    generator = torch.Generator().manual_seed(0)
    make_random = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    x, grad_y = (make_random(2, channels, *size).to(dtype) for _ in range(2))
    x, grad_y = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad_y))
    channel, affine = make_random(2, 9, channels), torch.stack([make_random(channels), make_random(channels)])
    logits = make_random(2, heads, 9, *size).double().requires_grad_()
    deviation = logits.std(2, keepdim=True)
    filters = (0.4 * (logits - logits.mean(2, keepdim=True)) / deviation).flatten(1, 2)
    inverse_std = 1 / deviation.detach().float()[:, :, 0]
    args = Arguments(x, channel, filters.detach().to(dtype), 3, 1, dilation, True, 1)
    assert tiling.logits_at_once(args, True)
    assert not tiling.logits_at_once(args, False)
    parts = 2 * operator_launch.filter_chunks(args)
    assert parts > 2 or size == (2, 2)
    grad, sums = torch.empty(9 * heads, 2 * size[0] * size[1], dtype=dtype), torch.empty(parts, 9 * heads)
    of_logits = operator_launch.Logits(inverse_std, grad, sums, 0.4)
    needed = Needed(False, True, True)
    partials, nothing = operator_launch.filter_partials(grad_y, args, needed, affine, of_logits)
    assert nothing.numel() == 0

    active = (x.double() * affine[0, :, None, None] + affine[1, :, None, None]).relu()
    of_channel = channel.double().transpose(1, 2).reshape(2, channels, 3, 3).requires_grad_()
    y = ddf_reference(active, of_channel, filters, dilation=dilation)
    grad_c, expected = torch.autograd.grad(y, (of_channel, logits), grad_y.double())
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 2**-7}[dtype]
    assert relative_error(partials.sum((1, 2)), grad_c.flatten(2).transpose(1, 2)) <= tolerance
    assert relative_error(grad.view(heads, 9, 2, *size), expected.permute(1, 2, 0, 3, 4)) <= tolerance
    assert relative_error(sums.sum(0), expected.sum((0, 3, 4)).flatten()) <= tolerance


OF_X = [
    # stride, dilation, dtype, heads, with a normalization, written at once
    (1, 1, torch.float32, 1, True, True),
    (1, 1, torch.float32, 1, True, False),
    (2, 1, torch.bfloat16, 1, True, True),
    (1, 2, torch.bfloat16, 1, False, True),
    (4, 1, torch.float32, 2, True, True),  # blocks that are no multiples of the stride, more logits than by the rule
    (2, 1, torch.float16, 2, True, False),
]


@pytest.mark.parametrize("stride, dilation, dtype, heads, normalized, at_once", OF_X)  # noqa: PT006
def test_the_gradient_of_x_at_once_and_by_two_kernels(stride, dilation, dtype, heads, normalized, at_once, launches):  # noqa: F811
    """Either way for the same arguments, against the formula in float64; with the sums of the normalization."""
    generator = torch.Generator().manual_seed(0)
    make_random = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    x = make_random(2, 20, 7, 9).to(dtype).contiguous(memory_format=torch.channels_last)
    size, logits = ((7 - 1) // stride + 1, (9 - 1) // stride + 1), 9 * heads
    channel, spatial = make_random(2, 9, 20), make_random(2, logits, *size).to(dtype)
    grad_y = make_random(2, 20, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    grad_logits = torch.zeros(logits, 2, 7, 9, dtype=dtype)
    grad_logits[..., ::stride, ::stride] = make_random(logits, 2, *size).to(dtype)
    weight, pooled, statistics = make_random(logits, 20), make_random(2, 20), make_random(6, 20)
    settings = Settings(3, stride, dilation, heads, True, 0.5)
    args = Arguments(x, channel, spatial, 3, stride, dilation, True, 1)
    branch = operator_launch.Branch(grad_logits.flatten(1), weight, pooled)
    with mock.patch.object(tiling, "backward_x_at_once", return_value=at_once):
        given = statistics if normalized else None
        grad_x, partials = layer_launch.backward_x(grad_y, args, branch, settings, given)
    assert launches == ["ddf_backward_x_kernel", "spatial_filters_backward_x_kernel"][: 2 - at_once]

    leaf = x.double().requires_grad_()
    filters = channel.double().transpose(1, 2).reshape(2, 20, 3, 3), spatial.double()
    y = ddf_reference(leaf, *filters, stride=stride, dilation=dilation)
    (expected,) = torch.autograd.grad(y, leaf, grad_y.double())
    expected = expected + torch.einsum("tbij,tc->bcij", grad_logits.double(), weight.double())
    expected = expected + (pooled.double() / 63)[..., None, None]
    if normalized:
        _, shift, scale, mean, *_ = statistics.double()[..., None, None]
        expected = expected * (x.double() * scale + shift > 0)
        sums = torch.stack([expected.sum((0, 2, 3)), (expected * (x.double() - mean)).sum((0, 2, 3))])
        assert relative_error(partials.sum(0), sums) <= (2e-6 if at_once or dtype == torch.float32 else 1e-3)
    else:
        assert partials is None
    assert relative_error(grad_x, expected) <= {torch.float32: 2e-6, torch.float16: 1e-3}.get(dtype, 2**-7)


def test_a_dead_channel_stays_dead():
    """Weight and bias 0: the ReLU is at its kink, where the scale that kernels load by is not the true one."""
    layers, x = make(8, size=(4, 4))
    for norm in (layers[0], layers[3]):
        norm.weight.data[2] = norm.bias.data[2] = 0
    expected, twin = exact(layers.train(), x)
    actual = step(layers, x)
    compare(layers, actual, expected, twin, 4e-6)
    assert expected[2][2] == actual[2][2] == 0


def test_nan_stays_nan():
    layers, x = make(8, size=(4, 4))
    x[0, 2, 3, 3] = torch.nan
    actual = step(layers.train(), x)
    expected, _ = exact(make(8, size=(4, 4))[0].train(), x)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a.isnan(), e.isnan())


def test_registered_compiled_and_frozen():
    """The registered operator, as torch.compile calls it, and any subset of gradients: the same bits."""
    layers, x = make(8, size=(3, 3))
    twin = copy.deepcopy(layers.train())
    direct = step(layers, x)
    call = torch.compile(lambda x: normalized_ddf(x, *twin, training=True), fullgraph=True, backend="aot_eager")
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    z = call(leaf)
    grad_z = torch.cos(torch.arange(float(z.numel()))).view(z.shape)
    compiled = [z, *torch.autograd.grad(z, [leaf, *twin.parameters()], grad_z)]
    assert all(torch.equal(a, b) for a, b in zip(direct, compiled, strict=True))
    for name, buffer in layers.named_buffers():
        assert torch.equal(buffer, twin.get_buffer(name)), name
    layers.requires_grad_(False)
    z = normalized_ddf(leaf, *layers, training=True)
    (grad,) = torch.autograd.grad(z, leaf, grad_z.requires_grad_(), create_graph=True)
    assert torch.equal(grad, direct[1])
    with pytest.raises(RuntimeError, match="fused_filters=False"):
        grad.square().sum().backward()
    assert z.relu_().requires_grad  # an output that may be modified


def test_opcheck():
    layers, x = make(4, size=(3, 3))
    before, _, ddf, after, *_ = layers
    weights, settings = ddf.operands()
    inputs = (x, *before.parameters(), *after.parameters(), *weights, before.eps, after.eps, *settings)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.ddfnet.ddf_layer_trained.default, inputs, test_utils=tests)
    output = torch.ops.ddfnet.ddf_layer_trained(*inputs)
    saved = (weights.spatial, weights.squeeze, weights.excite, weights.alpha, *output[1:])
    inputs = [t.detach() if isinstance(t, torch.Tensor) else t for t in (output[0], x, *saved, *settings)]
    torch.library.opcheck(torch.ops.ddfnet.ddf_layer_trained_backward.default, inputs, test_utils=tests[::2])


def others(layers):
    """Networks in training that are not what the operator computes: a name, and one for each reason."""
    for name, network in exchanged(layers):
        if name != "norm in training mode":
            yield name, network.train()
    for index in (0, 3):
        network = copy.deepcopy(layers).train()
        network[index].eval()
        yield f"frozen {index}", network
        network = copy.deepcopy(layers).train()
        network[index].momentum = None
        yield f"average over all batches {index}", network


@mock.patch("ddfnet.layers.ddf.ddf_layer", lambda x, *_: x.sin())  # which of both it is, not what they compute
@mock.patch("ddfnet.layers.ddf.ddf", lambda x, *_, stride, **__: x[:, :, ::stride, ::stride].cos())
def test_it_applies_to_nothing_else(launches):  # noqa: F811
    layers, x = make(size=(3, 3))
    for name, network in others(layers):
        twin = copy.deepcopy(network)
        if name == "something dropped":
            torch.manual_seed(0)
        expected = one_by_one(x, *twin)
        torch.manual_seed(0)
        assert torch.equal(normalized_ddf(x, *network, training=True), expected), name
        assert MERGE not in launches, name
        if name != "patched":  # whose forward is that of the original in both
            for key, value in network.state_dict().items():
                assert torch.equal(value, twin.state_dict()[key]), (name, key)
    layers.train()
    normalized_ddf(x, *layers)
    contiguous = x.contiguous()
    normalized_ddf(contiguous, *layers, training=True)
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        normalized_ddf(x, *layers, training=True)
    with torch.autograd.forward_ad.dual_level():
        y = normalized_ddf(torch.autograd.forward_ad.make_dual(x, x), *layers, training=True)
        assert torch.autograd.forward_ad.unpack_dual(y).tangent is not None
    strided = copy.deepcopy(layers)
    strided[2].stride, strided[2].spatial_branch[0].stride, strided[2].fused_filters = 4, (4, 4), True
    with (
        mock.patch("ddfnet.layers.ddf.ddf_layer", lambda x, *_: x[:, :, :1, :1]),
        pytest.raises(ValueError, match="more than 1"),
    ):
        normalized_ddf(x, *strided, training=True)  # one pixel behind the layer
    with pytest.raises((ValueError, RuntimeError), match="expected"):
        normalized_ddf(x, *layers[:2], DDF(32).train(), *layers[3:], training=True)
    assert MERGE not in launches


def test_a_bottleneck_and_its_switch(launches):  # noqa: F811
    torch.manual_seed(0)
    downsample = nn.Sequential(nn.Conv2d(32, 64, 1, 2, bias=False), nn.BatchNorm2d(64))
    block = DDFBottleneck(32, 16, 2, downsample, ddf_args={"squeeze_ratio": 0.5}, fused_norms="all").train()
    block.to(memory_format=torch.channels_last)
    x = torch.randn(2, 32, 6, 5).contiguous(memory_format=torch.channels_last)
    results = {}
    for name in ("all", "inference", "none"):
        twin = copy.deepcopy(block)
        twin.fused_norms = name
        launches.clear()
        y = twin(x)
        grads = torch.autograd.grad(y.sin().sum(), list(twin.parameters()))
        assert (MERGE in launches) == (name == "all")
        results[name] = [y, *grads, *(b for b in twin.buffers() if b.is_floating_point())]
        launches.clear()
        with torch.no_grad():
            twin.eval()(x)
        assert ("batch_norm_affine_kernel" in launches) == (name != "none")
        assert list(twin.state_dict()) == list(block.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(results["inference"], results["none"], strict=True))
    for a, b in zip(results["all"], results["none"], strict=True):
        assert relative_error(a, b.double()) <= 2e-5
