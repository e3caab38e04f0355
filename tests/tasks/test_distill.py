"""Distillation: the loss by hand, the teacher's own images, and whose classes fit."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import ddfnet
from ddfnet.checkpoint import read_checkpoint, save_checkpoint
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.engine.train import train
from ddfnet.evaluation.class_names import imagenet_classes
from ddfnet.models.classifier import load_classifier
from ddfnet.tasks import create_task, load_config
from ddfnet.tasks.distill import DistillConfig, Distiller, _columns
from ddfnet.utils.errors import ConfigError
from tests.conftest import CLASSES

OWN = Preprocessing(size=16, crop_pct=1.0)


def save_teacher(path, *, classes=CLASSES, mean=OWN.mean):
    torch.manual_seed(1)
    network = ddfnet.create_model("resnet14_32px", num_classes=len(classes))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    meta = {
        "task": "classification",
        "model": {"name": "resnet14_32px", "num_classes": len(classes), "kwargs": {}},
        "classes": list(classes),
        "preprocessing": OWN.replaced(mean=mean).to_dict(),
    }
    save_checkpoint(path, {"meta": meta, "model": network.state_dict(), "ema": None})
    return path


@pytest.fixture
def teacher(tmp_path):
    return save_teacher(tmp_path / "teacher.pt")


def distiller(path, *, classes=CLASSES, **keys):
    config = DistillConfig(teacher=str(path), **keys)
    return Distiller(config, OWN, classes=list(classes), outputs=len(classes), size=16)


def softmax(row):
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_loss_is_the_documented_one(teacher, kind):
    torch.manual_seed(0)
    logits, image = torch.randn(3, 5), torch.randn(3, 3, 16, 16)
    ours = distiller(teacher, kind=kind, weight=0.3, temperature=2.0)
    expected = 0.0
    for own, its in zip(logits.tolist(), load_classifier(teacher).network(image).tolist(), strict=True):
        if kind == "soft":
            p, q = softmax([x / 2 for x in its]), softmax([x / 2 for x in own])
            expected += 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
        else:
            expected -= math.log(softmax(own)[its.index(max(its))]) / 3
    assert ours(torch.tensor(1.7), logits, image).item() == pytest.approx(0.7 * 1.7 + 0.3 * expected, rel=1e-5)


def test_the_teacher_gets_its_own_mean_and_has_no_gradient(tmp_path):
    path = save_teacher(tmp_path / "t.pt", mean=(0.1, 0.2, 0.3))
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 16, 16)
    std = torch.tensor(OWN.std).view(1, 3, 1, 1)
    as_student = (pixels - torch.tensor(OWN.mean).view(1, 3, 1, 1)) / std
    as_teacher = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / std
    ours = distiller(path)
    got = ours.logits(as_student.requires_grad_())
    assert not got.requires_grad
    torch.testing.assert_close(got, load_classifier(path).network(as_teacher))
    assert not any(parameter.requires_grad for parameter in ours.network.parameters())
    assert not ours.network.training


def test_classes_of_the_teacher_in_another_order_or_more_of_them(teacher):
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = distiller(teacher).logits(image)
    some = distiller(teacher, classes=["ring", "cross"]).logits(image)
    assert torch.equal(some, whole[:, [CLASSES.index("ring"), CLASSES.index("cross")]])


def columns(*, names, its_outputs, classes, outputs):
    """`_columns` of a teacher of whom only this is known."""
    about = SimpleNamespace(classes=names, num_classes=its_outputs)
    return _columns(about, "t.pt", classes, outputs)


TEN, IMAGENET = [f"c{i}" for i in range(10)], imagenet_classes()
OWN_1000 = [f"c{i}" for i in range(1000)]


@pytest.mark.parametrize(
    ("names", "its_outputs", "classes", "outputs", "expected"),
    [
        (None, 12, TEN, 12, None),  # nobody knows: by place
        (TEN, 10, TEN, 10, None),
        (TEN, 12, TEN, 12, None),
        (TEN, 12, TEN, 10, list(range(10))),
        (TEN, 10, TEN[::-1], 10, list(range(9, -1, -1))),
        (TEN, 10, ["c7", "c2"], 2, [7, 2]),
        (None, 1000, IMAGENET, 1000, None),
        (None, 1000, IMAGENET[:10], 1000, None),
        (None, 1000, [IMAGENET[482], IMAGENET[0]], 2, [482, 0]),
    ],
)
def test_outputs_are_paired_by_the_names_that_are_known(names, its_outputs, classes, outputs, expected):
    assert columns(names=names, its_outputs=its_outputs, classes=classes, outputs=outputs) == expected


@pytest.mark.parametrize(
    ("names", "its_outputs", "classes", "outputs", "message"),
    [
        (None, 12, TEN, 10, "and does not name them, the student has 10 outputs: train a"),
        (None, 1000, OWN_1000, 1000, "among them no c0: train a teacher"),
        (None, 1000, IMAGENET[10:20], 1000, "1000 outputs for 10 classes: set model.num_classes=10"),
        (TEN, 12, TEN[::-1], 12, "12 outputs for 10 classes: set model.num_classes=10"),
        (TEN, 10, TEN, 12, "12 outputs for 10 classes: set model.num_classes=10"),
        (TEN, 12, [*TEN, "x", "y"], 12, "among them no x"),
    ],
)
def test_outputs_are_never_paired_by_place_against_their_names(names, its_outputs, classes, outputs, message):
    with pytest.raises(ConfigError, match=f"^distill.teacher=t.pt tells {its_outputs:,} classes apart.*{message}"):
        columns(names=names, its_outputs=its_outputs, classes=classes, outputs=outputs)


@pytest.mark.parametrize(
    ("classes", "teacher_name", "message"),
    [
        (["cat", "dog"], None, "tells 5 classes apart, among them no cat: train a teacher"),
        (CLASSES, "resnet18.nothing", "distill.teacher=resnet18.nothing: "),
        (CLASSES, "nowhere.pt", "distill.teacher=nowhere.pt: checkpoint not found"),
    ],
)
def test_teachers_that_cannot_teach(teacher, classes, teacher_name, message):
    with pytest.raises(ConfigError, match=message):
        distiller(teacher_name or teacher, classes=classes)


def test_a_teacher_of_many_labels_is_refused(tmp_path):
    payload = read_checkpoint(save_teacher(tmp_path / "one.pt"))
    payload["meta"]["multi_label"] = {"threshold": 0.5}
    save_checkpoint(tmp_path / "many.pt", {key: payload[key] for key in ("meta", "model", "ema")})
    with pytest.raises(ConfigError, match=r"many\.pt was trained on images with any number of labels"):
        Distiller(DistillConfig(teacher=str(tmp_path / "many.pt")), OWN, classes=CLASSES, outputs=len(CLASSES), size=16)


def test_a_name_of_timm_is_a_teacher_with_its_weights(monkeypatch):
    torch.manual_seed(3)
    weights = ddfnet.create_model("resnet18")
    monkeypatch.setattr("ddfnet.models.weights.create_model", lambda name, pretrained: weights)
    config = DistillConfig(teacher="resnet18.a1_in1k")
    ours = Distiller(config, OWN, classes=imagenet_classes(), outputs=1000, size=32)
    image = torch.randn(1, 3, 32, 32)
    scale = image * ours.scale + ours.shift if ours.scale is not None else image
    assert torch.equal(ours.logits(image), weights.eval()(scale))


def test_a_missing_file_is_noticed_before_images_are_looked_for(tiny_config):
    with pytest.raises(ConfigError, match=r"distill.teacher=none.pt: checkpoint not found: none.pt$"):
        create_task(load_config(tiny_config, ["distill.teacher=none.pt", "data.root=/nowhere"]).config)
    with pytest.raises(ConfigError, match=r"checkpoint not found: resnet51; did you mean resnet\w+\?$"):
        create_task(load_config(tiny_config, ["distill.teacher=resnet51", "data.root=/nowhere"]).config)


def test_a_mistake_leaves_nothing_behind(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match="checkpoint not found"):
        train(load_config(tiny_config, ["distill.teacher=none.pt", f"run.dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()
