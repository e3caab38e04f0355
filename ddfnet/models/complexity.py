"""Parameters and multiply-adds of a model, in the two conventions that papers use."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddfnet.models.factory import create_model


@dataclass(frozen=True)
class Complexity:
    """The cost of one forward pass of one image."""

    parameters: int  # learned numbers, running statistics not among them
    # Of convolutions, matrix products and filters (each tap of a DDF counts once), as counted by torch's
    # FlopCounterMode. Papers call these FLOPs.
    multiply_adds: int
    # multiply_adds, plus 2 for each output of a batch normalization and 1 for each of a ReLU: the convention of the
    # common counters with module hooks, behind the 4.1 B usually printed for ResNet50 and the paper's 2.298 B.
    printed: int


def count_complexity(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Complexity:
    """Counts one forward pass of an image (channels, height, width) on the model's own device; on the meta device
    nothing is computed."""
    like = next(model.parameters(), torch.empty(0))
    image = torch.empty(1, *input_size, device=like.device, dtype=like.dtype)
    elements: list[int] = []
    handles = [
        module.register_forward_hook(partial(_count_elements, elements, 2 if isinstance(module, nn.BatchNorm2d) else 1))
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d | nn.ReLU)
    ]
    training = [module for module in model.modules() if module.training]  # some may be frozen
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        for module in training:
            module.training = True
        for handle in handles:
            handle.remove()
    multiply_adds = counter.get_total_flops() // 2
    return Complexity(sum(p.numel() for p in model.parameters()), multiply_adds, multiply_adds + sum(elements))


def _count_elements(elements: list[int], weight: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
    elements.append(weight * output.numel())


def model_complexity(name: str, input_size: tuple[int, int, int] = (3, 224, 224), **kwargs: Any) -> Complexity:
    """`count_complexity` of a model by name, without allocating its weights."""
    if input_size[0] != 3:
        kwargs = {"in_chans": input_size[0], **kwargs}
    with torch.device("meta"):
        return count_complexity(create_model(name, **kwargs), input_size)
