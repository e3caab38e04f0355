"""The most probable classes of single images."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfnet.data.batches import EvalBatchTransform
from ddfnet.data.decode import decode_error, open_rgb
from ddfnet.data.preprocessing import eval_transform
from ddfnet.data.sources.folder import list_images
from ddfnet.evaluation.class_names import known_classes, output_names, readable_names
from ddfnet.models.classifier import Classifier
from ddfnet.utils.errors import DataError


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files, and in place of each folder its images in the order of their names; DataError where a path does not
    exist, or a folder holds no images."""
    images: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"image {path} does not exist")
        inside = [path / name for name in list_images(path)] if path.is_dir() else [path]
        if not inside:
            raise DataError(f"folder {path} holds no images: give one that does, or files")
        images += inside
    return images


def predict_images(classifier: Classifier, paths: Iterable[Path], *, top: int) -> Iterator[dict[str, Any]]:
    """For each image its path and the `top` most probable classes, or why it cannot be read.

    Yields:
        `{"image": path, "predictions": [{"class", "name", "probability"}, ...]}`, the most probable first, or
        `{"image": path, "error": reason}`. Classes without a name are called `output 5` and the like.
    """
    outputs = classifier.num_classes
    classes = output_names(known_classes(classifier.classes, outputs) or [], outputs)
    names = readable_names(classes)
    for path in paths:
        try:
            best = predict(classifier, path).topk(top)
        except DataError as error:
            yield {"image": str(path), "error": str(error)}
            continue
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        predictions = [{"class": classes[i], "name": names[i], "probability": p} for i, p in rows]
        yield {"image": str(path), "predictions": predictions}


@torch.inference_mode()
def predict(classifier: Classifier, path: Path) -> Tensor:
    """Probabilities (classes,) of one image, float32; DataError where it cannot be read."""
    try:
        image = open_rgb(path.read_bytes())
    except Exception as error:
        raise DataError(f"image {path} cannot be read ({decode_error(error)})") from None
    how = classifier.preprocessing
    normalize = EvalBatchTransform(how, device="cpu", channels_last=True)
    return classifier.network(normalize({"image": eval_transform(how)(image)[None]})["image"]).softmax(1)[0]
