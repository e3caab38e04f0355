"""Batch normalization folded into the convolutions before it: fewer passes over the features in inference."""

from typing import Any

import torch
from torch import Tensor, nn

from ddfnet.data.preprocessing import input_shape
from ddfnet.models.ddf_resnet import DDFBottleneck

_TOLERANCE = 1e-3  # of the largest logit; rounding in float32 stays far below, a wrong pair far above


@torch.no_grad()
def fold_batch_norm(network: nn.Module, size: int | tuple[int, int, int]) -> int:
    """Folds every `nn.BatchNorm2d` whose input is the output of one `nn.Conv2d`, in place; returns their number.

    Which these are is seen on random images that pass through the network, so that no naming scheme is needed. The
    network must be in evaluation mode. Its outputs stay the same up to rounding, which is checked; its state_dict does
    not: it cannot be trained on or loaded into. What follows a DDF is not folded, since it has no weights of its own;
    nor on CUDA what the kernels of a `DDFBottleneck` compute on their way (`fused_norms`): the normalizations before a
    DDF and before the sum with the shortcut.

    Args:
        network: takes images (B, channels, height, width).
        size: channels, height and width of the images; of RGB images the side alone.

    Raises:
        ValueError: the network is in training mode, or computes something else afterwards.
    """
    if network.training:
        raise ValueError("fold_batch_norm: the network is in training mode, which has other statistics: call eval()")
    weight = next(network.parameters())
    images = torch.randn(2, *input_shape(size), generator=torch.Generator().manual_seed(0)).to(weight)
    pairs, expected = _pairs(network, images)
    if images.device.type == "cuda":
        absorbed = {
            norm for block in network.modules() if isinstance(block, DDFBottleneck) for norm in block.absorbed_norms()
        }
        pairs = [(conv, norm) for conv, norm in pairs if norm not in absorbed]
    for conv, norm in pairs:
        _fold(conv, norm)
    replaced = {norm for _, norm in pairs}
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if child in replaced:
                setattr(module, name, nn.Identity())
    difference = (network(images) - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    if not difference <= _TOLERANCE:
        raise ValueError(f"fold_batch_norm: the outputs change by {difference:.2g}: leave batch normalization as it is")
    return len(pairs)


def _pairs(network: nn.Module, images: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """The convolutions that feed a batch normalization, with it, and the output of the network."""
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    met: list[tuple[nn.Conv2d | None, nn.BatchNorm2d]] = []

    def after_conv(conv: Any, _: Any, output: Tensor) -> None:
        outputs.append((conv, output))  # kept, so that no other tensor gets its identity

    def before_norm(norm: Any, arguments: tuple) -> None:
        met.append((next((conv for conv, output in outputs if output is arguments[0]), None), norm))

    hooks = [
        module.register_forward_hook(after_conv)
        if type(module) is nn.Conv2d
        else module.register_forward_pre_hook(before_norm)
        for module in network.modules()
        if type(module) in (nn.Conv2d, nn.BatchNorm2d)
    ]
    try:
        result = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    convs, norms = [conv for conv, _ in outputs], [norm for _, norm in met]
    pairs = [
        (conv, norm)
        for conv, norm in met
        if conv is not None and norm.running_mean is not None and convs.count(conv) == 1 and norms.count(norm) == 1
    ]
    return pairs, result


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.double()
    bias = (bias - norm.running_mean.double()) * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    conv.weight.copy_(conv.weight.double() * scale[:, None, None, None])
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
