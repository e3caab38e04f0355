"""Cases for Triton's interpreter; run by test_interpreter.py in a process of their own, not collected by name.

The public function on CPU tensors goes through the same launches and kernels as on CUDA. Uninitialized memory is NaN,
so that an element that no kernel writes shows in the relative error.
"""

import contextlib
import copy
import os

import pytest
import torch
from covering import covering_cases
from ddf_cases import FORMATS, TOLERANCE, evaluate, expected, make_inputs, relative_error
from quick_interpreter import quicken

from ddfnet.kernels import ddf_forward
from ddfnet.layers import DDF
from ddfnet.ops.ddf import ddf, ddf_reference, ddf_up, tiling
from ddfnet.ops.ddf import triton as triton_launch
from ddfnet.ops.ddf_layer import triton as layer_launch
from ddfnet.ops.ddf_layer import triton_channel
from ddfnet.ops.ddf_layer.arguments import Settings, Weights, fusible
from ddfnet.ops.ddf_layer.autograd import ddf_layer, plain_ddf_layer

quicken()

# Any three options in all combinations; DDFNET_INTERPRETER_STRENGTH=10 takes the full product of all of them.
STRENGTH = int(os.environ.get("DDFNET_INTERPRETER_STRENGTH", "3"))

# The interpreter truncates float32 to bfloat16, where the GPU rounds: up to one unit in the last place.
TOLERANCE = {**TOLERANCE, torch.bfloat16: 2**-7}


@pytest.fixture(autouse=True, scope="module")
def _poison():
    torch.use_deterministic_algorithms(True)  # fills uninitialized memory with NaN
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def recording(launch, names):
    """`launch`, which also adds the name of each kernel to `names`."""

    def record(kernel, *arguments, **options):
        names.append(kernel.fn.__name__)
        launch(kernel, *arguments, **options)

    return record


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """The names of the kernels of the operators launched, in order."""
    names = []
    monkeypatch.setattr(triton_launch, "launch", recording(triton_launch.launch, names))
    return names


def check(inputs, *, function=ddf, **options):
    dtype = inputs[0].dtype
    actual, exact = evaluate(function, inputs, **options), expected(inputs, **options)
    for name, a, e in zip(("y", "gradient 1", "gradient 2", "gradient 3"), actual, exact, strict=False):
        assert relative_error(a, e) <= TOLERANCE[dtype], name
    return actual


def test_the_interpreter_is_what_runs(launches):
    assert type(ddf_forward.ddf_forward_kernel).__name__ == "InterpretedFunction"
    check(make_inputs(1, 16, memory_format=torch.channels_last))
    assert launches == ["ddf_forward_kernel", "ddf_backward_x_kernel", "ddf_backward_filters_kernel"]


OPTIONS = {
    "kernel_size": [3, 5] if STRENGTH <= 3 else [3, 5, 7],  # 7: below
    "stride": [1, 2, 3, 4],  # 4: blocks of the kernel for grad_x are no longer multiples of the stride
    "dilation": [1, 2, 4],
    "heads": [1, 2],
    "combine": ["mul", "add"],
    "filters": ["both", "channel", "spatial"],
    "memory_format": ["channels_last", "contiguous"],
    "dtype": [torch.float32, torch.float16, torch.bfloat16],
    "constant_shapes": [True, False],
    "int64": [False, True],
}
CASES = covering_cases(OPTIONS, STRENGTH)
if STRENGTH <= 3:  # 49 taps take long: pairs of the other options
    CASES += covering_cases({**OPTIONS, "kernel_size": [7]}, 2)
UP_OPTIONS = {
    "scale": [2, 3],
    **{key: OPTIONS[key] for key in ("heads", "combine", "filters", "memory_format", "dtype", "constant_shapes")},
}


