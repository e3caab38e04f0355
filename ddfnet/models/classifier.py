"""A classifier from wherever its weights are: a file of any format we read, or an entry of the zoo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import get_pretrained_cfg
from torch import nn

import ddfnet
from ddfnet.checkpoint import DEFAULT_TASK, Weights, load_weights, read_weights
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.models.factory import NOT_THE_NETWORK, create_model, list_models
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.zoo.download import locate
from ddfnet.zoo.entries import Entry


@dataclass(frozen=True)
class Classifier:
    """A network with its weights, and what has to be known to use it."""

    network: nn.Module  # in evaluation mode, float32, on the CPU
    name: str  # for `ddfnet.create_model`
    num_classes: int  # outputs, which may be more than the classes
    kwargs: dict[str, Any]  # further arguments of the model
    cfg: dict[str, Any]  # timm's record of the model: architecture, usual input, name of the classifier
    classes: list[str] | None  # in label order; None where the file does not say them
    preprocessing: Preprocessing
    precision: str  # of training: fp32, bf16 or fp16; fp32 where the file does not say it
    weights: str  # which of the file: `ema`, `model` or `state_dict`

    @property
    def parameters(self) -> int:
        """Number of trainable values."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def meta(self) -> dict[str, Any]:
        """The meta with which `build_classifier` needs nothing but the weights."""
        return {
            "task": DEFAULT_TASK,
            "model": {"name": self.name, "num_classes": self.num_classes, "kwargs": self.kwargs},
            "classes": self.classes,
            "preprocessing": self.preprocessing.to_dict(),
            "precision": self.precision,
            "ddfnet": ddfnet.__version__,
        }


def load_classifier(checkpoint: str | Path, *, model: str | None = None, weights: str = "auto") -> Classifier:
    """Loads a classifier; UserError where the file cannot be read, is not a classifier, or does not fit the model.

    Args:
        checkpoint: a checkpoint of this package, an official one, a state_dict, a .safetensors file, or `zoo:NAME`.
        model: model name, needed where the file does not say it.
        weights: `auto` (the EMA weights if there are any), `raw` or `ema`.
    """
    path, entry = locate(checkpoint)
    return build_classifier(read_weights(path, prefer=weights), source=path, model=model, entry=entry)


def build_classifier(
    weights: Weights, *, source: Path, model: str | None = None, entry: Entry | None = None
) -> Classifier:
    """The classifier of weights that were read already; see `load_classifier`. `entry`: theirs in the zoo, if any."""
    meta = weights.meta
    if meta is not None:
        _check_meta(meta, source)
        name, num_classes, kwargs = (meta["model"][key] for key in ("name", "num_classes", "kwargs"))
        if model is not None and model != name:
            raise CheckpointError(f"{source} holds {name}, not {model}: leave --model out")
    else:
        name, num_classes, kwargs = model or (entry.model if entry else None), None, {}
        if name is None:
            raise CheckpointError(f"{source} does not say which model it holds: give --model, e.g. ddf_mul_resnet50")
    try:
        num_classes = num_classes or _count_classes(weights, name)
        network = create_model(name, num_classes=num_classes, **kwargs)
    except ValueError as error:
        raise UserError(str(error)) from None
    cfg = vars(network)["pretrained_cfg"]
    load_weights(network, weights, source=source, name=name)
    _check_finite(weights, source)
    if meta is not None:
        preprocessing = Preprocessing.from_dict(meta["preprocessing"])
    else:
        preprocessing = entry.preprocessing if entry else _usual_preprocessing(name, cfg)
    classes, precision = (meta or {}).get("classes"), (meta or {}).get("precision") or "fp32"
    return Classifier(network.eval(), name, num_classes, kwargs, cfg, classes, preprocessing, precision, weights.kind)


def _check_finite(weights: Weights, source: Path) -> None:
    """Raises CheckpointError for values that make every output NaN, and name no class."""
    bad = [key for key, tensor in weights.state_dict.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(
            f"{source}: {len(bad)} tensors hold NaN or infinite values ({', '.join(bad[:3])}): "
            "the file is of a run that diverged, or damaged. Get another one"
        )


def _check_meta(meta: Any, source: Path) -> None:
    """A file may come from anybody: it describes a network, and must not make timm read other files or download.
    CheckpointError where it holds another task, or the description cannot be meant."""
    task = meta.get("task") if isinstance(meta, dict) else None
    if task != DEFAULT_TASK:
        raise CheckpointError(f"{source} holds no classifier" + (f" but the task {task}" if task else ""))
    try:
        model, classes = meta["model"], meta.get("classes")
        name, num_classes, kwargs = model["name"], model["num_classes"], model["kwargs"]
        Preprocessing.from_dict(meta["preprocessing"])
        valid = isinstance(name, str) and isinstance(num_classes, int) and isinstance(kwargs, dict)
        if classes is not None:
            # More outputs than names are allowed (model.num_classes), two outputs of one name are not.
            valid = valid and len(set(classes)) == len(classes) <= num_classes
            valid = valid and all(isinstance(label, str) for label in classes)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} describes its network wrongly ({error!r}): write it again") from None
    if not valid:
        raise CheckpointError(f"{source} describes its network wrongly: {model}, classes {str(classes)[:60]}")
    loading = sorted(set(kwargs) & {"num_classes", "features_only", *NOT_THE_NETWORK})
    if loading:
        raise CheckpointError(
            f"{source} asks for {', '.join(loading)}, which is no part of a network and could make timm read other "
            "files: refused. Get the weights as a plain file from their author"
        )


def _usual_preprocessing(name: str, cfg: dict[str, Any]) -> Preprocessing:
    """That of a model, not of some weights of it that the zoo happens to have."""
    architecture = name.split(".")[0]
    if architecture in list_models():
        cfg = get_pretrained_cfg(f"{architecture}.untrained").to_dict()
    values = {key: cfg[key] for key in ("crop_pct", "interpolation", "mean", "std")}
    return Preprocessing(size=cfg["input_size"][-1], **values)


def _count_classes(weights: Weights, name: str) -> int:
    """Number of classes of weights that do not say it, from the bias of the classifier."""
    with torch.device("meta"):
        cfg = vars(create_model(name))["pretrained_cfg"]
    bias = weights.state_dict.get(f"{cfg['classifier']}.bias")
    return len(bias) if bias is not None else cfg["num_classes"]
