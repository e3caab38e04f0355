"""Images that are not square, or not of three channels, from the configuration to the exported file."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ddfnet.checkpoint import read_weights
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.train import train
from ddfnet.inference.export import ExportOptions, export
from ddfnet.inference.predict import predict, predict_images
from ddfnet.inference.publish import publish
from ddfnet.models.classifier import load_classifier
from ddfnet.tasks import check_config, create_task, load_config
from ddfnet.utils.errors import ConfigError, UserError
from tests.processes import launch_forked

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 5  # of the image tree


@pytest.fixture
def start(tiny_config, tmp_path):
    def run(*overrides):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        loaded = load_config(
            tiny_config, [f"run.dir={folder}", "train.epochs=1", "schedule.warmup_epochs=0", *overrides]
        )
        assert train(loaded) == 0
        return folder

    return run


@pytest.mark.parametrize("crop", ["random_resized", "pad"])
def test_images_that_are_not_square(start, image_tree, tmp_path, capsys, crop):
    folder = start("data.input.size=[16, 24]", f"augment.crop={crop}", "augment.rand_augment=rand-m5-n1")
    assert "images: 16 x 24 px" in capsys.readouterr().out
    meta = read_weights(folder / "best.pt").meta
    assert meta["preprocessing"]["input_size"] == [16, 24]
    report = evaluate_checkpoint(folder / "best.pt", data=image_tree, device="cpu", workers=0, fuse_bn=True)
    assert report.metrics["n"] == 25
    assert "16 x 24 px, crop 1, bicubic" in report.console()
    loaded = load_classifier(folder / "best.pt")
    path = next((image_tree / "val").rglob("*.png"))
    assert predict(loaded, path).shape == (CLASSES,)
    options = ExportOptions(str(folder / "best.pt"), "torch", output=tmp_path / "net.pt2", standalone=True)
    assert all(item.agrees for item in export(options))
    extra = {"ddfnet.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    assert json.loads(json.loads(extra["ddfnet.json"])["input_shape"]) == [1, 3, 16, 24]
    assert program(torch.zeros(1, 3, 16, 24)).shape == (1, CLASSES)
    publish(str(folder / "best.pt"), tmp_path / "hub")
    assert json.loads((tmp_path / "hub/config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 16, 24]
    assert "16 x 24 pixels, RGB" in (tmp_path / "hub/README.md").read_text()


def test_a_transformer_is_built_for_an_image_that_is_not_square(start, image_tree):
    kwargs = "model.kwargs={depth: 1, embed_dim: 24, num_heads: 2}"
    folder = start("model.name=vit_tiny_patch16_224", kwargs, "data.input.size=[32, 64]")
    loaded = load_classifier(folder / "best.pt")
    assert loaded.kwargs["img_size"] == [32, 64]
    assert loaded.network.pos_embed.shape[1] == 1 + 2 * 4
    wider = evaluate_checkpoint(folder / "best.pt", data=image_tree, device="cpu", workers=0, input_size="64x96")
    assert "64 x 96 px" in wider.console()
    # The positions of the patches: those of 2 x 4, brought to 4 x 6.
    from timm.layers import resample_abs_pos_embed

    resized = load_classifier(folder / "best.pt", changes={"input_size": (64, 96)})
    assert (resized.kwargs["img_size"], resized.changes) == ([64, 96], "resized to 64 x 96 pixels")
    expected = resample_abs_pos_embed(loaded.network.pos_embed, [4, 6], [2, 4])
    torch.testing.assert_close(resized.network.pos_embed, expected)


def test_a_size_that_a_transformer_does_not_take_names_the_nearest(tiny_config):
    kwargs = "model.kwargs={depth: 1, embed_dim: 24, num_heads: 2}"
    loaded = load_config(tiny_config, ["model.name=vit_tiny_patch16_224", kwargs, "data.input.size=[8, 64]"])
    with pytest.raises(
        ConfigError, match=r"data\.input\.size=\[8, 64\]: .* takes no images of 8 x 64 .* takes are 16 x 64"
    ):
        create_task(loaded.config).build_model()


@pytest.mark.parametrize(
    ("channels", "augment"),
    [
        (1, ["augment.rand_augment=rand-m9-n2", "run.tensorboard=true"]),
        (1, ["augment.where=device"]),
        (4, ["augment.color_jitter=0"]),
    ],
)
def test_other_channels(start, image_tree, tmp_path, capsys, channels, augment):
    folder = start(f"model.in_chans={channels}", *augment, "augment.erasing.p=0.5", "run.tensorboard=true")
    assert [*folder.rglob("events.out.tfevents.*")]
    meta = read_weights(folder / "best.pt").meta
    assert len(meta["preprocessing"]["mean"]) == channels
    assert meta["model"]["kwargs"] == {"in_chans": channels}
    report = evaluate_checkpoint(folder / "best.pt", data=image_tree, device="cpu", workers=0, fuse_bn=True)
    assert report.metrics["n"] == 25
    loaded = load_classifier(folder / "best.pt")
    # Of one image by hand: decoded, normalized and shown to the network.
    path = next((image_tree / "val").rglob("*.png"))
    image = Image.open(path).convert({1: "L", 4: "RGBA"}[channels]).resize((16, 16), Image.Resampling.BICUBIC)
    pixels = torch.tensor(np.asarray(image), dtype=torch.float32).view(16, 16, channels).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(meta["preprocessing"][key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = loaded.network((pixels - mean) / std).softmax(1)[0]
    assert (predict(loaded, path) - expected).abs().max() < 0.02
    options = ExportOptions(str(folder / "best.pt"), "torch", output=tmp_path / "net.pt2")
    assert all(item.agrees for item in export(options))
    publish(str(folder / "best.pt"), tmp_path / "hub")
    again = load_classifier(tmp_path / "hub")
    assert torch.equal(predict(again, path), predict(loaded, path))


def test_mean_and_std_of_other_channels_come_from_those_of_rgb(tiny_config):
    def given(*overrides):
        return load_config(tiny_config, overrides).config.data.input

    assert given("model.in_chans=1").mean == pytest.approx((0.449,), abs=1e-3)
    assert given("model.in_chans=1", "model.name=vit_tiny_patch16_224").std == (0.5,)
    assert given("model.in_chans=4", "augment.color_jitter=0").mean == pytest.approx((0.485, 0.456, 0.406, 0.449))
    own = given("model.in_chans=1", "data.input.mean=[0.3]", "data.input.std=[0.2]")
    assert (own.mean, own.std) == ((0.3,), (0.2,))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.in_chans=5"],
            r"model\.in_chans=5 \(command line\) cannot be: image files are read with 1 \(gray\), .*, and no others",
        ),
        (["model.in_chans=0"], r"model\.in_chans=0 .* must be at least 1"),
        (["model.in_chans=1", "data.input.mean=[0.5, 0.5, 0.5]"], r"data\.input\.mean=.* one value per channel"),
        (
            ["data.input.mean=[0.5]", "data.input.std=[0.5]", "model.in_chans=3"],
            r"model\.in_chans=3 .* and data\.input\.std=\[0\.5\] .* contradict: give one",
        ),
        (["model.in_chans=4"], r"model\.in_chans=4 .* and augment\.color_jitter=0\.2 .*contradict: color operations"),
        (
            ["model.in_chans=2", "augment.color_jitter=0", "augment.trivial_augment=true"],
            r"augment\.trivial_augment=true",
        ),
        (
            ["model.kwargs={in_chans: 1}"],
            r"model\.kwargs\.in_chans=1 \(command line\) cannot be given there: set model\.in_chans",
        ),
        (
            ["data.input.size=[16, 24, 32]"],
            r"data\.input\.size=\[16, 24, 32\] .* must be a whole number, or a list of 2",
        ),
        (
            ["data.input.mean=[123.675, 116.28, 103.53]"],
            r"data\.input\.mean=\[123\.675, 116\.28, 103\.53\] .*must be in \[0, 1\] .*divide by 255",
        ),
        (["data.input.std=[0.2, 1.5, 0.2]"], r"data\.input\.std=\[0\.2, 1\.5, 0\.2\] .*must be in \[0, 1\]"),
        (["data.input.size=[16]"], r"data\.input\.size=\[16\] .* must be a whole number, or a longer list"),
    ],
)
def test_what_cannot_be_is_refused(tiny_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_config, overrides)


def test_a_mean_of_another_length_is_refused_without_in_chans(tiny_config):
    loaded = load_config(tiny_config, ["data.input.mean=[0.5]", "data.input.std=[0.5]"])
    with pytest.raises(ConfigError, match=r"model\.in_chans=3, data\.input\.mean=\[0\.5\] and .* contradict: give one"):
        create_task(loaded.config)


@pytest.mark.parametrize(
    ("channels", "rule"), [(1, lambda w: w.sum(1, keepdim=True)), (4, lambda w: 0.75 * w[:, [0, 1, 2, 0]])]
)
def test_pretrained_weights_are_adapted_as_timm_does(start, tmp_path, capsys, channels, rule):
    source = timm.create_model("resnet10t", num_classes=CLASSES)
    torch.save(source.state_dict(), tmp_path / "rgb.pth")
    overrides = ["model.name=resnet10t", "data.input.size=32", "augment.color_jitter=0", "optim.lr=1e-12"]
    folder = start(f"model.in_chans={channels}", f"model.init_checkpoint={tmp_path / 'rgb.pth'}", *overrides)
    assert f"adapted conv1.0 from 3 to {channels} channel" in capsys.readouterr().out
    trained = read_weights(folder / "best.pt").state_dict["conv1.0.weight"]
    torch.testing.assert_close(trained, rule(source.state_dict()["conv1.0.weight"]), rtol=0, atol=1e-6)


def test_a_training_file_of_timm_with_one_channel_is_evaluated(tmp_path, image_tree):
    import argparse

    network = timm.create_model("resnet10t", num_classes=CLASSES, in_chans=1)
    args = argparse.Namespace(model="resnet10t", in_chans=1, mean=[0.4], std=[0.3], img_size=32)
    torch.save({"arch": "resnet10t", "args": args, "state_dict": network.state_dict()}, tmp_path / "w.pth.tar")
    loaded = load_classifier(tmp_path / "w.pth.tar")
    assert (loaded.preprocessing.input_size, loaded.preprocessing.mean) == ((1, 32, 32), (0.4,))
    (answer,) = predict_images(loaded, [next((image_tree / "val").rglob("*.png"))], top=1)
    assert "predictions" in answer


def test_the_command_line_of_prediction(image_tree):
    path = next((image_tree / "val").rglob("*.png"))
    options = ["--input-size", "24x40", "--crop-mode", "border", "--mean", "0.5,0.5,0.5"]
    done = launch_forked("scripts/predict.py", path, *options)
    assert done.returncode == 0, done.stderr
    assert "images: 24 x 40 px (--input-size), border crop (--crop-mode) 1" in done.stdout
    printed = " ".join(done.stdout.split())
    assert "mean 0.5 0.5 0.5 (--mean), std 0.247 0.243 0.262; from the checkpoint" in printed


def test_a_configuration_of_before_there_were_channels_is_the_same(tiny_config):
    values = load_config(tiny_config).config.model_dump(mode="json")
    del values["model"]["in_chans"], values["data"]["input"]["crop_mode"]
    assert check_config(values) == load_config(tiny_config).config
    with pytest.raises(UserError):
        check_config({**values, "model": {**values["model"], "in_chans": 9}})
