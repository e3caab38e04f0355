"""The files in configs/detection: table 6, their headers, and that each of them runs."""

import json
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ddfnet.engine.train import train
from ddfnet.optim import learning_rate
from ddfnet.tasks import load_config
from ddfnet.tasks.detection.config import DetectionModel
from ddfnet.tasks.detection.network import create_backbone, create_detector
from ddfnet.tasks.detection.pyramid import upsampler
from ddfnet.tasks.detection.synthetic import render_shapes
from ddfnet.tasks.plan import plan_run
from tests.conftest import ROOT, launch

pytest.importorskip("pycocotools")

CONFIGS = ROOT / "configs" / "detection"
EXPERIMENTS = sorted(path.stem for path in CONFIGS.glob("faster_rcnn_*.yaml"))


def count(model):
    return sum(p.numel() for p in model.parameters())


def load(name, *overrides):
    return load_config(CONFIGS / f"{name}.yaml", ["data.root=somewhere", *overrides])


def test_schedule_is_that_of_the_toolbox():
    config = load("faster_rcnn_r50_fpn_ddfup").config
    derived = plan_run(config, world_size=8, train_images=117_266)
    assert (derived.accumulation, derived.steps_per_epoch, derived.warmup_steps) == (1, 7329, 498)
    assert learning_rate(0, config.schedule, derived) == pytest.approx(2e-5)
    at = {epoch: learning_rate(epoch * derived.steps_per_epoch, config.schedule, derived) for epoch in (1, 8, 11)}
    assert at == {1: pytest.approx(0.02), 8: pytest.approx(2e-3), 11: pytest.approx(2e-4)}
    assert (config.optim.name, config.optim.momentum, config.optim.weight_decay) == ("momentum", 0.9, 1e-4)


TABLE_6 = {  # upsampling FLOPs in B; mAP small, medium, large and all
    "nearest": ("0.00", "21.2", "41.0", "48.1", "37.4"),
    "bilinear": ("0.02", "22.1", "41.2", "48.4", "37.6"),
    "deconv": ("12.57", "21.0", "41.1", "48.5", "37.3"),
    "pixelshuffle": ("50.18", "21.4", "41.5", "48.6", "37.7"),
    "carafe": ("2.14", "22.6", "42.0", "49.8", "38.5"),
    "ddfup": ("0.58", "22.1", "42.4", "49.9", "38.6"),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_headers_are_true(name):
    header = dict(re.findall(r"^#   (\w+) +(.+)$", (CONFIGS / f"{name}.yaml").read_text(), re.MULTILINE))
    assert list(header) == ["command", "paper", "measured", "model", "cost"]
    assert f"--config configs/detection/{name}.yaml data.root=" in header["command"]
    assert header["measured"].startswith("not measured")
    loaded = load(name)
    assert loaded.ineffective_keys() == []
    model = loaded.config.model
    assert name.endswith(f"_{model.upsampling}")
    with torch.device("meta"):
        detector = create_detector(
            create_backbone(model.backbone), num_classes=80, upsampling=model.upsampling,
            frozen_stages=model.frozen_stages, frozen_norm=model.frozen_norm,
        )  # fmt: skip
        upsample, trained = upsampler(model.upsampling, 256), [p for p in detector.parameters() if p.requires_grad]
        with FlopCounterMode(display=False) as counter:
            for height, width in ((40, 25), (80, 50), (160, 100)):
                upsample(torch.empty(1, 256, height, width))
    assert header["model"] == (
        f"{count(detector) / 1e6:.2f} M parameters, {sum(p.numel() for p in trained) / 1e6:.2f} M of them trained; "
        f"upsampling {counter.get_total_flops() / 2e9:.3f} B multiply-adds at 1280 x 800"
    )
    if model.backbone == "ddf_mul_resnet50":
        assert header["paper"] == "nothing reported for this network"
    else:
        flops, small, medium, large, whole = TABLE_6[model.upsampling]
        assert header["paper"] == (
            f"mAP {whole} % (small {small}, medium {medium}, large {large}); upsampling {flops} B FLOPs"
        )


def test_every_row_of_table_6_has_a_file():
    assert {name.removeprefix("faster_rcnn_r50_fpn_") for name in EXPERIMENTS if "r50" in name} == set(TABLE_6)


@pytest.mark.parametrize("name", [*EXPERIMENTS, "shapes"])
def test_dry_run(name, shapes, tmp_path, capsys):
    overrides = [
        f"data.root={shapes}", "data.train_images=train", "data.train_annotations=annotations/train.json",
        "data.val_images=val", "data.val_annotations=annotations/val.json", "data.min_size=[64]", "data.max_size=64",
        "data.workers=0", "model.channels=16", "model.box_samples=8", "model.backbone_pretrained=false",
        "run.device=cpu", "train.batch_size=2", "train.device_batch_size=2", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert train(load(name, *overrides), dry_run=True) == 0
    out = capsys.readouterr().out
    assert "step 2/2" in out
    assert "map50" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_demo_overfits_twenty_images(tmp_path):
    """Training and validation on the same images."""
    root = tmp_path / "shapes"
    render_shapes(root, train=1, val=20)
    same = ["data.train_images=val", "data.train_annotations=annotations/val.json", "train.epochs=40"]
    folder = tmp_path / "run"
    result = launch(
        "train.py", "--config", CONFIGS / "shapes.yaml", f"data.root={root}", f"run.dir={folder}", *same,
        processes=2, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert launch("eval.py", "--checkpoint", folder / "best.pt", "--device", "cpu").returncode == 0
    report = json.loads((folder / "eval_best" / "report.json").read_text())
    assert report["n"] == 20
    assert report["map"] > 50


def test_a_whole_detector_to_start_from_makes_weights_of_the_backbone_needless():
    for key, value in (("backbone_checkpoint", "b.pt"), ("backbone_pretrained", True)):
        given = DetectionModel(**{key: value})
        assert not list(given.without_effect())
        assert [key] == [key for key, _ in given.model_copy(update={"init_checkpoint": "a.pt"}).without_effect()]
