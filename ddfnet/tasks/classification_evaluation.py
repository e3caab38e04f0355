"""Evaluation of a classifier's checkpoint: on one folder of class folders, or on several published sets."""

from pathlib import Path
from typing import Any

import torch

from ddfnet.checkpoint import Weights
from ddfnet.data.batches import EvalBatchTransform
from ddfnet.data.dataset import EvalDataset
from ddfnet.data.decode import Decoder
from ddfnet.data.image_file import MAX_PIXELS
from ddfnet.data.loader import eval_batches
from ddfnet.data.sources import ImageSource, SourceConfig, open_source, open_split, split_path
from ddfnet.data.sources.folder import not_counted_text
from ddfnet.evaluation.class_names import in_order_of_number, known_classes, output_names
from ddfnet.evaluation.image_sets import ImageSet, find_sets, load_set
from ddfnet.evaluation.predictions import PredictionEvaluator
from ddfnet.evaluation.report import PredictionReport
from ddfnet.models.classifier import Classifier, build_classifier
from ddfnet.models.fold import fold_batch_norm
from ddfnet.models.preprocessing import FLAGS
from ddfnet.tasks.evaluation import Evaluation, EvaluationOptions, EvaluationSet
from ddfnet.tasks.multilabel import multilabel_images, multilabel_set, training_source
from ddfnet.utils.errors import DataError, UserError
from ddfnet.utils.text import plural
from ddfnet.zoo.entries import Entry

BATCH_SIZE = 128


def classification_evaluation(
    path: Path, weights: Weights, entry: Entry | None, options: EvaluationOptions
) -> Evaluation:
    """`Task.evaluation` of classification: any file that `build_classifier` reads, image by image."""
    if options.sets is not None:
        find_sets(options.sets, options.data)  # before the weights are read, which may take long
    changes = {key: getattr(options, key) for key in FLAGS}
    loaded = build_classifier(weights, source=path, model=options.model, entry=entry, changes=changes)
    how = loaded.preprocessing
    trained = ((weights.config or {}).get("data") or {}).get("max_pixels", MAX_PIXELS)
    decoder = Decoder(channels=len(how.mean), max_pixels=options.max_pixels or trained)
    left_out: list[str] = []
    if loaded.threshold is not None:
        index = multilabel_images(path, weights, loaded, options)
        left_out = [text for text in [not_counted_text(index)] if text]
        sets = [multilabel_set(index, loaded, decoder, options)]
    elif options.threshold is not None:
        raise UserError(f"--threshold is of multi-label checkpoints: {path} is none; leave it out")
    else:
        image_sets = _image_sets(path, weights, loaded, options)
        left_out = [text for images in image_sets if (text := not_counted_text(images.index))]
        sets = [_set(images, loaded, decoder, options) for images in image_sets]
    folded = {"batch_norms_folded": fold_batch_norm(loaded.network, how.input_size)} if options.fuse_bn else {}
    return Evaluation(
        loaded.network,
        model=loaded.name,
        precision=loaded.precision if options.precision == "auto" else options.precision,
        batch_size=options.batch_size or BATCH_SIZE,
        channels_last=loaded.channels_last,
        notes=[*([f"weights of {path}: {loaded.changes}"] if loaded.changes else []), loaded.input_text(), *left_out],
        facts={"model_kwargs": loaded.kwargs, "preprocessing": how.to_dict(), "tta": options.tta, **folded},
        sets=sets,
    )


def _image_sets(path: Path, weights: Weights, loaded: Classifier, options: EvaluationOptions) -> list[ImageSet]:
    outputs = loaded.num_classes
    if options.sets is None:
        index = _index(loaded.classes, path, options.data, weights, outputs)
        return [ImageSet("", index, index.classes)]
    classes = known_classes(loaded.classes, outputs)
    if classes is None:
        raise UserError(f"{path} does not name its {outputs} classes, which --sets needs: give --data FOLDER alone")
    folders = find_sets(options.sets, options.data)
    return [load_set(name, folder, classes, outputs=outputs) for name, folder in folders.items()]


def _set(images: ImageSet, loaded: Classifier, decoder: Decoder, options: EvaluationOptions) -> EvaluationSet:
    how = loaded.preprocessing
    outputs = loaded.num_classes if images.columns is None else len(images.columns)

    def batches(*, rank: int, world_size: int, device: torch.device) -> Any:
        return eval_batches(
            EvalDataset(images.index, how, decoder=decoder).read,
            len(images.index),
            EvalBatchTransform(how, device=device, channels_last=loaded.channels_last),
            batch_size=options.batch_size or BATCH_SIZE,
            rank=rank,
            world_size=world_size,
            device=device,
            workers=options.workers,
            name=images.index.name,
        )

    def evaluator(device: torch.device) -> PredictionEvaluator:
        return PredictionEvaluator(columns=images.columns, mirror=options.tta, accepted=images.accepted)

    def report(evaluator: PredictionEvaluator, **about: Any) -> PredictionReport:
        classes = output_names(images.classes, outputs)
        return PredictionReport(
            images=images, predictions=evaluator.predictions, classes=classes, network=loaded.network, **about
        )

    return EvaluationSet(images.name, images.index.root, len(images.index), batches, evaluator, report)


def _index(
    classes: list[str] | None, path: Path, given: str | Path | None, weights: Weights, outputs: int
) -> ImageSource:
    """The images; their classes must be those of the checkpoint."""
    config = training_source(weights)
    if given is None:
        index = _training_validation_set(path, weights, classes)
    elif config.labels is not None and weights.config is not None:
        index = open_split(given, weights.config["data"]["val"], key="val", classes=classes, config=config)
    else:
        within = split_path(given, "val") if "val" not in (classes or ()) else None
        accepted = SourceConfig(allow_missing_val_classes=config.allow_missing_val_classes)
        index = open_source(within or given, classes=classes, config=accepted)
    data = index.root
    if classes is not None:
        return index
    if len(index.classes) != outputs:
        raise DataError(
            f"{data} has {plural(len(index.classes), 'class', 'classes')}, {path} was trained on "
            f"{plural(outputs, 'class', 'classes')}: "
            "give the data with those classes as --data"
        )
    if in_order_of_number(index.classes) != index.classes:
        fix = "rename the folders so that the order of their names is that of the outputs (00, 01, ..., 10)"
        if known_classes(None, outputs) is not None:
            fix = f"give --sets v2={data} in place of --data, which takes folder i for output i"
        raise DataError(
            f"the classes of {data} are numbers, which sorted by name put 10 before 2, and {path} does not "
            f"name its classes: {fix}"
        )
    return index


def _training_validation_set(path: Path, weights: Weights, classes: list[str] | None) -> ImageSource:
    if weights.config is None:
        raise DataError(f"{path} does not say where its data is: give --data FOLDER")
    data, config = weights.config["data"], training_source(weights)
    if not config.source.startswith("timm:") and split_path(data["root"], data["val"]) is None:
        place = Path(data["root"], data["val"]).resolve()
        raise DataError(f"the validation set of the training run is not at {place}: give --data FOLDER")
    return open_split(data["root"], data["val"], key="val", classes=classes, config=config)
