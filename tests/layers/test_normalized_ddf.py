"""A DDF between batch normalizations: the operator's definition is that of the layers, and blocks are timm's."""

import copy

import pytest
import torch
from timm.layers import DropPath
from timm.models.resnet import Bottleneck
from torch import nn

from ddfnet import DDF
from ddfnet.layers.normalized_ddf import absorbs_trained_norms, normalized_ddf, one_by_one
from ddfnet.models.ddf_resnet import DDFBottleneck
from ddfnet.models.fold import fold_batch_norm
from ddfnet.ops.batch_norm.arguments import TrainedNorm
from ddfnet.ops.ddf_layer.training import ddf_layer_trained


def make(channels=8, **options):
    torch.manual_seed(0)
    layers = nn.Sequential(
        *(nn.BatchNorm2d(channels), nn.ReLU(), DDF(channels, squeeze_ratio=0.5, **options)),
        *(nn.BatchNorm2d(channels), nn.Identity(), nn.ReLU()),
    )
    for norm in (layers[0], layers[3]):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return layers.double().eval()


@pytest.mark.parametrize("options", [{}, {"stride": 2, "heads": 2, "combine": "add"}], ids=str)
def test_the_definition_is_the_layers_one_by_one(options):
    """Where no Triton kernels run, the registered operator is its definition."""
    layers = make(**options)
    before, _, ddf, after, *_ = layers
    x = torch.randn(2, 8, 7, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    norms = [
        tensor for norm in (before, after) for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    ]
    weights, settings = ddf.operands()
    with torch.no_grad():
        y = torch.ops.ddfnet.ddf_layer_between(x, *norms, *weights, before.eps, after.eps, *settings)
        torch.testing.assert_close(y, one_by_one(x, *layers), rtol=1e-10, atol=1e-10)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_without_triton_the_layers_are_called():
    layers = make()
    x = torch.randn(2, 8, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(normalized_ddf(x, *layers), one_by_one(x, *layers))
    x.requires_grad_()
    torch.autograd.gradcheck(lambda x: normalized_ddf(x, *layers), x[:1, :, :4, :3].detach().requires_grad_())


def trained(x, layers):
    """z and the batch's mean and unbiased variance before each normalization, by the operator."""
    before, _, ddf, after, *_ = layers
    weights, settings = ddf.operands()
    norms, moments = [TrainedNorm(norm.weight, norm.bias, norm.eps) for norm in (before, after)], []
    z = ddf_layer_trained(x, norms[0], weights, norms[1], settings, lambda *given: moments.extend(given))
    return z, *moments


@pytest.mark.parametrize("options", [{}, {"stride": 2, "heads": 2, "combine": "add"}], ids=str)
def test_the_definition_of_training_is_the_layers_one_by_one(options):
    """And its gradients, by formula, are autograd's: 1e-9, as the layer takes 1e-10 for small in some of them."""
    layers = make(**options).train()
    layers[0].weight.data[2] = 0
    x = torch.randn(2, 8, 7, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    twin = copy.deepcopy(layers)
    z, *moments = trained(x, layers)
    expected = one_by_one(x, *twin)
    torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-10)
    grad_z = torch.randn_like(z)
    grads = torch.autograd.grad(z, [x, *layers.parameters()], grad_z)
    for a, b in zip(grads, torch.autograd.grad(expected, [x, *twin.parameters()], grad_z), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)
    for norm, other, (mean, variance) in zip(layers[::3], twin[::3], moments, strict=True):
        torch.testing.assert_close(torch.lerp(norm.running_mean, mean, 0.1), other.running_mean)
        torch.testing.assert_close(torch.lerp(norm.running_var, variance, 0.1), other.running_var)


def test_opcheck_of_the_operator_of_training():
    layers = make(4, stride=2).float()
    before, _, ddf, after, *_ = layers
    weights, settings = ddf.operands()
    x = torch.randn(2, 4, 3, 4).contiguous(memory_format=torch.channels_last)
    tensors = (x, before.weight, before.bias, after.weight, after.bias, *weights)
    inputs = (*(tensor.detach() for tensor in tensors), before.eps, after.eps, *settings)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.ddfnet.ddf_layer_trained.default, inputs, test_utils=tests)
    z, *saved = torch.ops.ddfnet.ddf_layer_trained(*inputs)
    given = (weights.spatial, weights.squeeze, weights.excite, weights.alpha)
    inputs = (torch.randn_like(z), x, *(tensor.detach() for tensor in given), *saved, *settings)
    torch.library.opcheck(torch.ops.ddfnet.ddf_layer_trained_backward.default, inputs, test_utils=tests)


def test_what_the_operator_of_training_takes_the_place_of():
    layers = make(8).train()
    assert absorbs_trained_norms(*layers)
    assert not absorbs_trained_norms(*copy.deepcopy(layers).eval())
    for index in (0, 3):
        others = {
            "frozen": copy.deepcopy(layers[index]).eval(),
            "average over all batches": nn.BatchNorm2d(8, momentum=None),
            "no statistics": nn.BatchNorm2d(8, track_running_stats=False),
            "no weights": nn.BatchNorm2d(8, affine=False),
            "synchronized": nn.SyncBatchNorm(8),
            "group norm": nn.GroupNorm(2, 8),
        }
        for name, other in others.items():
            network = copy.deepcopy(layers)
            network[index] = other
            assert not absorbs_trained_norms(*network), name
    for index in range(6):
        network = copy.deepcopy(layers)
        network[index].register_full_backward_hook(lambda *_: None)
        assert not absorbs_trained_norms(*network)
    network = copy.deepcopy(layers)
    network[4] = nn.Dropout2d(0.5)
    assert not absorbs_trained_norms(*network)


def blocks():
    """Blocks with everything that timm's bottleneck has."""
    downsample = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
    ddf_args = {"squeeze_ratio": 0.5}
    yield DDFBottleneck(16, 8, 2, downsample, ddf_args=ddf_args, fused_norms="all")
    yield DDFBottleneck(32, 8, ddf_args=ddf_args, attn_layer="se", drop_path=nn.Dropout(0.5))
    yield DDFBottleneck(32, 8, ddf_args=ddf_args, drop_block=lambda: nn.Dropout2d(0.5), fused_norms="none")
    aa_layer = nn.AvgPool2d
    yield DDFBottleneck(16, 8, 2, copy.deepcopy(downsample), ddf_args=ddf_args, aa_layer=aa_layer)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("index", range(4))
def test_a_block_is_timms(index, training):
    """Bit for bit, with gradients and statistics, on a CPU."""
    torch.manual_seed(0)
    block = list(blocks())[index].train(training)
    other = copy.deepcopy(block)
    x = torch.randn(3, block.conv1.in_channels, 8, 8, requires_grad=True)
    torch.manual_seed(1)
    y = block(x)
    torch.manual_seed(1)
    expected = Bottleneck.forward(other, x)
    assert torch.equal(y, expected)
    grads = torch.autograd.grad(y.sin().sum(), [x, *block.parameters()])
    for a, b in zip(grads, torch.autograd.grad(expected.sin().sum(), [x, *other.parameters()]), strict=True):
        assert torch.equal(a, b)
    for name, buffer in block.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name)), name


