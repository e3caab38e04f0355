"""`fused_norms=all` in training beside what training does: precisions, freezing, checkpointing, processes, compilation.

No kernel runs on a CPU: the operator there is its definition, which is asked for by force.
"""

import copy

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import ddfnet  # noqa: F401  registers the models
from ddfnet.engine.batch_norm import GlooSyncBatchNorm2d
from ddfnet.engine.freeze import Freeze
from ddfnet.engine.grad_checkpointing import checkpoint_gradients, kept_buffers
from ddfnet.layers import normalized_ddf as fusion
from ddfnet.layers.ddf import DDF
from ddfnet.models.ddf_resnet import DDFBottleneck
from ddfnet.ops.common import memory_format_of
from ddfnet.ops.ddf_layer.autograd import ddf_layer, plain_ddf_layer

TRAINED, BETWEEN, ALONE = ["ddf_layer_trained"], ["ddf_layer_between"], ["ddf_layer"]


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """A list that grows with each call of the operators of training, of inference, and of a layer alone."""
    calls = []

    def applies(layer, x):
        return layer.fused_filters and memory_format_of(x) == torch.channels_last and layer._is_as_built()

    def counting(name, function):
        def call(*arguments):
            calls.append(name)
            return function(*arguments)

        return call

    def alone(x, weights, settings):
        return plain_ddf_layer(x, *weights, *settings)[0]

    monkeypatch.setattr(DDF, "is_fused", applies)
    for name in (*TRAINED, *BETWEEN):
        monkeypatch.setattr(fusion, name, counting(name, getattr(fusion, name)))
    monkeypatch.setattr("ddfnet.layers.ddf.ddf_layer", counting(*ALONE, alone))
    return calls


def make(stride=1, **options):
    """A block in training, and the same one by one, in which no operator takes a layer's place."""
    torch.manual_seed(0)
    downsample = nn.Sequential(nn.Conv2d(16, 32, 1, stride, bias=False), nn.BatchNorm2d(32))
    block = DDFBottleneck(16, 8, stride, downsample, ddf_args={"squeeze_ratio": 0.5}, fused_norms="all", **options)
    for norm in (block.bn1, block.bn2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    block.to(memory_format=torch.channels_last).train()
    return block, apart(block)


def apart(block):
    twin = copy.deepcopy(block)
    for module in twin.modules():
        if isinstance(module, DDFBottleneck):
            module.fused_norms, module.conv2.fused_filters = "none", False
    return twin


def images(channels=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, channels, 8, 8, generator=generator).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def step(call, block, x):
    """Output, gradients of x and of what trains, and the statistics behind it."""
    x = x.clone().requires_grad_()
    y = call(x)
    leaves = [x, *(parameter for parameter in block.parameters() if parameter.requires_grad)]
    weights = torch.cos(torch.arange(float(y.numel()))).view(y.shape)
    grads = torch.autograd.grad(y, leaves, weights.to(y.dtype))
    return [y, *grads, *(buffer.clone() for buffer in block.buffers())]


def compare(actual, expected, tolerance=1e-4):
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == e.dtype, index
        error = (a.double() - e.double()).abs().max() / e.double().abs().max().clamp(min=1e-3)
        assert error <= tolerance, index


@pytest.mark.parametrize("stride", [1, 2])
def test_a_step_is_that_of_the_layers(stride, fused):
    block, twin = make(stride)
    compare(step(block, block, images()), step(twin, twin, images()))
    assert fused == TRAINED


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 0.1)], ids=str)
def test_autocast(dtype, tolerance, fused):
    """Results have the dtypes of the layers; gradients of a loss that was scaled for float16 are as large."""
    block, twin = make()

    def scaled(network):
        def call(x):
            with torch.autocast("cpu", dtype):
                y = network(x)
            return y.float() * 16

        return call

    actual = step(scaled(block), block, images())
    assert fused == TRAINED
    compare(actual, step(scaled(twin), twin, images()), tolerance)
    with torch.autocast("cpu", dtype):
        assert block(images()).dtype == twin(images()).dtype == dtype


def test_an_overflow_reaches_the_gradients(fused):
    """So that a scaler skips the step; the statistics are those of the layers."""
    block, twin = make()
    for network in (block, twin):
        y = network(images())
        y.backward(torch.full_like(y, torch.inf))
        assert all(not parameter.grad.isfinite().all() for parameter in network.conv1.parameters())
    assert fused == TRAINED
    compare(list(block.buffers()), list(twin.buffers()))


