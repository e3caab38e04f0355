"""A classifier as a program of torch.export, and the same in PyTorch's core operators, which other runtimes know."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ddfnet.data.preprocessing import input_shape
from ddfnet.ops.common import DECOMPOSITIONS
from ddfnet.utils.errors import UserError


def traced(network: nn.Module, size: int | tuple[int, int, int], *, batch: int | None) -> ExportedProgram:
    """The network as a program for images of a size: channels, height and width, or the side of RGB images. A batch of
    None is any. UserError where the network does not run at this size."""
    device = next(network.parameters()).device
    image = torch.randn(batch or 2, *input_shape(size), device=device)  # torch.export takes a size of 1 for a constant
    shapes = None if batch else ({0: Dim("batch", min=1)},)
    with torch.no_grad():
        try:
            network(image)
        except RuntimeError as error:
            _, height, width = input_shape(size)
            raise UserError(f"the network does not run on images of {height} x {width} pixels: {error}") from None
        return torch.export.export(network, (image,), dynamic_shapes=shapes)


def decomposed(program: ExportedProgram, *, keep: Collection[Any] = ()) -> ExportedProgram:
    """The program without operators of ddfnet, and of PyTorch's with the core ones alone as far as it can be.

    Args:
        keep: operators that are left whole, such as `torch.ops.aten.conv2d.default`.
    """
    table: dict[Any, Callable] = {**torch.export.default_decompositions(), **DECOMPOSITIONS}
    table[torch.ops.aten.var_mean.correction] = _var_mean
    table = {operator: function for operator, function in table.items() if operator not in keep}
    with torch.no_grad():
        return program.run_decompositions(table)


def _var_mean(x: Tensor, dim: list[int] | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """PyTorch leaves this operator whole, though it is no core one: ExecuTorch and Core ML refuse it."""
    return x.var(dim, **options), x.mean(dim, keepdim=options.get("keepdim", False))
