"""A classifier from wherever its weights are: a file of any format we read, or an entry of the zoo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import get_pretrained_cfg
from torch import nn

from ddfnet.checkpoint import Weights, load_weights, read_weights
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.models import create_model, list_models
from ddfnet.models.factory import NOT_THE_NETWORK
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.zoo.download import locate
from ddfnet.zoo.entries import Entry


@dataclass(frozen=True)
class Classifier:
    """A network with its weights, and what has to be known to use it.

    Attributes:
        network: in evaluation mode, float32, on the CPU.
        name: model name, for `ddfnet.create_model`.
        kwargs: further arguments of the model.
        classes: class names in label order; None where the file does not say them.
        preprocessing: of the images.
        precision: of training (`fp32`, `bf16`, `fp16`); None where the file does not say it.
        weights: which weights of the file these are: `ema`, `model` or `state_dict`.
    """

    network: nn.Module
    name: str
    kwargs: dict[str, Any]
    classes: list[str] | None
    preprocessing: Preprocessing
    precision: str | None
    weights: str


def load_classifier(checkpoint: str | Path, *, model: str | None = None, weights: str = "auto") -> Classifier:
    """Loads a classifier.

    Args:
        checkpoint: a checkpoint of ours, an official one, a state_dict, a .safetensors file, or `zoo:NAME`.
        model: model name, needed where the file does not say it.
        weights: `auto` (the moving average if there is one), `raw` or `ema`.

    Raises:
        UserError: the file cannot be read, is not a classifier, or does not fit the model.
    """
    path, entry = locate(checkpoint)
    return build_classifier(read_weights(path, prefer=weights), source=path, model=model, entry=entry)


def build_classifier(found: Weights, *, source: Path, model: str | None, entry: Entry | None = None) -> Classifier:
    """The classifier of weights that were read already; see `load_classifier`. `entry`: theirs in the zoo, if any."""
    said = found.meta
    if said is not None:
        _check_meta(said, source)
    elif entry is not None:
        model = model or entry.model
    if said is not None:
        if model is not None and model != said["model"]["name"]:
            raise CheckpointError(f"{source} holds {said['model']['name']}, not {model}: leave --model out")
        name, num_classes, kwargs = said["model"]["name"], said["model"]["num_classes"], said["model"]["kwargs"]
    elif model is None:
        raise CheckpointError(f"{source} does not say which model it holds: give --model, e.g. ddf_mul_resnet50")
    else:
        name, num_classes, kwargs = model, None, {}
    try:
        if num_classes is None:
            num_classes = _classes_of(found, name)
        network = create_model(name, pretrained=False, num_classes=num_classes, **kwargs)
    except ValueError as error:
        raise UserError(str(error)) from None
    load_weights(network, found, source=source, name=name)
    check_finite(found, source)
    if said is not None:
        preprocessing = Preprocessing.from_dict(said["preprocessing"])
    else:
        preprocessing = entry.preprocessing if entry is not None else _usual_preprocessing(name, network)
    said = said or {}
    return Classifier(
        network.eval(), name, kwargs, said.get("classes"), preprocessing, said.get("precision"), found.kind
    )


def check_finite(found: Weights, source: str | Path) -> None:
    """Raises CheckpointError for values that make every output NaN, and name no class."""
    broken = [key for key, tensor in found.state_dict.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{source}: {len(broken)} tensors hold NaN or infinite values ({', '.join(broken[:3])}): "
            "the file is of a run that diverged, or damaged. Get another one"
        )


def _check_meta(said: dict[str, Any], source: Path) -> None:
    """A file may come from anybody: it describes a network, and must not make timm read other files or download.

    Raises:
        CheckpointError: it holds another task, or what it says cannot be meant.
    """
    task = said.get("task") if isinstance(said, dict) else None
    if task != "classification":
        raise CheckpointError(f"{source} holds no classifier" + (f" but the task {task}" if task else ""))
    try:
        model, classes = said["model"], said.get("classes")
        name, num_classes, kwargs = model["name"], model["num_classes"], model["kwargs"]
        Preprocessing.from_dict(said["preprocessing"])
        sound = isinstance(name, str) and isinstance(num_classes, int) and isinstance(kwargs, dict)
        if classes is not None:
            # More outputs than names are allowed (model.num_classes), two outputs of one name are not.
            sound = sound and len(set(classes)) == len(classes) <= num_classes
            sound = sound and all(isinstance(label, str) for label in classes)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} describes its network wrongly ({error!r}): write it again") from None
    if not sound:
        raise CheckpointError(f"{source} describes its network wrongly: {model}, classes {str(classes)[:60]}")
    loading = sorted(set(kwargs) & {"num_classes", "features_only", *NOT_THE_NETWORK})
    if loading:
        raise CheckpointError(
            f"{source} asks for {', '.join(loading)}, which is no part of a network and could make timm read other "
            "files: refused. Get the weights as a plain file from their author"
        )


def _usual_preprocessing(name: str, network: nn.Module) -> Preprocessing:
    """That of a model, not of some weights of it that the zoo happens to have."""
    architecture = name.split(".")[0]
    ours = architecture in list_models()
    cfg = get_pretrained_cfg(f"{architecture}.untrained").to_dict() if ours else network.pretrained_cfg
    return Preprocessing(
        size=cfg["input_size"][-1],
        crop_pct=cfg["crop_pct"],
        interpolation=cfg["interpolation"],
        mean=cfg["mean"],
        std=cfg["std"],
    )


def _classes_of(found: Weights, name: str) -> int:
    """Number of classes of weights that do not say it, from the bias of the classifier."""
    with torch.device("meta"):
        cfg = create_model(name).pretrained_cfg
    bias = found.state_dict.get(f"{cfg['classifier']}.bias")
    return len(bias) if bias is not None else cfg["num_classes"]
