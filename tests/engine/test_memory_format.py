"""Networks that a CPU cannot train with their channels last: no layer here is ever run that way."""

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from ddfnet.checkpoint import read_weights
from ddfnet.engine.memory_format import trainable_format, unsafe_layers
from ddfnet.engine.train import train
from ddfnet.models import create_model
from ddfnet.tasks import load_config
from ddfnet.utils.errors import ConfigError
from scripts.dev.families import make_images

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("layer", "unsafe"),
    [
        (nn.Conv2d(3, 48, 1, stride=2), True),
        (nn.Conv2d(4, 8, 1, stride=(1, 2)), True),
        (nn.Conv2d(15, 48, 1, stride=3, bias=False), True),
        (Conv2dSame(3, 48, 1, stride=2), True),
        (nn.Conv2d(3, 48, 1), False),
        (nn.Conv2d(1, 48, 1, stride=2), False),
        (nn.Conv2d(16, 48, 1, stride=2), False),  # shortcuts of a ResNet for CIFAR
        (nn.Conv2d(3, 48, 3, stride=2), False),
        (nn.Conv2d(3, 48, 4, stride=4), False),
        (nn.Conv2d(12, 12, 1, stride=2, groups=12), False),
    ],
)
def test_the_kind_of_layer(layer, unsafe):
    assert unsafe_layers(nn.Sequential(nn.Identity(), layer)) == ["1"] * unsafe


@pytest.mark.parametrize("name", ["fastvit_t8", "repvgg_a0", "mobileone_s0"])
def test_stems_that_have_it(name):
    with torch.device("meta"):
        assert any("stem" in layer for layer in unsafe_layers(create_model(name)))


@pytest.mark.parametrize("name", ["ddf_mul_resnet50", "ddf_mul_resnet14_32px", "resnet50", "convnext_atto"])
def test_others_keep_their_format(name):
    with torch.device("meta"):
        assert unsafe_layers(create_model(name)) == []


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), 32)


def settings(images, tmp_path, *more):
    config = tmp_path / "run.yaml"
    config.write_text("{}\n")
    return load_config(
        config,
        [
            "model.name=test_byobnet", f"data.root={images}", "data.input.size=32", "data.workers=0", "optim.lr=0.01",
            "train.epochs=1", "train.batch_size=2", "train.device_batch_size=2", "run.device=cpu",
            "run.tensorboard=false", f"run.dir={tmp_path / 'run'}", *more,
        ],
    )  # fmt: skip


def with_such_a_layer():
    return nn.Sequential(nn.Conv2d(3, 8, 1, stride=2), nn.Flatten())


def test_only_a_cpu_and_only_channels_last(tmp_path):
    network = with_such_a_layer()
    config = settings(tmp_path, tmp_path).config
    assert trainable_format(config, network, GPU) == (config, [])
    assert trainable_format(config, nn.Linear(3, 3), CPU) == (config, [])
    changed, (note,) = trainable_format(config, network, CPU)
    assert changed.train.channels_last is False
    assert config.train.channels_last is True
    assert note.startswith("note: train.channels_last is false here: PyTorch's backward pass on a CPU")
    assert "test_byobnet has (0)" in note
    explicit = settings(tmp_path, tmp_path, "train.channels_last=false").config
    assert trainable_format(explicit, network, CPU) == (explicit, [])
    explicit = settings(tmp_path, tmp_path, "train.channels_last=true").config
    with pytest.raises(ConfigError, match=r"train.channels_last=true: .* \(0\): leave it out, or set it to false"):
        trainable_format(explicit, network, CPU)


def test_a_run_says_so_and_evaluation_follows(tmp_path, images, capsys, monkeypatch):
    seen = []
    loaded = settings(images, tmp_path, "model.name=repvgg_a0")
    forward = nn.Conv2d.forward

    def watched(self, image):
        if image.shape[1] == 3:
            seen.append(image.is_contiguous() and self.weight.is_contiguous())
        return forward(self, image)

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    assert train(loaded) == 0
    assert seen
    assert all(seen)
    assert capsys.readouterr().out.count("note: train.channels_last is false here") == 1
    for name in ("best.pt", "last.pt"):
        assert read_weights(tmp_path / "run" / name).meta["channels_last"] is False
    assert train(loaded) == 0  # the same run again: its configuration did not change


def test_who_asks_for_it_is_told_before_anything_is_written(tmp_path, images):
    with pytest.raises(ConfigError, match=r"train\.channels_last=true"):
        train(settings(images, tmp_path, "model.name=repvgg_a0", "train.channels_last=true"))
    assert not (tmp_path / "run").exists()
