"""A classifier from wherever its weights are: a file of any format we read, or an entry of the zoo."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import ddfnet
from ddfnet.checkpoint import DEFAULT_TASK, Weights, read_weights
from ddfnet.data.decode import CHANNELS
from ddfnet.data.preprocessing import Preprocessing, height_width, size_text
from ddfnet.models.claims import check_network, check_sizes
from ddfnet.models.factory import check_describes_network, create_model
from ddfnet.models.input_size import create_for_size, size_argument, unseen_border
from ddfnet.models.preprocessing import foreign_preprocessing, noted_beyond_scale, overridden
from ddfnet.models.weights import count_channels, count_classes, load_weights
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.utils.text import plural, wrap
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
    channels_last: bool = True  # memory format of training; True where the file does not say it
    threshold: float | None = None  # multi-label: of the sigmoid; None: classes exclude one another
    origins: Mapping[str, str] = field(default_factory=dict)  # by field of the preprocessing: who says so
    changes: str = ""  # what was stripped, renamed, resized or left out, see `ddfnet.models.weights.load_weights`

    @property
    def parameters(self) -> int:
        """Number of trainable values."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def input_text(self) -> str:
        """The preprocessing and who states it, and a note where the network does not see the borders of the images."""
        how = self.preprocessing
        lines = [how.line(self.origins), *filter(None, [unseen_border(self.network, how.size)])]
        return "\n".join(wrap(line, indent="  ") for line in lines)

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
    checkpoint: str | Path, *, model: str | None = None, weights: str = "auto", changes: Mapping[str, Any] | None = None
) -> Classifier:
    """Loads a classifier; UserError where the file cannot be read, is not a classifier, or does not fit the model.

    Args:
        checkpoint: a file or folder that `read_weights` reads, `zoo:NAME`, `hf-hub:ORG/NAME` or `local-dir:FOLDER`.
        model: model name, needed where the file does not say it.
        weights: `auto` (the EMA weights if there are any), `raw` or `ema`.
        changes: of the preprocessing, as on a command line: see `ddfnet.models.preprocessing.overridden`. A model
            built for one size is built for an `input_size` among them, and its position embeddings are resized.
    """
    path, entry = locate(checkpoint)
    return build_classifier(read_weights(path, prefer=weights), source=path, model=model, entry=entry, changes=changes)


def build_classifier(
    weights: Weights,
    *,
    source: Path,
    model: str | None = None,
    entry: Entry | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Classifier:
    """The classifier of weights that were read already; see `load_classifier`. `entry`: theirs in the zoo, if any."""
    meta = weights.meta
    if meta is not None:
        _check_meta(meta, source)
        name, num_classes, kwargs = (meta["model"][key] for key in ("name", "num_classes", "kwargs"))
        if model is not None and model != name:
            raise CheckpointError(f"{source} holds {name}, not {model}: leave --model out")
        how, classes = Preprocessing.from_dict(meta["preprocessing"]), meta.get("classes")
        origins = dict.fromkeys(Preprocessing.model_fields, "the checkpoint")
    else:
        name, kwargs = _described(weights, source, model, entry)
        num_classes, cfg, kwargs = _probed(weights, source, name, kwargs)
        if entry:
            how, origins = entry.preprocessing, dict.fromkeys(Preprocessing.model_fields, "the entry of the zoo")
        else:
            how, origins = foreign_preprocessing(
                cfg, weights.origin or {}, channels=kwargs.get("in_chans", 3), source=source
            )
        classes = _class_names((weights.origin or {}).get("classes"), num_classes)
    if meta is not None:
        check_network(weights, name, num_classes, kwargs, source=source)
    how, origins = overridden(how, noted_beyond_scale(how, origins), changes or {})
    # timm's filter takes the position embeddings in a file for those of a square; a network of that size knows better.
    wide = meta is not None and isinstance(kwargs.get("img_size"), list)
    try:
        if (changes or {}).get("input_size") is not None or meta is None:
            resized = {**kwargs, **size_argument(name, kwargs, how.size)}
            network = create_for_size(name, resized, size=how.size, num_classes=num_classes)
            wide = wide and resized != kwargs and hasattr(network, "set_input_size")
            if wide:
                network = create_model(name, num_classes=num_classes, **kwargs)
            kwargs = resized
        else:
            wide, network = False, create_model(name, num_classes=num_classes, **kwargs)
    except ValueError as error:
        raise UserError(str(error)) from None
    infinite = {key for key, tensor in network.state_dict().items() if torch.isinf(tensor).any()}  # some are, by design
    fitted = load_weights(network, weights, source=source, name=name)
    _check_finite(network, source, infinite)
    if wide:
        network.set_input_size(img_size=height_width(how.size))  # type: ignore[operator]
        fitted = "; ".join(filter(None, (fitted, f"resized to {size_text(how.size)} pixels")))
    return Classifier(
        network.eval(),
        name,
        num_classes,
        kwargs,
        vars(network)["pretrained_cfg"],
        classes,
        how,
        precision=(meta or {}).get("precision") or "fp32",
        weights=weights.kind,
        channels_last=(meta or {}).get("channels_last", True) is True,
        threshold=None if not (meta or {}).get("multi_label") else meta["multi_label"]["threshold"],
        origins=origins,
        changes=fitted,
    )


def _described(weights: Weights, source: Path, model: str | None, entry: Entry | None) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the model in a file of another trainer; `model` and the zoo come first."""
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
    _check_channels(channels, source)
    if channels != 3:
        kwargs["in_chans"] = channels
    if name == theirs and isinstance(args.get("gp"), str):  # timm's --gp
        kwargs["global_pool"] = args["gp"]
    check_describes_network(kwargs, source=source)
    check_sizes(weights, kwargs, source=source)
    return name, kwargs


def _check_channels(channels: int, source: Path) -> None:
    if channels not in CHANNELS:
        known = ", ".join(map(str, CHANNELS))
        raise CheckpointError(f"{source} is of images with {plural(channels, 'channel')}: here they have {known}")


def _probed(
    weights: Weights, source: Path, name: str, kwargs: dict[str, Any]
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Number of classes of weights that do not say it, timm's record of their model, and its arguments, with the
    channels of their first convolution where nothing else says them."""
    try:
        with torch.device("meta"):
            probe = create_model(name, **kwargs)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{source}: {error or 'its model cannot be built'}") from None
    cfg = vars(probe)["pretrained_cfg"]
    if "in_chans" not in kwargs and (channels := count_channels(probe, weights, source=source)) not in (None, 3):
        _check_channels(channels, source)
        kwargs = {**kwargs, "in_chans": channels}
    return count_classes(probe, weights, source=source) or cfg["num_classes"], cfg, kwargs


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
        channels = len(Preprocessing.from_dict(meta["preprocessing"]).mean)
        valid = isinstance(name, str) and isinstance(num_classes, int) and isinstance(kwargs, dict)
        valid = valid and kwargs.get("in_chans", 3) == channels in CHANNELS
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
