"""Weights in folders and repositories of the hub, as timm and publish_weights.py write them."""

import json

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError

from ddfnet.checkpoint import save_safetensors
from ddfnet.models.classifier import load_classifier
from ddfnet.utils.errors import CheckpointError
from ddfnet.zoo import ZooError

NAME, CLASSES = "resnet10t", 7


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=CLASSES).eval()


def same(model, state):
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


@pytest.fixture
def folder(tmp_path, source):
    """As timm's `save_for_hf` writes it."""
    from timm.models import save_for_hf

    save_for_hf(source, tmp_path / "hub")
    config = json.loads((tmp_path / "hub/config.json").read_text())
    config["label_names"] = [f"class {i}" for i in range(CLASSES)]
    config["pretrained_cfg"] |= {"mean": [0.4, 0.4, 0.4], "input_size": [3, 96, 96]}
    del config["pretrained_cfg"]["test_input_size"]
    (tmp_path / "hub/config.json").write_text(json.dumps(config))
    return tmp_path / "hub"


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_folders_in_the_layout_of_the_hub(folder, source, prefix):
    loaded = load_classifier(f"{prefix}{folder}")
    assert (loaded.name, loaded.num_classes) == (NAME, CLASSES)
    assert same(loaded.network, source.state_dict())
    assert (loaded.preprocessing.mean, loaded.preprocessing.size) == ((0.4, 0.4, 0.4), 96)
    assert loaded.classes == [f"class {i}" for i in range(CLASSES)]


@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_repository_of_the_hub_is_read_as_its_folder(folder, source, monkeypatch, revision):
    """`hf-hub:ORG/NAME[@REVISION]`: the files come through the hub's own client, one after the other."""
    asked = []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        if not (folder / file).exists():
            raise EntryNotFoundError(file)
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(source.state_dict(), folder / "pytorch_model.bin")
    loaded = load_classifier("hf-hub:some/one" + (f"@{revision}" if revision else ""))
    assert same(loaded.network, source.state_dict())
    assert loaded.preprocessing.mean == (0.4, 0.4, 0.4)
    files = ("config.json", "model.safetensors", "pytorch_model.bin")
    assert asked == [("some/one", file, revision) for file in files]
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ZooError, match=r"hf-hub:some/one has none of model\.safetensors, "):
        load_classifier("hf-hub:some/one")


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    def download(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(ZooError, match=r"cannot get hf-hub:some/one \(no network\): check the name, or download the"):
        load_classifier("hf-hub:some/one")


def test_the_folder_that_publish_writes(tmp_path):
    from ddfnet.inference.publish import publish

    publish("zoo:ddf_mul_resnet14_32px.digits", tmp_path / "out")
    zoo = load_classifier("zoo:ddf_mul_resnet14_32px.digits")
    for name in (tmp_path / "out", f"local-dir:{tmp_path / 'out'}"):
        loaded = load_classifier(name)
        assert same(loaded.network, zoo.network.state_dict())
        assert (loaded.classes, loaded.preprocessing) == (zoo.classes, zoo.preprocessing)


def test_a_folder_without_weights_or_with_a_foreign_config_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(CheckpointError, match=r"has a config\.json but none of model\.safetensors"):
        load_classifier(tmp_path)
    save_safetensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, None, kind="model")
    with pytest.raises(CheckpointError, match="names no architecture of timm"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected", "words"),
    [
        ({"crop_mode": "squash"}, {"crop_mode": "squash", "size": 96}, "96 px, squash crop 0.95"),
        ({"input_size": [3, 64, 96]}, {"size": (64, 96)}, "64 x 96 px, center crop 0.95"),
        ({"test_input_size": [3, 128, 128]}, {"size": 128}, "128 px (test_input_size), center crop 0.95"),
        ({"test_crop_pct": 1.0}, {"size": 96, "crop_pct": 1.0}, "96 px, center crop 1 (test_crop_pct)"),
    ],
)
def test_the_record_of_a_hub_folder_is_taken_whole(folder, change, expected, words):
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"crop_pct": 0.95, "test_crop_pct": None, **change}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_classifier(folder)
    assert {key: getattr(loaded.preprocessing, key) for key in expected} == expected
    line = loaded.preprocessing.line(loaded.origins)
    assert words in line
    assert "resize by pillow (the kernel of timm)" in line
    assert line.endswith("; from its config.json")


def test_weights_of_others_are_evaluated_with_their_kernel(folder):
    assert load_classifier(folder).preprocessing.resize == "pillow"


@pytest.mark.parametrize("change", [{"input_size": "abc"}, {"input_size": []}, {"std": [0, 1, 1]}])
def test_a_preprocessing_that_cannot_be_used_is_one_line(folder, change):
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"cannot be used here: [^\n]+$"):
        load_classifier(folder)
