"""Decisions about dtype, memory format and size that every implementation and the fake one must take alike."""

import torch
from torch import Tensor


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last for a tensor that is channels_last only; contiguous for everything else.

    A tensor with one channel or a 1x1 map is both at once and counts as contiguous: the output then has the same
    channel count or map size, so it is both as well. Other strides are copied to contiguous.
    """
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def output_size(x: Tensor, stride: int) -> tuple[int, int]:
    """(Ho, Wo) = (ceil(H/stride), ceil(W/stride)): what the padded convolution of the same stride gives."""
    return (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1
