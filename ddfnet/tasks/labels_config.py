"""What a run of classification says of labels: the keys, and which of them go together."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ddfnet.config import Section
from ddfnet.tasks.config import EvalConfig


class LabelConfig(Section):
    """Part of the section `data` of classification."""

    sampler: Literal["uniform", "balanced"] = "uniform"
    """Which images an epoch shows. uniform: each once. balanced: as many, all classes equally often: images of small
    classes several times, each time augmented anew, and some of those of large ones."""


class ClassificationEvalConfig(EvalConfig):
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """multi_label: from this value of the sigmoid on a class is predicted, for F1 and in predict.py."""


def check_labels(config: Any) -> None:
    """ValueError where keys of a `ClassificationConfig` about labels cannot go together."""
    if config.data.sampler == "balanced" and config.loss.class_weights == "auto":
        raise ValueError(
            "data.sampler=balanced and loss.class_weights=auto together count small classes twice: set one of them"
        )
    if not config.data.multi_label:
        return
    if config.loss.name != "bce":
        raise ValueError(
            f"data.multi_label=true with loss.name={config.loss.name}, which has one label for each image: set "
            "loss.name=bce"
        )
    if config.distill is not None:
        raise ValueError("distill is for images with one label: leave it out with data.multi_label=true")
    if config.loss.label_smoothing:
        raise ValueError("loss.label_smoothing is for images with one label: set it to 0, or data.multi_label=false")
    if config.data.sampler == "balanced":
        raise ValueError(
            "data.sampler=balanced is for images with one label: with data.multi_label=true use loss.class_weights or "
            "loss.bce_pos_weight"
        )
    if config.model.num_classes is not None:
        raise ValueError(
            "model.num_classes cannot be given with data.multi_label=true: it is the number of class names"
        )


def label_keys_without_effect(config: Any) -> Iterator[tuple[str, str]]:
    """`without_effect` of these keys, and of others that depend on several sections."""
    epochs = config.train.epochs + config.schedule.cooldown_epochs
    if config.augment.mixup_off_epoch is not None and config.augment.mixup_off_epoch >= epochs:
        yield "augment.mixup_off_epoch", f"the run ends after {epochs:g} epochs"
    if config.distill is not None and config.distill.weight == 1:
        for key in type(config.loss).model_fields:
            yield f"loss.{key}", "distill.weight is 1"
    if not config.data.multi_label:
        yield "eval.threshold", "data.multi_label is false"
        yield "data.label_separator", "data.multi_label is false"
