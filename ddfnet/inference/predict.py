"""The most probable classes of single images, or all that a multi-label network predicts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfnet.data.batches import EvalBatchTransform
from ddfnet.data.decode import decode_error, open_image
from ddfnet.data.image_file import MAX_PIXELS
from ddfnet.data.preprocessing import eval_transform
from ddfnet.data.sources.folder import list_images
from ddfnet.evaluation.class_names import known_classes, output_names, readable_names
from ddfnet.models.classifier import Classifier
from ddfnet.utils.errors import DataError


def find_images(paths: Sequence[Path], others: Counter[str] | None = None) -> list[Path]:
    """The files, and in place of each folder its images in the order of their names; DataError where a path does not
    exist, or a folder holds no images. `others` counts, by extension, image files in folders that are not taken."""
    images: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"image {path} does not exist")
        inside = [path / name for name in list_images(path, others)] if path.is_dir() else [path]
        if not inside:
            raise DataError(f"folder {path} holds no images: give one that does, or files")
        images += inside
    return images


def predict_images(
    classifier: Classifier,
    paths: Iterable[Path],
    *,
    top: int,
    threshold: float | None = None,
    max_pixels: float = MAX_PIXELS,
) -> Iterator[dict[str, Any]]:
    """For each image its path and the `top` most probable classes, or why it cannot be read.

    Of a multi-label classifier, those classes alone whose probability reaches the threshold: the given one, else its
    own.

    Yields:
        `{"image": path, "predictions": [{"class", "name", "probability"}, ...]}`, the most probable first, or
        `{"image": path, "error": reason}`. Classes without a name are called `output 5` and the like.
    """
    outputs = classifier.num_classes
    classes = output_names(known_classes(classifier.classes, outputs) or [], outputs)
    names = readable_names(classes)
    for path in paths:
        try:
            best = predict(classifier, path, max_pixels).topk(top)
        except DataError as error:
            yield {"image": str(path), "error": str(error)}
            continue
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        least = 0.0 if classifier.threshold is None else threshold or classifier.threshold
        predictions = [{"class": classes[i], "name": names[i], "probability": p} for i, p in rows if p >= least]
        yield {"image": str(path), "predictions": predictions}


@torch.inference_mode()
def predict(classifier: Classifier, path: Path, max_pixels: float = MAX_PIXELS) -> Tensor:
    """Probabilities (classes,) of one image, float32, of which each stands for itself if the classifier is multi-label;
    DataError where it cannot be read."""
    try:
        image = open_image(path.read_bytes(), len(classifier.preprocessing.mean), max_pixels)
    except Exception as error:
        raise DataError(f"image {path} cannot be read ({decode_error(error)})") from None
    how = classifier.preprocessing
    normalize = EvalBatchTransform(how, device="cpu", channels_last=True)
    logits = classifier.network(normalize({"image": eval_transform(how)(image)[None]})["image"])[0].float()
    return logits.softmax(0) if classifier.threshold is None else logits.sigmoid()
