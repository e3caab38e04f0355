"""A DDF between two batch normalizations with ReLUs, in one operator where that is possible."""

from typing import cast

import torch
from torch import Tensor, nn

from ddfnet.layers.ddf import DDF, is_watched
from ddfnet.layers.plain_norms import (
    differentiates_forward,
    is_affine_map,
    needs_gradient,
    running,
    takes_batch_statistics,
    trained,
    update_statistics,
)
from ddfnet.ops.common import autocast
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
    fits = x.dim() == 4 and all(norm.num_features == layer.channels == x.shape[1] for norm in norms)
    fits = fits and all(cast(Tensor, norm.running_mean).device == x.device for norm in norms)
    if not fits or not layer.is_fused(given):
        return one_by_one(x, *layers)
    if trains:
        return _trained(given, *norms, layer) if _may_train(x, *layers) else one_by_one(x, *layers)
    if needs_gradient([x], layers):
        return one_by_one(x, *layers)
    weights, settings = layer.operands()
    first, second = map(running, norms)
    return ddf_layer_between(given, first, weights, second, settings)


def one_by_one(x: Tensor, *layers: nn.Module) -> Tensor:
    """The layers called in turn."""
    for layer in layers:
        x = layer(x)
    return x


def absorbs_norms(*layers: nn.Module) -> bool:
    """Whether the layers, those of `normalized_ddf`, are ones that its operator of inference can take the place of.

    Only normalizations have a mode: they may be frozen in a network that trains.
    """
    return _are_plain(*layers) and not any(norm.training for norm in _norms(layers))


def absorbs_trained_norms(*layers: nn.Module) -> bool:
    """Whether they are ones that its operator of training can take the place of: not frozen, with one momentum each."""
    return _are_plain(*layers) and all(map(takes_batch_statistics, _norms(layers)))


def _are_plain(*layers: nn.Module) -> bool:
    return (
        tuple(map(type, layers)) == _TYPES
        and not any(map(is_watched, layers))
        and not nn.modules.module._has_any_global_hook()
        and layers[0] is not layers[3]
        and all(map(is_affine_map, _norms(layers)))
    )


def _norms(layers: tuple[nn.Module, ...]) -> list[nn.BatchNorm2d]:
    return [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]


def _trained(x: Tensor, before: nn.BatchNorm2d, after: nn.BatchNorm2d, layer: DDF) -> Tensor:
    """The operator of training, and the update of the normalizations' statistics."""
    weights, settings = layer.operands()

    def update(*moments: tuple[Tensor, Tensor]) -> None:
        update_statistics((before, after), moments)

    return ddf_layer_trained(x, trained(before), weights, trained(after), settings, update)


def _may_train(x: Tensor, *layers: nn.Module) -> bool:
    """Whether there is more than one pixel to normalize over, before and behind the layer, and no tangent is asked for,
    which the operator has none of. (The layers have the errors for both.)"""
    stride = cast(DDF, layers[2]).stride
    pixels = x.shape[0] * ((x.shape[2] - 1) // stride + 1) * ((x.shape[3] - 1) // stride + 1)
    return pixels > 1 and not differentiates_forward()
