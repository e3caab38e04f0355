"""Batch norm over several processes: synchronized batches, or local batches with averaged running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from ddfnet.engine.distributed import Distributed
from ddfnet.utils.errors import ConfigError


class GlooSyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes on CPU, where `nn.SyncBatchNorm` does not run.

    Plain differentiable all-reduces in two passes (mean, then variance); meant for tests and small runs.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        axes = (0, 2, 3)
        count = torch.tensor(x.numel() / x.shape[1], dtype=torch.float64)
        dist.all_reduce(count)
        work = x.double()
        mean = all_reduce(work.sum(axes)) / count
        centered = work - mean.view(1, -1, 1, 1)
        variance = all_reduce(centered.square().sum(axes)) / count
        if self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None:
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
            unbiased = variance.detach() * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        normal = centered * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        if self.affine:
            normal = normal * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return normal.to(x.dtype)


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Makes every batch norm of a model use the batches of all processes; parameter names stay.

    Raises:
        ConfigError: on CPU, a batch norm that is not a plain `nn.BatchNorm2d`.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                options = child.eps, child.momentum, child.affine, child.track_running_stats
                synced = GlooSyncBatchNorm2d(child.num_features, *options)
                synced.load_state_dict(child.state_dict())
                setattr(module, name, synced)
            elif isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, GlooSyncBatchNorm2d):
                raise ConfigError(
                    f"train.sync_bn on CPU knows nn.BatchNorm2d only, this model has {type(child).__name__}: "
                    "set train.sync_bn=false or train on GPUs"
                )
    return model


def local_statistics(model: nn.Module) -> Tensor:
    """All floating-point buffers of a model (the running statistics) as one flat float32 vector."""
    parts = [buffer.detach().float().flatten() for buffer in model.buffers() if buffer.is_floating_point()]
    return torch.cat(parts) if parts else torch.empty(0)


def load_statistics(model: nn.Module, flat: Tensor) -> None:
    """Puts a vector of `local_statistics` back."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


@contextmanager
def averaged_statistics(model: nn.Module, distributed: Distributed) -> Iterator[None]:
    """Within the block the running statistics are the mean over all processes; after it each has its own again.

    Restoring them keeps training independent of when it is evaluated or saved.
    """
    if distributed.world_size == 1:
        yield
        return
    own = local_statistics(model).to(distributed.device)
    load_statistics(model, distributed.reduce_(own.clone(), "sum") / distributed.world_size)
    try:
        yield
    finally:
        load_statistics(model, own)
