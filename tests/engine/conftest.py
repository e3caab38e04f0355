"""What tests of evaluation start from."""

import sys

import pytest
import torch

import ddfnet
from ddfnet.checkpoint import save_checkpoint
from tests.conftest import CLASSES
from tests.engine.evaluating import NAME


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights that give several answers; more outputs than classes, and the classes in an order of their own."""
    torch.manual_seed(0)
    model = ddfnet.create_model(NAME, num_classes=7)
    with torch.no_grad():
        model.get_classifier().weight.normal_(std=3)
    how = {"input_size": 16, "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3}
    meta = {
        "task": "classification", "model": {"name": NAME, "num_classes": 7, "kwargs": {}},
        "classes": CLASSES[::-1], "preprocessing": how, "precision": "fp32",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    save_checkpoint(path, {"meta": meta, "model": model.state_dict(), "ema": None})
    return path


@pytest.fixture
def no_figures(monkeypatch):
    """As where matplotlib is not installed; also for tests of other things, since drawing takes longer than they do."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
