"""scripts/visualize: what is drawn is what the network computes, and mistakes are named."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")
import ddfnet
from ddfnet.checkpoint import save_checkpoint
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from scripts.visualize import __main__ as visualize
from tests.conftest import ROOT, exit_code
from tests.scripts.visualize.explored import check_layers


def save(path, name, **kwargs):
    """A checkpoint of a small network with random weights, as training writes it."""
    torch.manual_seed(0)
    model = ddfnet.create_model(name, num_classes=5, **kwargs)
    preprocessing = {"input_size": 32, "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    meta = {
        "task": "classification", "model": {"name": name, "num_classes": 5, "kwargs": kwargs},
        "classes": list("abcde"), "preprocessing": preprocessing, "precision": "fp32",
    }  # fmt: skip
    save_checkpoint(path, {"meta": meta, "model": model.state_dict(), "ema": None})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint") / "best.pt", "ddf_mul_resnet14_32px", heads=2)


@pytest.fixture(scope="module")
def image(image_tree):
    return next(iter(sorted((image_tree / "val" / "ring").iterdir())))


@pytest.mark.parametrize("options", [[], ["--layer", "layer3.0.conv2", "--points", "3,4", "31,0"]])
def test_filters_are_drawn(checkpoint, image, tmp_path, options, capsys):
    out = tmp_path / "new" / "filters.png"
    command = ["filters", str(image), "--checkpoint", str(checkpoint), "--output", str(out), *options]
    assert exit_code(visualize.main, command) == 0
    assert str(out) in capsys.readouterr().out
    assert np.asarray(Image.open(out).convert("L")).std() > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "layer9"], "--layer layer9: there are layer1.0.conv2"),
        (["--points", "32,0"], "--points 32,0 is outside the 32 x 32 pixels"),
        (["--checkpoint", "nowhere.pt"], "checkpoint not found: nowhere.pt"),
    ],
)
def test_mistakes_are_named(checkpoint, image, tmp_path, options, message, capsys):
    out = tmp_path / "filters.png"
    command = ["filters", str(image), "--checkpoint", str(checkpoint), "--output", str(out), *options]
    assert exit_code(visualize.main, command) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_network_without_filters_has_none_to_draw(image, tmp_path, capsys):
    for name, kwargs in (("resnet14_32px", {}), ("ddf_mul_resnet14_32px", {"filters": "channel"})):
        dense = save(tmp_path / f"{name}.pt", name, **kwargs)
        assert exit_code(visualize.main, ["filters", str(image), "--checkpoint", str(dense)]) == 2
        assert "no DDF with spatial filters" in capsys.readouterr().err


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    from ddfnet.tasks.depth.synthetic import render_scenes

    root = tmp_path_factory.mktemp("scenes") / "scenes"
    render_scenes(root, train=4, val=2, size=64)
    return root


def trained(task, config, folder, *overrides):
    """A checkpoint of one step."""
    quick = ["train.epochs=1", "data.workers=0", "run.tensorboard=false", "schedule.warmup_epochs=0"]
    loaded = load_config(ROOT / "configs" / task / config, [f"run.dir={folder}", *quick, *overrides])
    assert train(loaded) == 0
    return folder / "last.pt"


def test_depth_maps_are_drawn(scenes, tmp_path, capsys):
    small = ["train.batch_size=4", "train.device_batch_size=4", "data.crop=32"]
    checkpoint = trained("depth", "scenes.yaml", tmp_path / "run", f"data.root={scenes}", *small)
    out = tmp_path / "depth.png"
    command = ["depth", "--checkpoint", str(checkpoint), "--output", str(out)]
    assert exit_code(visualize.main, [*command, "--index", "1", "0"]) == 0
    assert np.asarray(Image.open(out)).shape[1] == 1700
    page = tmp_path / "explore.html"
    command_of_page = ["explore", str(checkpoint), "1", "--size", "48", "--output", str(page)]
    assert exit_code(visualize.main, command_of_page) == 0
    (shown,) = check_layers(page.read_text())
    assert (shown["width"], {layer["kind"] for layer in shown["layers"]}) == (48, {"DDFUp"})
    for index, message in (("2", "IMAGE 2: the validation set has the pairs 0 to 1"), ("a.png", "give numbers of")):
        assert exit_code(visualize.main, ["explore", str(checkpoint), index, "--output", str(page)]) == 2
        assert message in capsys.readouterr().err
    assert exit_code(visualize.main, [*command, "--index", "2"]) == 2
    assert "--index 2: the validation set has the pairs 0 to 1" in capsys.readouterr().err


def test_detections_are_drawn(tmp_path, image, checkpoint, capsys):
    pytest.importorskip("pycocotools")
    from ddfnet.tasks.detection.synthetic import render_shapes

    shapes = tmp_path / "shapes"
    render_shapes(shapes, train=4, val=2, size=64)
    small = ["train.batch_size=4", "train.device_batch_size=4", "data.min_size=[64]", "data.max_size=64"]
    detector = trained("detection", "shapes.yaml", tmp_path / "run", f"data.root={shapes}", *small)
    out = tmp_path / "detections.png"
    images = [str(path) for path in sorted((shapes / "val").glob("*.png"))]
    assert exit_code(visualize.main, ["detections", *images, "--checkpoint", str(detector), "--output", str(out)]) == 0
    assert out.exists()
    page = tmp_path / "explore.html"
    assert exit_code(visualize.main, ["explore", str(detector), *images, "--size", "96", "--output", str(page)]) == 0
    shown = check_layers(page.read_text())
    assert [image["name"] for image in shown] == [path.rpartition("/")[2] for path in images]
    assert [layer["kind"] for layer in shown[0]["layers"]] == ["DDFUp"] * 3
    assert exit_code(visualize.main, ["detections", *images, "--checkpoint", str(checkpoint)]) == 2
    assert "is of the task classification: give a checkpoint of detection" in capsys.readouterr().err
