"""Creating models by name: those of this package, and every classification model of timm."""

import re
from typing import Any

import timm
from torch import nn

from ddfnet.checkpoint import hub_config
from ddfnet.models import baselines, ddf_resnet
from ddfnet.models.ddf_resnet import BLOCK_OPTIONS, DDF_OPTIONS
from ddfnet.utils.errors import CheckpointError, did_you_mean
from ddfnet.zoo.download import HUB, LOCAL, locate

# Arguments of timm.create_model that do not describe the network, but read files, download, or change global state.
NOT_THE_NETWORK = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
    "scriptable", "exportable", "no_jit",
)  # fmt: skip


def list_models() -> list[str]:
    """Names of the models of this package (DDF-ResNets and the baselines timm lacks), sorted."""
    return sorted({name.split(".")[0] for name in (*ddf_resnet.default_cfgs, *baselines.default_cfgs)})


def create_model(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`timm.create_model` with an error that helps.

    Args:
        name: a model of this package (`list_models()`) or of timm.
        pretrained: load the weights of the zoo, or those that timm knows for its own models; `name.tag` chooses among
            several.
        **kwargs: arguments of the model, e.g. num_classes, in_chans, features_only, drop_path_rate, squeeze_ratio.

    Raises:
        ValueError: unknown name (the nearest ones are named), an argument the model does not take, or no weights
            (also `ddfnet.zoo.ZooError`: they cannot be had).
    """
    if ":" not in name and not timm.is_model(name):  # hf-hub:, local-dir: are timm's to resolve
        hint = did_you_mean(name, timm.list_models(), otherwise=f"this package has {', '.join(list_models())}")
        raise ValueError(f"unknown model {name!r}: {hint}")
    _check_tag(name)
    if pretrained and name.split(".")[0] in list_models() and not timm.is_model_pretrained(name):
        known = timm.list_models("*", pretrained=True, module="ddf_resnet")
        raise ValueError(f"there are no weights of {name} yet, only of {', '.join(known)}: set pretrained to false")
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        hint = did_you_mean(unknown[1], DDF_OPTIONS + BLOCK_OPTIONS, most=1) if unknown else ""
        raise ValueError(f"model {name} does not take its arguments: {error}{'; ' * bool(hint)}{hint}") from error


def resolve_name(name: str) -> tuple[str, dict[str, Any]]:
    """The architecture (with its tag) that a name stands for, and its arguments: for `hf-hub:ORG/NAME` and
    `local-dir:FOLDER` what the config.json there says, which is fetched if need be; other names as they are.

    Raises:
        UserError: there is no such folder, or it describes no model that can be built from its description alone.
    """
    if not name.startswith((HUB, LOCAL)):
        return name, {}
    folder, _ = locate(name)
    config = hub_config(folder)
    check_describes_network(config["model_args"], source=folder)
    if not timm.is_model(config["architecture"]):
        raise CheckpointError(f"{folder} is of {config['architecture']}, which this timm ({timm.__version__}) lacks")
    return config["architecture"], config["model_args"]


def check_describes_network(kwargs: dict[str, Any], *, source: object) -> None:
    """A file may come from anybody: it describes a network, and must not make timm read other files or download.
    CheckpointError where its arguments do more."""
    loading = sorted(set(kwargs) & {"num_classes", "features_only", *NOT_THE_NETWORK})
    if loading:
        raise CheckpointError(
            f"{source} asks for {', '.join(loading)}, which is no part of a network and could make timm read other "
            "files: refused. Get the weights as a plain file from their author"
        )


def _check_tag(name: str) -> None:
    architecture, dot, tag = name.partition(".")
    if not dot or ":" in name:
        return
    try:
        timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # timm's: Invalid pretrained tag
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        hint = f"it has {', '.join(known)}" if known else f"there are none: use {architecture}"
        raise ValueError(f"{architecture} has no weights tagged {tag!r}: {hint}") from None
