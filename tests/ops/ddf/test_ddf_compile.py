"""`ddf` under the compilers: opcheck, torch.compile without a graph break, dynamic shapes, torch.export."""

import zipfile

import pytest
import torch
from ddf_cases import FORMATS, make_inputs, present
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses import FakeTensorMode

from ddfnet import DDF
from ddfnet.layers.normalized_ddf import normalized_ddf
from ddfnet.models.ddf_resnet import DDFBottleneck
from ddfnet.ops.ddf import ddf, native
from tests.ops.ddf.conftest import native_code


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("combine", "filters", "stride", "memory_format"),
    [("mul", "both", 1, "channels_last"), ("add", "channel", 2, "contiguous")],
)
def test_opcheck(combine, filters, stride, memory_format):
    """One tap keeps the traces short; the schema, the strides and the autograd formula do not depend on it."""
    inputs = make_inputs(
        2, 4, 5, 6, kernel_size=1, stride=stride, filters=filters, memory_format=FORMATS[memory_format], heads=2
    )
    settings = (1, stride, 1, combine == "mul", 1)
    torch.library.opcheck(torch.ops.ddfnet.ddf.default, (*inputs, *settings))
    grad_y = torch.randn_like(ddf(*inputs, stride=stride, combine=combine))
    needed = [tensor is not None for tensor in inputs]
    torch.library.opcheck(torch.ops.ddfnet.ddf_backward.default, (grad_y, *inputs, *settings, *needed))


@pytest.mark.parametrize("filters", ["both", "channel", "spatial"])
def test_fake_implementations_agree_with_the_real_ones(filters):
    for stride, memory_format in ((1, "channels_last"), (2, "contiguous")):
        inputs = make_inputs(2, 4, 6, 5, stride=stride, filters=filters, memory_format=FORMATS[memory_format])
        settings = (3, stride, 1, True, 1)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.ddfnet.ddf.default, (*inputs, *settings), test_utils=tests)
        grad_y = torch.randn_like(ddf(*inputs, stride=stride, kernel_size=3))
        for needed in ([t is not None for t in inputs], [True, False, False]):
            arguments = (grad_y, *inputs, *settings, *needed)
            torch.library.opcheck(torch.ops.ddfnet.ddf_backward.default, arguments, test_utils=tests)


@pytest.mark.parametrize(
    ("combine", "filters", "stride", "memory_format"),
    [("mul", "both", 1, "channels_last"), ("add", "both", 2, "contiguous"), ("mul", "spatial", 1, "channels_last")],
)
def test_compile_forward_and_backward(combine, filters, stride, memory_format):
    inputs = make_inputs(2, 4, 6, 5, stride=stride, filters=filters, memory_format=FORMATS[memory_format])
    options = {"stride": stride, "combine": combine, "kernel_size": 3}

    def function(*tensors):
        return ddf(*tensors, **options).relu()

    y, compiled = function(*inputs), torch.compile(function, fullgraph=True)(*inputs)
    assert compiled.stride() == y.stride()
    torch.testing.assert_close(compiled, y)
    weights = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad((compiled * weights).sum(), present(inputs)),
        torch.autograd.grad((y * weights).sum(), present(inputs)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def graphs_of(function, inputs):
    """Names of the operators of each graph that a backend of torch.compile gets, forward and backward."""
    graphs = []

    def keep(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    y = torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))(*inputs)
    if y.requires_grad:
        y.sum().backward()
    return graphs


def test_compile_looks_inside_the_op_where_there_is_no_native_code(monkeypatch):
    """Inductor gets the shifted multiply-adds to fuse, not an opaque call."""
    monkeypatch.setattr(native, "_library", lambda accumulator: "none")
    (graph,) = graphs_of(ddf, make_inputs(requires_grad=False))
    assert any("addcmul" in target for target in graph)
    assert not any("ddfnet" in target for target in graph)


def test_compile_gets_an_opaque_call_where_there_is_native_code():
    native_code()
    names = [[target for target in graph if "ddfnet" in target] for graph in graphs_of(ddf, make_inputs())]
    assert names == [["ddfnet.ddf_opaque.default"], ["ddfnet.ddf_backward_opaque.default"]]


def test_aotinductor_looks_inside_the_op(tmp_path):
    """Its programs run without Python, so that no opaque call may be left in them."""
    inputs = make_inputs(kernel_size=1, requires_grad=False)
    program = torch.export.export(Layer(), inputs)
    # the sources alone: compiling takes half a minute, and a slow test of scripts/export.py runs the program
    options = {"aot_inductor.package_cpp_only": True}
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "layer.pt2"), inductor_configs=options
    )
    with zipfile.ZipFile(path) as package:
        sources = [package.read(name) for name in package.namelist() if name.endswith(".cpp")]
    assert any(b"AOTInductorModel" in source for source in sources)
    assert not any(b"ddf_opaque" in source for source in sources)


