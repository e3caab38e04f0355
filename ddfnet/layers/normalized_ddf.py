"""A DDF between two batch normalizations with ReLUs, in one operator where that is possible."""

from typing import cast

import torch
from torch import Tensor, nn

from ddfnet.layers.ddf import DDF, is_watched
from ddfnet.ops.common import autocast
from ddfnet.ops.ddf_layer.arguments import BatchNorm, TrainedNorm
from ddfnet.ops.ddf_layer.inference import ddf_layer_between
from ddfnet.ops.ddf_layer.training import ddf_layer_trained

_TYPES = (nn.BatchNorm2d, nn.ReLU, DDF, nn.BatchNorm2d, nn.Identity, nn.ReLU)


def normalized_ddf(
    x: Tensor,
    before: nn.Module,
    act: nn.Module,
    ddf: nn.Module,
    after: nn.Module,
    drop: nn.Module,
    last_act: nn.Module,
    *,
    training: bool = False,
) -> Tensor:
    """`last_act(drop(after(ddf(act(before(x))))))`, (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)).

    One operator computes it, where that operator exists and nobody could tell but by rounding: with plain batch
    normalization, ReLU and `DDF`, none hooked, patched or exchanged, nothing dropped, and where the DDF is one operator
    itself (its `fused_filters`). In evaluation mode that is without gradients. In training mode, asked for by
    `training`, both normalizations take the statistics of the batch and update their own as ever; a momentum of None,
    which asks for averages over all batches, is left to them. Else the layers are called one by one.
    """
    layers = (before, act, ddf, after, drop, last_act)
    # torch.fx takes each layer as one node, and a proxy has no dtype to decide by.
    if isinstance(x, torch.fx.Proxy):
        return one_by_one(x, *layers)
    trains = training and absorbs_trained_norms(*layers)
    if not trains and not absorbs_norms(*layers):
        return one_by_one(x, *layers)
    layer, given, norms = cast(DDF, ddf), autocast(x), (cast(nn.BatchNorm2d, before), cast(nn.BatchNorm2d, after))
    # where sizes or devices do not fit, the error of the layers is the one to see
    fits = all(norm.num_features == layer.channels == x.shape[1] for norm in norms)
    fits = fits and all(cast(Tensor, norm.running_mean).device == x.device for norm in norms)
    if not fits or not layer.is_fused(given):
        return one_by_one(x, *layers)
    if trains:
        return _trained(given, *norms, layer) if _may_train(x, *layers) else one_by_one(x, *layers)
    if _needs_gradient(x, *layers):
        return one_by_one(x, *layers)
    weights, settings = layer.operands()
    first, second = (_of(norm) for norm in norms)
    return ddf_layer_between(given, first, weights, second, settings)


def one_by_one(x: Tensor, *layers: nn.Module) -> Tensor:
    """The layers called in turn."""
    for layer in layers:
        x = layer(x)
    return x


def absorbs_norms(*layers: nn.Module) -> bool:
    """Whether the layers, those of `normalized_ddf`, are ones that its operator of inference can take the place of."""
    return _are_plain(*layers) and not any(layer.training for layer in layers)


def absorbs_trained_norms(*layers: nn.Module) -> bool:
    """Whether they are ones that its operator of training can take the place of: not frozen, with one momentum each."""
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    return _are_plain(*layers) and all(norm.training and norm.momentum is not None for norm in norms)


def _are_plain(*layers: nn.Module) -> bool:
    return (
        tuple(map(type, layers)) == _TYPES
        and not any(map(is_watched, layers))
        and not nn.modules.module._has_any_global_hook()
        and all(_is_affine_map(layer) for layer in layers if isinstance(layer, nn.BatchNorm2d))
    )


def _is_affine_map(norm: nn.BatchNorm2d) -> bool:
    """Whether it has weight and bias, and the statistics of training."""
    return norm.running_mean is not None and norm.weight is not None


def _of(norm: nn.BatchNorm2d) -> BatchNorm:
    """It as the operator of inference takes it."""
    return BatchNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)  # type: ignore[arg-type]


def _trained(x: Tensor, before: nn.BatchNorm2d, after: nn.BatchNorm2d, layer: DDF) -> Tensor:
    """The operator of training, and the update of the normalizations' statistics."""
    weights, settings = layer.operands()
    first, second = (TrainedNorm(norm.weight, norm.bias, norm.eps) for norm in (before, after))
    z, *moments = ddf_layer_trained(x, first, weights, second, settings)
    with torch.no_grad():
        for norm, (mean, variance) in zip((before, after), moments, strict=True):
            for running, new in ((norm.running_mean, mean), (norm.running_var, variance)):
                buffer = cast(Tensor, running)
                buffer.lerp_(new.to(buffer.dtype), cast(float, norm.momentum))
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
    return z


def _may_train(x: Tensor, *layers: nn.Module) -> bool:
    """Whether there is more than one pixel to normalize over, before and behind the layer, and no tangent is asked for,
    which the operator has none of. (The layers have the errors for both.)"""
    stride = cast(DDF, layers[2]).stride
    pixels = x.shape[0] * ((x.shape[2] - 1) // stride + 1) * ((x.shape[3] - 1) // stride + 1)
    return pixels > 1 and torch.autograd.forward_ad._current_level < 0


def _needs_gradient(x: Tensor, *layers: nn.Module) -> bool:
    if torch.autograd.forward_ad._current_level >= 0:  # tangents pass through no_grad as well
        return True
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(parameter.requires_grad for layer in layers for parameter in layer.parameters())