def test_contiguous_features_take_the_layers(fused):
    block, twin = make()
    x = images().contiguous()
    for network in (block, twin):
        network.to(memory_format=torch.contiguous_format)
    results = step(block, block, x), step(twin, twin, x)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert fused == []


def changes():
    """What makes a block one that the operator of training is not: a name, and the change in place."""

    def hook(name):
        return lambda block: block.get_submodule(name).register_forward_hook(lambda *_: None)

    for name in ("bn1", "act1", "conv2", "bn2", "act2", "conv2.spatial_branch.0", "conv2.channel_branch.3"):
        yield f"hook of {name}", hook(name)
    yield "backward hook", lambda block: block.conv2.register_full_backward_hook(lambda *_: None)
    yield "backward pre-hook", lambda block: block.conv2.register_full_backward_pre_hook(lambda *_: None)
    yield "frozen first", lambda block: block.bn1.eval()
    yield "frozen second", lambda block: block.bn2.eval()
    yield "statistics not tracked from now on", lambda block: setattr(block.bn1, "track_running_stats", False)
    yield "averages over all batches", lambda block: setattr(block.bn2, "momentum", None)
    yield "no bias", lambda block: block.bn1.register_parameter("bias", None)
    yield "one norm for both", lambda block: setattr(block, "bn2", block.bn1)
    yield "synchronized", lambda block: setattr(block, "bn2", GlooSyncBatchNorm2d(8))
    yield "group norm", lambda block: setattr(block, "bn1", nn.GroupNorm(2, 8))
    yield "no norm", lambda block: setattr(block, "bn1", nn.Identity())
    yield "weight norm", lambda block: torch.nn.utils.parametrizations.weight_norm(block.bn1, dim=None)
    yield "another activation", lambda block: setattr(block, "act2", nn.SiLU())


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in changes()])
def test_what_it_does_not_take_the_place_of(change, fused, one_process):
    block, _ = make()
    change(block)
    twin = apart(block)
    compare(step(block, block, images()), step(twin, twin, images()))
    assert fused in ([], ALONE)


def test_frozen_norms_of_a_linear_probe_take_the_operator_of_inference(fused):
    """No gradient is asked for in the frozen part, whose modules but the norms are in training mode."""
    block, twin = make()
    for network in (block, twin):
        head = nn.Linear(32, 2)
        freeze = Freeze(nn.Sequential(network, head), ["0"])
        freeze.hold()
        assert network.training
        assert not network.bn1.training
    before = [buffer.clone() for buffer in block.buffers()]
    compare([block(images())], [twin(images())])
    assert fused == BETWEEN
    assert all(torch.equal(a, b) for a, b in zip(before, block.buffers(), strict=True))
    assert block(images().requires_grad_()).requires_grad  # a gradient to earlier layers takes the layers
    assert fused == BETWEEN + ALONE


def test_frozen_weights_alone_keep_to_the_batch(fused):
    block, twin = make()
    for network in (block, twin):
        for name in ("bn1.weight", "conv2.spatial_branch.0.weight", "conv2.channel_branch.1.bias"):
            network.get_parameter(name).requires_grad_(False)
    compare(step(block, block, images()), step(twin, twin, images()))
    assert fused == TRAINED


def test_without_gradients_the_statistics_move(fused):
    """As for a recalibration of batch normalization after weights were averaged."""
    block, twin = make()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y, expected = block(images()), twin(images())
        assert not y.requires_grad
        compare([y, *block.buffers()], [expected, *twin.buffers()])
    assert fused == TRAINED * 2
    y = block(images())  # buffers are ordinary tensors still
    y.sum().backward()


