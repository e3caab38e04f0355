"""Evaluation of a checkpoint on its own: what `eval.py` does."""

import os
import tempfile
from pathlib import Path
from typing import Any

from ddfnet.checkpoint import Weights, read_checkpoint, read_weights
from ddfnet.config.reader import parse_value
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.sources import ImageSource, open_source
from ddfnet.engine.evaluate_classifier import evaluate_classifier
from ddfnet.engine.evaluate_task import evaluate_task
from ddfnet.evaluation.class_names import in_order_of_number, known_classes
from ddfnet.evaluation.image_sets import ImageSet, find_sets, load_set
from ddfnet.inference.classifier import build_classifier
from ddfnet.utils.errors import DataError, UserError
from ddfnet.zoo.download import locate


def evaluate_checkpoint(
    checkpoint: str | Path,
    *,
    data: str | Path | None = None,
    sets: str | None = None,
    tta: bool = False,
    model: str | None = None,
    weights: str = "auto",
    batch_size: int | None = None,
    workers: int | str = "auto",
    precision: str = "auto",
    device: str = "auto",
    input_size: int | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint over all processes, prints the result and writes the report folder.

    Checkpoints of detection and depth go to `evaluate_task`: their data and model come from the stored configuration.

    Args:
        checkpoint: a checkpoint of ours, an official one, a state_dict, a .safetensors file, or `zoo:NAME`.
        data: folder of class folders, or one with `val/` in it; of other tasks, `data.root`; with `sets`, the folder
            that holds those without a place of their own. None: the validation set of the training run.
        sets: several sets, `val,real,v2,a,r,sketch` or NAME=FOLDER (`ddfnet.evaluation.image_sets`); classification.
        tta: average the softmax over each image and its mirror image; classification. Wrong where a mirrored image
            is another thing: digits, letters.
        model: model name of a classifier, needed where the file does not say it.
        weights: `auto` (the moving average if there is one), `raw` or `ema`.
        batch_size: images per process; None: 128 in classification, in other tasks that of training.
        workers: loader processes per rank, or `auto`.
        precision: `fp32`, `bf16` or `fp16` autocast; `auto`: that of training, so that the figures are those that
            training printed (fp32 where the file does not say).
        device: `auto`, `cuda` or `cpu`.
        input_size, crop_pct, interpolation: instead of the checkpoint's preprocessing; classification alone has them.
        output: folder of the report; None: `eval_<name>` beside the checkpoint, of `zoo:NAME` in `runs/`.

    Returns:
        The report; with `sets`, that of all of them (`sets.json`).

    Raises:
        UserError: the checkpoint, model or data cannot be used; nothing is written then.
    """
    workers = parse_workers(workers)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {batch_size}")
    checkpoint, entry = locate(checkpoint)
    found = read_weights(checkpoint, prefer=weights)
    kind = "_sets" * (sets is not None) + "_tta" * tta  # one must not mix with the other's files
    if output:
        folder = Path(output)
    elif entry is not None:
        folder = Path("runs") / f"eval_{entry.name}{kind}"  # not among the files of the zoo
    else:
        folder = checkpoint.parent / f"eval_{checkpoint.name.split('.')[0]}{kind}"
    if found.meta is not None and found.meta.get("task") != "classification":
        options = {
            "model": model, "input-size": input_size, "crop-pct": crop_pct, "interpolation": interpolation,
            "sets": sets, "tta": tta or None,
        }  # fmt: skip
        _refuse(options, f"a checkpoint of the task {found.meta.get('task')}: its configuration says it")
        _check_writable(folder)
        return evaluate_task(
            checkpoint, found,
            data=data, batch_size=batch_size, workers=workers, precision=precision, device=device, folder=folder,
        )  # fmt: skip
    places = find_sets(sets, data) if sets is not None else None
    loaded = build_classifier(found, source=checkpoint, model=model, entry=entry)
    preprocessing = _override(loaded.preprocessing, size=input_size, crop_pct=crop_pct, interpolation=interpolation)
    outputs = loaded.network.num_classes
    if places is None:
        index = _index(found, checkpoint, data, outputs)
        image_sets = [ImageSet("", index, index.classes)]
    else:
        classes = _class_names(loaded.classes, outputs, checkpoint)
        image_sets = [load_set(name, place, classes, outputs=outputs) for name, place in places.items()]
    _check_writable(folder)  # before the work, not after it
    return evaluate_classifier(
        loaded,
        image_sets,
        checkpoint=checkpoint,
        preprocessing=preprocessing,
        precision=(loaded.precision or "fp32") if precision == "auto" else precision,
        mirror=tta,
        batch_size=batch_size or 128,
        workers=workers,
        device=device,
        folder=folder,
    )


def parse_workers(workers: int | str) -> int | str:
    """`auto` or a number of processes, as given on the command line."""
    value = parse_value(workers) if isinstance(workers, str) else workers
    if value != "auto" and not (isinstance(value, int) and value >= 0):
        raise UserError(f"--workers must be a number of processes or auto, got {workers!r}")
    return value


def _refuse(options: dict[str, Any], where: str) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{', '.join(given)} cannot be used with {where}. Leave them out")


def _override(preprocessing: Preprocessing, **changes: Any) -> Preprocessing:
    try:
        return preprocessing.replaced(**{key: value for key, value in changes.items() if value is not None})
    except ValueError as error:
        raise UserError(str(error)) from None


def _index(found: Weights, checkpoint: Path, data: str | Path | None, num_classes: int) -> ImageSource:
    """The images; their class folders must be the classes of the checkpoint."""
    classes = found.meta["classes"] if found.meta is not None else None
    if data is None:
        data = _training_validation_set(checkpoint)
    data = Path(data)
    if (data / "val").is_dir() and "val" not in (classes or ()):
        data = data / "val"
    index = open_source(data, classes=classes)
    if classes is None and len(index.classes) != num_classes:
        raise DataError(
            f"{data} has {len(index.classes)} class folders, {checkpoint} was trained on {num_classes} classes: "
            "give the folder with those classes as --data"
        )
    if classes is None and in_order_of_number(index.classes) != index.classes:
        fix = "rename the folders so that the order of their names is that of the outputs (00, 01, ..., 10)"
        if known_classes(None, num_classes) is not None:
            fix = f"give --sets v2={data} in place of --data, which takes folder i for output i"
        raise DataError(
            f"the class folders of {data} are numbers, which sorted by name put 10 before 2, and {checkpoint} does not "
            f"name its classes: {fix}"
        )
    return index


def _class_names(classes: list[str] | None, outputs: int, checkpoint: Path) -> list[str]:
    """Class names for `--sets`, which are matched with class folders; ImageNet's where a file of 1000 says none."""
    known = known_classes(classes, outputs)
    if known is None:
        raise UserError(
            f"{checkpoint} does not name its {outputs} classes, which --sets needs: give --data FOLDER alone"
        )
    return known


def _training_validation_set(checkpoint: Path) -> Path:
    config = None if checkpoint.suffix == ".safetensors" else read_checkpoint(checkpoint).get("config")
    if not isinstance(config, dict):
        raise DataError(f"{checkpoint} does not say where its data is: give --data FOLDER")
    path = Path(config["data"]["root"]) / config["data"]["val"]
    if not path.is_dir():
        raise DataError(f"the validation set of the training run is not at {path.resolve()}: give --data FOLDER")
    return path


def _check_writable(folder: Path) -> None:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"cannot write a report into {folder}: give --output FOLDER")
    try:
        tempfile.TemporaryFile(dir=existing).close()  # some places refuse whatever the rights say
    except OSError as error:
        raise UserError(f"cannot write a report into {folder} ({error.strerror}): give --output FOLDER") from None
