"""Batch normalizations as operators take them, and what they make of their input in training."""

from typing import NamedTuple

import torch
from torch import Tensor

from ddfnet.ops.common import memory_format_of, runs_on_triton

# Rows of the statistics of a batch normalization in training: the scale that kernels load by, which is never 0 (see
# `load_activated`), the shift, the true scale, the mean, 1 / sqrt(variance + eps), the unbiased variance.
STATISTICS = 6
SCALE, SHIFT, TRUE_SCALE, MEAN, INVERSE, VARIANCE = range(STATISTICS)


class BatchNorm(NamedTuple):
    """A batch normalization in inference, (x - mean) / sqrt(variance + eps) * weight + bias; the tensors are (C,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    eps: float


class TrainedNorm(NamedTuple):
    """A batch normalization in training, with the statistics of its input; weight and bias are (C,)."""

    weight: Tensor
    bias: Tensor
    eps: float


def fusible(x: Tensor) -> bool:
    """Whether the kernels apply: on Triton, channels_last, at most single precision."""
    return (
        runs_on_triton(x)
        and x.dim() == 4
        and x.numel() > 0
        and x.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and memory_format_of(x) == torch.channels_last
    )
