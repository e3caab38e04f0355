"""Batch normalization, sum and ReLU as one operator: its definition is that of the layers, and blocks are timm's.

No kernel runs on a CPU: the operators there are their definitions, which are asked for by force.
"""

import copy

import pytest
import torch
from timm.layers import DropPath
from timm.models.resnet import Bottleneck
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from ddfnet.engine.batch_norm import GlooSyncBatchNorm2d
from ddfnet.layers import normalized_sum as fusion
from ddfnet.layers.normalized_sum import normalized_sum
from ddfnet.layers.plain_norms import needs_gradient
from ddfnet.models.ddf_resnet import DDFBottleneck
from ddfnet.models.fold import fold_batch_norm
from ddfnet.ops.batch_norm.arguments import TrainedNorm
from ddfnet.ops.batch_norm.training import batch_norm_trained
from ddfnet.ops.common import DECOMPOSITIONS

TRAINED, BETWEEN = ["batch_norm_trained"], ["batch_norm"]


@pytest.fixture
def fused(monkeypatch):
    """A list that grows with each call of the operators of training and of inference, which are used on the CPU."""
    calls = []

    def counting(name, function):
        def call(*arguments):
            calls.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr("ddfnet.ops.batch_norm.arguments.runs_on_triton", lambda _: True)
    for name in (*TRAINED, *BETWEEN):
        monkeypatch.setattr(fusion, name, counting(name, getattr(fusion, name)))
    return calls


def images(channels=16, size=6, dtype=torch.float32, seed=1):
    x = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def make(stride=1, drop_path=None, **options):
    """A block with weights of all signs: with a shortcut that ends in a norm, or of the identity."""
    torch.manual_seed(0)
    downsample = nn.Sequential(nn.Conv2d(16, 32, 1, stride, bias=False), nn.BatchNorm2d(32)) if stride > 1 else None
    options = {"fused_norms": "all", "ddf_args": {"squeeze_ratio": 0.5}} | options
    block = DDFBottleneck(16 if downsample else 32, 8, stride, downsample, drop_path=drop_path, **options)
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return block.to(memory_format=torch.channels_last).train()


def step(call, block, x):
    """Output, gradients of x and of what trains, and the statistics behind it."""
    x = x.detach().clone().requires_grad_()
    y = call(x)
    leaves = [x, *(parameter for parameter in block.parameters() if parameter.requires_grad)]
    weights = torch.cos(torch.arange(float(y.numel()))).view(y.shape)
    grads = torch.autograd.grad(y, leaves, weights.to(y.dtype), allow_unused=True)
    return [y, *(grad for grad in grads if grad is not None), *(buffer.clone() for buffer in block.buffers())]


def compare(actual, expected, tolerance=1e-4):
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert (a.dtype, a.shape) == (e.dtype, e.shape), index
        error = (a.double() - e.double()).abs().max() / e.double().abs().max().clamp(min=1e-3)
        assert error <= tolerance, index


@pytest.mark.parametrize(("residual", "relu"), [(True, True), (False, True), (False, False)])
def test_the_definition_is_the_layers_one_by_one(residual, relu):
    """And its gradients, by formula, are autograd's."""
    norm, act = make().double().bn1, nn.ReLU()
    x, shortcut, grad_y = (images(8, 5, torch.float64, seed) for seed in range(3))
    norm.weight.data[2] = 0
    leaves = [x.requires_grad_(), *norm.parameters()] + [shortcut.requires_grad_()] * residual
    other = shortcut if residual else None
    moments = []
    given = (x, TrainedNorm(norm.weight, norm.bias, norm.eps), other, relu)
    y = batch_norm_trained(*given, lambda *of_x: moments.extend(of_x))
    mean, variance = moments
    twin = copy.deepcopy(norm)
    expected = normalized_sum(x, norm, other, act if relu else None)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(*(torch.autograd.grad(result, leaves, grad_y) for result in (y, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.lerp(twin.running_mean, mean, 0.1), norm.running_mean)
    torch.testing.assert_close(torch.lerp(twin.running_var, variance, 0.1), norm.running_var)
    with torch.no_grad():
        own = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        y = torch.ops.ddfnet.batch_norm(x, *own, other, norm.eps, relu)
        torch.testing.assert_close(y, normalized_sum(x, norm.eval(), other, act if relu else None))
        definition = DECOMPOSITIONS[torch.ops.ddfnet.batch_norm.default](x, *own, other, norm.eps, relu)
    assert torch.equal(y, definition)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_gradcheck():
    shapes = ((2, 3, 3, 2), (3,), (3,), (2, 3, 3, 2))
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))

    def call(x, weight, bias, residual):
        return batch_norm_trained(x, TrainedNorm(weight, bias, 1e-3), residual, True, lambda *_: None)

    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias, residual)]
    assert torch.autograd.gradcheck(call, inputs)
    with pytest.raises(ValueError, match="without a ReLU"):
        batch_norm_trained(x, TrainedNorm(weight, bias, 1e-3), residual, False, lambda *_: None)


