"""`ddf_up` on the CPU: its definition, numbers, gradients, strides, errors, and torch.compile."""

import pytest
import torch
import torch.nn.functional as F
from ddf_cases import FORMATS, TOLERANCE, evaluate, expected, make_inputs, relative_error

from ddfnet.ops.ddf import ddf, ddf_up, ddf_up_reference

pytestmark = pytest.mark.usefixtures("each_path")


def test_the_definition_is_six_loops():
    torch.manual_seed(0)
    scale, heads, height, width = 2, 2, 3, 4
    x = torch.randn(1, 4, height, width, dtype=torch.float64)
    channel = torch.randn(1, scale**2, 4, 3, 3, dtype=torch.float64)
    spatial = torch.randn(1, scale**2 * heads * 9, height, width, dtype=torch.float64)
    y = ddf_up_reference(x, channel, spatial, scale=scale, kernel_size=3)
    taps = spatial.view(scale, scale, heads, 3, 3, height, width)
    for c in range(4):
        for i in range(height * scale):
            for j in range(width * scale):
                row, a, column, e = i // scale, i % scale, j // scale, j % scale
                total = 0.0
                for u in range(3):
                    for v in range(3):
                        if 0 <= row + u - 1 < height and 0 <= column + v - 1 < width:
                            weight = channel[0, a * scale + e, c, u, v] * taps[a, e, c // 2, u, v, row, column]
                            total += x[0, c, row + u - 1, column + v - 1] * weight
                assert y[0, c, i, j].item() == pytest.approx(float(total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    "case",
    [
        {"scale": 2},
        {"scale": 3, "combine": "add"},
        {"scale": 4, "heads": 2},
        {"scale": 2, "dilation": 2, "kernel_size": 5},
        {"scale": 2, "filters": "channel"},
        {"scale": 3, "filters": "spatial", "heads": 2},
    ],
    ids=str,
)
def test_numbers_and_gradients(case, memory_format, dtype):
    shape = {key: value for key, value in case.items() if key not in ("combine", "dilation")}
    options = {key: case[key] for key in ("scale", "combine", "dilation") if key in case}
    options["kernel_size"] = case.get("kernel_size", 3)
    inputs = make_inputs(2, 4, 6, 5, dtype=dtype, memory_format=FORMATS[memory_format], **shape)
    actual, exact = evaluate(ddf_up, inputs, **options), expected(inputs, **options)
    for index, (a, e) in enumerate(zip(actual, exact, strict=True)):
        assert relative_error(a, e) <= TOLERANCE[dtype], index
    assert actual[0].is_contiguous(memory_format=FORMATS[memory_format])
    assert actual[1].stride() == inputs[0].stride()


def test_gradcheck_to_the_second_order():
    inputs = make_inputs(1, 1, 2, 3, scale=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: ddf_up(*t, scale=2), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: ddf_up(*t, scale=2), inputs)


def test_one_hot_filters_are_nearest_neighbor_upsampling():
    x = torch.randn(2, 3, 4, 5)
    channel = torch.zeros(2, 9, 3, 3, 3)
    channel[..., 1, 1] = 1
    assert torch.equal(ddf_up(x, channel, None, scale=3), F.interpolate(x, scale_factor=3))


@pytest.mark.parametrize("filters", ["both", "channel", "spatial"])
def test_empty_batch(filters):
    inputs = make_inputs(0, 4, 3, 5, scale=2, filters=filters)
    y, *grads = evaluate(ddf_up, inputs, scale=2, kernel_size=3)
    assert y.shape == (0, 4, 6, 10)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs if tensor is not None]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"scale": 1}, ValueError, ["scale", "1", "at least 2"]),
        ({"scale": 2.0}, TypeError, ["scale", "2.0"]),
        ({"scale": 3}, ValueError, ["spatial_filter", "36", "multiple of", "9"]),
        ({"channel_filter": torch.zeros(2, 4, 3, 3)}, ValueError, ["channel_filter", "4 dimensions", "scale*scale"]),
        ({"channel_filter": torch.zeros(2, 9, 4, 3, 3)}, ValueError, ["channel_filter", "(2, 4, 4, 3, 3)"]),
        ({"spatial_filter": torch.zeros(2, 36, 6, 5)}, ValueError, ["spatial_filter", "(2, 36, 5, 5)", "scale 2"]),
        ({"channel_filter": None, "spatial_filter": None}, ValueError, ["both are None"]),
        ({"kernel_size": 5}, ValueError, ["kernel_size", "5"]),
    ],
    ids=str,
)
def test_errors_name_argument_value_and_what_was_expected(change, error, words):
    x, channel, spatial = make_inputs(2, 4, 5, 5, scale=2, requires_grad=False)
    arguments = {"channel_filter": channel, "spatial_filter": spatial, "scale": 2, **change}
    if change == {"scale": 3}:
        arguments["channel_filter"] = None
        arguments["spatial_filter"] = torch.zeros(2, 38, 5, 5)
        words = ["spatial_filter", "38", "multiple of", "9"]
    with pytest.raises(error) as caught:
        ddf_up(x, **arguments)
    for word in words:
        assert word in str(caught.value)


def test_autocast():
    inputs = make_inputs(2, 4, scale=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, *grads = evaluate(ddf_up, inputs, scale=2)
    assert y.dtype == torch.bfloat16
    assert [grad.dtype for grad in grads] == [torch.float32] * 3


def test_compile_and_export():
    inputs = make_inputs(2, 4, 5, 6, scale=2, kernel_size=1, memory_format=torch.channels_last)
    y = ddf_up(*inputs, scale=2)
    compiled = torch.compile(ddf_up, fullgraph=True, backend="aot_eager")(*inputs, scale=2)
    assert compiled.stride() == y.stride()
    torch.testing.assert_close(compiled, y)
    grads = [torch.autograd.grad(out.square().sum(), inputs) for out in (compiled, y)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)

    class Up(torch.nn.Module):
        def forward(self, *tensors):
            return ddf_up(*tensors, scale=2)

    tensors = tuple(tensor.detach() for tensor in inputs)
    program = torch.export.export(Up(), tensors)
    torch.testing.assert_close(program.module()(*tensors), y)


def test_opcheck():
    inputs = make_inputs(2, 4, 3, 4, scale=2, kernel_size=1, memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.ddfnet.ddf.default, (*inputs, 1, 1, 1, True, 2))


def test_each_phase_is_a_ddf():
    x, channel, spatial = make_inputs(2, 4, 5, 6, scale=2, requires_grad=False)
    y = ddf_up(x, channel, spatial, scale=2)
    for phase in range(4):
        torch.testing.assert_close(
            y[..., phase // 2 :: 2, phase % 2 :: 2], ddf(x, channel[:, phase], spatial[:, phase * 9 : phase * 9 + 9])
        )
