"""Batch normalization, the sum with a shortcut, and ReLU, in one operator where that is possible."""

from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from ddfnet.layers.ddf import is_watched
from ddfnet.layers.plain_norms import (
    differentiates_forward,
    is_affine_map,
    needs_gradient,
    running,
    takes_batch_statistics,
    trained,
    update_statistics,
)
from ddfnet.ops.batch_norm.arguments import fusible
from ddfnet.ops.batch_norm.inference import batch_norm
from ddfnet.ops.batch_norm.training import batch_norm_trained


def normalized_sum(
    x: Tensor, norm: nn.Module, shortcut: Tensor | None = None, act: nn.Module | None = None, *, training: bool = False
) -> Tensor:
    """`act(norm(x) + shortcut)`, (B, C, H, W) as x and shortcut; what is None is left out.

    One operator computes it, where that operator exists and nobody could tell but by rounding: eagerly, with plain
    batch normalization and ReLU, neither hooked, patched nor exchanged, and a shortcut of the dtype and memory format
    of x. In evaluation mode that is without gradients. In training mode it is asked for by `training`, and as of
    `normalized_ddf`: statistics of the batch, which update those of the normalization; not with a momentum of None.
    Else the layers are called one by one, and the sum is in place, as timm's blocks have it. So they are under
    torch.compile, which makes passes of its own of them.
    """
    plain = cast(nn.BatchNorm2d, norm)
    if takes_operators(x) and absorbs_sum(norm, act) and _fits(x, plain, shortcut):
        relu = act is not None
        if plain.training:
            more = x.numel() > x.shape[1]  # the layers have the error for a single pixel
            if training and takes_batch_statistics(plain) and more and (relu or shortcut is None):
                return batch_norm_trained(
                    x, trained(plain), shortcut, relu, lambda *moments: update_statistics([plain], [moments])
                )
        elif not needs_gradient((x, shortcut), (norm,)):
            return batch_norm(x, running(plain), shortcut, relu)
    x = norm(x)
    if shortcut is not None:
        x += shortcut
    return x if act is None else act(x)


def absorbs_sum(norm: nn.Module, act: nn.Module | None) -> bool:
    """Whether the layers, those of `normalized_sum`, are ones that its operators can take the place of."""
    return (
        type(norm) is nn.BatchNorm2d
        and type(act) in (nn.ReLU, type(None))
        and not any(layer is not None and is_watched(layer) for layer in (norm, act))
        and not nn.modules.module._has_any_global_hook()
        and is_affine_map(norm)
    )


def takes_operators(x: Tensor) -> bool:
    """Whether there are operators for x, and nobody traces or transforms the layers behind it, and has to see them."""
    if torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy) or torch._C._get_tracing_state() is not None:
        return False
    transformed = torch._C._functorch.peek_interpreter_stack() is not None or differentiates_forward()
    return not transformed and _is_map(x)


def _fits(x: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor | None) -> bool:
    """Whether the operators take these: where sizes, dtypes or devices do not fit, the layers have the error to see."""
    own = (norm.weight, norm.bias, cast(Tensor, norm.running_mean))
    fits = norm.num_features == x.shape[1]
    if not fits or any(tensor.device != x.device or tensor.dtype not in (x.dtype, torch.float32) for tensor in own):
        return False
    same = shortcut is None or (shortcut.shape, shortcut.dtype, shortcut.device) == (x.shape, x.dtype, x.device)
    return same and (shortcut is None or _is_map(shortcut))


def _is_map(x: Tensor) -> bool:
    return type(x) in (Tensor, FakeTensor) and fusible(x)
