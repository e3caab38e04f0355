"""A DDF between two batch normalizations with ReLUs, in one operator where no gradient is asked for."""

from typing import cast

import torch
from torch import Tensor, nn

from ddfnet.layers.ddf import DDF, is_watched
from ddfnet.ops.common import autocast
from ddfnet.ops.ddf_layer.arguments import BatchNorm
from ddfnet.ops.ddf_layer.inference import ddf_layer_between

_TYPES = (nn.BatchNorm2d, nn.ReLU, DDF, nn.BatchNorm2d, nn.Identity, nn.ReLU)


def normalized_ddf(
    x: Tensor, before: nn.Module, act: nn.Module, ddf: nn.Module, after: nn.Module, drop: nn.Module, last_act: nn.Module
) -> Tensor:
    """`last_act(drop(after(ddf(act(before(x))))))`, (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)).

    One operator computes it, where that operator exists and nobody could tell but by rounding: in evaluation mode,
    without gradients, with plain batch normalization, ReLU and `DDF`, none hooked, patched or exchanged, nothing
    dropped, and where the DDF is one operator itself (its `fused_filters`). Else the layers are called one by one.
    """
    layers = (before, act, ddf, after, drop, last_act)
    # torch.fx takes each layer as one node, and a proxy has no dtype to decide by.
    if isinstance(x, torch.fx.Proxy) or not absorbs_norms(*layers):
        return one_by_one(x, *layers)
    layer, given = cast(DDF, ddf), autocast(x)
    first, second = (_of(cast(nn.BatchNorm2d, norm)) for norm in (before, after))
    alike = len(first.mean) == len(second.mean) == layer.channels == x.shape[1]
    beside = first.mean.device == second.mean.device == x.device
    # where sizes or devices do not fit, the error of the layers is the one to see
    if not (alike and beside) or _needs_gradient(x, *layers) or not layer.is_fused(given):
        return one_by_one(x, *layers)
    weights, settings = layer.operands()
    return ddf_layer_between(given, first, weights, second, settings)


def one_by_one(x: Tensor, *layers: nn.Module) -> Tensor:
    """The layers called in turn."""
    for layer in layers:
        x = layer(x)
    return x


def absorbs_norms(*layers: nn.Module) -> bool:
    """Whether the layers, those of `normalized_ddf`, are ones that its operator can take the place of."""
    return (
        tuple(map(type, layers)) == _TYPES
        and not any(map(is_watched, layers))
        and not nn.modules.module._has_any_global_hook()
        and not any(layer.training for layer in layers)
        and all(_is_affine_map(layer) for layer in layers if isinstance(layer, nn.BatchNorm2d))
    )


def _is_affine_map(norm: nn.BatchNorm2d) -> bool:
    """Whether it has weight and bias, and the statistics of training."""
    return norm.running_mean is not None and norm.weight is not None


def _of(norm: nn.BatchNorm2d) -> BatchNorm:
    """It as the operator takes it."""
    return BatchNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)  # type: ignore[arg-type]


def _needs_gradient(x: Tensor, *layers: nn.Module) -> bool:
    if torch.autograd.forward_ad._current_level >= 0:  # tangents pass through no_grad as well
        return True
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(parameter.requires_grad for layer in layers for parameter in layer.parameters())
