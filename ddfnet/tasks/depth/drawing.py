"""Drawing of depth maps side by side, for `python scripts/visualize depth`. Needs matplotlib."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddfnet.tasks.depth.data import denormalize_guidance, normalize_guidance
from ddfnet.tasks.depth.loading import check_indices, load_depth
from ddfnet.tasks.depth.network import DDFUpNet, interpolate


def draw_depth(checkpoint: Path, *, data: Path | None = None, indices: list[int] | None = None) -> Figure:
    """One row per held-out pair (None: the first two): guidance, input, bicubic and network beside the truth, and both
    errors. UserError where the checkpoint is of no depth run, an index is out of range, or data cannot be read.

    Args:
        checkpoint: `best.pt` or `last.pt`.
        data: `data.root`, where it is not that of training.
    """
    network, reader = load_depth(checkpoint, data=data)
    indices = indices if indices is not None else list(range(min(2, len(reader.pairs))))
    check_indices(indices, reader, option="--index ")
    figure = Figure(figsize=(17, 2.6 * len(indices)), dpi=100, layout="constrained")
    for row, index in zip(figure.subplots(len(indices), 7, squeeze=False), indices, strict=True):
        (sample,) = reader.read_eval([index])
        _draw_row(row, sample, network)
    return figure


def _draw_row(row: Iterable[Axes], sample: dict[str, Tensor], network: DDFUpNet) -> None:
    low, truth, valid = sample["low"], sample["depth"], sample["valid"]
    guidance = normalize_guidance(sample["guidance"])
    bicubic = interpolate(low, network.factor, "bicubic")
    with torch.inference_mode():
        output = network(low, guidance)
    errors, output_errors = (100 * (depth - truth).abs().where(valid, 0) for depth in (bicubic, output))
    depths = {"cmap": "viridis", "vmin": truth[valid].min().item(), "vmax": truth[valid].max().item()}
    largest = {"cmap": "magma", "vmin": 0, "vmax": max(1e-6, torch.quantile(errors.flatten(), 0.99).item())}
    rmse, output_rmse = (error[valid].square().mean().sqrt().item() for error in (errors, output_errors))
    panels: tuple[tuple[str, Tensor, dict[str, Any]], ...] = (
        ("guidance", denormalize_guidance(guidance)[0].permute(1, 2, 0).clamp(0, 1), {}),
        (f"low resolution, 1/{network.factor}", low[0, 0], depths),
        (f"bicubic, RMSE {rmse:.2f} cm", bicubic[0, 0], depths),
        (f"DDF-Up-Net, RMSE {output_rmse:.2f} cm", output[0, 0], depths),
        ("truth", truth[0, 0].where(valid[0, 0], float("nan")), depths),
        (f"error of bicubic, 0 to {largest['vmax']:.1f} cm", errors[0, 0], largest),
        ("error of DDF-Up-Net", output_errors[0, 0], largest),
    )
    for axes, (title, pixels, options) in zip(row, panels, strict=True):
        axes.imshow(pixels.numpy(), interpolation="nearest", **options)
        axes.set_title(title, fontsize=8)
        axes.set(xticks=[], yticks=[])
