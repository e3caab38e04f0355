"""More than 2^31 elements: in a batch (64-bit offsets of images) and in one image (64-bit offsets inside it).

The whole result cannot be compared in float64. Gradients are local, so windows of the input give them: whole images of
the batch, corners of the one image (with a halo of one pixel, which is computed but not compared).
"""

import gc

import pytest
import torch
from ddf_cases import FORMATS, relative_error
from gpu_cases import DEVICE, DRY_RUN, random_tensor, tolerance
from torch import nn

from ddfnet import ddf
from ddfnet.layers.normalized_sum import normalized_sum
from ddfnet.ops.ddf import ddf_reference

# one at a time: each takes a good part of the memory
pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("large")]

GIB = 2**30
NAMES = ("y", "grad_x", "grad_channel", "grad_spatial")
WINDOW = 8


@pytest.fixture(autouse=True)
def _return_memory():
    yield
    gc.collect()
    if not DRY_RUN:
        torch.cuda.empty_cache()


def require_memory(elements):
    """x, y and two gradients in bfloat16, filters and partial sums, and room for other processes."""
    if DRY_RUN:
        return
    assert elements > 2**31
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    needed = 8 * elements + 14 * GIB
    if free < needed:
        pytest.skip(f"needs {needed / GIB:.0f} GiB of GPU memory, {free / GIB:.0f} of {total / GIB:.0f} GiB are free")


def forward_and_backward(batch, channels, height, width, memory_format):
    """The three inputs, grad_y, and [y, grad_x, grad_channel, grad_spatial], in bfloat16."""
    shapes = ((batch, channels, height, width), (batch, channels, 3, 3), (batch, 9, height, width))
    formats = (memory_format, torch.contiguous_format, memory_format)
    inputs = [
        random_tensor(shape, torch.bfloat16, seed=i, memory_format=f).requires_grad_()
        for i, (shape, f) in enumerate(zip(shapes, formats, strict=True))
    ]
    grad_y = random_tensor(shapes[0], torch.bfloat16, seed=3, memory_format=memory_format)
    y = ddf(*inputs)
    grads = torch.autograd.grad(y, inputs, grad_y)
    return [tensor.detach() for tensor in inputs], grad_y, [y.detach(), *grads]


def definition(inputs, grad_y):
    doubles = [tensor.double().requires_grad_() for tensor in inputs]
    y = ddf_reference(*doubles)
    return [y.detach(), *torch.autograd.grad(y, doubles, grad_y.double())]


def assert_close(name, actual, exact, where):
    assert relative_error(actual, exact) <= tolerance(name, actual), (name, where)


@pytest.mark.parametrize("format_name", FORMATS)
def test_many_images(format_name):
    batch, channels, size = (2056, 64, 128) if not DRY_RUN else (5, 8, 12)
    require_memory(batch * channels * size * size)
    inputs, grad_y, actual = forward_and_backward(batch, channels, size, size, FORMATS[format_name])
    for image in (0, batch // 2 - 1, batch - 1):
        one = slice(image, image + 1)
        exact = definition([tensor[one] for tensor in inputs], grad_y[one])
        for name, a, e in zip(NAMES, actual, exact, strict=True):
            assert_close(name, a[one], e, image)


@pytest.mark.parametrize("format_name", FORMATS)
def test_one_huge_image(format_name):
    channels, height, width = (2048, 1030, 1030) if not DRY_RUN else (16, 21, 19)
    require_memory(channels * height * width)
    inputs, grad_y, actual = forward_and_backward(1, channels, height, width, FORMATS[format_name])
    for top in (0, height // 2, height - WINDOW):
        for left in (0, width - WINDOW):
            rows, columns = slice(top, top + WINDOW), slice(left, left + WINDOW)
            x, channel, spatial = inputs
            window = [x[..., rows, columns], channel, spatial[..., rows, columns]]
            y, grad_x, _, grad_spatial = definition(window, grad_y[..., rows, columns])
            # an edge of the window that is an edge of the image is exact, the others lack their neighbors
            inner = (
                slice(0 if top == 0 else 1, WINDOW if top + WINDOW == height else WINDOW - 1),
                slice(0 if left == 0 else 1, WINDOW if left + WINDOW == width else WINDOW - 1),
            )
            for index, exact in ((0, y), (1, grad_x), (3, grad_spatial)):
                a = actual[index][..., rows, columns][(..., *inner)]
                e = exact[(..., *inner)]
                assert_close(NAMES[index], a, e, (top, left))
                # the last channels alone too: an error in them would be small among all
                last = slice(-1, None)
                assert_close(NAMES[index], a[:, last], e[:, last], (top, left, "last channel"))
    # the gradient of a channel's filter is a sum over the whole image: exact for a few channels
    for part in (slice(0, 1), slice(channels - 1, channels)):
        exact = definition([inputs[0][:, part], inputs[1][:, part], inputs[2]], grad_y[:, part])
        assert_close("grad_channel", actual[2][:, part], exact[2], part)


def end_of_a_block(x, shortcut, grad_y):
    """y in training, gradients of x and shortcut, y in inference; then gradients of weight and bias."""
    norm, act = nn.BatchNorm2d(x.shape[1]).to(DEVICE).train(), nn.ReLU()
    leaves = [x.detach().requires_grad_(), shortcut.detach().requires_grad_()]
    y = normalized_sum(leaves[0], norm, leaves[1], act, training=True)
    assert DRY_RUN or "_Trained" in type(y.grad_fn).__name__  # not the layers
    grads = torch.autograd.grad(y, [*leaves, *norm.parameters()], grad_y)
    with torch.no_grad():
        return [y.detach(), *grads[:2], normalized_sum(x, norm.eval(), shortcut, act)], grads[2:]


def test_the_end_of_a_block_of_many_images():
    """Eight images over and over have the statistics of the eight, hence the same results."""
    repeats, channels, size = (257, 64, 128) if not DRY_RUN else (3, 8, 6)
    require_memory(8 * repeats * channels * size * size)
    shape = (8, size, size, channels)
    few = [random_tensor(shape, torch.bfloat16, seed=i).permute(0, 3, 1, 2) for i in range(3)]
    expected, of_norm = end_of_a_block(*few)
    many = [tensor.permute(0, 2, 3, 1).repeat(repeats, 1, 1, 1).permute(0, 3, 1, 2) for tensor in few]
    actual, of_norm_of_many = end_of_a_block(*many)
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        for group in (0, repeats // 2, repeats - 1):
            assert relative_error(a[8 * group : 8 * group + 8], e.double()) <= 5e-3, (index, group)
    for a, e in zip(of_norm_of_many, of_norm, strict=True):
        assert relative_error(a / repeats, e.double()) <= 1e-3


def test_the_device_is_the_one_asked_for():
    assert random_tensor((1,), torch.float32, seed=0).device.type == DEVICE.type
