#!/usr/bin/env python
"""Measure the cost of lower precision for a classifier: accuracy, and the distance of the logits from float32's.

    python scripts/make_data.py digits data/digits
    python scripts/benchmarks/precision.py --checkpoint zoo:ddf_mul_resnet14_32px.digits --data data/digits/val \
        --calibration data/digits/train --keep quantized

Compared on the same images, all on the CPU: autocast to bfloat16 and float16, weights and input in bfloat16, int8
dynamic quantization of PyTorch (torch.ao.quantization.quantize_dynamic) and int8 and fp8 weights of torchao, which
replace nn.Linear alone (the table says how many there are: convolutions and DDFs stay in float32), PT2E; and where they
are installed onnxruntime in float32, float16, dynamic and static int8 and uint8, and OpenVINO. Static quantization
measures ranges on images of training. The recipes are in precision_cases.py; --keep keeps the files they write.
CPU time is that of this process, taken in turns, without the first batch. Prints a Markdown table, and writes it with
--output. Exit code 2 for a mistake in the input.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import torch
from torch import Tensor

from ddfnet.data.batches import EvalBatchTransform
from ddfnet.data.dataset import EvalDataset
from ddfnet.data.loader import eval_batches
from ddfnet.data.sources.folder import index_folder
from ddfnet.models.classifier import Classifier, load_classifier
from ddfnet.utils.cli import HelpFormatter, at_least, run
from ddfnet.utils.environment import cpu_name, package_version
from ddfnet.utils.errors import DataError, UserError
from ddfnet.utils.files import write_text
from ddfnet.utils.markdown import table
from scripts.benchmarks.precision_cases import REFERENCE, variants

COLUMNS = (
    "precision",
    "top-1",
    "other class than float32",
    "largest difference of a logit",
    "mean difference",
    "CPU ms per image",
)
_CALIBRATION_IMAGES = 128
_PACKAGES = ("torch", "timm", "torchao", "onnxruntime", "openvino")


def _figures(logits: Tensor, reference: Tensor, target: Tensor) -> Tensor:
    """Of one batch (4,): correct predictions, other predictions than float32's, largest and summed difference.

    Logits (B, classes) of a variant and of float32, and labels (B,).
    """
    predicted, difference = logits.argmax(1), (logits - reference).abs()
    correct, moved = (predicted == target).sum(), (predicted != reference.argmax(1)).sum()
    return torch.stack([correct.double(), moved.double(), difference.max(), difference.sum()])


def _batches(classifier: Classifier, data: Path, batch_size: int) -> tuple[Iterable[dict[str, Tensor]], int]:
    """Batches of a folder, and the number of its images. DataError if they are of other classes."""
    how, outputs = classifier.preprocessing, classifier.num_classes
    index = index_folder(data, classes=classifier.classes)
    if classifier.classes is None and len(index.classes) != outputs:  # which output is which folder, nobody says
        raise DataError(f"folder {data} has {len(index.classes)} classes, the checkpoint knows {outputs}")
    batches = eval_batches(
        EvalDataset(index, how).read, len(index), EvalBatchTransform(how, device="cpu"),
        batch_size=batch_size, rank=0, world_size=1, device="cpu", workers=0,
    )  # fmt: skip
    return batches, len(index)


def _calibration(classifier: Classifier, data: Path | None, batch_size: int) -> list[Tensor]:
    """Images of every class: batches of a folder's, the same number of steps apart."""
    if data is None:
        return []
    batches, images = _batches(classifier, data, batch_size)
    step = max(1, images // _CALIBRATION_IMAGES)
    everything = torch.cat([batch["image"] for batch in batches])
    return list(everything[::step][:_CALIBRATION_IMAGES].split(batch_size))


@torch.inference_mode()
def compare(
    classifier: Classifier, data: Path, batch_size: int, *, calibration: Path | None = None, keep: Path | None = None
) -> list[tuple[str, ...]]:
    """One row of `COLUMNS` per variant: top-1, images of another prediction, differences of the logits, CPU time.

    DataError if the images cannot be used, or are of other classes.
    """
    batches, images = _batches(classifier, data, batch_size)
    ranges = [image.clone() for image in _calibration(classifier, calibration, batch_size)]
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode(False), torch.no_grad():
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        predictors = variants(classifier.network, classifier.preprocessing.input_size, folder, ranges)
    figures: dict[str, list[Tensor]] = {name: [] for name in predictors}
    seconds: dict[str, list[float]] = {name: [] for name in predictors}  # per image, by batch
    spread = 0.0
    for batch in batches:
        image, target = batch["image"], batch["target"]
        reference = predictors[REFERENCE](image).double()
        spread += reference.std(1).sum().item()
        for name, predict in predictors.items():
            if not isinstance(predict, str):
                start = time.process_time()
                logits = predict(image).double()
                seconds[name].append((time.process_time() - start) / len(image))
                figures[name].append(_figures(logits, reference, target))
    rows: list[tuple[str, ...]] = []
    for name, predict in predictors.items():
        if isinstance(predict, str):
            rows.append((name, predict, "", "", "", ""))
            continue
        correct, moved, _, total = torch.stack(figures[name]).sum(0).tolist()
        largest = torch.stack(figures[name])[:, 2].max()
        distance = f"{largest:.2g}", f"{total / (images * classifier.num_classes):.2g}"
        accuracy = f"{100 * correct / images:.2f} % ({correct:.0f} of {images})"
        cpu = 1e3 * statistics.median(seconds[name][1:] or seconds[name])
        rows.append((name, accuracy, f"{moved:.0f}", *distance, f"{cpu:.2f}"))
    last = ("(standard deviation of the logits of an image, float32)", "", "", f"{spread / images:.2g}", "", "")
    return [*rows, last]


def machine() -> str:
    """Processor, threads, versions and date."""
    versions = {name: package_version(name) for name in _PACKAGES}
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"{os.cpu_count()} cores {cpu_name()}, {torch.get_num_threads()} thread(s); {packages}; {date.today()}."


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="PATH", help="a file of a classifier, or zoo:NAME")
    add("--data", required=True, type=Path, metavar="FOLDER", help="folder of class folders")
    add("--model", metavar="NAME", help="model name, for a file that does not say it")
    add("--batch-size", type=at_least(1), default=64, metavar="N", help="default: %(default)s")
    help_text = "class folders of images of training, for static quantization (default: none is measured)"
    add("--calibration", type=Path, metavar="FOLDER", help=help_text)
    add("--keep", type=Path, metavar="FOLDER", help="keep the files of the variants there")
    add("--output", type=Path, metavar="FILE", help="Markdown file to write")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> int:
    """Measures; returns the exit code."""
    if arguments.output is not None and arguments.output.is_dir():
        raise UserError(f"--output {arguments.output} is a folder: name a file")
    classifier = load_classifier(arguments.checkpoint, model=arguments.model)
    folders = {"calibration": arguments.calibration, "keep": arguments.keep}
    figures = table(COLUMNS, compare(classifier, arguments.data, arguments.batch_size, **folders))
    command = ["python", "scripts/benchmarks/precision.py", "--checkpoint", arguments.checkpoint]
    command += ["--data", str(arguments.data), "--batch-size", str(arguments.batch_size)]
    command += ["--model", arguments.model] if arguments.model else []
    command += ["--calibration", str(arguments.calibration)] if arguments.calibration else []
    text = f"{figures}\n{machine()}\n\n```bash\n{shlex.join(command)}\n```\n"
    print(text, end="")
    if arguments.output is not None:
        write_text(arguments.output, text)
    return 0


if __name__ == "__main__":
    run(lambda: main(parse_arguments()))
