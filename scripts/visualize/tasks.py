"""The drawings behind `visualize.py detections` and `visualize.py depth`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ddfnet.checkpoint import Weights, load_weights, read_checkpoint, read_weights
from ddfnet.data.dataset import open_rgb
from ddfnet.tasks import check_config
from ddfnet.tasks.depth.data import DepthEvalReader, denormalize_guidance, normalize_guidance
from ddfnet.tasks.depth.network import DDFUpNet, interpolate
from ddfnet.tasks.depth.task import DepthTask
from ddfnet.tasks.detection.network import create_backbone, create_detector
from ddfnet.utils.errors import CheckpointError

_COLORS = matplotlib.colormaps["tab10"].colors


def draw_detections(images: list[Path], checkpoint: Path, *, threshold: float = 0.5) -> Figure:
    """Boxes, classes and scores of at least the threshold, one panel per image.

    Raises:
        UserError: the checkpoint is of no detector, or a image cannot be read.
    """
    found = _of_task(checkpoint, "detection")
    said = found.meta["model"]
    backbone = create_backbone(said["backbone"], **said["backbone_kwargs"])
    options = ("num_classes", "upsampling", "channels", "frozen_stages", "frozen_norm", "min_size", "max_size")
    detector = create_detector(backbone, **{key: said[key] for key in options})
    load_weights(detector, found, source=checkpoint, name=said["name"])
    names = [category["name"] for category in found.meta["categories"]]

    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(4 * columns, 4 * rows), dpi=110, layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, path in zip(panels, images, strict=False):
        pixels = np.asarray(open_rgb(str(path)))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
        with torch.inference_mode():
            result = detector.eval()([image])[0]
        axes.imshow(pixels)
        _boxes(axes, result, names, threshold)
        _bare(axes)
        axes.set_title(path.name, fontsize=8)
    for axes in panels[len(images) :]:
        axes.set_axis_off()
    return figure


def _boxes(axes: Axes, result: dict[str, Tensor], names: list[str], threshold: float) -> None:
    for box, label, score in zip(result["boxes"], result["labels"], result["scores"], strict=True):
        if score < threshold:
            continue
        (left, top, right, bottom), color = box.tolist(), _COLORS[int(label) % len(_COLORS)]
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=color, lw=1.6))
        text = {"fontsize": 7, "color": "white", "va": "bottom", "bbox": {"fc": color, "ec": "none", "pad": 1.2}}
        axes.text(left, top, f"{names[int(label) - 1]} {score:.2f}", **text)


def draw_depth(checkpoint: Path, *, data: Path | None = None, indices: list[int] | None = None) -> Figure:
    """One row per held-out pair: guidance, input, bicubic and network beside the truth, and both errors.

    Args:
        checkpoint: `best.pt` or `last.pt` of a depth run.
        data: `data.root`, where it is not that of training.
        indices: places of the pairs in the validation set; None: the first two.

    Raises:
        ValueError: an index out of range.
        UserError: the checkpoint is of no depth network, or the data cannot be read.
    """
    found = _of_task(checkpoint, "depth")
    values = read_checkpoint(checkpoint).get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"{checkpoint} does not hold the configuration of its run: give best.pt or last.pt")
    if data is not None:
        values["data"]["root"] = str(data)
    task = DepthTask(check_config(values))
    indices = indices if indices is not None else list(range(min(2, task.val_images)))
    for index in indices:
        if not 0 <= index < task.val_images:
            raise ValueError(f"--index {index}: the validation set has the pairs 0 to {task.val_images - 1}")
    network = DDFUpNet(**found.meta["model"]["kwargs"]).eval()
    load_weights(network, found, source=checkpoint, name="ddf_up_net")
    reader = DepthEvalReader(task.pairs("val"), factor=network.factor, phase=task.phase, border=task.config.data.border)
    figure = Figure(figsize=(17, 2.6 * len(indices)), dpi=100, layout="constrained")
    for row, index in zip(figure.subplots(len(indices), 7, squeeze=False), indices, strict=True):
        (sample,) = reader.__getitems__([index])
        _depth_row(row, sample, network)
    return figure


def _depth_row(row: np.ndarray, sample: dict[str, Tensor], network: nn.Module) -> None:
    low, truth, valid = sample["low"], sample["depth"], sample["valid"]
    guidance = normalize_guidance(sample["guidance"])
    bicubic = interpolate(low, network.factor, "bicubic")
    with torch.inference_mode():
        output = network(low, guidance)
    known = truth[valid]
    depths = {"cmap": "viridis", "vmin": known.min().item(), "vmax": known.max().item()}
    errors = {name: 100 * (found - truth).abs().where(valid, 0) for name, found in (("b", bicubic), ("n", output))}
    largest = {"cmap": "magma", "vmin": 0, "vmax": max(1e-6, torch.quantile(errors["b"].flatten(), 0.99).item())}

    def rmse(found: Tensor) -> float:
        return 100 * (found - truth)[valid].square().mean().sqrt().item()

    rgb = denormalize_guidance(guidance)[0].permute(1, 2, 0).clamp(0, 1)
    panels = (
        ("guidance", rgb, {}),
        (f"low resolution, 1/{network.factor}", low[0, 0], depths),
        (f"bicubic, RMSE {rmse(bicubic):.2f} cm", bicubic[0, 0], depths),
        (f"DDF-Up-Net, RMSE {rmse(output):.2f} cm", output[0, 0], depths),
        ("truth", truth[0, 0].where(valid[0, 0], float("nan")), depths),
        (f"error of bicubic, 0 to {largest['vmax']:.1f} cm", errors["b"][0, 0], largest),
        ("error of DDF-Up-Net", errors["n"][0, 0], largest),
    )
    for axes, (title, pixels, options) in zip(row, panels, strict=True):
        axes.imshow(pixels.numpy(), interpolation="nearest", **options)
        axes.set_title(title, fontsize=8)
        _bare(axes)


def _of_task(checkpoint: Path, task: str) -> Weights:
    found = read_weights(checkpoint)
    said = found.meta.get("task") if found.meta is not None else None
    if said != task:
        raise CheckpointError(f"{checkpoint} is of the task {said or 'unknown'}: give a checkpoint of {task}")
    return found


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
