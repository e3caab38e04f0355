"""The definition itself, against the formula written out index by index."""

import itertools

import pytest
import torch
from ddf_cases import make_inputs

from ddfnet.ops.ddf import ddf_reference


def by_index(x, channel_filter, spatial_filter, *, stride, dilation, combine, kernel_size):
    """DDF with no tensor operation but element access."""
    batch, channels, height, width = x.shape
    radius = (kernel_size - 1) // 2
    out_height, out_width = -(-height // stride), -(-width // stride)
    heads = 1 if spatial_filter is None else spatial_filter.shape[1] // kernel_size**2
    y = torch.zeros(batch, channels, out_height, out_width, dtype=x.dtype)
    for b, c, i, j in itertools.product(range(batch), range(channels), range(out_height), range(out_width)):
        head = c // (channels // heads)
        total = 0.0
        for u, v in itertools.product(range(kernel_size), range(kernel_size)):
            row, column = i * stride + (u - radius) * dilation, j * stride + (v - radius) * dilation
            if not (0 <= row < height and 0 <= column < width):
                continue
            if spatial_filter is None:
                weight = channel_filter[b, c, u, v]
            elif channel_filter is None:
                weight = spatial_filter[b, (head * kernel_size + u) * kernel_size + v, i, j]
            else:
                f, s = channel_filter[b, c, u, v], spatial_filter[b, (head * kernel_size + u) * kernel_size + v, i, j]
                weight = f * s if combine == "mul" else f + s
            total += float(x[b, c, row, column] * weight)
        y[b, c, i, j] = total
    return y


@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation", "heads", "combine", "filters"),
    [
        (1, 1, 1, 1, "mul", "both"),
        (3, 1, 1, 1, "mul", "both"),
        (3, 2, 1, 2, "add", "both"),
        (3, 1, 2, 4, "mul", "both"),
        (3, 3, 2, 2, "mul", "both"),
        (5, 2, 1, 1, "add", "both"),
        (5, 1, 1, 2, "mul", "spatial"),
        (3, 2, 1, 1, "mul", "channel"),
    ],
)
def test_reference_is_the_formula(kernel_size, stride, dilation, heads, combine, filters):
    inputs = make_inputs(
        2,
        4,
        5,
        4,
        kernel_size=kernel_size,
        heads=heads,
        stride=stride,
        filters=filters,
        dtype=torch.float64,
        requires_grad=False,
    )
    options = {"stride": stride, "dilation": dilation, "combine": combine, "kernel_size": kernel_size}
    torch.testing.assert_close(ddf_reference(*inputs, **options), by_index(*inputs, **options), rtol=1e-13, atol=1e-13)


def test_reference_with_an_identity_filter():
    x, *_ = make_inputs(1, 3, 5, 5, requires_grad=False)
    center = torch.zeros(1, 3, 3, 3)
    center[:, :, 1, 1] = 1
    torch.testing.assert_close(ddf_reference(x, center, None), x)


def test_reference_is_a_depthwise_convolution_without_spatial_filter():
    x, channel, _ = make_inputs(1, 4, 9, 8, kernel_size=5, dtype=torch.float64, requires_grad=False)
    convolved = torch.nn.functional.conv2d(x, channel.view(4, 1, 5, 5), stride=2, padding=4, dilation=2, groups=4)
    torch.testing.assert_close(ddf_reference(x, channel, None, stride=2, dilation=2), convolved)
