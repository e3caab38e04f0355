"""Models and the zoo's weights as timm knows them: entry points, and a tag per set of weights."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, register_model, resolve_pretrained_cfg
from torch import nn

from ddfnet.checkpoint import read_weights
from ddfnet.zoo.download import fetch
from ddfnet.zoo.entries import ZOO, entries, find

LOCAL_FILE = "model.safetensors"


def register(module: str, name: str, doc: str, create: Callable[[str, bool, dict[str, Any]], nn.Module]) -> None:
    """Defines and registers a model as timm's modules do: `@register_model def NAME(pretrained=False, **kwargs)`.

    Args:
        module: the one to define it in, which has `default_cfgs`.
        doc: what it is, for `timm.model_entrypoint(name).__doc__`.
        create: called with the name, `pretrained` and the other arguments.
    """

    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(name, pretrained, kwargs)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__module__, entry_point.__doc__ = module, doc
    setattr(sys.modules[module], name, register_model(entry_point))  # found by name when pickled


def tagged_cfgs(model: str, cfg: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """timm's records of all weights of a model, the first being its default, and of the model without any; `cfg` is
    what these have in common (`timm.models.PretrainedCfg`)."""
    tagged = {}
    for entry in (entry for entry in entries() if entry.model == model):
        how = dict(entry.input)
        if "size" in how:
            how["input_size"] = (3, how["size"], how.pop("size"))
        tagged[entry.name] = {
            **cfg,
            **how,
            "url": ZOO + entry.name,  # so that timm lists the model among those with weights
            "num_classes": entry.num_classes,
            "license": entry.license,
            "origin_url": entry.origin if entry.origin.startswith("http") else None,
        }
    return {**tagged, f"{model}.untrained": cfg}


def build_model(model_class: type[nn.Module], variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """timm's `build_model_with_cfg`, with the weights of the zoo."""
    model = build_model_with_cfg(model_class, variant, pretrained, **_with_zoo_weights(variant, pretrained, kwargs))
    for module in model.modules():  # timm keeps the tensors after it has copied them into the model
        cfg = getattr(module, "pretrained_cfg", None)
        if isinstance(cfg, dict):
            cfg.pop("state_dict", None)
    return model


def _with_zoo_weights(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a model with the weights of the zoo in them, if those are what timm is about to load.

    timm would hand the "URL" to torch.hub, which can neither verify nor resume as the zoo does, nor ask Google Drive,
    nor read official checkpoints. Here it gets the tensors, and adapts them to `num_classes`, `in_chans` and
    `features_only` as usual. The same for the `model.safetensors` of a `local-dir:`, which timm 1.0.24 would unpickle.
    UserError where the file cannot be had or read.
    """
    if not pretrained:
        return kwargs
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    if cfg.source == "local-dir" and cfg.file:
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