def test_momenta_of_their_own(fused):
    block, twin = make()
    for network in (block, twin):
        network.bn1.momentum, network.bn2.momentum = 0.0, 0.7
    compare(step(block, block, images()), step(twin, twin, images()))
    assert fused == TRAINED


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks(reentrant, fused):
    block, _ = make()
    plain = copy.deepcopy(block)
    x = images().requires_grad_()
    y = checkpoint(block, x, use_reentrant=reentrant)
    with kept_buffers(block):
        y.square().sum().backward()
    assert fused == TRAINED * 2
    z = images().requires_grad_()
    plain(z).square().sum().backward()
    assert torch.equal(x.grad, z.grad)
    for a, b in zip(block.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(block.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)
    assert all(norm.num_batches_tracked == 1 for norm in (block.bn1, block.bn2))


def test_gradients_of_a_batch_in_parts_add_up(fused):
    block, twin = make()
    for network in (block, twin):
        for part in images().split(2):
            network(part).square().sum().backward()
    compare([p.grad for p in block.parameters()], [p.grad for p in twin.parameters()])
    assert fused == TRAINED * 2


def test_an_averaged_copy(fused):
    block, _ = make()
    step(block, block, images())
    average = torch.optim.swa_utils.AveragedModel(block, use_buffers=True).eval()
    reference = apart(average.module).eval()
    fused.clear()
    with torch.no_grad():
        compare([average(images())], [reference(images())])
    assert fused == BETWEEN
    copied = copy.deepcopy(block)
    assert torch.equal(step(copied, copied, images())[0], step(block, block, images())[0])


def test_distributed_data_parallel(fused, one_process, recwarn):
    """With gradients in buckets and hooks of parameters, in a network; no gradient has strides that it warns of."""
    torch.manual_seed(0)
    network = timm.create_model("ddf_mul_resnet14_32px", num_classes=3, fused_norms="all", squeeze_ratio=0.5)
    network.to(memory_format=torch.channels_last)
    twin, x = apart(network), images(3)
    parallel = DistributedDataParallel(network, gradient_as_bucket_view=True)
    for _ in range(2):
        parallel(x).square().sum().backward()
        twin(x).square().sum().backward()
    assert fused == TRAINED * 8
    for (name, a), b in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-3 * b.grad.norm() + 1e-4, name
    assert not [warning for warning in recwarn if "strides" in str(warning.message)]


def test_a_network_with_gradient_checkpointing(fused):
    torch.manual_seed(0)
    network = timm.create_model("ddf_mul_resnet14_32px", num_classes=3, fused_norms="all", squeeze_ratio=0.5)
    network.to(memory_format=torch.channels_last)
    plain, x = copy.deepcopy(network), images(3)
    checkpoint_gradients(network)
    for each in (network, plain):
        loss = each(x).square().sum()
        with kept_buffers(each):
            loss.backward()
    assert fused == TRAINED * 12
    for (name, a), b in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(network.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_without_a_graph_break(precision):
    block, _ = make()
    torch._dynamo.reset()
    counters.clear()
    eager = copy.deepcopy(block)

    def call(network):
        def run(x):
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                return network(x)

        return run

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    results = step(call(compiled), block, images()), step(call(eager), eager, images())
    assert not counters["graph_break"]
    compare(*results, 1e-4 if precision == torch.float32 else 0.2)


def test_features_that_are_no_images(fused):
    """The errors are those of the layers."""
    block, _ = make()
    around = block._around_ddf()
    for x in (torch.randn(8), torch.randn(8, 8, 8), torch.randn(2, 9, 4, 4)):
        with pytest.raises((ValueError, RuntimeError), match=r"expected|got|should"):
            fusion.normalized_ddf(x, *around, training=True)
    assert fused == []


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_gradients_of_a_layer_have_the_strides_of_its_weights(memory_format):
    """Also of the dimensions of size 1, which DistributedDataParallel compares."""
    layer = DDF(8, squeeze_ratio=0.5, heads=2).to(memory_format=memory_format)
    weights, settings = layer.operands()
    for call in (ddf_layer, lambda x, *given: torch.ops.ddfnet.ddf_layer(x, *given[0], *given[1])[0]):
        grads = torch.autograd.grad(call(images(8), weights, settings).sum(), weights)
        assert [grad.stride() for grad in grads] == [weight.stride() for weight in weights]


class Stopped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("registered", [False, True])
def test_no_gradient_comes_from_behind(registered, fused, monkeypatch):
    """Then none is passed on."""
    if registered:
        monkeypatch.setattr("ddfnet.ops.ddf_layer.training.is_plain", lambda *_: False)
    block, _ = make()
    x = images().requires_grad_()
    (Stopped.apply(block(x)).sum() + x.sum()).backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert fused == TRAINED
    for name, parameter in block.named_parameters():
        assert parameter.grad is None, name
