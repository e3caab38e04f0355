"""Drawing of depth maps side by side, for `python scripts/visualize depth`. Needs matplotlib."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddfnet.checkpoint import read_weights
from ddfnet.models.weights import load_weights
from ddfnet.tasks.depth.config import DepthConfig
from ddfnet.tasks.depth.data import DepthReader, denormalize_guidance, normalize_guidance
from ddfnet.tasks.depth.network import DDFUpNet, interpolate
from ddfnet.tasks.depth.pairs import open_pairs
from ddfnet.tasks.evaluation import EvaluationOptions, stored_config
from ddfnet.utils.errors import CheckpointError, UserError


def draw_depth(checkpoint: Path, *, data: Path | None = None, indices: list[int] | None = None) -> Figure:
    """One row per held-out pair (None: the first two): guidance, input, bicubic and network beside the truth, and both
    errors. UserError where the checkpoint is of no depth run, an index is out of range, or data cannot be read.

    Args:
        checkpoint: `best.pt` or `last.pt`.
        data: `data.root`, where it is not that of training.
    """
    weights = read_weights(checkpoint)
    meta = weights.meta or {}
    if meta.get("task") != "depth":
        raise CheckpointError(f"{checkpoint} is of the task {meta.get('task', 'unknown')}: give a checkpoint of depth")
    config = stored_config(DepthConfig, checkpoint, weights, EvaluationOptions(data=data))
    pairs = open_pairs(config.data, "val")
    indices = indices if indices is not None else list(range(min(2, len(pairs))))
    for index in indices:
        if not 0 <= index < len(pairs):
            raise UserError(f"--index {index}: the validation set has the pairs 0 to {len(pairs) - 1}")
    network = DDFUpNet(**meta["model"]["kwargs"]).eval()
    load_weights(network, weights, source=checkpoint, name="ddf_up_net")
    reader = DepthReader(pairs, config.data)
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
