"""What a run of classification says of labels: the keys, and which of them go together."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ddfnet.config import Fault, Section
from ddfnet.tasks.config import EvalConfig


class LabelConfig(Section):
    """Part of the section `data` of classification."""

    sampler: Literal["uniform", "balanced"] = "uniform"
    """Which images an epoch shows. uniform: each once. balanced: as many, all classes equally often: images of small
    classes several times, each time augmented anew, and some of those of large ones."""


class ClassificationEvalConfig(EvalConfig):
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """multi_label: from this value of the sigmoid on a class is predicted, for F1 and in predict.py."""


def label_faults(config: Any) -> Iterator[Fault]:
    """Keys of a `ClassificationConfig` about labels that cannot go together."""
    data, loss = config.data, config.loss
    balanced = {"data.sampler": "balanced"}
    if data.sampler == "balanced" and loss.class_weights == "auto":
        yield Fault(balanced | {"loss.class_weights": "auto"}, "together count small classes twice: set one of them")
    if not data.multi_label:
        return
    several = {"data.multi_label": True}
    if loss.name != "bce":
        yield Fault(
            several | {"loss.name": loss.name},
            "contradict: this loss is of one label for each image; set loss.name=bce",
        )
    if config.distill is not None:
        fix = "distillation is for images with one label; set distill=null"
        yield Fault(several | {"distill.teacher": config.distill.teacher}, f"contradict: {fix}")
    if loss.label_smoothing:
        fix = "smoothing is for images with one label; set loss.label_smoothing=0"
        yield Fault(several | {"loss.label_smoothing": loss.label_smoothing}, f"contradict: {fix}")
    if data.sampler == "balanced":
        fix = "it is for images with one label; use loss.class_weights or loss.bce_pos_weight"
        yield Fault(several | balanced, f"contradict: {fix}")
    if config.model.num_classes is not None:
        fix = "it is the number of class names; set model.num_classes=null"
        yield Fault(several | {"model.num_classes": config.model.num_classes}, f"contradict: {fix}")


def label_keys_without_effect(config: Any) -> Iterator[tuple[str, str]]:
    """`without_effect` of these keys, and of others that depend on several sections."""
    epochs = config.train.epochs + config.schedule.cooldown_epochs
    if config.augment.mixup_off_epoch is not None and config.augment.mixup_off_epoch >= epochs:
        yield "augment.mixup_off_epoch", f"the run ends after {epochs:g} epoch{'s' * (epochs != 1)}"
    if config.distill is not None and config.distill.weight == 1:
        for key in type(config.loss).model_fields:
            yield f"loss.{key}", "distill.weight is 1"
    if not config.data.multi_label:
        yield "eval.threshold", "data.multi_label is false"
        yield "data.label_separator", "data.multi_label is false"
