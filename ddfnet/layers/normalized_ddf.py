"""A DDF between two batch normalizations with ReLUs, in one operator where that is possible."""

import itertools
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
    fits = x.dim() == 4 and all(norm.num_features == layer.channels == x.shape[1] for norm in norms)
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
    """Whether the layers, those of `normalized_ddf`, are ones that its operator of inference can take the place of.

    Only normalizations have a mode: they may be frozen in a network that trains.
    """
    return _are_plain(*layers) and not any(norm.training for norm in _norms(layers))


def absorbs_trained_norms(*layers: nn.Module) -> bool:
    """Whether they are ones that its operator of training can take the place of: not frozen, with one momentum each."""
    return _are_plain(*layers) and all(
        norm.training and norm.track_running_stats and norm.momentum is not None for norm in _norms(layers)
    )


def _are_plain(*layers: nn.Module) -> bool:
    return (
        tuple(map(type, layers)) == _TYPES
        and not any(map(is_watched, layers))
        and not nn.modules.module._has_any_global_hook()
        and layers[0] is not layers[3]
        and all(map(_is_affine_map, _norms(layers)))
    )


def _norms(layers: tuple[nn.Module, ...]) -> list[nn.BatchNorm2d]:
    return [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]


def _is_affine_map(norm: nn.BatchNorm2d) -> bool:
    """Whether it has weight and bias, and the statistics of training."""
    return norm.running_mean is not None and norm.weight is not None and norm.bias is not None


def _of(norm: nn.BatchNorm2d) -> BatchNorm:
    """It as the operator of inference takes it."""
    return BatchNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)  # type: ignore[arg-type]


def _trained(x: Tensor, before: nn.BatchNorm2d, after: nn.BatchNorm2d, layer: DDF) -> Tensor:
    """The operator of training, and the update of the normalizations' statistics."""
    weights, settings = layer.operands()
    first, second = (TrainedNorm(norm.weight, norm.bias, norm.eps) for norm in (before, after))
    z, *moments = ddf_layer_trained(x, first, weights, second, settings)
    _update_statistics((before, after), moments)
    return z


@torch.no_grad()
def _update_statistics(norms: tuple[nn.BatchNorm2d, ...], moments: list[tuple[Tensor, Tensor]]) -> None:
    """As the normalizations do, of mean and unbiased variance of a batch; one kernel for many tensors.

    Not `lerp`, which Inductor would give a tensor with the momentum, copied from the host.
    """
    running = [cast(Tensor, buffer) for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    new = [moment.to(buffer.dtype) for moment, buffer in zip(itertools.chain(*moments), running, strict=True)]
    same = norms[0].momentum == norms[1].momentum
    for part, norm in zip([slice(None)] if same else [slice(0, 2), slice(2, 4)], norms, strict=False):
        momentum = cast(float, norm.momentum)
        torch._foreach_mul_(running[part], 1 - momentum)
        torch._foreach_add_(running[part], new[part], alpha=momentum)
    if counts := [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]:
        torch._foreach_add_(counts, 1)


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