@pytest.fixture
def set_policy(monkeypatch):
    """Whether shapes are constants of the kernels, and whether offsets inside an image have 64 bits."""

    def set_policy(constant_shapes=True, int64=False):
        monkeypatch.setattr(tiling, "_MAX_STATIC_SHAPES", 10**6 if constant_shapes else 0)
        monkeypatch.setattr(tiling, "_static_shapes", set())
        monkeypatch.setattr(triton_launch, "_INT32_ELEMENTS", 1 if int64 else 2**31)

    return set_policy


def name(case):
    return "-".join(str(value).replace("torch.", "") for value in case.values())


@pytest.mark.parametrize("case", CASES, ids=name)
def test_options(case, set_policy):
    set_policy(case["constant_shapes"], case["int64"])
    memory_format = FORMATS[case["memory_format"]]
    shared = {key: case[key] for key in ("kernel_size", "stride")}
    inputs = make_inputs(
        1, 12, 7, 5, heads=case["heads"], filters=case["filters"], dtype=case["dtype"],
        memory_format=memory_format, **shared,
    )  # fmt: skip
    y, grad_x, *_ = check(inputs, dilation=case["dilation"], combine=case["combine"], **shared)
    assert y.is_contiguous(memory_format=memory_format)
    assert grad_x.stride() == inputs[0].stride()


# one level less: the kernels are the same, and each phase of the output is computed
@pytest.mark.parametrize("case", covering_cases(UP_OPTIONS, STRENGTH - 1), ids=name)
def test_upsampling_options(case, set_policy):
    set_policy(case["constant_shapes"])
    memory_format = FORMATS[case["memory_format"]]
    scale = case["scale"]
    inputs = make_inputs(
        1, 6, 4, 3, scale=scale, heads=case["heads"], filters=case["filters"], dtype=case["dtype"],
        memory_format=memory_format,
    )  # fmt: skip
    y, grad_x, *_ = check(inputs, scale=scale, combine=case["combine"], kernel_size=3, function=ddf_up)
    assert y.is_contiguous(memory_format=memory_format)
    assert grad_x.stride() == inputs[0].stride()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("function", [ddf, ddf_up])
def test_float64(function, memory_format):
    options = {"scale": 2} if function is ddf_up else {"stride": 2}
    inputs = make_inputs(1, 6, 5, 4, dtype=torch.float64, memory_format=FORMATS[memory_format], **options)
    check(inputs, function=function, **options)


@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [
        (1, {}),
        (1, {"stride": 2}),
        (7, {"stride": 3}),
        (7, {"dilation": 2}),
        (9, {}),
        (9, {"stride": 2}),
        (9, {"stride": 5}),
        (9, {"dilation": 2}),
        (15, {}),
    ],
)
def test_other_kernel_sizes(kernel_size, options):
    """Other loops over rows of taps; those beyond 7 have no tile of their own."""
    inputs = make_inputs(1, 2, 3, 4, kernel_size=kernel_size, stride=options.get("stride", 1))
    check(inputs, kernel_size=kernel_size, **options)


@pytest.mark.parametrize(
    "options", [{"scale": 4}, {"scale": 5}, {"scale": 2, "dilation": 2}, {"scale": 2, "kernel_size": 5}], ids=str
)
def test_other_upsampling(options):
    sizes = {key: value for key, value in options.items() if key != "dilation"}
    check(make_inputs(1, 2, 3, 4, **sizes), function=ddf_up, **options)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 3}, {"scale": 2}], ids=str)
def test_several_images_channel_tiles_and_chunks(memory_format, options, monkeypatch):
    """More channels than a tile and more pixels than a chunk: both reductions have a second stage.

    The last tile and the last chunk are not full; with the dilation, some of its taps are still inside."""
    monkeypatch.setattr(tiling, "_CHUNK_PIXELS", 8)
    channels = 72 if memory_format == "channels_last" else 18
    sizes = {key: value for key, value in options.items() if key != "dilation"}
    size = (4, 5) if "dilation" in options else (3, 4)
    inputs = make_inputs(2, channels, *size, memory_format=FORMATS[memory_format], **sizes)
    check(inputs, function=ddf_up if "scale" in options else ddf, **options)


