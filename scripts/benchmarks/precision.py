#!/usr/bin/env python
"""Measure the cost of lower precision for a classifier: accuracy, and the distance of the logits from float32's.

    python scripts/make_data.py digits data/digits
    python scripts/benchmarks/precision.py --checkpoint zoo:ddf_mul_resnet14_32px.digits --data data/digits/val

Compared on the same images: autocast to bfloat16 and float16, weights and input in bfloat16, int8 dynamic
quantization, and ONNX in onnxruntime where that is installed. All of it on the CPU. Quantization
(torch.ao.quantization.quantize_dynamic) replaces nn.Linear alone, and the table says how many there are: convolutions
and DDFs stay in float32. Prints a Markdown table, and writes it with --output. Exit code 2 for a mistake in the input.
"""

import argparse
import copy
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import torch
from torch import Tensor, nn

from ddfnet.data.batches import EvalBatchTransform
from ddfnet.data.dataset import EvalDataset
from ddfnet.data.loader import eval_batches
from ddfnet.data.preprocessing import eval_transform
from ddfnet.data.sources.folder import index_folder
from ddfnet.inference.formats import missing_packages, onnx_file
from ddfnet.inference.programs import traced
from ddfnet.models.classifier import Classifier, load_classifier
from ddfnet.utils.cli import HelpFormatter, at_least, run
from ddfnet.utils.environment import cpu_name, package_version
from ddfnet.utils.errors import DataError, UserError
from ddfnet.utils.files import write_text
from ddfnet.utils.markdown import table

Predict = Callable[[Tensor], Tensor]
REFERENCE = "float32"
COLUMNS = ("precision", "top-1", "other class than float32", "largest difference of a logit", "mean difference")


def variants(network: nn.Module, size: int, scratch: Path) -> dict[str, Predict | str]:
    """The network in each precision, by name; a sentence in place of one that cannot be had here.

    Each takes images float32 (B, 3, size, size) and returns logits (B, classes). float32 (`REFERENCE`) is the first.
    """
    linears = sum(isinstance(module, nn.Linear) for module in network.modules())
    pure = copy.deepcopy(network).to(torch.bfloat16)
    return {
        REFERENCE: network,
        "bfloat16 autocast": torch.autocast("cpu", torch.bfloat16)(lambda image: network(image)),
        "float16 autocast": torch.autocast("cpu", torch.float16)(lambda image: network(image)),
        "bfloat16 weights and input": lambda image: pure(image.to(torch.bfloat16)),
        f"int8, dynamic, {linears} linear layer{'s' * (linears != 1)} only": _quantized(network),
        "float32, onnxruntime": _onnx(network, size, scratch / "network.onnx"),
    }


def _quantized(network: nn.Module) -> Predict | str:
    if not torch.backends.quantized.supported_engines:
        return "not measured: this PyTorch has no engine for quantized layers"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favor of torchao, which this package does not require
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(network), {nn.Linear}, dtype=torch.qint8)


def _onnx(network: nn.Module, size: int, path: Path) -> Predict | str:
    if missing := missing_packages("onnx"):
        return f"not measured: pip install {' '.join(missing)}"
    onnx_file.save(traced(network, size, batch=None), path, {})
    return onnx_file.load(path)


def _figures(logits: Tensor, reference: Tensor, target: Tensor) -> Tensor:
    """Of one batch (4,): correct predictions, other predictions than float32's, largest and summed difference.

    Logits (B, classes) of a variant and of float32, and labels (B,).
    """
    predicted, difference = logits.argmax(1), (logits - reference).abs()
    correct, moved = (predicted == target).sum(), (predicted != reference.argmax(1)).sum()
    return torch.stack([correct.double(), moved.double(), difference.max(), difference.sum()])


@torch.inference_mode()
def compare(classifier: Classifier, data: Path, batch_size: int) -> list[tuple[str, ...]]:
    """One row of `COLUMNS` per variant: top-1, images of another prediction, and differences of the logits.

    DataError if the images cannot be used, or are of other classes.
    """
    how, outputs = classifier.preprocessing, classifier.num_classes
    index = index_folder(data, classes=classifier.classes)
    if classifier.classes is None and len(index.classes) != outputs:  # which output is which folder, nobody says
        raise DataError(f"--data {data} has {len(index.classes)} class folders, the checkpoint knows {outputs} classes")
    batches = eval_batches(
        EvalDataset(index, eval_transform(how)).read, len(index), EvalBatchTransform(how, device="cpu"),
        batch_size=batch_size, rank=0, world_size=1, device="cpu", workers=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode(False):
        predictors = variants(classifier.network, how.size, Path(scratch))
    batch_figures: dict[str, list[Tensor]] = {name: [] for name in predictors}
    spread = 0.0
    for batch in batches:
        image, target = batch["image"], batch["target"]
        reference = predictors[REFERENCE](image).double()
        spread += reference.std(1).sum().item()
        for name, predict in predictors.items():
            if not isinstance(predict, str):
                logits = reference if name == REFERENCE else predict(image).double()
                batch_figures[name].append(_figures(logits, reference, target))
    rows, images = [], len(index)
    for name, predict in predictors.items():
        if isinstance(predict, str):
            rows.append((name, predict, "", "", ""))
            continue
        figures = torch.stack(batch_figures[name])
        correct, moved, _, total = figures.sum(0).tolist()
        distance = f"{figures[:, 2].max():.2g}", f"{total / (images * outputs):.2g}"
        accuracy = f"{100 * correct / images:.2f} % ({correct:.0f} of {images})"
        rows.append((name, accuracy, f"{moved:.0f}", *distance))
    return [*rows, ("(standard deviation of the logits of an image, float32)", "", "", f"{spread / images:.2g}", "")]


def machine() -> str:
    """Processor, threads, versions and date."""
    versions = {name: package_version(name) for name in ("torch", "timm", "onnxruntime")}
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"{os.cpu_count()} cores {cpu_name()}, {torch.get_num_threads()} thread(s); {packages}; {date.today()}."


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="PATH", help="a file of a classifier, or zoo:NAME")
    add("--data", required=True, type=Path, metavar="FOLDER", help="folder of class folders")
    add("--model", metavar="NAME", help="model name, for a file that does not say it")
    add("--batch-size", type=at_least(1), default=64, metavar="N", help="default: %(default)s")
    add("--output", type=Path, metavar="FILE", help="Markdown file to write")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> int:
    """Measures; returns the exit code."""
    if arguments.output is not None and arguments.output.is_dir():
        raise UserError(f"--output {arguments.output} is a folder: name a file")
    classifier = load_classifier(arguments.checkpoint, model=arguments.model)
    figures = table(COLUMNS, compare(classifier, arguments.data, arguments.batch_size))
    command = ["python", "scripts/benchmarks/precision.py", "--checkpoint", arguments.checkpoint]
    command += ["--data", str(arguments.data), "--batch-size", str(arguments.batch_size)]
    command += ["--model", arguments.model] if arguments.model else []
    text = f"{figures}\n{machine()}\n\n```bash\n{shlex.join(command)}\n```\n"
    print(text, end="")
    if arguments.output is not None:
        write_text(arguments.output, text)
    return 0


if __name__ == "__main__":
    run(lambda: main(parse_arguments()))
