"""Files may come from anybody. Harmless probes of every way in: each would leave a file behind, and none does."""

import json
from pathlib import Path

import pytest
import torch
from timm.models import save_for_hf

import ddfnet
from ddfnet.checkpoint import read_weights, save_checkpoint
from ddfnet.engine.train import train
from ddfnet.models import claims
from ddfnet.models.classifier import load_classifier
from ddfnet.tasks import load_config
from ddfnet.utils.errors import CheckpointError, ConfigError, UserError
from ddfnet.zoo import ZooError, find

NAME = "ddf_mul_resnet14_32px"


class Probe:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, image_tree):
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY.format(root=image_tree))
    train(load_config(folder / "tiny.yaml", [f"run.dir={folder / 'run'}", "train.epochs=1", "checkpoints.keep=0"]))
    return folder


PLACES = ["meta", "config", "model", "ema", "step", "best", "optimizer", "scaler", "images", "class_hashes", "local"]


@pytest.mark.parametrize("place", PLACES)
def test_pickles_in_every_place_of_a_training_checkpoint(place, finished, tmp_path):
    payload = torch.load(finished / "run" / "last.pt", weights_only=True)
    probe = Probe(tmp_path / "ran")
    payload[place] = {**payload[place], "probe": probe} if isinstance(payload[place], dict) else probe
    (tmp_path / "run").mkdir()
    torch.save(payload, tmp_path / "run" / "last.pt")
    with pytest.raises(CheckpointError, match="could run code: refused"):
        train(load_config(finished / "tiny.yaml", [f"run.dir={tmp_path / 'run'}", "train.epochs=1"]))
    with pytest.raises(CheckpointError, match="could run code: refused"):
        read_weights(tmp_path / "run" / "last.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_in_files_of_others(zipped, tmp_path):
    state = {"fc.weight": torch.zeros(2, 2), "probe": Probe(tmp_path / "ran")}
    torch.save({"state_dict": state}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="could run code: refused"):
        read_weights(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch [[ran]]",
        "!!python/name:os.system",
        "!!python/module:antigravity",
        "!x 3",
    ],
)
def test_tags_in_configurations(tag, finished, tmp_path):
    text = (finished / "tiny.yaml").read_text()
    (tmp_path / "tag.yaml").write_text(f"{text}\nloss: {tag}\n".replace("loss: {label_smoothing: 0.1}\n", ""))
    with pytest.raises(ConfigError):
        load_config(tmp_path / "tag.yaml", [])
    with pytest.raises(ConfigError):
        load_config(finished / "tiny.yaml", [f"run.seed={tag}"])


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a/../../b", "", "."])
def test_paths_in_names_of_the_zoo(name):
    with pytest.raises((ZooError, UserError)):
        find(name)


def described(**changes):
    model = ddfnet.create_model(NAME, num_classes=5)
    from ddfnet.data.preprocessing import Preprocessing

    about = {"name": NAME, "num_classes": 5, "kwargs": {}, **changes}
    meta = {"task": "classification", "model": about, "classes": None, "preprocessing": Preprocessing().to_dict()}
    return {"model": model.state_dict(), "ema": None, "meta": meta, "config": None}


def test_a_whole_description_loads(tmp_path):
    save_checkpoint(tmp_path / "a.pt", described())
    assert load_classifier(tmp_path / "a.pt").num_classes == 5


@pytest.mark.parametrize("name", ["hf-hub:some-one/model", "local-dir:/tmp", "timm:resnet18", "../resnet18", "a/b"])
def test_a_file_may_not_send_timm_elsewhere(name, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.pt", described(name=name))
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("asked timm for it"))
    with pytest.raises(CheckpointError, match=r"look(ed)? for .*elsewhere: refused"):
        load_classifier(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_classes": 10**9}, r"num_classes=1e\+09, and no dimension of its tensors is above \d+"),
        ({"kwargs": {"layers": [1, 1, 10**7, 1]}}, "layers=1e"),
        ({"name": "vit_giant_patch14_224", "num_classes": 5}, r"a network of 1,\d+,\d+,\d+ values and holds \d"),
    ],
)
def test_sizes_that_a_file_claims_agree_with_its_tensors(changes, words, tmp_path, monkeypatch):
    built = []
    plain = claims.create_model

    def meta_only(name, **kwargs):
        model = plain(name, **kwargs)
        built.append({parameter.device.type for parameter in model.parameters()})
        return model

    monkeypatch.setattr(claims, "create_model", meta_only)
    monkeypatch.setattr("ddfnet.models.classifier.create_model", lambda *_, **__: pytest.fail("got memory"))
    save_checkpoint(tmp_path / "a.pt", described(**changes))
    with pytest.raises(CheckpointError, match=words):
        load_classifier(tmp_path / "a.pt")
    assert built in ([], [{"meta"}])


def test_the_image_size_a_file_claims_is_that_of_an_image(tmp_path):
    payload = described()
    payload["meta"]["preprocessing"]["input_size"] = 10**9
    save_checkpoint(tmp_path / "a.pt", payload)
    with pytest.raises(CheckpointError, match=r"size=1000000000 .* at most 178,956,970 are possible"):
        load_classifier(tmp_path / "a.pt")


def test_sizes_in_a_file_of_timm(tmp_path):
    import argparse

    import timm

    model = timm.create_model("resnet10t", num_classes=5)
    args = argparse.Namespace(model="resnet10t", model_kwargs={"base_width": 10**9})
    torch.save({"arch": "resnet10t", "args": args, "state_dict": model.state_dict()}, tmp_path / "timm.pth.tar")
    with pytest.raises(CheckpointError, match="base_width=1e"):
        load_classifier(tmp_path / "timm.pth.tar")


def test_a_folder_of_the_hub_describes_a_network_alone(tmp_path):
    import timm

    save_for_hf(timm.create_model("resnet10t", num_classes=5), tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["model_args"] = {"checkpoint_path": "/etc/passwd"}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="asks for checkpoint_path"):
        load_classifier(f"local-dir:{tmp_path / 'hub'}")


def test_names_in_the_configuration_that_a_checkpoint_holds(tmp_path):
    from ddfnet.models.claims import check_names

    check_names({"backbone": "resnet50.a1_in1k", "kwargs": {"act": "relu"}}, source="a.pt")
    for bad in ("hf-hub:a/b", "/etc/passwd"):
        with pytest.raises(CheckpointError, match=r"a\.pt names backbone"):
            check_names({"model": {"backbone": bad}}, source="a.pt")