def test_constant_shapes_are_limited_and_do_not_change_the_bits(set_policy):
    results = []
    for constant_shapes in (True, False):
        set_policy(constant_shapes)
        results.append(evaluate(ddf, make_inputs(1, 8)))
        assert bool(tiling._static_shapes) == constant_shapes
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 3, 4), (1, 5, 1, 1), (1, 3, 2, 1)])
def test_small_shapes(shape):
    check(make_inputs(*shape))


def test_formats_of_x_and_spatial_filter_are_independent():
    x, channel, spatial = make_inputs(1, 8, 6, 7, memory_format=torch.channels_last)
    _, _, planar = make_inputs(1, 8, 6, 7)
    check((x, channel, planar))
    check((x.detach().contiguous().requires_grad_(), channel, spatial))


def test_strided_inputs_and_gradients():
    x, channel, spatial = make_inputs(1, 8, 6, 6, dtype=torch.float64, requires_grad=False)
    inputs = [tensor.transpose(2, 3).detach().requires_grad_() for tensor in (x, channel, spatial)]
    check(inputs)
    y = ddf(*inputs)
    ones = torch.autograd.grad(y, inputs, torch.ones_like(y), retain_graph=True)
    for a, b in zip(torch.autograd.grad(y.sum(), inputs), ones, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


FILTERS, SPATIAL = "ddf_backward_filters_kernel", "ddf_backward_spatial_kernel"


@pytest.mark.parametrize(
    ("memory_format", "needed", "backward"),
    [
        ("channels_last", (True, False, False), ["ddf_backward_x_kernel"]),
        ("channels_last", (False, True, False), [FILTERS]),
        ("channels_last", (False, False, True), [FILTERS]),
        ("channels_last", (True, False, True), ["ddf_backward_x_kernel", FILTERS]),
        ("contiguous", (False, True, False), [FILTERS]),
        ("contiguous", (False, False, True), [SPATIAL]),
        ("contiguous", (False, True, True), [SPATIAL, FILTERS]),
    ],
)
def test_kernels_of_gradients_not_needed_are_not_launched(memory_format, needed, backward, launches):
    inputs = make_inputs(1, 8, memory_format=FORMATS[memory_format])
    full = evaluate(ddf, inputs)[1:]
    launches.clear()
    for tensor, wanted in zip(inputs, needed, strict=True):
        tensor.requires_grad_(wanted)
    y = ddf(*inputs)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    y.backward(grad_y)
    assert launches == ["ddf_forward_kernel", *backward]
    for tensor, gradient, wanted in zip(inputs, full, needed, strict=True):
        assert (tensor.grad is not None) == wanted
        if wanted:
            assert torch.equal(tensor.grad, gradient)


def test_the_same_bits_every_time():
    inputs = make_inputs(2, 8, 6, 6)
    for a, b in zip(evaluate(ddf, inputs), evaluate(ddf, inputs), strict=True):
        assert torch.equal(a, b)


def test_empty_batch_launches_nothing(launches):
    inputs = make_inputs(0, 8)
    _, *grads = evaluate(ddf, inputs)
    assert launches == []
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]
    with_taps = make_inputs(0, 8, filters="spatial")
    assert evaluate(ddf, with_taps)[2].shape == with_taps[2].shape


def test_second_order():
    inputs = make_inputs(1, 2, 3, 3, dtype=torch.float64)
    directions = [torch.randn_like(tensor) for tensor in inputs]

    def second(function):
        y = function(*inputs)
        grads = torch.autograd.grad(y, inputs, y.detach().cos(), create_graph=True)
        return torch.autograd.grad(grads, inputs, directions)

    for actual, exact in zip(second(ddf), second(ddf_reference), strict=True):
        torch.testing.assert_close(actual, exact)