def test_an_unknown_choice_is_named():
    with pytest.raises(ValueError, match="fused_norms must be 'none', 'inference' or 'all', got 'training'"):
        DDFBottleneck(32, 8, fused_norms="training")


def test_which_norms_a_block_absorbs():
    block = DDFBottleneck(32, 8, ddf_args={"squeeze_ratio": 0.5})
    assert block.absorbed_norms() == ()  # training
    assert block.eval().absorbed_norms() == (block.bn1, block.bn2, block.bn3)
    block.fused_norms = "all"
    assert block.absorbed_norms() == (block.bn1, block.bn2, block.bn3)
    block.act1, block.drop_path = nn.SiLU(), DropPath(0.5).eval()
    assert block.absorbed_norms() == (block.bn3,)
    block.drop_path.train()
    assert block.absorbed_norms() == ()
    block.fused_norms = "none"
    assert block.absorbed_norms() == ()


def test_the_option_changes_no_state():
    states = []
    for name in ("none", "inference", "all"):
        torch.manual_seed(0)
        states.append(DDFBottleneck(32, 8, ddf_args={"squeeze_ratio": 0.5}, fused_norms=name).state_dict())
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(torch.equal(state[key], value) for key, value in states[0].items())


def test_on_a_cpu_folding_still_folds_them():
    network = nn.Sequential(nn.Conv2d(3, 32, 1), DDFBottleneck(32, 8, ddf_args={"squeeze_ratio": 0.5})).eval()
    assert fold_batch_norm(network, 8) == 2
    assert isinstance(network[1].bn1, nn.Identity)
