"""Random arguments for the operators' tests, and comparisons with their definitions in float64."""

import torch

from ddfnet.ops.ddf import ddf_reference, ddf_up_reference

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def make_inputs(
    batch=2,
    channels=4,
    height=7,
    width=5,
    *,
    kernel_size=3,
    heads=1,
    stride=1,
    scale=None,
    filters="both",
    dtype=torch.float32,
    filter_dtype=None,
    memory_format=torch.contiguous_format,
    requires_grad=True,
    seed=0,
):
    """x, channel filter, spatial filter, for `ddf` or, with a scale, for `ddf_up`.

    `filters` is "both", "channel" or "spatial", and the other one is None.
    """
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape, dtype):
        values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        if len(shape) == 4 and shape[2:] != (kernel_size, kernel_size):
            values = values.contiguous(memory_format=memory_format)
        return values.requires_grad_(requires_grad)

    filter_dtype = filter_dtype or dtype
    out = (height - 1) // stride + 1, (width - 1) // stride + 1
    x = tensor(batch, channels, height, width, dtype=dtype)
    channel = spatial = None
    if filters != "spatial":
        phases = () if scale is None else (scale**2,)
        channel = tensor(batch, *phases, channels, kernel_size, kernel_size, dtype=filter_dtype)
    if filters != "channel":
        spatial = tensor(batch, (scale or 1) ** 2 * heads * kernel_size**2, *out, dtype=filter_dtype)
    return x, channel, spatial


def present(tensors):
    return [tensor for tensor in tensors if tensor is not None]


def evaluate(function, inputs, **options):
    """y and the gradients of every input that is present, for one fixed random gradient of y."""
    y = function(*inputs, **options)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y, *torch.autograd.grad(y, present(inputs), grad_y)]


def expected(inputs, *, dtype=None, **options):
    """The same by the definition in float64, from the same rounded inputs (and grad_y rounded to `dtype`)."""
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    y = (ddf_up_reference if "scale" in options else ddf_reference)(*doubles, **options)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad_y = grad_y.to(dtype or inputs[0].dtype).double()
    return [y, *torch.autograd.grad(y, present(doubles), grad_y)]


def relative_error(actual, exact):
    """Relative L2 error; not a number if any element is."""
    return ((actual.double() - exact).norm() / exact.norm()).item()


# Relative L2 error: half a unit in the last place of the result, and for sums in float32 some units of float32.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 3e-4, torch.bfloat16: 2.5e-3}
