"""Knowledge distillation: a trained network's outputs as a second target."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ddfnet.config import Section
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.evaluation.class_names import known_classes
from ddfnet.models.classifier import Classifier, build_classifier, load_classifier
from ddfnet.models.weights import TIMM, read_source
from ddfnet.utils.errors import ConfigError, UserError, did_you_mean
from ddfnet.utils.text import plural

_log = logging.getLogger("ddfnet")


class DistillConfig(Section):
    teacher: str
    """Network to learn from: a checkpoint that eval.py reads (a file, zoo:NAME, hf-hub:ORG/NAME, local-dir:FOLDER), or
    the name of a model with pretrained weights, e.g. resnet50.a1_in1k. It sees the same augmented images."""
    teacher_model: str | None = None
    """Name of its model, for a file that does not say it."""
    kind: Literal["soft", "hard"] = "soft"
    """soft: loss = (1 - weight) * L + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)), L being the loss
    with the labels, T the temperature. hard: (1 - weight) * L + weight * cross-entropy with the teacher's class."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the teacher."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """soft: T, by which logits are divided."""

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.kind == "hard":
            yield "temperature", "distill.kind is hard"


class Distiller:
    """Adds the teacher's part to a loss. The teacher is in eval mode, has no gradients, and is not part of the model.

    Args:
        student: what the images of a batch are prepared as; the teacher gets them with its own mean and std.
        classes: of the student, in the order of its outputs.
        outputs: of the student.
        size: side of the training images, pixels.

    Raises:
        UserError: the teacher cannot be had, or tells other classes apart.
    """

    def __init__(
        self,
        config: DistillConfig,
        student: Preprocessing,
        *,
        classes: Sequence[str],
        outputs: int,
        size: int | tuple[int, int],
    ) -> None:
        self.config = config
        try:
            self.teacher = _load(config, size)
        except UserError as error:
            raise ConfigError(f"distill.teacher={config.teacher}: {error}") from None
        if self.teacher.threshold is not None:
            raise ConfigError(
                f"distill.teacher={config.teacher} was trained on images with any number of labels, the student learns "
                "one for each: give a teacher that does so, too"
            )
        self.columns = _columns(self.teacher, config.teacher, list(classes), outputs)
        self.network = self.teacher.network.requires_grad_(False).eval()
        own = self.teacher.preprocessing
        if len(own.mean) != len(student.mean):
            raise ConfigError(
                f"distill.teacher={config.teacher} is of images with {plural(len(own.mean), 'channel')}, the "
                f"student of {len(student.mean)} (model.in_chans): give a teacher of the same"
            )
        self.scale = self.shift = None
        if (own.mean, own.std) != (student.mean, student.std):
            mean, std, its_mean, its_std = (
                torch.tensor(values).view(1, -1, 1, 1) for values in (student.mean, student.std, own.mean, own.std)
            )
            self.scale, self.shift = std / its_std, (mean - its_mean) / its_std

    def __str__(self) -> str:
        how = "" if self.scale is None else f", with its own mean {self.teacher.preprocessing.mean} and std"
        return f"teacher: {self.teacher.name} of {self.config.teacher}, {self.teacher.parameters:,} parameters{how}"

    def __call__(self, loss: Tensor, logits: Tensor, image: Tensor) -> Tensor:
        """The loss of `DistillConfig.kind`; logits of the student float32 (B, outputs), image (B, 3, H, W)."""
        target = self.logits(image)
        weight, t = self.config.weight, self.config.temperature
        if self.config.kind == "hard":
            part = F.cross_entropy(logits, target.argmax(1))
        else:
            own, its = (logits / t).log_softmax(1), (target / t).log_softmax(1)
            part = t * t * F.kl_div(own, its, reduction="batchmean", log_target=True)
        return (1 - weight) * loss + weight * part

    @torch.no_grad()
    def logits(self, image: Tensor) -> Tensor:
        """The teacher's, float32, in the order of the student's classes."""
        self.network.to(image.device)
        if self.scale is not None and self.shift is not None:
            self.scale, self.shift = self.scale.to(image.device), self.shift.to(image.device)
            image = image * self.scale + self.shift
        logits = self.network(image).float()
        return logits if self.columns is None else logits[:, self.columns]


def _load(config: DistillConfig, size: int | tuple[int, int]) -> Classifier:
    name = config.teacher
    if ":" not in name and not Path(name).exists() and timm.is_model(name.split(".")[0]):
        return build_classifier(read_source(TIMM + name), source=Path(name), model=name, changes={"input_size": size})
    return load_classifier(name, model=config.teacher_model, changes={"input_size": size})


def _columns(teacher: Classifier, source: str, classes: list[str], outputs: int) -> list[int] | None:
    """The outputs of the teacher that are the student's classes; None: all, in this order.

    Where the teacher's classes are known, their names decide, and never their places.
    """
    named, its = known_classes(teacher.classes, teacher.num_classes), teacher.num_classes
    says = f"distill.teacher={source} tells {plural(its, 'class', 'classes')} apart"
    fix = "train a teacher on the classes of these images"
    if named is None:
        if its == outputs:
            return None
        raise ConfigError(f"{says} and does not name them, the student has {outputs} outputs: {fix} first")
    if its == outputs and named[: len(classes)] == classes:
        return None
    absent = sorted(set(classes) - set(named))
    if absent:
        raise ConfigError(f"{says}, among them no {absent[0]}: {fix} first")
    if outputs != len(classes):
        raise ConfigError(
            f"{says}, which cannot be told of the student's {outputs} outputs for "
            f"{plural(len(classes), 'class', 'classes')}: "
            f"set model.num_classes={len(classes)}"
        )
    return [named.index(name) for name in classes]


def check_teacher(config: DistillConfig | None) -> None:
    """ConfigError where the file of the teacher does not exist: known before any image is looked for."""
    name = "" if config is None else config.teacher
    if name and ":" not in name and not Path(name).exists() and not timm.is_model(name.split(".")[0]):
        hint = "" if Path(name).suffix or "/" in name else did_you_mean(name, timm.list_models(), most=1)
        raise ConfigError(f"distill.teacher={name}: checkpoint not found: {name}{'; ' * bool(hint)}{hint}")


def build_distiller(config: Any, student: Preprocessing, classes: Sequence[str], outputs: int) -> Distiller | None:
    """The teacher of a `ClassificationConfig`, said in the log; None where there is none."""
    if config.distill is None:
        return None
    size = config.data.input.train_size or config.data.input.size
    distiller = Distiller(config.distill, student, classes=classes, outputs=outputs, size=size)
    _log.info("%s", distiller)
    return distiller
