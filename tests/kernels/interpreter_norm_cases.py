"""The layer between batch normalizations in Triton's interpreter; run by test_interpreter.py, not collected by name."""

import copy
from unittest import mock

import pytest
import timm
import torch
from ddf_cases import relative_error
from interpreter_cases import _poison, launches, recording  # noqa: F401  fixtures
from torch import nn

from ddfnet import DDF
from ddfnet.layers.normalized_ddf import normalized_ddf, one_by_one
from ddfnet.models.ddf_resnet import DDFBottleneck
from ddfnet.ops.ddf_layer import triton as layer_launch
from ddfnet.ops.ddf_layer import triton_channel
from ddfnet.ops.ddf_layer.inference import plain_ddf_layer_between

FUSED = ["batch_norm_affine_kernel", "spatial_filters_kernel", "channel_squeeze_kernel", "channel_filters_kernel"]
FUSED += ["ddf_forward_kernel"]


@pytest.fixture(autouse=True)
def _record_the_layer(launches, monkeypatch):  # noqa: F811
    for module in (layer_launch, triton_channel):
        monkeypatch.setattr(module, "launch", recording(module.launch, launches))


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


def make(channels=16, dtype=torch.float32, size=(5, 4), images=1, **options):
    """BatchNorm, ReLU, DDF, BatchNorm, nothing, ReLU; and x."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        *(nn.BatchNorm2d(channels), nn.ReLU(), DDF(channels, **{"squeeze_ratio": 0.5} | options)),
        *(nn.BatchNorm2d(channels), nn.Identity(), nn.ReLU()),
    )
    x = torch.randn(images, channels, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    return randomize(layers).to(dtype), x


def exact(layers, x):
    layers = copy.deepcopy(layers).double()
    layers[2].fused_filters = False
    return one_by_one(x.double(), *layers)


CASES = [
    # channels, kernel_size, heads, stride, dilation, combine, dtype, size
    (20, 3, 1, 1, 1, "mul", torch.float32, (9, 8)),  # two tiles of pixels of the branch's kernel
    (70, 3, 1, 2, 1, "add", torch.float32, (9, 8)),  # and two of channels
    (34, 3, 1, 1, 2, "mul", torch.float16, (9, 8)),
    (72, 3, 3, 2, 1, "mul", torch.float16, (5, 6)),
    (12, 5, 2, 1, 1, "add", torch.float16, (5, 4)),
    (24, 7, 1, 3, 1, "mul", torch.float16, (5, 6)),
]


@pytest.mark.parametrize("channels, kernel_size, heads, stride, dilation, combine, dtype, size", CASES)  # noqa: PT006
def test_against_the_layers_in_float64(
    channels, kernel_size, heads, stride, dilation, combine, dtype, size, launches  # noqa: F811
):  # fmt: skip
    """Odd sizes, several images; zeros of the padding are behind the first ReLU."""
    options = {"kernel_size": kernel_size, "heads": heads, "stride": stride, "dilation": dilation, "combine": combine}
    layers, x = make(channels, dtype, size, 2, **options)
    with torch.no_grad():
        y = normalized_ddf(x, *layers)
        assert launches == FUSED
        expected = exact(layers, x)
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, expected) <= (5e-7 if dtype == torch.float32 else 1e-3)


def arguments(layers, x):
    before, _, ddf, after, *_ = layers
    norms = [tensor for n in (before, after) for tensor in (n.weight, n.bias, n.running_mean, n.running_var)]
    weights, settings = ddf.operands()
    return (x, *norms, *weights, before.eps, after.eps, *settings)


def test_the_registered_operator_gives_the_same_bits():
    layers, x = make(heads=2, dtype=torch.float16)
    with torch.no_grad():
        direct = normalized_ddf(x, *layers)
        registered = torch.ops.ddfnet.ddf_layer_between(*arguments(layers, x))
        assert torch.equal(direct, registered)
        definition = plain_ddf_layer_between(*arguments(copy.deepcopy(layers).double(), x.double()))
    assert relative_error(definition.float(), exact(layers, x)) <= 1e-6


def test_a_large_shift_does_not_reach_the_padding():
    layers, x = make()
    layers[0].bias.data.fill_(1e3)
    with torch.no_grad():
        assert relative_error(normalized_ddf(x, *layers), exact(layers, x)) <= 5e-7


@pytest.mark.parametrize("where", ["x", "weight"])
def test_nan_stays_nan(where):
    layers, x = make()
    if where == "x":
        x[0, 2, 3, 3] = torch.nan
    else:
        layers[0].weight.data[2] = torch.nan
    with torch.no_grad():
        y, expected = normalized_ddf(x, *layers), one_by_one(x, *layers)
    assert expected.isnan().any()
    assert torch.equal(y.isnan(), expected.isnan())


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_under_autocast(name, launches):  # noqa: F811
    layers, x = make()
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=name == "float16"):
        y = normalized_ddf(x, *layers)
        assert launches == FUSED
    assert y.dtype == getattr(torch, name)
    assert relative_error(y, exact(layers, x)) <= (3e-3 if name == "float16" else 5e-7)


def test_a_gradient_takes_the_layers_apart(launches):  # noqa: F811
    layers, x = make()
    y = normalized_ddf(x, *layers)
    assert y.requires_grad
    layers.requires_grad_(False)
    assert normalized_ddf(x.requires_grad_(), *layers).requires_grad
    assert FUSED[0] not in launches
    with torch.no_grad(), torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        normalized_ddf(torch.autograd.forward_ad.make_dual(x, x), *layers)  # DDF has none, and says so
    assert FUSED[0] not in launches
    assert not normalized_ddf(x.detach(), *layers).requires_grad
    assert FUSED[0] in launches


def exchanged(layers):
    """Networks that are not what the operator computes: a name, and one for each reason."""

    def changed(index, module):
        network = copy.deepcopy(layers)
        network[index] = module
        return network

    class OtherNorm(nn.BatchNorm2d):
        pass

    yield "norm in training mode", changed(0, copy.deepcopy(layers[0]).train())
    yield "no statistics", changed(0, nn.BatchNorm2d(16, track_running_stats=False).eval())
    yield "no weights", changed(3, nn.BatchNorm2d(16, affine=False).eval())
    yield "a class of its own", changed(3, OtherNorm(16).eval())
    yield "synchronized", changed(3, nn.SyncBatchNorm(16).eval())
    yield "group norm", changed(0, nn.GroupNorm(4, 16).eval())
    yield "folded", changed(0, nn.Identity().eval())
    yield "another activation", changed(1, nn.SiLU().eval())
    yield "a convolution", changed(2, nn.Conv2d(16, 16, 3, padding=1).eval())
    yield "something dropped", changed(4, nn.Dropout2d(0.5).eval())
    for index in (0, 1, 2, 3, 4, 5):
        network = copy.deepcopy(layers)
        network[index].register_forward_hook(lambda *_: None)
        yield f"hook of {index}", network
    network = copy.deepcopy(layers)
    network[2].spatial_branch[0].register_forward_pre_hook(lambda *_: None)
    yield "hook inside", network
    network = copy.deepcopy(layers)
    network[3].forward = lambda x, norm=network[3]: nn.BatchNorm2d.forward(norm, x)
    yield "patched", network
    network = copy.deepcopy(layers)
    network[2].fused_filters = False
    yield "separate filters", network


def test_it_applies_to_nothing_else(launches):  # noqa: F811
    layers, x = make(size=(3, 3))
    with torch.no_grad():
        with (  # which of both it is, not what they compute
            mock.patch("ddfnet.layers.ddf.ddf_layer", lambda x, *_: x.sin()),
            mock.patch("ddfnet.layers.ddf.ddf", lambda x, *_, **__: x.cos()),
        ):
            for name, network in exchanged(layers):
                twin = copy.deepcopy(network)
                twin_result = one_by_one(x, *twin)
                assert torch.equal(normalized_ddf(x, *network), twin_result), name
                assert FUSED[0] not in launches, name
        with pytest.raises((ValueError, RuntimeError), match="expected"):
            normalized_ddf(x, *layers[:2], DDF(32).eval(), *layers[3:])
        contiguous = x.contiguous()
        assert torch.equal(normalized_ddf(contiguous, *layers), one_by_one(contiguous, *layers))
        with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
            normalized_ddf(x, *layers)
        assert FUSED[0] not in launches
        normalized_ddf(x, *layers)
        assert FUSED[0] in launches


@pytest.mark.parametrize("stride", [1, 2])
def test_a_bottleneck_and_its_switch(stride, launches):  # noqa: F811
    torch.manual_seed(0)
    downsample = nn.Sequential(nn.Conv2d(32, 64, 1, stride, bias=False), nn.BatchNorm2d(64))
    block = randomize(DDFBottleneck(32, 16, stride, downsample, ddf_args={"heads": 2, "squeeze_ratio": 0.5})).half()
    block.to(memory_format=torch.channels_last)
    x = torch.randn(2, 32, 5, 4).half().contiguous(memory_format=torch.channels_last)
    results = {}
    with torch.no_grad():
        for block.fused_norms in ("inference", "none"):
            launches.clear()
            results[block.fused_norms] = block(x)
            assert (FUSED[0] in launches) == (block.fused_norms == "inference")
        double = copy.deepcopy(block).double()
        expected = double(x.double())
    for y in results.values():
        assert relative_error(y, expected) <= 3e-3
    launches.clear()
    block.train()(x)
    assert FUSED[0] not in launches


def test_a_network_takes_the_option(launches):  # noqa: F811
    options = {"num_classes": 10, "squeeze_ratio": 0.5}
    images = torch.randn(1, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    logits = []
    for name, times in (("inference", 4), ("none", 0)):
        torch.manual_seed(0)
        network = timm.create_model("ddf_mul_resnet14_32px", fused_norms=name, **options)
        launches.clear()
        with torch.no_grad():
            logits.append(randomize(network).to(memory_format=torch.channels_last)(images))
        assert launches.count(FUSED[0]) == times
    assert relative_error(logits[0], logits[1].double()) <= 1e-5


def test_compiles_as_one_graph(launches):  # noqa: F811
    layers, x = make()
    with torch.no_grad():
        expected = normalized_ddf(x, *layers)
        launches.clear()
        compiled = torch.compile(lambda x: normalized_ddf(x, *layers), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), expected)
    assert launches == FUSED


def test_opcheck():
    layers, x = make()
    tests = ("test_schema", "test_faketensor")
    with torch.no_grad():
        detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments(layers, x)]
        torch.library.opcheck(torch.ops.ddfnet.ddf_layer_between.default, detached, test_utils=tests)
