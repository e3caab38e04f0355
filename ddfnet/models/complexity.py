"""Parameters and multiply-adds of a model, in the two conventions that papers use."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddfnet.models.factory import create_model


@dataclass(frozen=True)
class Complexity:
    """What one forward pass of one image costs.

    Attributes:
        parameters: learned numbers, running statistics not among them.
        multiply_adds: of convolutions, matrix products and filters (each tap of a DDF counts once), as counted by
            torch's FlopCounterMode. Papers call these FLOPs.
        printed: multiply_adds, plus 2 for each output of a batch normalization and 1 for each of a ReLU: the
            convention of the common counters with module hooks, behind the 4.1 B usually printed for ResNet50 and the
            2.298 B that the DDF paper prints.
    """

    parameters: int
    multiply_adds: int
    printed: int


def count_complexity(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Complexity:
    """Counts one forward pass on the model's own device; on the meta device nothing is computed.

    Args:
        input_size: channels, height and width of the image.
    """
    like = next(model.parameters(), torch.empty(0))
    image = torch.empty(1, *input_size, device=like.device, dtype=like.dtype)
    training = [module for module in model.modules() if module.training]  # some may be frozen
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter, _element_count(model) as elements:
            model(image)
    finally:
        for module in training:
            module.training = True
    multiply_adds = counter.get_total_flops() // 2
    return Complexity(sum(p.numel() for p in model.parameters()), multiply_adds, multiply_adds + sum(elements))


def model_complexity(name: str, input_size: tuple[int, int, int] = (3, 224, 224), **kwargs: Any) -> Complexity:
    """`count_complexity` of a model by name, without allocating its weights."""
    with torch.device("meta"):
        return count_complexity(create_model(name, **kwargs), input_size)


@contextmanager
def _element_count(model: nn.Module) -> Iterator[list[int]]:
    """Collects the elementwise operations of the layers that hook-based counters know."""
    elements: list[int] = []

    def count(per_element: int, output: Tensor) -> None:
        elements.append(per_element * output.numel())

    handles = []
    for module in model.modules():
        weight = 2 if isinstance(module, nn.BatchNorm2d) else 1 if isinstance(module, nn.ReLU) else 0
        if weight:
            handles.append(module.register_forward_hook(lambda _, __, output, weight=weight: count(weight, output)))
    try:
        yield elements
    finally:
        for handle in handles:
            handle.remove()
