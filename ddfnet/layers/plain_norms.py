"""Which `nn.BatchNorm2d` an operator can take the place of, and what it then has to do for it."""

import itertools
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ddfnet.ops.batch_norm.arguments import BatchNorm, TrainedNorm


def is_affine_map(norm: nn.BatchNorm2d) -> bool:
    """Whether it has weight and bias, and the statistics of training."""
    return norm.running_mean is not None and norm.weight is not None and norm.bias is not None


def takes_batch_statistics(norm: nn.BatchNorm2d) -> bool:
    """Whether it normalizes by its batch and updates its own statistics with one momentum; so it is not frozen."""
    return norm.training and norm.track_running_stats and norm.momentum is not None


def running(norm: nn.BatchNorm2d) -> BatchNorm:
    """It as operators of inference take it."""
    return BatchNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)  # type: ignore[arg-type]


def trained(norm: nn.BatchNorm2d) -> TrainedNorm:
    """It as operators of training take it."""
    return TrainedNorm(norm.weight, norm.bias, norm.eps)


@torch.no_grad()
def update_statistics(norms: Sequence[nn.BatchNorm2d], moments: Iterable[tuple[Tensor, Tensor]]) -> None:
    """As the normalizations do, of mean and unbiased variance of a batch; one kernel for many tensors.

    Not `lerp`, which Inductor would give a tensor with the momentum, copied from the host.
    """
    buffers = [cast(Tensor, buffer) for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    new = [moment.to(buffer.dtype) for moment, buffer in zip(itertools.chain(*moments), buffers, strict=True)]
    same = all(norm.momentum == norms[0].momentum for norm in norms)
    for index, norm in enumerate(norms[:1] if same else norms):
        momentum, part = cast(float, norm.momentum), slice(None) if same else slice(2 * index, 2 * index + 2)
        torch._foreach_mul_(buffers[part], 1 - momentum)
        torch._foreach_add_(buffers[part], new[part], alpha=momentum)
    if counts := [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]:
        torch._foreach_add_(counts, 1)


def differentiates_forward() -> bool:
    """Whether tangents are computed, which operators have none of; they pass through no_grad as well."""
    return torch.autograd.forward_ad._current_level >= 0


def needs_gradient(tensors: Iterable[Tensor | None], layers: Iterable[nn.Module | None]) -> bool:
    """Whether one is asked for, of a tensor or of a parameter of the layers."""
    if differentiates_forward():
        return True
    if not torch.is_grad_enabled():
        return False
    modules = [layer for layer in layers if layer is not None]
    if any(getattr(module, "_is_replica", False) for module in modules):  # of DataParallel: it lists none
        return True
    parameters = (parameter for module in modules for parameter in module.parameters())
    return any(tensor is not None and tensor.requires_grad for tensor in itertools.chain(tensors, parameters))