@pytest.mark.parametrize(
    ("stride", "dynamic_axes", "kernel_size"),
    [(2, (0,), 3), (1, (0, 2, 3), 1)],  # one tap: reasoning about nine windows of symbolic size takes half a minute
)
def test_compile_once_for_all_sizes_of_dynamic_axes(stride, dynamic_axes, kernel_size):
    frames = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ddf, fullgraph=True, backend=frames)
    for sizes in ((2, 4, 6, 5), (3, 4, 9, 7), (5, 4, 8, 10)):
        shape = [sizes[axis] if axis in dynamic_axes else fixed for axis, fixed in enumerate((2, 4, 6, 5))]
        inputs = make_inputs(*shape, stride=stride, kernel_size=kernel_size)
        for axis in dynamic_axes:
            torch._dynamo.mark_dynamic(inputs[0], axis)
            torch._dynamo.mark_dynamic(inputs[2], axis)
        torch._dynamo.mark_dynamic(inputs[1], 0)
        y = compiled(*inputs, stride=stride)
        torch.testing.assert_close(y, ddf(*inputs, stride=stride))
        y.sum().backward()
        assert inputs[0].grad.shape == inputs[0].shape
    assert frames.frame_count == 1


def test_compile_under_autocast():
    inputs = make_inputs(2, 4)

    def function(*tensors):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ddf(*tensors)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)
    assert compiled.dtype == torch.bfloat16
    assert torch.equal(compiled, function(*inputs))


class Layer(torch.nn.Module):
    def forward(self, x, channel_filter, spatial_filter):
        return ddf(x, channel_filter, spatial_filter, combine="add")


def test_export_keeps_one_node_and_a_dynamic_batch():
    inputs = make_inputs(2, 4, 6, 5, requires_grad=False)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Layer(), inputs, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("ddfnet.ddf.default") == 1
    larger = make_inputs(5, 4, 6, 5, requires_grad=False)
    torch.testing.assert_close(program.module()(*larger), Layer()(*larger))


SIZE = 2, 2  # for kernels that are only looked at: of larger maps a program has more pixels, which takes longer
SIZES = [SIZE, pytest.param((14, 14), marks=pytest.mark.slow)]


