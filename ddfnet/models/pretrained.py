"""The zoo's weights as timm knows weights: one tag each, found and loaded by `timm.create_model(pretrained=True)`."""

from typing import Any

from timm.models import resolve_pretrained_cfg
from torch import nn

from ddfnet.checkpoint import read_weights
from ddfnet.zoo.download import fetch
from ddfnet.zoo.entries import entries, find

ZOO = "zoo:"  # in the place of a URL, so that timm lists these models among those with weights


def tagged_cfgs(model: str, cfg: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """timm's records of all weights of a model, the first being its default; or one that says there are none.

    Args:
        model: its name.
        cfg: what these records have in common (`timm.models.PretrainedCfg`).
    """
    of_model = [entry for entry in entries() if entry.model == model]
    if not of_model:
        return {f"{model}.untrained": cfg}
    tagged = {}
    for entry in of_model:
        how = entry.preprocessing
        tagged[entry.name] = {
            **cfg,
            "url": ZOO + entry.name,
            "num_classes": entry.num_classes,
            "input_size": (3, how.input_size, how.input_size),
            "crop_pct": how.crop_pct,
            "interpolation": how.interpolation,
            "mean": how.mean,
            "std": how.std,
            "license": entry.licence,
            "origin_url": entry.origin,
        }
    return tagged


def with_zoo_weights(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a model with the weights of the zoo in them, if those are what timm is about to load.

    timm would hand the "URL" to torch.hub, which can neither verify nor resume as the zoo does, nor ask Google Drive,
    nor read official checkpoints. Here it gets the tensors, and adapts them to `num_classes`, `in_chans` and
    `features_only` as usual.

    Raises:
        ZooError: the zoo cannot get the file.
        CheckpointError: the file cannot be read.
    """
    if not pretrained:
        return kwargs
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    if cfg.source in ("hf-hub", "local-dir") or cfg.file or cfg.state_dict or not (cfg.url or "").startswith(ZOO):
        return kwargs
    weights = read_weights(fetch(find(cfg.url.removeprefix(ZOO))))
    overlay = {**(kwargs.get("pretrained_cfg_overlay") or {}), "state_dict": weights.state_dict}
    return {**kwargs, "pretrained_cfg_overlay": overlay}


def forget_loaded(model: nn.Module) -> nn.Module:
    """Drops the tensors that timm keeps in `pretrained_cfg` after it has copied them into the model."""
    for module in model.modules():
        cfg = getattr(module, "pretrained_cfg", None)
        if isinstance(cfg, dict):
            cfg.pop("state_dict", None)
    return model
