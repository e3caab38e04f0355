#!/usr/bin/env python
"""Classify images: the most probable classes of each.

    python scripts/predict.py photo.jpg
    python scripts/predict.py photos a.jpg --checkpoint runs/r50/best.pt
    python scripts/predict.py cat.jpg --json \\
        --checkpoint official.pth.tar --model ddf_mul_resnet50

Without --checkpoint: a small CIFAR-10 network that ships with this package. A
folder stands for the images in it and its sub-folders. Classes that are WordNet
ids of ImageNet are shown by their names; official checkpoints name no classes:
with 1000 of them, they are assumed to be ImageNet-1k's. Of a multi-label
checkpoint all classes are shown whose probability reaches its threshold
(eval.threshold of training).
Exit codes: 0 done, 2 a mistake in the input (an image that cannot be read,
say).
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without `pip install`

DEFAULT = "zoo:ddf_mul_resnet14_32px.cifar10"
_TOP = 5


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", type=Path, help="image, or folder: all in it and below")
    help_text = "any that eval.py reads, or zoo:NAME (default: %(default)s)"
    add("--checkpoint", default=DEFAULT, metavar="PATH", help=help_text)
    add("--model", metavar="NAME", help="model name, for a file that does not say it")
    add("--input-size", metavar="PIXELS", help="instead of the checkpoint's: 224, or 192x256 (height x width)")
    add("--crop-pct", type=float, metavar="FRACTION", help="instead of the checkpoint's: size / crop_pct is the resize")
    add("--crop-mode", metavar="MODE", help="instead of the checkpoint's: center, squash or border")
    add("--interpolation", metavar="NAME", help="instead of the checkpoint's: bilinear, bicubic, ...")
    add("--resize", metavar="KERNEL", help="instead of the checkpoint's: torch, or pillow for timm's pixels to the bit")
    add("--mean", metavar="R,G,B", help="instead of the checkpoint's: one value per channel, e.g. 0.5,0.5,0.5")
    add("--std", metavar="R,G,B", help="likewise")
    add("--max-pixels", type=int, metavar="N", help="of the largest image that is read (default: as data.max_pixels)")
    add("--top", type=int, metavar="N", help=f"how many classes (default: {_TOP}, or all where there are fewer)")
    add("--threshold", type=float, metavar="P", help="multi-label: least probability (default: the checkpoint's)")
    add("--json", action="store_true", help="a JSON list instead of text")
    add("--quiet", action="store_true", help="show no progress, which --json has")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> int:
    """Prints the predictions; returns the exit code. A corrupt image does not keep the others from theirs."""
    from ddfnet.data.image_file import MAX_PIXELS
    from ddfnet.data.sources.folder import files_not_counted
    from ddfnet.inference.predict import find_images, predict_images
    from ddfnet.models.classifier import load_classifier
    from ddfnet.models.preprocessing import FLAGS
    from ddfnet.utils.cli import EXIT_USER_ERROR
    from ddfnet.utils.errors import UserError
    from ddfnet.utils.memory import keep_freed_memory
    from ddfnet.utils.progress import ProgressBar, no_progress, tracked
    from ddfnet.utils.text import plural, wrap

    keep_freed_memory()
    top, checkpoint = arguments.top, arguments.checkpoint
    max_pixels = MAX_PIXELS if arguments.max_pixels is None else arguments.max_pixels
    for option, value in (("--top", top), ("--max-pixels", max_pixels)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1, got {value}")
    others: Counter[str] = Counter()
    paths = find_images(arguments.images, others)
    if others:
        print(f"predict.py: {files_not_counted(others)}", file=sys.stderr)
    changes = {key: getattr(arguments, key) for key in FLAGS}
    with no_progress(arguments.quiet):
        classifier = load_classifier(checkpoint, model=arguments.model, changes=changes)
    outputs, threshold = classifier.num_classes, arguments.threshold
    if threshold is not None and classifier.threshold is None:
        raise UserError(f"--threshold is of multi-label checkpoints: {checkpoint} is none; leave it out")
    if threshold is not None and not 0 < threshold < 1:
        raise UserError(f"--threshold must be between 0 and 1, got {threshold:g}")
    if top is not None and top > outputs:
        raise UserError(f"--top {top}: {checkpoint} has {plural(outputs, 'class', 'classes')}")
    if not arguments.json:
        print(f"{classifier.name} of {checkpoint}, {plural(outputs, 'class', 'classes')}")
        print(classifier.input_text())
        if classifier.changes:
            print(wrap(f"weights: {classifier.changes}", indent="  "))
    answers = []
    most = top or (min(_TOP, outputs) if classifier.threshold is None else outputs)
    # Answers that are printed as they come are progress enough.
    bar = ProgressBar("predictions", quiet=arguments.quiet or not arguments.json)
    rows = predict_images(classifier, paths, top=most, threshold=threshold, max_pixels=max_pixels)
    for answer in tracked(rows, len(paths), bar):
        answers.append(answer)
        if "error" in answer:
            print(f"predict.py: error: {answer['error']}", file=sys.stderr)
        elif not arguments.json:
            rows = [f"  {100 * row['probability']:6.2f} %  {row['name']}" for row in answer["predictions"]]
            print("\n".join(["", answer["image"], *(rows or ["  no class"])]))
    if arguments.json:
        print(json.dumps(answers, indent=2))
    return EXIT_USER_ERROR if any("error" in answer for answer in answers) else 0


if __name__ == "__main__":
    parsed = parse_arguments()  # before the imports: --help need not wait for torch
    from ddfnet.utils.cli import run

    run(lambda: main(parsed))
