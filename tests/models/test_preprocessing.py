"""Who states which part of a preprocessing."""

import argparse
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from timm.models import get_pretrained_cfg

import ddfnet
from ddfnet.checkpoint import FORMAT
from ddfnet.data.preprocessing import Preprocessing, beyond_scale
from ddfnet.inference.export import ExportOptions, export
from ddfnet.inference.predict import predict
from ddfnet.inference.publish import publish
from ddfnet.models.classifier import load_classifier
from ddfnet.models.preprocessing import foreign_preprocessing, of_record, overridden
from ddfnet.utils.errors import CheckpointError, UserError


def preprocessing_of(name, origin=None, channels=3):
    cfg = {"architecture": name.partition(".")[0], **get_pretrained_cfg(name).to_dict()}
    return foreign_preprocessing(cfg, origin or {}, channels=channels, source="file")


def test_evaluation_takes_the_test_size_of_a_record_and_says_so():
    how, origins = preprocessing_of("resnet50.a1_in1k")
    assert (how.size, how.crop_pct) == (288, 1.0)
    assert how.line(origins) == (
        "images: 288 px (test_input_size), center crop 1 (test_crop_pct), bicubic, resize by pillow (the kernel of "
        "timm), mean 0.485 0.456 0.406, std 0.229 0.224 0.225; from timm's record of resnet50.a1_in1k"
    )
    assert of_record({"input_size": (3, 224, 224), "test_input_size": (3, 288, 288)}, test=False)["size"][0] == (
        224,
        224,
    )


def test_evaluation_takes_the_crop_mode_of_a_record():
    how, origins = preprocessing_of("convnext_tiny.fb_in22k_ft_in1k_384")
    assert (how.size, how.crop_mode, how.crop_pct) == (384, "squash", 1.0)
    assert how.summary() == "384 px, squash crop 1, bicubic"
    assert "384 px, squash crop 1, bicubic" in how.line(origins)


def test_a_training_of_timm_is_evaluated_as_it_was_trained():
    """Its `args` hold every option; those that were not given are None, and the sizes are those of training."""
    args = {"img_size": None, "input_size": None, "mean": None, "std": [0.2], "crop_pct": None, "crop_mode": "border"}
    how, origins = preprocessing_of("resnet50.a1_in1k", {"args": args})
    assert (how.size, how.crop_pct, how.crop_mode, how.std) == (224, 0.95, "border", (0.2, 0.2, 0.2))
    assert origins["crop_mode"] == origins["std"] == "args of its training"
    assert preprocessing_of("resnet50", {"args": {**args, "img_size": 160}})[0].size == 160
    assert preprocessing_of("resnet50", {"args": {**args, "input_size": [3, 96, 128]}})[0].size == (96, 128)


def test_every_record_of_timm_can_be_used():
    for name in timm.list_pretrained():
        cfg = get_pretrained_cfg(name)
        how, _ = preprocessing_of(name)
        size = cfg.test_input_size or cfg.input_size
        assert how.input_size == tuple(size)
        assert (how.crop_mode, how.crop_pct) == (cfg.crop_mode, cfg.test_crop_pct or cfg.crop_pct)
        assert (how.interpolation, how.mean, how.std) == (cfg.interpolation, tuple(cfg.mean), tuple(cfg.std))
        assert beyond_scale(how) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"input_size": "96"}, {"size": 96}),
        ({"input_size": "96x128"}, {"size": (96, 128)}),
        ({"input_size": (96, 128)}, {"size": (96, 128)}),
        ({"mean": "0.5,0.25,0.125", "std": [0.1, 0.2, 0.3]}, {"mean": (0.5, 0.25, 0.125), "std": (0.1, 0.2, 0.3)}),
        ({"crop_mode": "squash", "crop_pct": None}, {"crop_mode": "squash", "crop_pct": 0.875}),
    ],
)
def test_the_command_line_comes_first(flags, expected):
    how, origins = overridden(Preprocessing(), dict.fromkeys(Preprocessing.model_fields, "the checkpoint"), flags)
    assert {key: getattr(how, key) for key in expected} == expected
    given = {key for key, who in origins.items() if who.startswith("--")}
    assert given == {{"input_size": "size"}.get(key, key) for key, value in flags.items() if value is not None}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"input_size": "big"}, r"--input-size takes pixels: 224, or HEIGHTxWIDTH; got big"),
        ({"input_size": "0"}, r"--input-size 0 must be at least 1"),
        ({"input_size": "1x2x3"}, r"--input-size \[1, 2, 3\] must be"),
        ({"mean": "bright"}, r"--mean takes numbers separated by commas"),
        ({"mean": "0.5"}, r"one value per channel"),
        ({"mean": "0.5", "std": "0.5"}, r"--mean and --std take 3 values separated by commas"),
        ({"std": "0,1,1"}, r"--std \[0\.0, 1\.0, 1\.0\] must be positive"),
        ({"mean": "300,1,1"}, r"--mean \[300\.0, 1\.0, 1\.0\] must be in \[0, 1\] .* divide by 255"),
        ({"mean": "-0.1,0,0"}, r"--mean .* must be in \[0, 1\]"),
        ({"std": "58.395,57.12,57.375"}, r"--std \[58\.395, .* must be in \[0, 1\] .* divide by 255"),
        ({"crop_mode": "stretch"}, r"--crop-mode stretch must be 'center', 'squash' or 'border'"),
        ({"crop_pct": 7.0}, r"--crop-pct 7\.0 must be at most 1\.5"),
    ],
)
def test_what_cannot_be_used_names_the_option(flags, message):
    with pytest.raises(UserError, match=message):
        overridden(Preprocessing(), {}, flags)


