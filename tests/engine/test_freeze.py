"""Frozen parts stay as they are to the last bit: weights, batch-norm statistics, EMA weights; the rest trains."""

import pytest
import torch
from torch import nn

import ddfnet
from ddfnet.engine.freeze import Freeze
from ddfnet.engine.train import train
from ddfnet.optim import OptimConfig, build_optimizer
from ddfnet.tasks import load_config
from ddfnet.utils.errors import ConfigError
from tests.engine.runs import assert_resumes_exactly
from tests.engine.test_distributed_equivalence import TOLERANCE, losses, run_here, run_two_processes


def small():
    return ddfnet.create_model("resnet14_32px", num_classes=5)


def start_weights(seed=42):
    torch.manual_seed(seed)  # as train() does
    return small().state_dict()


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_patterns_name_modules_and_parameters():
    model = small()
    freeze = Freeze(model, ["conv1", "bn1", "layer[12]", "layer3.*.bn2.bias"])
    left = {name.partition(".")[0] for name in trainable(model)}
    assert left == {"layer3", "layer4", "fc"}
    assert "layer3.0.bn2.bias" not in trainable(model)
    assert "layer3.0.bn2.weight" in trainable(model)
    frozen = {name for name, module in model.named_modules() if module in freeze.norms}
    assert {"bn1", "layer1.0.bn1", "layer2.0.downsample.1"} <= frozen
    assert not any(name.startswith("layer3") for name in frozen)  # their weights train
    assert not any(name.startswith("layer4") for name in frozen)


@pytest.mark.parametrize(("name", "head"), [("resnet14_32px", {"fc"}), ("convnext_atto", {"head.fc"}),
                                            ("deit_tiny_distilled_patch16_224", {"head", "head_dist"})])  # fmt: skip
def test_all_but_head_leaves_the_classifier(name, head):
    model = ddfnet.create_model(name, num_classes=3)
    freeze = Freeze(model, "all_but_head")
    assert {parameter.rpartition(".")[0] for parameter in trainable(model)} == head
    assert ("statistics" in str(freeze)) is (name == "resnet14_32px")  # the others have no batch norms


def test_norms_that_train_in_part_keep_taking_statistics():
    """['*.bias'] leaves the weights of all norms to train; both of one freeze it."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    freeze = Freeze(model, ["*.bias", "2.weight"])
    model.train()
    freeze.hold()
    assert [module.training for module in model] == [True, True, False]
    image = torch.randn(4, 3, 2, 2) + 5
    first = model[0](image)
    model(image)
    torch.testing.assert_close(model[1].running_mean, 0.1 * first.mean((0, 2, 3)))  # from 0, momentum 0.1
    assert torch.equal(model[2].running_mean, torch.zeros(3))


def test_norms_without_parameters_are_frozen_by_name():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False), nn.Linear(3, 2))
    freeze = Freeze(model, ["0", "1"])
    model.train()
    freeze.hold()
    assert [module.training for module in model] == [True, False, True]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["layer1", "layr2"], "'layr2' is the name of no module or parameter of the network: did you mean layer2"),
        (["xyz*"], "its parts are conv1, bn1"),
        (["*"], "freezes every parameter"),
    ],
)
def test_mistakes(patterns, message):
    with pytest.raises(ConfigError, match=rf"train\.freeze.*{message}"):
        Freeze(small(), patterns)


def test_a_head_that_nobody_knows():
    with pytest.raises(ConfigError, match="classifier of Sequential is not known"):
        Freeze(nn.Sequential(nn.Linear(2, 2)), "all_but_head")


@pytest.mark.parametrize(
    "optim", [{}, {"weight_decay": 0}, {"name": "lookahead_adamw"}, {"kwargs": {"layer_decay": 0.7}}]
)
def test_the_optimizer_has_the_trainable_parameters_alone(optim):
    model = small()
    Freeze(model, ["conv1", "layer1"])
    groups = build_optimizer(model, OptimConfig(lr=0.1, **optim), 0.1).param_groups
    ours = {id(parameter) for group in groups for parameter in group["params"]}
    assert ours == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


FROZEN = ("model.name=resnet14_32px", "train.freeze=[conv1, bn1, layer1]", "train.ema={decay: 0.5}",
          "optim.weight_decay=0.1", "train.epochs=2", "model.drop_rate=0.1")  # fmt: skip


def test_frozen_bits_stay_and_a_resumed_run_ends_alike(tiny_config, tmp_path, monkeypatch):
    end = assert_resumes_exactly(tiny_config, tmp_path, monkeypatch, *FROZEN)
    start = start_weights()
    for kind in ("model", "ema"):
        for name, tensor in end[kind].items():
            same = name.startswith(("conv1.", "bn1.", "layer1."))
            if "num_batches" in name or (same and "running" in name):
                continue
            assert torch.equal(tensor, start[name]) == same, f"{kind} {name}"
        statistics = [name for name in end[kind] if name.startswith(("bn1.running", "layer1.0.bn1.running"))]
        assert statistics
        assert all(torch.equal(end[kind][name], start[name]) for name in statistics)


def test_linear_probing_trains_the_classifier_alone(tiny_config, tmp_path, capsys):
    overrides = [f"run.dir={tmp_path / 'run'}", "model.name=resnet14_32px", "train.freeze=all_but_head"]
    assert train(load_config(tiny_config, overrides)) == 0
    assert "note: what is frozen has random weights" in capsys.readouterr().out
    end, start = torch.load(tmp_path / "run" / "last.pt", weights_only=True), start_weights()
    changed = {name for name, tensor in end["model"].items() if not torch.equal(tensor, start[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert len(end["optimizer"]["state"]) == 2


def test_two_processes_train_alike_with_a_frozen_part(tiny_config, tmp_path):
    one = run_here(tiny_config, tmp_path / "one", *FROZEN)
    two = run_two_processes(tiny_config, tmp_path / "two", *FROZEN)
    torch.testing.assert_close(two, one, rtol=TOLERANCE, atol=0)
    assert len(losses(tmp_path / "two")) == 8


def test_a_mistake_leaves_nothing_behind(tiny_config, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"train\.freeze \(command line\): 'layer9'"):
        train(load_config(tiny_config, [f"run.dir={folder}", "train.freeze=[layer9]"]))
    assert not folder.exists()
