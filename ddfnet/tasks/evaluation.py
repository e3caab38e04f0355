"""Evaluation of a checkpoint: what a task makes of it, and the way of tasks whose configuration is stored in it."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from ddfnet.checkpoint import Weights
from ddfnet.config import check
from ddfnet.config.sections import with_present_names
from ddfnet.data.batches import Batch
from ddfnet.evaluation.report import Report
from ddfnet.models.claims import check_names, check_sizes
from ddfnet.models.preprocessing import FLAGS
from ddfnet.models.weights import load_weights
from ddfnet.tasks.config import Config
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.zoo.entries import Entry

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate a checkpoint, as `eval.py` is told; a task refuses what it has no use for."""

    data: str | Path | None = None  # where the images are; None: where the training run had them
    sets: str | None = None  # several sets by name, see `ddfnet.evaluation.image_sets`
    tta: bool = False  # average the softmax over each image and its mirror image; wrong for digits, letters
    model: str | None = None  # model name, for a file that does not say it
    batch_size: int | None = None  # images per process; None: the task's choice
    workers: int | Literal["auto"] = "auto"  # processes per rank that read data
    precision: str = "auto"  # fp32, bf16, fp16; auto: that of training, to give the figures that training printed
    # Instead of the checkpoint's preprocessing, see `ddfnet.models.preprocessing.overridden`.
    input_size: int | tuple[int, int] | str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    resize: str | None = None
    mean: Sequence[float] | str | None = None
    std: Sequence[float] | str | None = None
    max_pixels: int | None = None  # of an image that is read; None: as in training
    threshold: float | None = None  # multi-label: of the sigmoid, instead of the checkpoint's
    fuse_bn: bool = False  # fold batch normalization into convolutions, see `ddfnet.models.fold`

    def __post_init__(self) -> None:
        if self.workers != "auto":
            if not str(self.workers).isdecimal():
                raise UserError(f"--workers must be a number of processes or auto, got {self.workers!r}")
            object.__setattr__(self, "workers", int(self.workers))  # text of the command line
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise UserError(f"--max-pixels must be at least 1, got {self.max_pixels}")
        if self.threshold is not None:
            object.__setattr__(self, "threshold", float(self.threshold))
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UserError(f"--threshold must be between 0 and 1, got {self.threshold:g}")


@dataclass(frozen=True)
class EvaluationSet:
    """Images to evaluate, with the evaluator and the report that belong to them."""

    name: str  # "" of the only set of an evaluation; where there are several, that of a folder of the report
    data: str  # where the images are
    size: int  # number of images
    batches: Callable[..., Iterable[Batch]]  # of rank, world_size and device: the batches of that process
    evaluator: Callable[[torch.device], Any]  # an `Evaluator` of the task
    report: Callable[..., Report]  # of the evaluator after `compute`


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint, ready to be evaluated."""

    network: nn.Module  # on the CPU
    model: str
    precision: str  # fp32, bf16 or fp16
    batch_size: int  # images per process
    channels_last: bool
    facts: dict[str, Any]  # what the report says besides, as plain values
    sets: list[EvaluationSet]
    notes: Sequence[str] = ()  # lines to print before the result


def stored_evaluation(
    task_class: Any, path: Path, weights: Weights, entry: Entry | None, options: EvaluationOptions
) -> Evaluation:
    """`Task.evaluation` for `best.pt` and `last.pt` of a task: evaluated as in training, with its report.json alone.
    UserError for options that only another task takes, and for a checkpoint or data that cannot be used."""
    others = ("model", *FLAGS, "sets", "tta", "threshold", "fuse_bn")
    given = [key for key in others if getattr(options, key) not in (None, False)]
    if given:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        task = weights.meta["task"]
        raise UserError(
            f"{flags} cannot be used with a checkpoint of {task}, whose configuration says it: leave them out"
        )
    config = stored_config(task_class.config_class, path, weights, options)
    task = task_class(config)
    meta = task.meta()
    changed = [key for key in meta if key != "ddfnet" and meta[key] != weights.meta.get(key)]
    if changed:
        raise CheckpointError(f"{path} was trained on other data ({', '.join(changed)} differ): give that as --data")
    network = task.build_model()
    load_weights(network, weights, source=path, name=config.model.name)

    def report(evaluator: Any, **about: Any) -> Report:
        return Report(percentages=task.percentages, **about)

    return Evaluation(
        network,
        model=config.model.name,
        precision=config.train.precision if options.precision == "auto" else options.precision,
        batch_size=config.eval.batch_size or config.train.device_batch_size,
        channels_last=config.train.channels_last,
        facts={"config": config.model_dump(mode="json")},
        sets=[EvaluationSet("", config.data.root, task.val_images, task.eval_batches, task.evaluator, report)],
    )


def stored_config(schema: type[C], path: Path, weights: Weights, options: EvaluationOptions) -> C:
    """The configuration of the training run, with the data and sizes of this evaluation."""
    if weights.config is None:
        raise CheckpointError(f"{path} does not hold the configuration of its run: give best.pt or last.pt")
    values = with_present_names(schema, deepcopy(weights.config))
    own = schema.model_fields["model"].annotation.no_start  # what the weights make needless
    described = {key: value for key, value in values.get("model", {}).items() if key not in own}
    check_names(described, source=path)
    check_sizes(weights, described, source=path)
    if options.data is not None:
        values["data"]["root"] = str(options.data)
    values["data"]["workers"] = options.workers
    values["run"]["dir"] = None
    if options.max_pixels is not None:
        values["data"]["max_pixels"] = options.max_pixels
    if options.batch_size is not None:
        values["eval"]["batch_size"] = options.batch_size
    values["model"].update(schema.model_fields["model"].annotation.no_start)  # its files may be gone
    return check(schema, values)
