"""What `python scripts/visualize explore` runs: images of any task, ready to go through its network."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ddfnet.checkpoint import DEFAULT_TASK, read_weights
from ddfnet.data.batches import EvalBatchTransform
from ddfnet.data.decode import decode_error, open_image
from ddfnet.data.preprocessing import eval_transform
from ddfnet.evaluation.class_names import known_classes, readable_names
from ddfnet.models.classifier import build_classifier
from ddfnet.utils.errors import DataError, UserError
from ddfnet.utils.text import printable
from ddfnet.zoo.download import locate


@dataclass(frozen=True)
class Subject:
    """A network, and how to show it one image after the other."""

    network: nn.Module  # in evaluation mode, on the CPU
    model: str
    images: Iterator["Shown"]
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Shown:
    """An image: what the network sees of it, uint8 (H, W, 3), and a call that passes it through the network; `label`
    says what comes out, from what the call returns."""

    name: str
    pixels: np.ndarray
    run: Callable[[], Any]
    label: Callable[[Any], str]


def open_subject(checkpoint: str, images: Sequence[str], *, model: str | None, data: Path | None, size: int) -> Subject:
    """The network of a checkpoint of any task with its images; see `explore`. UserError where one cannot be used."""
    path, entry = locate(checkpoint)
    weights = read_weights(path)
    task = weights.meta.get("task") if isinstance(weights.meta, dict) else DEFAULT_TASK
    if task != DEFAULT_TASK and model is not None:
        raise UserError(f"--model {model} is not used: {path} is of the task {task}, which says it. Leave --model out")
    if task != "depth" and data is not None:
        raise UserError(f"--data {data} is not used: {path} is of the task {task}, whose images are files")
    if task == "detection":
        return _detector(path, images, size)
    if task == "depth":
        return _depth(path, images, data, size)
    loaded = build_classifier(weights, source=path, model=model, entry=entry)
    how = loaded.preprocessing
    names = known_classes(loaded.classes, loaded.num_classes) or []
    names = readable_names(names) if names else []
    transform, normalize = eval_transform(how), EvalBatchTransform(how, device="cpu")

    def shown() -> Iterator[Shown]:
        for name in images:
            pixels = transform(_read(name, transform.channels))
            batch = normalize({"image": pixels[None]})["image"]

            def run(batch: torch.Tensor = batch) -> torch.Tensor:
                logits = loaded.network(batch)[0]
                return logits.softmax(0) if loaded.threshold is None else logits.sigmoid()

            yield Shown(
                printable(Path(name).name), pixels.permute(1, 2, 0).numpy(), run, _prediction(names, loaded.threshold)
            )

    facts = [("input", how.summary())]
    return Subject(loaded.network, loaded.name, shown(), facts)


def _prediction(names: Sequence[str], threshold: float | None) -> Callable[[torch.Tensor], str]:
    """The best class; of a multi-label network all from its threshold on, the best first."""

    def label(probabilities: torch.Tensor) -> str:
        values, order = probabilities.sort(descending=True)
        pairs = list(zip(order.tolist(), values.tolist(), strict=True))
        pairs = pairs[:1] if threshold is None else [pair for pair in pairs if pair[1] >= threshold]
        texts = [f"{names[i] if i < len(names) else f'output {i}'}, {100 * value:.1f} %" for i, value in pairs]
        return f"predicted: {'; '.join(texts) or 'no class'}"

    return label


def _detector(path: Path, images: Sequence[str], size: int) -> Subject:
    from ddfnet.tasks.detection.network import load_detector

    detector, classes = load_detector(path)
    # The detector resizes its images itself: the shorter side to the first number, the longer one at most the second.
    detector.transform.min_size, detector.transform.max_size = (size,), size

    def label(detections: list[dict[str, torch.Tensor]]) -> str:
        found = detections[0]
        sure = [classes[int(i) - 1] for i, score in zip(found["labels"], found["scores"], strict=True) if score >= 0.5]
        return "found: " + (", ".join(sure[:6]) + (", ..." if len(sure) > 6 else "") if sure else "nothing above 0.5")

    def shown() -> Iterator[Shown]:
        for name in images:
            image = _read(name)
            pixels = np.array(image)
            tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
            seen, _ = detector.transform([tensor])
            (height, width), (whole_height, whole_width) = seen.image_sizes[0], seen.tensors.shape[-2:]
            # What the layers see is padded to whole strides: the image takes the same part of the canvas.
            canvas = np.zeros((whole_height, whole_width, 3), np.uint8)
            canvas[:height, :width] = np.array(image.resize((width, height)))
            yield Shown(printable(Path(name).name), canvas, lambda tensor=tensor: detector([tensor]), label)

    return Subject(detector, "Faster R-CNN", shown(), [("input", f"longest side {size} pixels (--size)")])


def _depth(path: Path, images: Sequence[str], data: Path | None, size: int) -> Subject:
    from ddfnet.tasks.depth.data import denormalize_guidance, normalize_guidance
    from ddfnet.tasks.depth.loading import check_indices, load_depth

    network, reader = load_depth(path, data=data)
    for name in images:
        if not name.isdecimal():
            raise UserError(f"IMAGE {name}: for a depth network give numbers of held-out pairs: 0 to "
                            f"{len(reader.pairs) - 1}")  # fmt: skip
    indices = [int(name) for name in images]
    check_indices(indices, reader, option="IMAGE ")

    def shown() -> Iterator[Shown]:
        for index in indices:
            (sample,) = reader.read_eval([index])
            low, side = sample["low"], max(1, size // network.factor)
            low = low[..., :side, :side]
            guidance = normalize_guidance(sample["guidance"])[..., : side * network.factor, : side * network.factor]
            pixels = denormalize_guidance(guidance)[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().byte().numpy()

            def run(low: torch.Tensor = low, guidance: torch.Tensor = guidance) -> torch.Tensor:
                return network(low, guidance)

            name = f"pair {index}, {printable(Path(str(reader.pairs.name(index))).name)}"
            yield Shown(
                name, pixels, run, lambda depth: f"depth {float(depth.min()):.2f} to {float(depth.max()):.2f} m"
            )

    facts = [("input", f"the upper left {size} x {size} pixels at most (--size); upscale factor {network.factor}")]
    return Subject(network, f"DDF-Up-Net x{network.factor}", shown(), facts)


def _read(name: str, channels: int = 3) -> Any:
    try:
        return open_image(Path(name).read_bytes(), channels)
    except FileNotFoundError:
        raise UserError(f"image not found: {name}") from None
    except Exception as error:
        raise DataError(f"image {printable(name)} cannot be read ({decode_error(error)})") from None