@pytest.mark.parametrize("residual", [True, False])
def test_opcheck(residual):
    norm, x = make().bn1, images(8, 3)
    affine, other = [parameter.detach() for parameter in norm.parameters()], images(8, 3, seed=2) if residual else None
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    inputs = (x, *affine, norm.running_mean, norm.running_var, other, 1e-5, residual)
    torch.library.opcheck(torch.ops.ddfnet.batch_norm.default, inputs, test_utils=tests[:2])
    inputs = (x, *affine, other, 1e-5, residual)
    torch.library.opcheck(torch.ops.ddfnet.batch_norm_trained.default, inputs, test_utils=tests)
    y, statistics = torch.ops.ddfnet.batch_norm_trained(*inputs)
    inputs = (torch.ones_like(y), x, y if residual else None, statistics, residual)
    torch.library.opcheck(torch.ops.ddfnet.batch_norm_trained_backward.default, inputs, test_utils=tests[:2])


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_is_timms(stride, fused):
    """In training, with gradients and statistics, and in evaluation; all or nothing of it in operators."""
    block = make(stride)
    other, x = copy.deepcopy(block), images(block.conv1.in_channels)
    compare(step(block, block, x), step(lambda x: Bottleneck.forward(other, x), other, x))
    assert fused == TRAINED * stride  # with the norm of the shortcut
    assert block.bn3.num_batches_tracked == 1
    fused.clear()
    with torch.no_grad():
        compare([block.eval()(x)], [Bottleneck.forward(other.eval(), x)], 1e-5)
    assert fused == BETWEEN * stride
    assert list(block.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, fused):
    block = make(2)
    other, x = copy.deepcopy(block), images()

    def autocast(forward):
        def call(x):
            with torch.autocast("cpu", dtype):
                return forward(x)

        return call

    actual = step(autocast(block), block, x)
    assert actual[0].dtype == dtype
    assert fused == TRAINED * 2
    compare(actual, step(autocast(lambda x: Bottleneck.forward(other, x)), other, x), 0.2)


def test_gradient_checkpointing_updates_statistics_as_the_layers_do(fused):
    """Twice: the second pass ends with the last tensor that is saved, which is the operator's, after the update."""
    block = make(2)
    other, x = copy.deepcopy(block), images()
    actual = step(lambda x: checkpoint(block, x, use_reentrant=False), block, x)
    assert fused == TRAINED * 4
    compare(actual, step(lambda x: checkpoint(Bottleneck.forward, other, x, use_reentrant=False), other, x))
    assert block.bn3.num_batches_tracked == 2


def test_which_modes_take_it(fused):
    """`inference` takes it without gradients alone, `none` never; without gradients statistics move."""
    block, x = make(fused_norms="inference"), images(32)
    block(x)
    block.eval()(x)
    assert fused == []
    with torch.no_grad():
        block(x)
        assert fused == BETWEEN
        block.train()(x)
        assert fused == BETWEEN
        block.fused_norms = "all"
        block(x)
        assert fused == BETWEEN + TRAINED
        block.fused_norms = "none"
        block(x)
        block.eval()(x)
        assert fused == BETWEEN + TRAINED
    block.fused_norms = "all"
    block(x)  # a gradient through running statistics is that of the layers
    assert fused == BETWEEN + TRAINED


def test_replicas_of_data_parallel_ask_for_gradients():
    """They list no parameters: theirs are plain attributes."""
    norm = nn.BatchNorm2d(4).eval()
    replica = norm._replicate_for_data_parallel()
    replica._parameters = {}
    replica.weight, replica.bias = norm.weight * 1, norm.bias * 1
    assert needs_gradient([images(4)], [replica])
    with torch.no_grad():
        assert not needs_gradient([images(4)], [replica])


def changes():
    """What makes the end of a block one that the operator is not: a name, how many norms remain its, the change."""

    def hook(name):
        return lambda block: block.get_submodule(name).register_forward_hook(lambda *_: None)

    def replace(name, module):
        return lambda block: block.set_submodule(name, module)

    yield "hook of bn3", 1, hook("bn3")
    yield "hook of act3", 1, hook("act3")
    yield "hook of the shortcut", 1, hook("downsample")
    yield "hook of its norm", 1, hook("downsample.1")
    yield "backward hook", 1, lambda block: block.downsample[1].register_full_backward_hook(lambda *_: None)
    yield "backward pre-hook", 1, lambda block: block.downsample.register_full_backward_pre_hook(lambda *_: None)
    yield "patched", 1, lambda block: setattr(block.act3, "forward", torch.relu)
    yield "frozen", 1, lambda block: block.bn3.eval()
    yield "frozen shortcut", 1, lambda block: block.downsample[1].eval()
    yield "statistics not tracked from now on", 1, lambda block: setattr(block.bn3, "track_running_stats", False)
    yield "averages over all batches", 1, lambda block: setattr(block.bn3, "momentum", None)
    yield "no bias", 1, lambda block: block.bn3.register_parameter("bias", None)
    yield "no statistics", 1, replace("bn3", nn.BatchNorm2d(32, track_running_stats=False))
    yield "synchronized", 1, replace("bn3", GlooSyncBatchNorm2d(32))
    yield "group norm", 1, replace("bn3", nn.GroupNorm(2, 32))
    yield "folded", 1, replace("bn3", nn.Identity())
    yield "another activation", 1, replace("act3", nn.SiLU())
    yield "no norm in the shortcut", 1, replace("downsample.1", nn.Identity())
    yield "a module of its own for the shortcut", 1, lambda block: setattr(block, "downsample", nn.Conv2d(16, 32, 1, 2))
    yield "attention", 0, lambda block: setattr(block, "se", nn.Conv2d(32, 32, 1))
    yield "a path to drop", 0, lambda block: setattr(block, "drop_path", DropPath(0.5))
    yield "a hook of an idle path", 0, idle_path_with_a_hook
    yield "weights in float64", 0, lambda block: block.double()
    yield "one activation for all", 2, lambda block: setattr(block, "act3", block.act1)
    yield "an idle path", 2, lambda block: setattr(block, "drop_path", DropPath(0.0))


