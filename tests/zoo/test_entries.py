"""The claims of the zoo about each set of weights, and how a name is found."""

import dataclasses
import re

import pytest
import torch

import ddfnet
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.utils.errors import UserError
from ddfnet.zoo import Entry, File, entries, find
from ddfnet.zoo import entries as entries_function
from tests.conftest import ROOT

OFFICIAL = "ddf_mul_resnet50.official_in1k"  # claimed, without size and hash


def test_names_are_unique_and_say_model_and_tag():
    names = [entry.name for entry in entries()]
    assert len(set(names)) == len(names)
    assert [find(name).name for name in names] == names
    assert find(OFFICIAL).file_name == "ddf_mul_resnet50.official_in1k.pth.tar"
    assert find("ddf_mul_resnet14_32px.digits").file_name == "ddf_mul_resnet14_32px.digits.safetensors"


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_an_entry_names_a_model_a_recipe_and_its_images(entry):
    assert entry.model in ddfnet.list_models()
    assert f"name: {entry.model}" in (ROOT / entry.config).read_text()
    with torch.device("meta"):
        cfg = ddfnet.create_model(entry.name).pretrained_cfg
    size = cfg["input_size"][-1]
    assert entry.preprocessing == Preprocessing(
        size=size,
        crop_pct=cfg["crop_pct"],
        interpolation=cfg["interpolation"],
        resize="pillow",
        mean=cfg["mean"],
        std=cfg["std"],
    )
    assert (cfg["tag"], cfg["num_classes"]) == (entry.tag, entry.num_classes)
    assert all(re.fullmatch(r"https://\S+", url) for url in entry.file.urls)


def test_the_official_weights_are_claims_with_the_figures_of_their_readme():
    official = {entry.model: entry for entry in entries() if entry.tag == "official_in1k"}
    assert {model: entry.metrics["top1"] for model, entry in official.items()} == {
        "ddf_mul_resnet50": 79.1,
        "ddf_mul_resnet101": 80.5,
        "ddf_add_resnet50": 78.8,
        "ddf_add_resnet101": 79.9,
    }
    assert {entry.status for entry in official.values()} == {"claimed"}
    assert all(entry.file.sha256 is None and entry.commit is None for entry in official.values())
    assert official["ddf_add_resnet101"].file.urls == ()
    assert "Baidu" in official["ddf_add_resnet101"].note


def test_verified_weights_have_a_hash():
    with pytest.raises(ValueError, match="size or sha256 is unknown"):
        dataclasses.replace(find(OFFICIAL), status="verified")
    verified = dataclasses.replace(find(OFFICIAL), status="verified", file=File((), 1, "0" * 64))
    assert isinstance(verified, Entry)
    assert hash(verified) != hash(find(OFFICIAL))


def test_find_by_full_name_or_by_a_model_of_one():
    entry = find(OFFICIAL)
    assert find(entry.name) is find(entry.model) is entry


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"no weights 'ddf_mul_resnet5': did you mean ddf_mul_resnet50 or"):
        find("ddf_mul_resnet5")
    with pytest.raises(UserError, match=r"did you mean ddf_mul_resnet50\.official_in1k"):
        find("ddf_mul_resnet50.official")
    with pytest.raises(UserError, match=r"it has .*ddf_mul_resnet50\.official_in1k, "):
        find("vit")


def test_a_model_with_several_weights_needs_the_tag(monkeypatch):
    several = (*entries(), dataclasses.replace(find(OFFICIAL), tag="other"))
    monkeypatch.setitem(entries_function.__globals__, "_ENTRIES", several)
    with pytest.raises(UserError, match=r"several .*ddf_mul_resnet50\.official_in1k or ddf_mul_resnet50\.other"):
        find("ddf_mul_resnet50")
    assert find("ddf_mul_resnet50.other").tag == "other"
