"""A classifier from wherever its weights are: a file of any format we read, or an entry of the zoo."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

import ddfnet
from ddfnet.checkpoint import DEFAULT_TASK, Weights, read_weights
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.models.claims import check_network, check_sizes
from ddfnet.models.factory import check_describes_network, create_model
from ddfnet.models.input_size import create_for_size, size_argument
from ddfnet.models.weights import count_classes, load_weights
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.zoo.download import locate
from ddfnet.zoo.entries import Entry

_log = logging.getLogger("ddfnet")


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
    channels_last: bool = True  # memory format of training; True where the file does not say it
    threshold: float | None = None  # multi-label: of the sigmoid; None: classes exclude one another
    changes: str = ""  # what was stripped, renamed, resized or left out, see `ddfnet.models.weights.load_weights`

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
            "channels_last": self.channels_last,
            "ddfnet": ddfnet.__version__,
            **({} if self.threshold is None else {"multi_label": {"threshold": self.threshold}}),
        }


def load_classifier(
    checkpoint: str | Path, *, model: str | None = None, weights: str = "auto", size: int | None = None
) -> Classifier:
    """Loads a classifier; UserError where the file cannot be read, is not a classifier, or does not fit the model.

    Args:
        checkpoint: a file or folder that `read_weights` reads, `zoo:NAME`, `hf-hub:ORG/NAME` or `local-dir:FOLDER`.
        model: model name, needed where the file does not say it.
        weights: `auto` (the EMA weights if there are any), `raw` or `ema`.
        size: side of the images that the network will get, where it is not the checkpoint's: a model built for one
            size is built for this one, and its position embeddings are resized.
    """
    path, entry = locate(checkpoint)
    return build_classifier(read_weights(path, prefer=weights), source=path, model=model, entry=entry, size=size)


def build_classifier(
    weights: Weights, *, source: Path, model: str | None = None, entry: Entry | None = None, size: int | None = None
) -> Classifier:
    """The classifier of weights that were read already; see `load_classifier`. `entry`: theirs in the zoo, if any."""
    meta = weights.meta
    if meta is not None:
        _check_meta(meta, source)
        name, num_classes, kwargs = (meta["model"][key] for key in ("name", "num_classes", "kwargs"))
        if model is not None and model != name:
            raise CheckpointError(f"{source} holds {name}, not {model}: leave --model out")
        preprocessing, classes = Preprocessing.from_dict(meta["preprocessing"]), meta.get("classes")
    else:
        name, kwargs, args = _described(weights, source, model, entry)
        num_classes, cfg = _probed(weights, source, name, kwargs)
        preprocessing = entry.preprocessing if entry else _preprocessing(cfg, args, source)
        classes = _class_names((weights.origin or {}).get("classes"), num_classes)
    if meta is not None:
        check_network(weights, name, num_classes, kwargs, source=source)
    try:
        if size is not None or meta is None:
            size = size or preprocessing.size
            kwargs = {**kwargs, **size_argument(name, kwargs, size)}
            network = create_for_size(name, kwargs, size=size, num_classes=num_classes)
        else:
            network = create_model(name, num_classes=num_classes, **kwargs)
    except ValueError as error:
        raise UserError(str(error)) from None
    infinite = {key for key, tensor in network.state_dict().items() if torch.isinf(tensor).any()}  # some are, by design
    changes = load_weights(network, weights, source=source, name=name)
    _check_finite(network, source, infinite)
    return Classifier(
        network.eval(),
        name,
        num_classes,
        kwargs,
        vars(network)["pretrained_cfg"],
        classes,
        preprocessing,
        precision=(meta or {}).get("precision") or "fp32",
        weights=weights.kind,
        channels_last=(meta or {}).get("channels_last", True) is True,
        threshold=None if not (meta or {}).get("multi_label") else meta["multi_label"]["threshold"],
        changes=changes,
    )


def _described(
    weights: Weights, source: Path, model: str | None, entry: Entry | None
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Name, arguments and training `args` of the model in a file of another trainer; `model` and the zoo come first."""
    origin = weights.origin or {}
    args = origin.get("args") or {}
    theirs = origin.get("arch")
    name = model or (entry.model if entry else None) or theirs
    if name is None:
        raise CheckpointError(f"{source} does not say which model it holds: give --model, e.g. ddf_mul_resnet50")
    if name == theirs and not timm.is_model(name):
        raise CheckpointError(f"{source} calls its model {name!r}, which timm does not know: give --model")
    arguments = args.get("model_kwargs") if name == theirs else None
    kwargs = dict(arguments) if isinstance(arguments, dict) else {}
    channels = args.get("in_chans") or kwargs.get("in_chans") or 3
    if channels != 3:
        raise CheckpointError(f"{source} is of images with {channels} channels: only 3 can be used here")
    if name == theirs and isinstance(args.get("gp"), str):  # timm's --gp
        kwargs["global_pool"] = args["gp"]
    check_describes_network(kwargs, source=source)
    check_sizes(weights, kwargs, source=source)
    return name, kwargs, args


