"""The zoo's weights as timm knows weights: one tag each, found and loaded by `timm.create_model(pretrained=True)`."""

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from ddfnet.checkpoint import read_weights
from ddfnet.zoo.download import fetch
from ddfnet.zoo.entries import ZOO, entries, find

LOCAL_FILE = "model.safetensors"


def tagged_cfgs(model: str, cfg: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """timm's records of all weights of a model, the first being its default, and of the model without any.

    Args:
        model: its name.
        cfg: what these records have in common (`timm.models.PretrainedCfg`).
    """
    tagged = {}
    for entry in (entry for entry in entries() if entry.model == model):
        how = entry.preprocessing
        tagged[entry.name] = {
            **cfg,
            "url": ZOO + entry.name,  # so that timm lists the model among those with weights
            "num_classes": entry.num_classes,
            "input_size": (3, how.size, how.size),
            "crop_pct": how.crop_pct,
            "interpolation": how.interpolation,
            "mean": how.mean,
            "std": how.std,
            "license": entry.license,
            "origin_url": entry.origin if entry.origin.startswith("http") else None,
        }
    return {**tagged, f"{model}.untrained": cfg}


def build_model(model_class: type[nn.Module], variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """timm's `build_model_with_cfg`, with the weights of the zoo."""
    kwargs = with_zoo_weights(variant, pretrained, kwargs)
    return forget_loaded(build_model_with_cfg(model_class, variant, pretrained, **kwargs))


def with_zoo_weights(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a model with the weights of the zoo in them, if those are what timm is about to load.

    timm would hand the "URL" to torch.hub, which can neither verify nor resume as the zoo does, nor ask Google Drive,
    nor read official checkpoints. Here it gets the tensors, and adapts them to `num_classes`, `in_chans` and
    `features_only` as usual. The same for the `model.safetensors` of a `local-dir:`, which timm 1.0.24 would unpickle.

    Raises:
        ZooError: the zoo cannot get the file.
        CheckpointError: the file cannot be read.
    """
    if not pretrained:
        return kwargs
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    if cfg.source == "local-dir":
        path = Path(cfg.file) / LOCAL_FILE
        if not path.is_file():
            return kwargs
    elif cfg.hf_hub_id or cfg.file or cfg.state_dict or not (cfg.url or "").startswith(ZOO):
        return kwargs  # what the user named instead
    else:
        path = fetch(find(cfg.url.removeprefix(ZOO)), cache=kwargs.get("cache_dir"))
    # Without a source timm takes the tensors; with `local-dir` it would look for a file again.
    loaded = {"state_dict": read_weights(path).state_dict, "source": None}
    return {**kwargs, "pretrained_cfg_overlay": {**(kwargs.get("pretrained_cfg_overlay") or {}), **loaded}}


def forget_loaded(model: nn.Module) -> nn.Module:
    """Drops the tensors that timm keeps in `pretrained_cfg` after it has copied them into the model."""
    for module in model.modules():
        cfg = getattr(module, "pretrained_cfg", None)
        if isinstance(cfg, dict):
            cfg.pop("state_dict", None)
    return model
