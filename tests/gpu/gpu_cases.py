"""What the GPU tests share: device, arguments on it, coverage of options, comparison with the float64 definition."""

import contextlib
import os

import pytest
import torch
from ddf_cases import TOLERANCE, make_inputs, present, relative_error

from ddfnet.ops.ddf import ddf, ddf_reference

DEVICE = torch.device(os.environ.get("DDFNET_GPU_TESTS_DEVICE", "cuda"))
DRY_RUN = DEVICE.type != "cuda"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
needs_cuda = pytest.mark.skipif(DRY_RUN, reason="CUDA only: this is a dry run on another device")


def case_id(case):
    return "-".join(f"{key[0]}{value}" if isinstance(value, int) else value for key, value in case.items())


def arguments(*shape, **options):
    """`make_inputs` moved to the device: the same numbers on every device."""
    return to_device(make_inputs(*shape, requires_grad=False, **options))


def to_device(tensors):
    return [None if t is None else t.detach().to(DEVICE).requires_grad_() for t in tensors]


def random_tensor(shape, dtype, *, seed, memory_format=torch.contiguous_format):
    """Made on the device: for shapes that would take seconds on the CPU."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.empty(shape, dtype=dtype, device=DEVICE, memory_format=memory_format).normal_(generator=generator)


def random_like(y, dtype=None, seed=1):
    """A gradient for y: the same numbers on every device, in the memory format of y."""
    values = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.empty_like(y, dtype=dtype or y.dtype).copy_(values)


@contextlib.contextmanager
def poisoned_memory():
    """Uninitialized memory is NaN, so that an element that no kernel writes shows in the relative error."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(4, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def tolerance(name, tensor):
    """Bound of the relative L2 error of one result, for its dtype."""
    limit = TOLERANCE[tensor.dtype]
    if name in ("grad_channel", "grad_spatial") and tensor.dtype in (torch.float32, torch.float64):
        limit *= 2  # long sums
    if tensor.numel() < 256:
        limit = max(limit, 0.6 * torch.finfo(tensor.dtype).eps)  # few roundings do not average
    return limit


def compare(actual, exact, inputs):
    """Assert on (y, gradients of the inputs that are present): dtype, shape, relative error."""
    labels = ("grad_x", "grad_channel", "grad_spatial")
    names = ["y", *(label for label, tensor in zip(labels, inputs, strict=True) if tensor is not None)]
    errors = {}
    for name, a, e, like in zip(names, actual, exact, [inputs[0], *present(inputs)], strict=True):
        assert (a.shape, a.dtype) == (e.shape, like.dtype), name
        errors[name] = (relative_error(a, e), tolerance(name, a))
    assert all(error <= limit for error, limit in errors.values()), errors  # false for NaN too


def check(inputs, function=ddf, reference=ddf_reference, make_grad=random_like, **options):
    """y and all gradients of `function` against `reference` in float64 from the same rounded inputs; returns them."""
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    exact = reference(*doubles, **options)
    grad_y = make_grad(exact.detach(), dtype=inputs[0].dtype)
    exact = [exact, *torch.autograd.grad(exact, present(doubles), grad_y.double())]
    with poisoned_memory():
        y = function(*inputs, **options)
        actual = [y, *torch.autograd.grad(y, present(inputs), grad_y)]
    compare(actual, exact, inputs)
    return actual


def assert_same_bits(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def unaligned(tensor):
    """The same values and strides, one element past an address that is a multiple of 16."""
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    view = torch.as_strided(storage, tensor.shape, tensor.stride(), 1).copy_(tensor.detach())
    assert view.data_ptr() % 16 != 0
    return view.requires_grad_(tensor.requires_grad)