def idle_path_with_a_hook(block):
    block.drop_path = DropPath(0.5).eval()
    block.drop_path.register_forward_hook(lambda module, x, y: y * 2)


@pytest.mark.parametrize(("count", "change"), [pytest.param(n, change, id=name) for name, n, change in changes()])
def test_what_it_does_not_take_the_place_of(count, change, fused, tmp_path):
    block = make(2)
    change(block)
    other = copy.deepcopy(block)
    x = images(dtype=next(block.parameters()).dtype)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        actual = step(block, block, x)
        assert fused == TRAINED * count
        torch.manual_seed(0)
        compare(actual, step(lambda x: Bottleneck.forward(other, x), other, x))
    finally:
        torch.distributed.destroy_process_group()


def test_hooks_of_all_modules_see_the_layers(fused):
    block, seen = make(drop_path=DropPath(0.0)), []
    with torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module)):
        block(images(32))
    assert {block.bn3, block.drop_path, block.act3} <= set(seen)
    assert fused == []


def test_maps_that_do_not_fit(fused):
    """A shortcut of another dtype or format, and features that are no images; the errors are those of the layers."""
    norm, act, x = make().bn3, nn.ReLU(), images(32)
    for shortcut in (x.double(), x.contiguous(), x[:, :, :1]):
        y = normalized_sum(x, norm, shortcut, act, training=True)
        torch.testing.assert_close(y, act(norm(x) + shortcut).float())
    for wrong in (torch.randn(8), torch.randn(2, 9, 4, 4), images(16), images(32)[:1, :, :1, :1]):
        with pytest.raises((ValueError, RuntimeError), match=r"expected|Expected|got|should"):
            normalized_sum(wrong, norm, None, act, training=True)
    normalized_sum(x.contiguous(), norm, x.contiguous(), act, training=True)
    assert fused == []
    normalized_sum(x, norm, x, act, training=True)
    assert fused == TRAINED


@pytest.mark.parametrize("training", [True, False])
def test_compiled_and_exported_blocks_have_the_layers(training, fused):
    """No graph break, and nothing that hides a pass from Inductor or a layer from an exporter."""
    block, x = make(2).train(training), images()
    torch._dynamo.reset()
    counters.clear()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    with torch.set_grad_enabled(training):
        torch.compile(block, backend=backend, fullgraph=True)(x)
        exported = torch.export.export(block, (x,))
    assert not counters["graph_break"]
    assert fused == []
    for graph in (graphs[0], exported.graph_module):
        assert not any("ddfnet.batch_norm" in str(node.target) for node in graph.graph.nodes)
    traced = torch.fx.symbolic_trace(block)
    assert {"bn3", "downsample.1", "act3"} <= {node.target for node in traced.graph.nodes}
    assert fused == []


def test_transforms_see_the_layers(fused):
    block, x = make().eval(), images(32)
    with torch.no_grad():
        mapped = torch.func.vmap(lambda x: normalized_sum(x, block.bn3, x, block.act3))(x[None])
        assert fused == []
        torch.testing.assert_close(mapped[0], normalized_sum(x, block.bn3, x, block.act3))
        assert fused == BETWEEN
        with torch.autograd.forward_ad.dual_level():
            y = normalized_sum(torch.autograd.forward_ad.make_dual(x, x), block.bn3, x, block.act3)
            assert torch.autograd.forward_ad.unpack_dual(y).tangent is not None
    assert fused == BETWEEN


def test_folding_leaves_the_last_norm_to_its_operator(monkeypatch):
    """On CUDA alone: the sum and the ReLU take a pass of their own, which normalizes on its way."""
    network = nn.Sequential(nn.Conv2d(3, 32, 1), DDFBottleneck(32, 8, ddf_args={"squeeze_ratio": 0.5})).eval()
    assert network[1].absorbed_norms() == (network[1].bn1, network[1].bn2, network[1].bn3)
    assert fold_batch_norm(network, 8) == 2
    assert network[1].absorbed_norms() == ()