def test_opcheck():
    inputs = make_inputs(1, 4, 3, 3)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.ddfnet.ddf.default, (*inputs, 3, 1, 1, True, 1), test_utils=tests)


LAYERS = [
    # channels, kernel_size, heads, stride, dilation, combine, dtype, bias, size
    (20, 3, 1, 1, 1, "mul", torch.float32, True, (9, 8)),  # two tiles of pixels of the branch's kernels
    (70, 3, 1, 2, 1, "add", torch.float32, False, (9, 8)),  # and two of channels
    (40, 3, 1, 1, 2, "mul", torch.float16, True, (5, 6)),
    (140, 3, 1, 1, 1, "mul", torch.float16, True, (3, 4)),  # three partial sums of the spatial filter's gradient
    (72, 3, 3, 2, 1, "mul", torch.float16, True, (5, 6)),
    (12, 5, 2, 1, 1, "add", torch.float16, False, (3, 4)),
    (24, 7, 1, 3, 1, "mul", torch.float16, True, (5, 6)),
]


@pytest.mark.parametrize(
    ("channels", "kernel_size", "heads", "stride", "dilation", "combine", "dtype", "bias", "size"), LAYERS
)
def test_layer(channels, kernel_size, heads, stride, dilation, combine, dtype, bias, size):
    """Against the definition in float64. No bfloat16: the interpreter's matrix product of it is wrong.

    Two images; what the operator's own kernels do with many pixels and channels is seen above, where it is quicker."""
    generator = torch.Generator().manual_seed(0)
    hidden, area = 7, kernel_size**2
    x = torch.randn(2, channels, *size, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    shapes = [(heads * area, channels), (heads * area,), (hidden, channels), (hidden,), (channels * area, hidden)]
    shapes += [(channels * area,), (channels * area,)]
    given = [torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for shape in shapes]
    given = [weight[..., None, None] if weight.ndim == 2 else weight for weight in given]
    if not bias:
        given[1] = given[3] = given[5] = None
    given[-1] = given[-1] * 20  # alpha, of a size that matters
    settings = Settings(kernel_size, stride, dilation, heads, combine == "mul", 0.4)
    assert fusible(x, kernel_size, heads)

    def evaluate(function, dtype):
        leaves = [t if t is None else t.to(dtype or t.dtype).requires_grad_() for t in (x, *given)]
        y = function(leaves[0], leaves[1:])
        grad_y = torch.sin(torch.arange(float(y.numel()))).view(y.shape).to(y.dtype)
        present = [leaf for leaf in leaves if leaf is not None]
        return [y, *torch.autograd.grad(y, present, grad_y)]

    # the gradients meet the spatial filter as it was rounded, and x once more where two kernels add up its gradient
    tolerance = 2e-6 if dtype == torch.float32 else 3e-3
    exact = evaluate(lambda x, weights: plain_ddf_layer(x, *weights, *settings)[0], torch.float64)
    registered = torch.ops.ddfnet.ddf_layer.default  # the same launches, through the dispatcher: seen once
    functions = [lambda x, weights: ddf_layer(x, Weights(*weights), settings)]
    functions += [lambda x, weights: registered(x, *weights, *settings)[0]] if channels == 24 else []
    for function in functions:
        actual = evaluate(function, None)
        for index, (a, e) in enumerate(zip(actual, exact, strict=True)):
            assert a.dtype == (dtype if index < 2 else torch.float32)
            assert relative_error(a, e) <= tolerance, index
        assert actual[1].is_contiguous(memory_format=torch.channels_last)


def test_a_training_step_of_the_layer_launches_ten_triton_kernels(launches, monkeypatch):
    for module in (layer_launch, triton_channel):
        monkeypatch.setattr(module, "launch", recording(module.launch, launches))
    layer = DDF(16)
    x = torch.randn(2, 16, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    layer(x).sum().backward()
    forward = ["spatial_filters_kernel", "channel_squeeze_kernel", "channel_filters_kernel", "ddf_forward_kernel"]
    backward = ["ddf_backward_filters_kernel", "channel_filters_backward_kernel", "channel_squeeze_backward_kernel"]
    backward += ["spatial_filters_backward_kernel", "ddf_backward_x_kernel", "channel_weights_backward_kernel"]
    assert launches == [*forward, *backward]


@pytest.mark.parametrize(("stride", "heads"), [(1, 1), (2, 2)])
def test_the_layer_is_the_same_with_and_without_the_fused_kernel(stride, heads, launches, monkeypatch):
    monkeypatch.setattr(layer_launch, "launch", recording(layer_launch.launch, launches))
    torch.manual_seed(0)
    layer = DDF(20, stride=stride, heads=heads, squeeze_ratio=0.5).half()
    x = torch.randn(2, 20, 4, 3).half().contiguous(memory_format=torch.channels_last).requires_grad_()
    results = []
    for layer.fused_filters in (True, False):
        launches.clear()
        y = layer(x)
        parameters = [x, *layer.parameters()]
        results.append([y, *torch.autograd.grad(y, parameters, torch.cos(y.detach()))])
        fused = {"spatial_filters_kernel", "spatial_filters_backward_kernel"}
        assert (fused <= set(launches)) == layer.fused_filters
    for a, b in zip(*results, strict=True):
        assert relative_error(a, b.double()) < 5e-3


def test_a_layer_with_hooks_or_exchanged_parts_keeps_them(launches, monkeypatch):
    monkeypatch.setattr(layer_launch, "launch", recording(layer_launch.launch, launches))
    x = torch.randn(1, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    layer = DDF(16)
    layer(x)
    assert "spatial_filters_kernel" in launches
    launches.clear()
    seen = []
    handle = layer.spatial_branch[0].register_forward_hook(lambda *_: seen.append(1))
    layer(x)
    handle.remove()
    assert seen
    squeeze = layer.channel_branch[1]
    squeeze.forward = lambda x: seen.append(2) or type(squeeze).forward(squeeze, x)
    layer(x)
    assert 2 in seen
    del squeeze.forward
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        layer(x)
    for branch, index, other in (
        ("channel_branch", 0, torch.nn.AdaptiveMaxPool2d(1)),
        ("channel_branch", 0, torch.nn.AdaptiveAvgPool2d(2)),
        ("spatial_branch", 0, torch.nn.Conv2d(16, 9, 3, padding=1)),
        ("spatial_branch", 0, torch.nn.Conv2d(16, 9, 1, groups=1).half()),
    ):
        changed = copy.deepcopy(layer)
        getattr(changed, branch)[index] = other
        with contextlib.suppress(RuntimeError):  # dtypes or shapes that do not fit are an error of the layers
            changed(x)
    assert "spatial_filters_kernel" not in launches
    layer(x)
    assert "spatial_filters_kernel" in launches


@pytest.mark.parametrize("frozen", ["x", "weights"])
def test_frozen_parts_of_the_fused_layer(frozen, launches):
    torch.manual_seed(0)
    layer = DDF(16)
    x = torch.randn(2, 16, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    everything = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    if frozen == "x":
        launches.clear()
        grads = torch.autograd.grad(layer(x.detach()).square().sum(), list(layer.parameters()))
        assert "ddf_backward_x_kernel" not in launches
        expected = everything[1:]
    else:
        layer.requires_grad_(False)
        grads, expected = torch.autograd.grad(layer(x).square().sum(), [x]), everything[:1]
    for a, b in zip(grads, expected, strict=True):
        assert torch.equal(a, b)
    assert layer(x).relu_().requires_grad  # an output that may be modified


def test_second_order_of_the_fused_kernel_says_what_to_do():
    layer = DDF(16)
    x = torch.randn(1, 16, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="fused_filters=False"):
        grad.square().sum().backward()
    layer.fused_filters = False
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad.isfinite().all()
