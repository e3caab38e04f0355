#!/usr/bin/env python
"""What a classifier sees in images: the most probable classes of each.

    python scripts/predict.py photo.jpg          # with a small CIFAR-10 network that ships with this package
    python scripts/predict.py photos cat.jpg --checkpoint runs/ddf_resnet50/best.pt --top 3
    python scripts/predict.py cat.jpg --checkpoint official.pth.tar --model ddf_mul_resnet50 --json

A folder stands for the images in it and its sub-folders. Classes that are WordNet ids of ImageNet are shown by their
names; official checkpoints name no classes, and 1000 of them are taken for ImageNet-1k's.
Exit codes: 0 done, 2 a mistake in the input (a image that cannot be read, say).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without `pip install`

from ddfnet.data.batches import EvalBatchTransform
from ddfnet.data.dataset import decode_error, open_rgb
from ddfnet.data.preprocessing import eval_transform
from ddfnet.data.sources.folder import list_images
from ddfnet.evaluation.class_names import known_classes, readable_names
from ddfnet.models.classifier import Classifier, load_classifier
from ddfnet.utils.cli import EXIT_USER_ERROR, run
from ddfnet.utils.errors import DataError, UserError

DEFAULT = "zoo:ddf_mul_resnet14_32px.cifar10"
_TOP = 5


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE", type=Path, help="image, or folder: all in it and below")
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT,
        metavar="PATH",
        help="any that eval.py reads, or zoo:NAME (default: %(default)s)",
    )
    parser.add_argument("--model", metavar="NAME", help="model name, for a file that does not say it")
    help_text = f"how many classes (default: {_TOP}, or all where there are fewer)"
    parser.add_argument("--top", type=int, metavar="N", help=help_text)
    parser.add_argument("--json", action="store_true", help="a JSON list instead of text")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> int:
    """Prints the predictions; returns the exit code. A broken image does not keep the others from theirs."""
    if arguments.top is not None and arguments.top < 1:
        raise UserError(f"--top must be at least 1, got {arguments.top}")
    paths = find_images(arguments.images)
    classifier = load_classifier(arguments.checkpoint, model=arguments.model)
    outputs = classifier.network.num_classes
    if arguments.top is not None and arguments.top > outputs:
        raise UserError(f"--top {arguments.top}: {arguments.checkpoint} has {outputs} classes")
    classes, names = class_names(classifier.classes, outputs)
    if not arguments.json:
        print(f"{classifier.name} of {arguments.checkpoint}, {outputs} classes")
    answers: list[dict[str, Any]] = []
    broken = 0
    for path in paths:
        try:
            best = predict(classifier, path).topk(arguments.top or min(_TOP, outputs))
        except DataError as error:
            broken += 1
            print(f"predict.py: error: {error}", file=sys.stderr)
            answers.append({"image": str(path), "error": str(error)})
            continue
        rows = [
            {"class": classes[i], "name": names[i], "probability": p}
            for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        answers.append({"image": str(path), "predictions": rows})
        if not arguments.json:
            print(f"\n{path}")
            for row in rows:
                print(f"  {100 * row['probability']:6.2f} %  {row['name']}")
    if arguments.json:
        print(json.dumps(answers, indent=2))
    return EXIT_USER_ERROR if broken else 0


def find_images(given: Sequence[Path]) -> list[Path]:
    """The files, and in place of each folder its images in the order of their names.

    Raises:
        DataError: a path does not exist, or a folder holds no images.
    """
    found: list[Path] = []
    for path in given:
        inside = [path / name for name in list_images(path)] if path.is_dir() else [path]
        if not path.exists():
            raise DataError(f"image {path} does not exist")
        if not inside:
            raise DataError(f"folder {path} holds no images: give one that does, or files")
        found += inside
    return found


def class_names(classes: list[str] | None, outputs: int) -> tuple[list[str], list[str]]:
    """Class names of the checkpoint and readable ones, one for each output of the network."""
    classes = known_classes(classes, outputs) or []
    classes = [*classes, *(f"output {i}" for i in range(len(classes), outputs))]
    return classes, readable_names(classes)


def predict(classifier: Classifier, path: Path) -> Tensor:
    """Probabilities (classes,) of one image, float32.

    Raises:
        DataError: the image cannot be read.
    """
    try:
        image = open_rgb(str(path))
    except Exception as error:
        raise DataError(f"image {path} cannot be read ({decode_error(error)})") from None
    pixels = eval_transform(classifier.preprocessing)(image)[None]
    batch = EvalBatchTransform(classifier.preprocessing, device="cpu", channels_last=True)({"image": pixels})
    with torch.inference_mode():
        return classifier.network(batch["image"]).softmax(1)[0]


if __name__ == "__main__":
    parsed = parse_arguments()
    run(lambda: main(parsed))