def _probed(weights: Weights, source: Path, name: str, kwargs: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Number of classes of weights that do not say it, and timm's record of their model."""
    try:
        with torch.device("meta"):
            probe = create_model(name, **kwargs)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{source}: {error or 'its model cannot be built'}") from None
    cfg = vars(probe)["pretrained_cfg"]
    return count_classes(probe, weights, source=source) or cfg["num_classes"], cfg


def _preprocessing(cfg: dict[str, Any], args: dict[str, Any], source: Path) -> Preprocessing:
    """That of a file which does not state its own: timm's answer for the arguments of the training and the model."""
    keys = ("input_size", "img_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    try:
        values = resolve_data_config({key: args.get(key) for key in keys}, pretrained_cfg=cfg)
        values["size"] = values["input_size"][-1]
        # The kernel of timm and of those who published figures.
        values["resize"] = "pillow"
        how = Preprocessing(**{key: value for key, value in values.items() if key in Preprocessing.model_fields})
    except (AssertionError, TypeError, ValueError, LookupError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{source} states a preprocessing that cannot be used here: {reason[:200]}") from None
    mode, (_, height, width) = values.get("crop_mode") or "center", values["input_size"]
    if mode != "center" or height != width:
        _log.warning(
            "%s was made for crop mode %s of %d x %d pixels; here the center of %d x %d is taken: accuracy may suffer",
            source, mode, height, width, how.size, how.size,
        )  # fmt: skip
    return how


def _class_names(names: Any, num_classes: int) -> list[str] | None:
    """The names of a hub folder, if they are one of each class."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names if len(names) == len(set(names)) == num_classes else None


def _check_finite(network: nn.Module, source: Path, infinite: set[str]) -> None:
    """Raises CheckpointError for values that make every output NaN, and name no class. `infinite`: keys of tensors that
    hold infinities in a fresh network, such as limits."""
    bad = [
        key
        for key, tensor in network.state_dict().items()
        if (torch.isnan(tensor).any() if key in infinite else not torch.isfinite(tensor).all())
    ]
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
        valid = valid and (not meta.get("multi_label") or 0 < meta["multi_label"]["threshold"] < 1)
        if classes is not None:
            # More outputs than names are allowed (model.num_classes), two outputs of one name are not.
            valid = valid and len(set(classes)) == len(classes) <= num_classes
            valid = valid and all(isinstance(label, str) for label in classes)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} describes its network wrongly ({error!r}): write it again") from None
    if not valid:
        raise CheckpointError(f"{source} describes its network wrongly: {model}, classes {str(classes)[:60]}")
    if ":" in name:
        raise CheckpointError(f"{source} names its network {name!r}, which timm would look for elsewhere: refused")
    check_describes_network(kwargs, source=source)
