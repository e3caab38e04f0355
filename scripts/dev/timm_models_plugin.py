"""A plugin of pytest that gives timm's tests the models of this package in place of timm's: see timm_tests.sh."""

from typing import Any

import pytest
import timm
import torch

import ddfnet
from ddfnet.models import create_model

OUR_MODULES = ["ddf_resnet", "baselines"]
NO_TORCHSCRIPT = "dynamic filters refuse TorchScript, which PyTorch has given up, and name torch.export"
_list_models = timm.list_models


def _ours(filter: Any = "", module: Any = "", **options: Any) -> list[str]:
    """`timm.list_models` of our modules, whichever of timm's a test asks for."""
    return _list_models(filter, module=OUR_MODULES, **options)


timm.list_models = _ours
timm.list_pretrained = lambda *arguments, **options: []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Drops the cases of timm's models that a test names by itself, and expects the refusal of TorchScript."""
    names = set(ddfnet.list_models())
    kept = []
    for item in items:
        name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
        if name not in names:
            continue
        if "torchscript" in item.name and _refuses_torchscript(name):
            item.add_marker(pytest.mark.xfail(reason=NO_TORCHSCRIPT, raises=RuntimeError, strict=True))
        kept.append(item)
    items[:] = kept


def _refuses_torchscript(name: str) -> bool:
    with torch.device("meta"):
        return any(hasattr(module, "__prepare_scriptable__") for module in create_model(name).modules())
