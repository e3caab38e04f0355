"""`data.input` of a classification run, from its model's record where the configuration is silent; and the network for
it."""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg
from torch import nn

from ddfnet.checkpoint import hub_config
from ddfnet.config import Fault
from ddfnet.config.reader import KeyPath, flow
from ddfnet.data.decode import CHANNELS
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.models.factory import list_models
from ddfnet.models.input_size import create_for_size, size_argument, unseen_border
from ddfnet.models.preprocessing import AVERAGED, USUAL, Stated, for_channels, of_record
from ddfnet.utils.errors import ConfigError, UserError
from ddfnet.zoo.download import HUB, LOCAL, locate


class NetworkInput:
    """The part of a task that is about `data.input` and the network for it."""

    config: Any
    model_name: str
    notes: list[str]
    num_classes: int
    _saved_kwargs: dict[str, Any]

    @classmethod
    def fill_in(cls, values: dict[str, Any], origins: dict[KeyPath, str]) -> None:
        fill_input(values, origins)

    @classmethod
    def describe(cls, config: Any, origins: dict[KeyPath, str]) -> list[str]:
        return input_lines(config, origins)

    def present_meta(self, meta: dict[str, Any]) -> dict[str, Any]:
        return {**meta, "preprocessing": Preprocessing.from_dict(meta["preprocessing"]).to_dict()}

    @cached_property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model besides classes and rates; `img_size` where it is built for one size."""
        kwargs = {**self._saved_kwargs, **self.config.model.kwargs}
        if self.config.model.in_chans not in (None, kwargs.get("in_chans", 3)):
            kwargs["in_chans"] = self.config.model.in_chans
        try:
            return {**kwargs, **size_argument(self.model_name, kwargs, self.config.data.input.size)}
        except ValueError as error:
            raise ConfigError(f"model.name, model.kwargs: {error}") from None

    def build_model(self) -> nn.Module:
        """The model of the configuration with random weights, made for `data.input.size`.

        Raises:
            ConfigError: there is no such model, it does not take the arguments or the image sizes, or cannot be
                trained.
        """
        model, given = self.config.model, self.config.data.input
        rates: dict[str, Any] = {"drop_rate": model.drop_rate}
        if model.drop_path_rate:
            rates["drop_path_rate"] = model.drop_path_rate
        train_size, kwargs = given.train_size or given.size, self.model_kwargs
        try:
            network = create_for_size(
                self.model_name, kwargs, size=given.size, train_size=train_size, num_classes=self.num_classes, **rates
            )
        except ValueError as error:
            keys = ["model.name"]
            if "does not take its arguments" in str(error):
                keys = [f"model.kwargs={flow(self.config.model.kwargs)}", "model.name"]
            elif "unknown model" not in str(error) and "no weights tagged" not in str(error):
                keys += ["model.kwargs", f"data.input.size={flow(given.size)}"]
            raise ConfigError(f"{', '.join(keys)}: {error}") from None
        self.notes += filter(None, [unseen_border(network, given.size)])
        return network


def channel_faults(config: Any, channels: int | None) -> Iterator[Fault]:
    """Faults of a classification's configuration beside the channels of its network (None: not known yet): images
    cannot be read so, the mean has another number of values, or the augmentation is one of colors."""
    stated = len(config.data.input.mean)
    channels = channels or stated
    own = {"model.in_chans": channels}
    if channels not in CHANNELS:
        known = ", ".join(f"{count} ({name})" for count, name in CHANNELS.items())
        yield Fault(own, f"cannot be: image files are read with {known} channels, and no others")
        return
    if stated != channels:
        given = {f"data.input.{key}": getattr(config.data.input, key) for key in ("mean", "std")}
        yield Fault(own | given, "contradict: give one value per channel, or leave both out")
    keys = ("color_jitter", "rand_augment", "trivial_augment")
    colors = {f"augment.{key}": value for key in keys if (value := getattr(config.augment, key))}
    if channels not in (1, 3) and colors:
        yield Fault(
            own | colors,
            "contradict: color operations work on RGB and gray images; set augment.color_jitter=0, "
            "augment.rand_augment=null and augment.trivial_augment=false",
        )


def fill_input(values: dict[str, Any], origins: dict[KeyPath, str]) -> None:
    """Adds to a nested dict, before its check, what the model's record states and it does not, with the origins. null
    is not stated."""
    model, data = values.get("model"), values.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict):
        return
    given = data.setdefault("input", {})
    if isinstance(given, dict):
        for key in [key for key in Preprocessing.model_fields if key in given and given[key] is None]:
            del given[key]
            origins.pop(("data", "input", key), None)
        for key, (value, who) in stated_by_record(model).items():
            if key not in given:
                given[key] = list(value) if isinstance(value, tuple) else value
                origins["data", "input", key] = who


def stated_by_record(model: Mapping[str, Any]) -> Stated:
    """What the record of a model, a section `model` that may hold faults, states of `data.input`.

    Of the size only where the model is built for one. Models of this package have a record only of their weights: one
    that starts at random is trained with ImageNet's usual.
    """
    name = model.get("name")
    kwargs = model.get("kwargs") if isinstance(model.get("kwargs"), dict) else {}
    cfg = _record(name) if isinstance(name, str) else None
    channels = model.get("in_chans") or (cfg or {}).get("in_chans") or 3
    own = isinstance(name, str) and name.partition(".")[0] in list_models()
    tag = cfg and cfg.get("tag")
    if own and not (model.get("pretrained") is True or (tag and name.endswith(f".{tag}") and tag != "untrained")):
        cfg = None
    stated = of_record(cfg, test=False) if cfg else {}
    if not (cfg and cfg.get("fixed_input_size")) or kwargs.get("dynamic_img_size"):
        stated.pop("size", None)
    return for_channels(stated, channels) if isinstance(channels, int) and channels > 0 else stated


def input_lines(config: Any, origins: Mapping[KeyPath, str]) -> list[str]:
    """The preprocessing of a checked configuration in one line, and a note where it is not its model's record."""
    how = config.data.input
    who = {key: _origin(key, origins) for key in Preprocessing.model_fields}
    # What nobody states of these two is a default of this package, and no news.
    lines = [how.line({key: said for key, said in who.items() if said != USUAL or key not in ("crop_mode", "resize")})]
    stated = stated_by_record(config.model.model_dump())
    other = []
    for key, (value, _) in stated.items():
        wanted, own = (list(v) if isinstance(v, tuple) else v for v in (value, getattr(how, key)))
        if key != "size" and wanted != own:
            other.append(f"{key} {own} instead of {wanted}")
    if other:
        record = next(iter(stated.values()))[1]
        lines.append(f"note: data.input differs from {record.removesuffix(AVERAGED)}: {', '.join(other)}")
    return lines


def _origin(key: str, origins: Mapping[KeyPath, str]) -> str:
    said = origins.get(("data", "input", key), USUAL)
    file, is_file, _ = said.rpartition(":") if re.search(r":\d+$", said) else (said, "", "")
    return Path(file).name if is_file else said  # its folder and line are of no interest here


def _record(name: str) -> Mapping[str, Any] | None:
    """timm's record of a name of `create_model`, of `hf-hub:ORG/NAME` or `local-dir:FOLDER`; None where there is none,
    or it cannot be had: who builds the model says so."""
    if name.startswith((HUB, LOCAL)):
        try:
            config = hub_config(locate(name)[0])
        except UserError:
            return None
        channels = config["model_args"].get("in_chans", 3)
        return {"architecture": config["architecture"], "in_chans": channels, **config["pretrained_cfg"]}
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        return None
    return None if cfg is None else {"architecture": name.partition(".")[0], **cfg.to_dict()}
