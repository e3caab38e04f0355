"""Evaluation of a classifier on one set of images, or on several, and what is printed and written of it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddfnet.data.batches import EvalBatchTransform
from ddfnet.data.dataset import EvalDataset
from ddfnet.data.loader import eval_batches
from ddfnet.data.preprocessing import Preprocessing, eval_transform
from ddfnet.engine.classification_report import (
    NO_FIGURES,
    describe,
    figures_available,
    results,
    write_report_folder,
    write_summary,
)
from ddfnet.engine.distributed import Distributed, distributed_session
from ddfnet.engine.evaluate import evaluate
from ddfnet.engine.precision import autocast
from ddfnet.evaluation.class_names import printable
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.predictions import PredictionEvaluator, Predictions
from ddfnet.evaluation.report_console import files_lines, result_table, sets_header, sets_row, settings_lines
from ddfnet.inference.classifier import Classifier


def evaluate_classifier(
    loaded: Classifier,
    image_sets: Sequence[ImageSet],
    *,
    checkpoint: Path,
    preprocessing: Preprocessing,
    precision: str,
    mirror: bool,
    batch_size: int,
    workers: int | str,
    device: str,
    folder: Path,
) -> dict[str, Any]:
    """Evaluates over all processes, prints the result and writes the report folder.

    Args:
        loaded: the network and what is known of it.
        image_sets: one without a name is written into `folder` itself, several into sub-folders, with a summary.
        checkpoint: where the weights come from.
        preprocessing: of the images.
        precision: `fp32`, `bf16` or `fp16`.
        mirror: average the softmax over each image and its mirror image.
        batch_size: images per process.
        workers: loader processes per rank, or `auto`.
        device: `auto`, `cuda` or `cpu`.
        folder: of the report.

    Returns:
        The report of the one set without a name; else the summary, as in `sets.json`.

    Raises:
        DataError: an image is broken.
        UserError: the folder cannot be written.
    """
    several = bool(image_sets[0].name)
    reports: dict[str, dict[str, Any]] = {}
    with distributed_session(device) as distributed:
        loaded.network.to(distributed.device, memory_format=torch.channels_last)
        about = describe(
            loaded, checkpoint, preprocessing=preprocessing, distributed=distributed,
            precision=precision, tta=mirror, batch_size=batch_size,
        )  # fmt: skip
        if several:
            _say(distributed, "\n".join([*settings_lines(about), "", sets_header()]))
        for images in image_sets:
            started = time.perf_counter()
            metrics, predictions = _evaluate(
                loaded, images, distributed,
                preprocessing=preprocessing, precision=precision, mirror=mirror, batch_size=batch_size, workers=workers,
            )  # fmt: skip
            report = {**about, **results(images, predictions, metrics, time.perf_counter() - started)}
            _say(distributed, sets_row(images.name, report) if several else result_table(report))
            if distributed.is_main:
                outputs = loaded.network.num_classes if images.columns is None else len(images.columns)
                report = write_report_folder(folder / images.name, report, images, predictions, outputs=outputs)
            reports[images.name] = report
        if several:
            report = write_summary(folder, about, reports, write=distributed.is_main)
        if distributed.is_main:
            _say(distributed, "\n" + files_lines(folder, report["files"]))
            if not figures_available():
                _say(distributed, NO_FIGURES)
    return report


def _evaluate(
    loaded: Classifier,
    images: ImageSet,
    distributed: Distributed,
    *,
    preprocessing: Preprocessing,
    precision: str,
    mirror: bool,
    batch_size: int,
    workers: int | str,
) -> tuple[dict[str, float], Predictions]:
    evaluator = PredictionEvaluator(columns=images.columns, mirror=mirror, accepted=images.accepted)
    metrics = evaluate(
        loaded.network,
        eval_batches(
            EvalDataset(images.index, eval_transform(preprocessing)).read,
            len(images.index),
            EvalBatchTransform(preprocessing, device=distributed.device, channels_last=True),
            batch_size=batch_size,
            rank=distributed.rank,
            world_size=distributed.world_size,
            device=distributed.device,
            workers=workers,
        ),
        evaluator,
        distributed=distributed,
        autocast=autocast(distributed.device, precision),
        expected=len(images.index),
    )
    return metrics, evaluator.predictions


def _say(distributed: Distributed, text: str) -> None:
    if distributed.is_main:
        print(printable(text), flush=True)