def test_an_option_reaches_the_network_and_its_meta(tmp_path):
    network = ddfnet.create_model("vit_tiny_patch16_224", num_classes=3, depth=1)
    args = argparse.Namespace(img_size=None, model_kwargs={"depth": 1}, model="vit_tiny_patch16_224")
    torch.save({"arch": "vit_tiny_patch16_224", "args": args, "state_dict": network.state_dict()}, tmp_path / "w.pth")
    changes = {"input_size": "64x96", "mean": "0.4,0.4,0.4", "crop_mode": "border"}
    loaded = load_classifier(tmp_path / "w.pth", changes=changes)
    with torch.inference_mode():
        assert loaded.network(torch.zeros(1, 3, 64, 96)).shape == (1, 3)
    again = Preprocessing.from_dict(loaded.meta()["preprocessing"])
    assert (again.size, again.mean, again.crop_mode) == ((64, 96), (0.4,) * 3, "border")


def test_a_preprocessing_of_other_channels_is_refused():
    with pytest.raises(CheckpointError, match="mean and std are of 2 channels, the network has 3"):
        preprocessing_of("resnet18", {"args": {"mean": [0.5, 0.5], "std": [0.5, 0.5]}})


@pytest.mark.parametrize("own", [False, True])
def test_a_file_whose_mean_is_of_pixels_up_to_255_is_remarked_on_and_used(tmp_path, own):
    mean, std = (123.675, 116.28, 103.53), (0.229, 0.224, 0.225)
    network, name = timm.create_model("resnet10t", num_classes=3), "resnet10t"
    payload = {"arch": name, "args": argparse.Namespace(mean=list(mean), std=list(std), img_size=32)}
    if own:
        how = Preprocessing(size=32).replaced(mean=mean, std=std).to_dict()
        model = {"name": name, "num_classes": 3, "kwargs": {}}
        payload = {"format": FORMAT, "meta": {"task": "classification", "model": model, "preprocessing": how}}
    torch.save({**payload, "model" if own else "state_dict": network.state_dict()}, tmp_path / "w.pt")
    loaded = load_classifier(tmp_path / "w.pt")
    assert (loaded.preprocessing.mean, loaded.preprocessing.std) == (mean, std)
    who = "the checkpoint" if own else "args of its training"
    assert loaded.origins["mean"] == f"{who}: not in [0, 1], as pixels are"
    assert loaded.origins["std"] == who
    assert f"mean 123.675 116.28 103.53 ({who}: not in [0, 1], as pixels are)" in loaded.preprocessing.line(
        loaded.origins
    )
    mended = load_classifier(tmp_path / "w.pt", changes={"mean": "0.485,0.456,0.406"})
    assert mended.origins["mean"] == "--mean"


def test_a_crop_mode_reaches_prediction_export_and_publishing(tmp_path):
    """squash: an image twice as wide as high is seen whole, as timm's transform has it."""
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=3).eval()
    torch.nn.init.normal_(network.fc.weight)  # so that the outputs depend on the pixels
    args = argparse.Namespace(crop_mode="squash", img_size=64, crop_pct=0.8, mean=[0.4] * 3)
    torch.save({"arch": "resnet10t", "args": args, "state_dict": network.state_dict()}, tmp_path / "w.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((96, 48)).save(tmp_path / "wide.png")
    loaded = load_classifier(tmp_path / "w.pth")
    how = loaded.preprocessing
    timms = {"interpolation": how.interpolation, "mean": how.mean, "std": how.std, "crop_pct": 0.8}
    transform = create_transform((3, 64, 64), crop_mode="squash", **timms)
    centered = create_transform((3, 64, 64), crop_mode="center", **timms)
    image = Image.open(tmp_path / "wide.png")
    with torch.inference_mode():
        expected, cut = (network(way(image)[None]).softmax(1)[0] for way in (transform, centered))
    torch.testing.assert_close(predict(loaded, tmp_path / "wide.png"), expected)
    assert (cut - expected).abs().max() > 1e-3

    export(ExportOptions(str(tmp_path / "w.pth"), "torch", output=tmp_path / "net.pt2"))
    torch.export.load(tmp_path / "net.pt2", extra_files=(extra := {"ddfnet.json": ""}))
    assert json.loads(json.loads(extra["ddfnet.json"])["preprocessing"])["crop_mode"] == "squash"

    publish(str(tmp_path / "w.pth"), tmp_path / "hub")
    assert load_classifier(tmp_path / "hub").preprocessing == how
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert timm.data.resolve_model_data_config(again)["crop_mode"] == "squash"
    assert "to 80 x 80 pixels, whatever the shape" in (tmp_path / "hub/README.md").read_text()
