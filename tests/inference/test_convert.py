"""Official checkpoints to safetensors: the same weights, checked, with what `eval.py` needs to know."""

import argparse
import hashlib

import pytest
import torch
from timm.models import get_pretrained_cfg

import ddfnet
from ddfnet.checkpoint import read_weights, save_checkpoint
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.inference.convert import check_weights, convert
from ddfnet.models.classifier import build_classifier
from ddfnet.utils.errors import CheckpointError, UserError

NAME = "ddf_mul_resnet14_32px"


def save_official(path, state_dict, ema=None):
    """As the training script of timm 0.4.5 does, on several GPUs."""
    payload = {
        "epoch": 129,
        "arch": NAME,
        "state_dict": {f"module.{key}": value for key, value in state_dict.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5, "momentum": 0.9}]},
        "version": 2,
        "args": argparse.Namespace(lr=0.4, sched="cosine", model=NAME, aa="rand-m7-mstd0.5-inc1"),
        "metric": 79.1,
    }
    torch.save({**payload, **({"state_dict_ema": ema} if ema else {})}, path)
    return path


def state(classes=5):
    return ddfnet.create_model(NAME, num_classes=classes).state_dict()


def test_the_official_format_becomes_one_that_eval_understands(tmp_path):
    weights = state()
    source = save_official(tmp_path / "model_best.pth.tar", weights)
    target = tmp_path / "new" / "w.safetensors"
    done = convert(source, target, model=NAME)
    assert done.weights == "model"
    assert done.parameters == sum(p.numel() for p in ddfnet.create_model(NAME, num_classes=5).parameters())

    found = read_weights(target)
    assert len(found.state_dict) == len(weights)
    assert found.meta["converted_from"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert found.meta["precision"] == "fp32"
    loaded = build_classifier(found, source=target, model=None)
    network = loaded.network
    assert (loaded.name, network.num_classes) == (NAME, 5)
    record = get_pretrained_cfg(NAME)  # timm's, of the model without a tag
    assert loaded.preprocessing == Preprocessing(
        size=32, crop_pct=1.0, resize="pillow", mean=record.mean, std=record.std
    )
    assert all(torch.equal(tensor, weights[key]) for key, tensor in network.state_dict().items())


def test_the_converted_file_evaluates_as_the_source(tmp_path, image_tree):
    from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint

    source = save_official(tmp_path / "o.pth.tar", state())
    convert(source, tmp_path / "w.safetensors", model=NAME)
    options = {"data": image_tree, "workers": 0, "device": "cpu"}
    before = evaluate_checkpoint(source, model=NAME, **options).to_dict()
    after = evaluate_checkpoint(tmp_path / "w.safetensors", **options).to_dict()
    for key in ("top1", "loss", "n", "preprocessing", "precision", "parameters"):
        assert before[key] == after[key]


def test_the_ema_weights_are_taken_where_there_are_any(tmp_path):
    ema = state()
    done = convert(save_official(tmp_path / "o.pth.tar", state(), ema), tmp_path / "w.safetensors", model=NAME)
    assert done.weights == "ema"
    assert torch.equal(read_weights(tmp_path / "w.safetensors").state_dict["fc.weight"], ema["fc.weight"])


def test_a_bare_state_dict(tmp_path):
    torch.save(state(7), tmp_path / "bare.pth")
    done = convert(tmp_path / "bare.pth", tmp_path / "w.safetensors", model=NAME)
    assert done.weights == "model"
    assert read_weights(tmp_path / "w.safetensors").meta["model"] == {"name": NAME, "num_classes": 7, "kwargs": {}}


def missing(weights):
    del weights["layer1.0.conv2.channel_branch.4.std"]


def unknown(weights):
    weights["layer9.weight"] = torch.zeros(1)


def reshaped(weights):
    weights["conv1.weight"] = torch.zeros(64, 3, 7, 7)


def not_finite(weights):
    weights["bn1.running_var"][3] = float("nan")


def half(weights):
    weights["fc.weight"] = weights["fc.weight"].half()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, r"1 missing \(layer1\.0\.conv2\.channel_branch\.4\.std\)"),
        (unknown, r"1 unknown \(layer9\.weight\)"),
        (reshaped, r"conv1\.weight is \(64, 3, 7, 7\) instead of \(64, 3, 3, 3\)"),
        (not_finite, r"1 tensors hold NaN or infinite values \(bn1\.running_var\)"),
        (half, r"fc\.weight is torch\.float16 instead of torch\.float32"),
    ],
)
def test_weights_that_are_not_those_of_the_model(tmp_path, damage, words):
    weights = state()
    damage(weights)
    source = save_official(tmp_path / "o.pth.tar", weights)
    with pytest.raises(CheckpointError, match=words):
        convert(source, tmp_path / "w.safetensors", model=NAME)
    with pytest.raises(CheckpointError, match=words):
        check_weights(source, model=NAME)
    assert not (tmp_path / "w.safetensors").exists()


def test_paths_and_models_that_cannot_be_used(tmp_path):
    source, target = save_official(tmp_path / "o.pth.tar", state()), tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=r"must end in \.safetensors, got .*w\.pt"):
        convert(source, tmp_path / "w.pt", model=NAME)
    with pytest.raises(UserError, match="did you mean ddf_mul_resnet14_32px"):
        convert(source, target, model="ddf_mul_resnet14_32p")
    with pytest.raises(CheckpointError, match="not found"):
        convert(tmp_path / "none.pth", target, model=NAME)
    convert(source, target, model=NAME)
    with pytest.raises(UserError, match="exists: delete it"):
        convert(source, target, model=NAME)
    with pytest.raises(UserError, match="one of this package"):
        convert(target, tmp_path / "again.safetensors", model=NAME)
    save_checkpoint(tmp_path / "best.pt", {"model": state(), "meta": {"task": "classification"}})
    with pytest.raises(UserError, match="one of this package"):
        convert(tmp_path / "best.pt", tmp_path / "again.safetensors", model=NAME)


def test_a_pickle_with_code_is_not_run(tmp_path):
    class RunsCode:
        def __reduce__(self):
            return type(tmp_path).touch, (tmp_path / "ran",)

    torch.save({"state_dict": state(), "args": RunsCode()}, tmp_path / "evil.pth.tar")
    with pytest.raises(CheckpointError, match="could run code: refused"):
        convert(tmp_path / "evil.pth.tar", tmp_path / "w.safetensors", model=NAME)
    assert not (tmp_path / "ran").exists()
