"""Start values of the classifier: those of timm's train.py, also after weights were loaded."""

import pytest
import torch
from torch import nn

import ddfnet
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.tasks.head_init import HeadInitConfig, initialize_head
from ddfnet.utils.errors import ConfigError


def test_scale_and_bias_as_timm_sets_them():
    torch.manual_seed(0)
    ours, theirs = (ddfnet.create_model("resnet14_32px", num_classes=4) for _ in range(2))
    nn.init.normal_(ours.fc.bias)
    theirs.load_state_dict(ours.state_dict())
    initialize_head(ours, HeadInitConfig(head_init_scale=0.1))
    with torch.no_grad():  # timm's train.py, --head-init-scale
        theirs.get_classifier().weight.mul_(0.1)
        theirs.get_classifier().bias.mul_(0.1)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    initialize_head(ours, HeadInitConfig(head_init_bias=-2))
    assert ours.fc.bias.tolist() == [-2] * 4
    assert torch.equal(ours.fc.weight, theirs.fc.weight)


def test_both_heads_and_unknown_ones():
    model = ddfnet.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=1)
    initialize_head(model, HeadInitConfig(head_init_scale=0))
    assert not model.head.weight.any()
    assert not model.head_dist.weight.any()
    with pytest.raises(ConfigError, match="classifier of Linear is not known"):
        initialize_head(nn.Linear(2, 2), HeadInitConfig(head_init_scale=0))
    encoder = nn.Linear(2, 2)
    encoder.pretrained_cfg = {"classifier": "head"}  # as timm's records of encoders may name one that is not there
    with pytest.raises(ConfigError, match="classifier of Linear is not known"):
        initialize_head(encoder, HeadInitConfig(head_init_scale=0))


def test_it_acts_on_loaded_weights_once(tiny_config, tmp_path):
    """... and not again where the run resumes."""
    first, second = tmp_path / "first", tmp_path / "second"
    common = ["train.epochs=1", "optim.lr=1e-30"]
    assert train(load_config(tiny_config, [*common, f"run.dir={first}"])) == 0
    start = torch.load(first / "best.pt", weights_only=True)["model"]["fc.weight"]
    again = [*common, f"model.init_checkpoint={first / 'best.pt'}", "model.head_init_scale=0.5", f"run.dir={second}"]
    for _ in range(2):
        assert train(load_config(tiny_config, again)) == 0
        end = torch.load(second / "last.pt", weights_only=True)["model"]["fc.weight"]
        torch.testing.assert_close(end, start * 0.5)
