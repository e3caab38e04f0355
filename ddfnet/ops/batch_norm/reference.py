"""The definition of batch normalization with what follows it, in PyTorch: sums in float32, in float64 for float64."""

import torch
from torch import Tensor

from ddfnet.ops.batch_norm.arguments import BatchNorm
from ddfnet.ops.common import accumulator_dtype


def batch_statistics(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Of x (B, C, H, W) with more than one pixel; rows as in `arguments.py`, in the dtype of the sums."""
    wide = accumulator_dtype(x)
    variance, mean = torch.var_mean(x.to(wide), (0, 2, 3), correction=0)
    inverse = (variance + eps).rsqrt()
    scale, count = weight.to(wide) * inverse, x.numel() // x.shape[1]
    return torch.stack([scale, bias.to(wide) - mean * scale, scale, mean, inverse, variance * count / (count - 1)])


def running_affine(norm: BatchNorm, dtype: torch.dtype) -> Tensor:
    """Scale and shift, (2, C), of a normalization with the statistics of training."""
    scale = norm.weight.to(dtype) / torch.sqrt(norm.variance.to(dtype) + norm.eps)
    return torch.stack([scale, norm.bias.to(dtype) - norm.mean.to(dtype) * scale])


def normalized(x: Tensor, affine: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """[relu](x * scale + shift [+ residual]), in the dtype of `affine`, whose first rows are scale and shift."""
    scale, shift, *_ = affine[..., None, None]
    y = x.to(affine.dtype) * scale + shift
    if residual is not None:
        y = y + residual.to(affine.dtype)
    return y.relu() if relu else y


def before_relu(grad_y: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient before a ReLU that made y: 0 where that is 0. NaN lets it through."""
    return torch.where(y <= 0, 0, grad_y.to(dtype))


def batch_norm_backward(grad_y: Tensor, x: Tensor, statistics: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Gradients of x, and of weight and bias, of that behind the normalization; in the dtype of the sums."""
    _, _, scale, mean, inverse, _ = statistics[..., None, None]
    normal = (x.to(statistics.dtype) - mean) * inverse
    along = (grad_y * normal).mean((0, 2, 3), keepdim=True)
    average = grad_y.mean((0, 2, 3), keepdim=True)
    grad_x = scale * (grad_y - average - normal * along)
    count = x.numel() // x.shape[1]
    return grad_x, (along.flatten() * count, average.flatten() * count)