class FakeDriver:
    """Enough of a Triton driver to analyze a kernel for a GPU that is not there."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def no_gpu_needed(monkeypatch):
    """Fake CUDA tensors: the launch code runs up to the kernels, which the trace records."""
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(triton.runtime.driver, "_active", FakeDriver())
    with FakeTensorMode():
        yield


def written_by_kernels(function, *inputs):
    """Names of the arguments that each kernel launched writes, according to PyTorch's analysis of the kernels.

    If that gave up it would take all of them for outputs, and tracing would fail for inputs that require gradients.
    """

    class Traced(torch.nn.Module):
        def forward(self, *inputs):
            return function(*inputs)

    graph, signature = aot_export_module(Traced(), inputs, trace_joint=False)
    assert not signature.user_inputs_to_mutate
    nodes = [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    return [node.kwargs["tensors_to_clone"] for node in nodes]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_cuda_path_traces_into_triton_launches(no_gpu_needed, scale, stride, size):
    if scale > 1 and stride > 1:
        pytest.skip("upsampling has no stride")

    def both(x, channel_filter, spatial_filter):
        y = torch.ops.ddfnet.ddf(x, channel_filter, spatial_filter, 3, stride, 1, True, scale)
        settings = (3, stride, 1, True, scale, True, True, True)
        return (y, *torch.ops.ddfnet.ddf_backward(y, x, channel_filter, spatial_filter, *settings))

    x = torch.empty(2, 64, *size, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    channel_filter = torch.empty(2, scale**2, 64, 3, 3, device="cuda")
    spatial_filter = torch.empty(2, scale**2 * 9, size[0] // stride, size[1] // stride, device="cuda")
    written = written_by_kernels(both, x, channel_filter if scale > 1 else channel_filter[:, 0], spatial_filter)
    assert written == [["y"], ["grad_x"], ["channel_partials", "spatial_partials"]]


# What the kernels of a layer write, by name and in order. PyTorch's analysis has Triton translate each of them: that is
# quick for maps too small for blocks of several pixels, and finds the same names.
BRANCHES = [["inverse_std", "pool_partials", "spatial_filter"], ["hidden", "pooled"], ["channel_filter"]]
FILTER_GRADIENTS = [["channel_partials", "spatial_partials"], ["grads"], ["grad_hidden", "grad_pooled"]]
LOGITS = ["bias_partials", "grad_logits"]
WEIGHTS = ["alpha", "excite", "excite_bias", "squeeze", "squeeze_bias"]


@pytest.mark.parametrize("size", SIZES)
def test_the_layer_traces_into_its_fused_kernels_on_cuda(no_gpu_needed, size):
    layer = DDF(64, device="cuda", dtype=torch.bfloat16)
    x = torch.empty(2, 64, *size, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    written = written_by_kernels(lambda x: (layer(x),), x)
    assert [sorted(names) for names in written] == [*BRANCHES, ["y"]]
    layer.fused_filters = False
    assert written_by_kernels(lambda x: (layer(x),), x) == [["y"]]


def test_the_layer_between_norms_traces_into_its_kernels_on_cuda(no_gpu_needed):
    norms = [torch.nn.BatchNorm2d(64, device="cuda").eval() for _ in range(2)]
    ddf = DDF(64, device="cuda", dtype=torch.bfloat16).eval()
    relu, drop = torch.nn.ReLU().eval(), torch.nn.Identity().eval()
    x = torch.empty(2, 64, *SIZE, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    layers = (norms[0], relu, ddf, norms[1], drop, relu)
    with torch.no_grad():
        written = written_by_kernels(lambda x: (normalized_ddf(x, *layers),), x)
    assert [sorted(names) for names in written] == [["affines"], *BRANCHES, ["y"]]


@pytest.mark.parametrize("channels", [64, 128])
def test_the_layer_between_norms_traces_into_its_kernels_in_training_on_cuda(no_gpu_needed, channels):
    """No kernel writes what another argument of it is, or torch.compile would copy it first.

    Of 64 channels the filter kernel makes the gradients of the logits.
    """
    norms = [torch.nn.BatchNorm2d(channels, device="cuda") for _ in range(2)]
    ddf = DDF(channels, device="cuda", dtype=torch.bfloat16)
    x = torch.empty(2, channels, *SIZE, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    weights, settings = ddf.operands()

    def both(x):
        tensors = (x, *norms[0].parameters(), *norms[1].parameters(), *weights)
        z, *saved = torch.ops.ddfnet.ddf_layer_trained(*tensors, 1e-5, 1e-5, *settings)
        given = (weights.spatial, weights.squeeze, weights.excite, weights.alpha)
        return (z, *torch.ops.ddfnet.ddf_layer_trained_backward(z, x, *given, *saved, *settings))

    written = [sorted(names) for names in written_by_kernels(both, x)]
    assert written[:8] == [["moments"], ["merged"], *BRANCHES, ["y", "y_moments"], ["merged"], ["y"]]
    of_filters, *of_channel = FILTER_GRADIENTS
    at_once = [["bias_partials", "channel_partials", "grad_logits"], *of_channel]
    assert written[8:] == [
        ["partials"],
        ["grad_weight", "grad_x"],
        *(at_once if channels == 64 else [of_filters, *of_channel, LOGITS]),
        ["grad_x", "norm_partials"],
        ["grad_weight", "grad_x", "weight_partials"],
        WEIGHTS,
    ]


@pytest.mark.parametrize("residual", [True, False])
def test_the_end_of_a_block_traces_into_its_kernels_on_cuda(no_gpu_needed, residual):
    """Where the registered operators are called: no kernel writes what another argument of it is."""
    norm = torch.nn.BatchNorm2d(64, device="cuda")
    x, other = (
        torch.empty(2, 64, *SIZE, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        for _ in range(2)
    )

    def every(x, shortcut):
        shortcut, own = shortcut if residual else None, (norm.weight, norm.bias)
        y, statistics = torch.ops.ddfnet.batch_norm_trained(x, *own, shortcut, 1e-5, residual)
        output = y if residual else None
        grads = torch.ops.ddfnet.batch_norm_trained_backward(y, x, output, statistics, residual)
        own = (*own, norm.running_mean, norm.running_var)
        return (y, *grads, torch.ops.ddfnet.batch_norm(x, *own, shortcut, 1e-5, residual))

    written = [sorted(names) for names in written_by_kernels(every, x, other)]
    sums = ["grad_residual", "partials"] if residual else ["partials"]
    assert written == [["moments"], ["merged"], ["y"], sums, ["grad_weight", "grad_x"], ["y"]]


def test_a_traced_block_leaves_its_end_to_the_compiler_on_cuda(no_gpu_needed):
    """Whose passes an operator would hide: no kernel but those of the layer between its norms."""
    block = DDFBottleneck(64, 64, ddf_args={"squeeze_ratio": 0.5}, fused_norms="all", device="cuda")
    block.downsample = torch.nn.Sequential(
        torch.nn.Conv2d(64, 256, 1, device="cuda"), torch.nn.BatchNorm2d(256, device="cuda")
    )
    x = torch.empty(2, 64, *SIZE, device="cuda").to(memory_format=torch.channels_last)
    with torch.no_grad():
        written = written_by_kernels(lambda x: (block.eval()(x),), x)
    assert [sorted(names) for names in written] == [["affines"], *BRANCHES, ["y"]]


def layer_tensors(channels, heads, size, device="cpu", dtype=torch.float32, hidden=4):
    """x and the weights of `ddfnet::ddf_layer`, for 3x3 taps."""
    torch.manual_seed(0)
    x = torch.randn(2, channels, size, size + 1, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    shapes = [(heads * 9, channels, 1, 1), (heads * 9,), (hidden, channels, 1, 1), (hidden,)]
    shapes += [(channels * 9, hidden, 1, 1), (channels * 9,), (channels * 9,)]
    return [x, *(torch.randn(shape, device=device) for shape in shapes)]


def without_biases(tensors):
    """Those that backward is given."""
    return [tensors[i] for i in (0, 1, 3, 5, 7)]


# one tile of channels, or two, whose partial sums are added up; many logits, which another kernel adds to grad_x
@pytest.mark.parametrize(("channels", "heads"), [(64, 1), (128, 1), (64, 2)])
def test_the_fused_backward_traces_on_cuda(no_gpu_needed, channels, heads):
    tensors = layer_tensors(channels, heads, 1, device="cuda", dtype=torch.bfloat16)
    settings = (3, 1, 1, heads, True, 0.5)

    def both(*tensors):
        y, *activations = torch.ops.ddfnet.ddf_layer(*tensors, *settings)
        return torch.ops.ddfnet.ddf_layer_backward(y, *without_biases(tensors), *activations, *settings, True, True)

    written = [sorted(names) for names in written_by_kernels(both, *tensors)]
    assert written == [*BRANCHES, ["y"], *FILTER_GRADIENTS, LOGITS, *[["grad_x"]] * heads, WEIGHTS]


CHEAP_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize(
    ("heads", "stride", "bias", "checks"),
    # the remaining one traces forward and backward for symbolic sizes: 20 seconds, and with a stride 30
    [
        (2, 2, True, CHEAP_CHECKS),
        (1, 1, False, (*CHEAP_CHECKS, "test_aot_dispatch_dynamic")),
        pytest.param(2, 2, True, ("test_aot_dispatch_dynamic",), marks=pytest.mark.slow),
    ],
)
def test_layer_opcheck(heads, stride, bias, checks):
    tensors = layer_tensors(16, heads, 5)
    if not bias:
        tensors[2] = tensors[4] = tensors[6] = None
    tensors = [tensor if tensor is None else tensor.requires_grad_() for tensor in tensors]
    settings = (3, stride, 1, heads, True, 0.5)
    torch.library.opcheck(torch.ops.ddfnet.ddf_layer.default, (*tensors, *settings), test_utils=checks)
    with torch.no_grad():
        y, *activations = torch.ops.ddfnet.ddf_layer(*tensors, *settings)
    arguments = (torch.randn_like(y), *(t.detach() for t in without_biases(tensors)), *activations, *settings)
    for needed in ((True, True), (True, False), (False, True)):
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.ddfnet.ddf_layer_backward.default, (*arguments, *needed), test_utils=tests)


@pytest.mark.parametrize(("heads", "stride", "multiply"), [(1, 1, True), (2, 2, False)])
def test_the_layers_formula_against_pytorchs_gradients(heads, stride, multiply):
    tensors = [tensor.double().requires_grad_() for tensor in layer_tensors(6, heads, 5)]
    settings = (3, stride, 1, heads, multiply, 0.5)
    torch.autograd.gradcheck(lambda *tensors: torch.ops.ddfnet.ddf_layer(*tensors, *settings)[0], tensors)


def test_compiled_sums_over_heads_stay_in_bounds():
    """Inductor's own code for this sum wrote past the end of its rows: width 11, 16 channels a head, channels_last."""
    inputs = make_inputs(2, 32, 13, 11, heads=2, memory_format=torch.channels_last)
    y = torch.compile(ddf, fullgraph=True)(*inputs, kernel_size=3)
    grads = torch.autograd.grad(y, inputs, torch.ones_like(y))
    for a, b in zip(grads, torch.autograd.grad(ddf(*inputs, kernel_size=3), inputs, torch.ones_like(y)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
