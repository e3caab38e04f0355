"""The weights that ship with the package give their figures, offline, for whoever measures."""

import argparse
import hashlib
import json
import os
import shutil
import socket
import urllib.request
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from ddfnet.checkpoint import read_weights
from ddfnet.data.generated import render_digits
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.inference.zoo_command import main
from ddfnet.tasks import load_config
from ddfnet.utils.files import read_jsonl
from ddfnet.zoo import ZooError, entries, fetch, find
from ddfnet.zoo.download import SHIPPED

ENTRIES = [entry for entry in entries() if entry.file.shipped]
LIMIT = 2_000_000  # bytes: the package stays small

each = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.tag)


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    """An empty cache, and an error for whoever opens a connection."""

    def refuse(*arguments, **_):
        raise AssertionError(f"a connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """The folder of held-out images of an entry; skips where they are not to be had."""
    made = {}

    def _held_out(entry) -> Path:
        if entry.tag == "digits":
            pytest.importorskip("sklearn")
            if "digits" not in made:
                made["digits"] = tmp_path_factory.mktemp("digits") / "digits"
                render_digits(made["digits"])
            return made["digits"] / "val"
        if entry.tag == "cifar10":
            root = os.environ.get("DDFNET_CIFAR10") or pytest.skip("DDFNET_CIFAR10 names no folder with train/, test/")
            return Path(root) / "test"
        return pytest.fail(f"nobody says where the images of {entry.name} are")

    return _held_out


def same_digits(found, printed):
    """Equal to as many digits as an entry prints."""
    return f"{found:.2f}" == f"{printed:.2f}"


@each
def test_a_plain_loop_gives_the_figures(entry, held_out):
    """timm and Pillow alone: model by name, its own transform, one count."""
    folder = held_out(entry)
    network = timm.create_model(entry.name, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    classes = read_weights(fetch(entry)).meta["classes"]
    assert classes == sorted(path.name for path in folder.iterdir())
    top1 = top5 = n = 0
    for label, kind in enumerate(classes):
        paths = sorted((folder / kind).iterdir())
        for start in range(0, len(paths), 128):
            images = [transform(Image.open(path).convert("RGB")) for path in paths[start : start + 128]]
            with torch.inference_mode():
                best = network(torch.stack(images)).topk(5).indices
            top1 += int((best[:, 0] == label).sum())
            top5 += int((best == label).any(1).sum())
        n += len(paths)
    assert n == entry.images
    assert same_digits(100 * top1 / n, entry.metrics["top1"])
    assert same_digits(100 * top5 / n, entry.metrics["top5"])
    if entry.tag == "digits":
        assert (top1, n) == (352, 359)


@each
def test_eval_gives_the_figures(entry, held_out, tmp_path):
    report = evaluate_checkpoint(
        f"zoo:{entry.name}", data=held_out(entry), device="cpu", workers=0, output=tmp_path / "out"
    ).to_dict()
    assert report["n"] == entry.images
    for key, value in entry.metrics.items():
        assert same_digits(report[key], value)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["top1"] == report["top1"]


@each
def test_the_file_is_small_and_the_one_of_the_entry(entry):
    data = (SHIPPED / entry.file_name).read_bytes()
    assert len(data) == entry.file.size < LIMIT
    assert hashlib.sha256(data).hexdigest() == entry.file.sha256
    assert fetch(entry) == SHIPPED / entry.file_name


@each
def test_the_file_says_of_itself_what_the_entry_says(entry):
    meta = read_weights(fetch(entry)).meta
    assert meta["model"] == {"name": entry.model, "num_classes": entry.num_classes, "kwargs": {}}
    assert Preprocessing.from_dict(meta["preprocessing"]) == entry.preprocessing
    assert len(meta["classes"]) == entry.num_classes


@each
def test_the_configuration_of_the_run_is_still_understood(entry):
    config = load_config(SHIPPED / f"{entry.name}.yaml").config
    assert config.model.name == entry.model
    how = config.data.input
    assert (how.size, how.crop_pct, how.interpolation) == (
        entry.preprocessing.size,
        entry.preprocessing.crop_pct,
        entry.preprocessing.interpolation,
    )
    assert (tuple(how.mean), tuple(how.std)) == (entry.preprocessing.mean, entry.preprocessing.std)


@each
def test_the_log_ends_with_the_figures(entry):
    log = read_jsonl(SHIPPED / f"{entry.name}.metrics.jsonl")
    last = [record for record in log if record["kind"] == "val"][-1]
    assert last["step"] == log[-1]["step"]
    assert last["n"] == entry.images
    assert all(same_digits(last[key], value) for key, value in entry.metrics.items())


def test_nothing_else_lies_beside_them():
    suffixes = (".safetensors", ".yaml", ".metrics.jsonl")
    assert {path.name for path in SHIPPED.iterdir()} == {entry.name + end for entry in ENTRIES for end in suffixes}


def test_a_damaged_file_is_found_and_not_used(tmp_path, monkeypatch, capsys):
    def verify():
        return main(argparse.Namespace(command="verify", names=[], cache=None))

    assert verify() == 0
    copies = shutil.copytree(SHIPPED, tmp_path / "weights")
    monkeypatch.setattr("ddfnet.zoo.download.SHIPPED", copies)
    assert verify() == 0
    path = copies / ENTRIES[0].file_name
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # one bit of one weight
    path.write_bytes(data)
    capsys.readouterr()
    assert verify() == 1
    assert f"FAILED  {ENTRIES[0].name}" in capsys.readouterr().out
    with pytest.raises(ZooError, match="is not the file of"):
        timm.create_model(ENTRIES[0].name, pretrained=True)


def test_all_networks_of_the_zoo_that_ship_are_verified():
    assert {entry.status for entry in ENTRIES} == {"verified"}
    assert find("ddf_mul_resnet14_32px.digits") in ENTRIES
