"""Checkpoints: atomic, safe to load, clear about what is wrong with a file, official formats included."""

import argparse
import json
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

import ddfnet
from ddfnet.checkpoint import read_checkpoint, read_weights, save_checkpoint, save_safetensors, write_atomically
from ddfnet.engine.train import load_initial_weights
from ddfnet.models.preprocessing import described, trained_with
from ddfnet.models.weights import load_weights
from ddfnet.utils.errors import CheckpointError

NAME = "ddf_mul_resnet14_32px"


class RunsCode:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


def model(**kwargs):
    return ddfnet.create_model(NAME, num_classes=5, **kwargs)


def test_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "deep" / "file.pt"
    write_atomically(path, lambda file: file.write(b"first"))

    def fails(file):
        file.write(b"half of the sec")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fails)
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_round_trip_needs_no_pickle(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"model": {"w": torch.arange(3.0)}, "meta": {"classes": ["a"]}, "step": 3})
    assert read_checkpoint(path)["step"] == 3
    weights = read_weights(path)
    assert torch.equal(weights.state_dict["w"], torch.arange(3.0))
    assert weights.meta == {"classes": ["a"]}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, zipped):
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    payload = {"state_dict": {"w": torch.zeros(1)}, "args": RunsCode(marker)}
    torch.save(payload, path) if zipped else path.write_bytes(pickle.dumps({"args": RunsCode(marker)}))
    with pytest.raises(CheckpointError, match="could run code: refused"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_text_file_is_not_called_dangerous(tmp_path):
    (tmp_path / "README.md").write_text("# ddfnet\n\nA sentence.\n")
    with pytest.raises(CheckpointError, match="truncated or not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "README.md")


@pytest.mark.parametrize("keep", [0, 10, 1000, -1000])
def test_truncated_files_are_called_so(tmp_path, keep):
    path = tmp_path / "cut.pt"
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or not a PyTorch checkpoint"):
        read_checkpoint(path)


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_safetensors(path, model().state_dict(), {"a": 1}, kind="model")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        read_weights(path)


def test_missing_folder_and_text_files(tmp_path):
    (tmp_path / "best.pt").write_text("hello, this is no checkpoint")
    with pytest.raises(CheckpointError, match="not found"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"is a folder: it holds best\.pt"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="truncated or not"):
        read_checkpoint(tmp_path / "best.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match=r"holds no weights.*epoch"):
        read_weights(tmp_path / "empty.pt")


def test_weights_of_another_model_are_refused_with_the_difference():
    wrong = ddfnet.create_model("resnet18", num_classes=5).state_dict()
    mine = model()
    before = mine.conv1.weight.clone()
    weights = read_weights_of(wrong)
    with pytest.raises(CheckpointError, match=r"missing .*unknown .*another shape"):
        load_weights(mine, weights, source="x.pt", name=NAME)
    assert torch.equal(mine.conv1.weight, before)


def read_weights_of(state_dict):
    from ddfnet.checkpoint import Weights

    return Weights(state_dict, None, "state_dict")


def test_official_checkpoint_formats(tmp_path):
    """timm 0.4.5 training files: a Namespace beside `state_dict` and `state_dict_ema`, keys with `module.`."""
    source, ema = model(), model()
    path = tmp_path / "official.pth.tar"
    torch.save(
        {
            "epoch": 129,
            "arch": "ddf_mul_resnet50",
            "args": argparse.Namespace(lr=0.4, sched="cosine"),
            "state_dict": {f"module.{key}": value for key, value in source.state_dict().items()},
            "state_dict_ema": ema.state_dict(),
            "version": 2,
        },
        path,
    )
    target = model()
    for prefer, expected, kind in (("raw", source, "model"), ("auto", ema, "ema"), ("ema", ema, "ema")):
        weights = read_weights(path, prefer=prefer)
        assert (weights.kind, weights.meta) == (kind, None)
        load_weights(target, weights, source=path, name=NAME)
        assert torch.equal(target.fc.weight, expected.fc.weight)
    torch.save(source.state_dict(), path)
    load_weights(target, read_weights(path), source=path, name=NAME)
    assert torch.equal(target.fc.weight, source.fc.weight)
    with pytest.raises(CheckpointError, match="no EMA weights"):
        read_weights(path, prefer="ema")


def test_safetensors_carry_weights_and_meta(tmp_path):
    path = tmp_path / "w.safetensors"
    source = model()
    save_safetensors(path, source.state_dict(), {"classes": ["a", "b"]}, kind="ema")
    weights = read_weights(path)
    assert weights.kind == "ema"
    with pytest.raises(CheckpointError, match="holds the ema weights alone"):
        read_weights(path, prefer="raw")
    assert weights.meta == {"classes": ["a", "b"]}
    assert all(torch.equal(value, weights.state_dict[key]) for key, value in source.state_dict().items())


def test_initial_weights_keep_the_new_classifier(tmp_path):
    source, target = model(), ddfnet.create_model(NAME, num_classes=3)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    head = target.fc.weight.clone()
    line = load_initial_weights(target, tmp_path / "w.pt")
    assert "new classifier: fc.weight, fc.bias" in line
    assert torch.equal(target.fc.weight, head)
    assert torch.equal(target.layer4[0].conv2.spatial_branch[0].weight, source.layer4[0].conv2.spatial_branch[0].weight)


def test_initial_weights_of_another_model_name_the_model(tmp_path):
    torch.save(model().state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="does not hold weights of resnet14_32px"):
        load_initial_weights(ddfnet.create_model("resnet14_32px"), tmp_path / "w.pt")


def test_initial_weights_of_other_images_or_classes_say_so(tmp_path):
    source = model()
    meta = {"classes": ["a", "b"], "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    save_safetensors(tmp_path / "w.safetensors", source.state_dict(), meta, kind="model")

    def lines(**changes):
        target = ddfnet.create_model(NAME, num_classes=source.num_classes)
        return load_initial_weights(target, tmp_path / "w.safetensors", meta={**meta, **changes}).splitlines()[1:]

    assert lines() == []
    (line,) = lines(preprocessing={"mean": [0.4] * 3, "std": [0.5] * 3})
    assert line == "note: these weights were trained with data.input mean [0.5, 0.5, 0.5], here [0.4, 0.4, 0.4]"
    meta["preprocessing"] |= {"input_size": 32, "crop_pct": 1.0, "crop_mode": "center"}
    save_safetensors(tmp_path / "w.safetensors", source.state_dict(), meta, kind="model")
    assert lines(preprocessing={**meta["preprocessing"], "input_size": [32, 32]}) == []
    (line,) = lines(preprocessing={**meta["preprocessing"], "input_size": [32, 48], "crop_pct": 0.875})
    assert line.endswith("with data.input size 32, here 32 x 48; crop_pct 1, here 0.875")
    assert lines(classes=["a", "c"]) == [
        "note: these weights were trained on other classes; their classifier is kept as a start"
    ]


@pytest.mark.parametrize(("key", "value"), [("mean", [0.485, 0.456, 0.406]), ("std", [0.229, 0.224, 0.225])])
def test_initial_weights_of_a_hub_folder_say_what_its_record_does(tmp_path, key, value):
    network = timm.create_model("resnet10t", num_classes=3)
    record = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32]}
    save_for_hf(network, tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["pretrained_cfg"] |= record
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))

    def notes(network=network, **how):
        meta = {"preprocessing": {**record, "input_size": 32, **how}}
        return load_initial_weights(network, f"local-dir:{tmp_path / 'hub'}", meta=meta).splitlines()[1:]

    assert notes() == []
    assert notes(**{key: value}) == [
        f"note: these weights were trained with data.input {key} [0.5, 0.5, 0.5], here {value}"
    ]
    assert notes(input_size=48) == ["note: these weights were trained with data.input size 32, here 48"]
    gray = timm.create_model("resnet10t", num_classes=3, in_chans=1)
    assert notes(gray, mean=[0.5], std=[0.5]) == []
    assert notes(gray, **{"mean": [0.5], "std": [0.5], key: [0.25]}) == [
        f"note: these weights were trained with data.input {key} [0.5], here [0.25]"
    ]


def test_initial_weights_that_come_with_timm_say_what_their_record_does(monkeypatch):
    network = timm.create_model("resnet10t", num_classes=3)
    monkeypatch.setattr("ddfnet.models.weights.create_model", lambda name, pretrained: network)
    network.pretrained_cfg = {**network.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.2,) * 3}
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.2] * 3}
    target = timm.create_model("resnet10t", num_classes=3)
    assert "note" not in load_initial_weights(target, "timm:resnet10t", meta={"preprocessing": own})
    text = load_initial_weights(target, "timm:resnet10t", meta={"preprocessing": {**own, "mean": [0.5] * 3}})
    assert "trained with data.input mean [0.1, 0.2, 0.3], here [0.5, 0.5, 0.5]" in text


def test_args_of_a_training_come_before_a_record_and_nonsense_is_no_note():
    args, record = {"mean": [0.4], "std": None}, {"mean": [0.5] * 3, "std": [0.2] * 3}
    assert trained_with({"args": args, "record": record}, channels=3) == {"mean": [0.4] * 3, "std": [0.2] * 3}
    assert trained_with({"args": {"mean": 3}}, channels=3) == {}
    assert described({"input_size": "abc"}) == described({"input_size": [1, 2, 3]}) == described({"mean": 5}) == {}
    whole = {"mean": [0, 0, 0], "std": [1, 1, 1], "crop_pct": 1}  # of a JSON file
    assert described(whole) == described({"mean": [0.0] * 3, "std": (1.0,) * 3, "crop_pct": 1.0})
    assert trained_with({"arch": "resnet10t", "args": {}}, channels=1) == {}
