"""Weights of the zoo through `timm.create_model`: by tag, adapted, from the cache, and never instead of the user's."""

import argparse
import dataclasses

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import ddfnet
from ddfnet.checkpoint import read_weights
from ddfnet.engine.train import load_initial_weights
from ddfnet.models.pretrained import tagged_cfgs
from ddfnet.utils.errors import CheckpointError
from ddfnet.zoo import File, ZooError, entries, fetch, file_path, find

NAME = "ddf_mul_resnet14_32px"
TAGGED = f"{NAME}.digits"
OFFICIAL = "ddf_mul_resnet50.official_in1k"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shipped():
    return load_file(fetch(find(TAGGED)))


@pytest.fixture
def official(monkeypatch):
    """Saves a small checkpoint in the official format (a pickle) as the file of an entry; returns its tensors."""
    entry = dataclasses.replace(find(OFFICIAL), file=File(), model=NAME, tag="digits", num_classes=10)
    monkeypatch.setitem(find.__globals__, "_ENTRIES", (entry,))
    path = file_path(entry)
    path.parent.mkdir()

    def _save(**more):
        weights = timm.create_model(NAME).state_dict()
        state_dict = {f"module.{key}": value for key, value in weights.items()}
        torch.save({"state_dict": state_dict, "args": argparse.Namespace(lr=0.4), **more}, path)
        return weights

    return _save


def assert_same(network, tensors, without=()):
    own = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith(without or "-")}
    assert own.keys() == {key for key in tensors if not key.startswith(without or "-")}
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in own.items())


def assert_no_tensors_left(network):
    for module in network.modules():
        for name in ("pretrained_cfg", "default_cfg"):
            assert "state_dict" not in (getattr(module, name, None) or {})


@pytest.mark.parametrize("create", [timm.create_model, ddfnet.create_model])
@pytest.mark.parametrize(
    ("name", "arguments"), [(TAGGED, {}), (NAME, {"pretrained_cfg": "digits"})], ids=["tag", "argument"]
)
def test_a_tag_gives_its_weights(create, name, arguments, shipped):
    network = create(name, pretrained=True, **arguments)
    assert_same(network, shipped)
    assert_no_tensors_left(network)
    assert (network.num_classes, network.pretrained_cfg["tag"]) == (10, "digits")


def test_the_name_alone_means_the_first_entry_of_the_model():
    first = next(entry for entry in entries() if entry.model == NAME)
    network = timm.create_model(NAME, pretrained=True)
    assert network.pretrained_cfg["tag"] == first.tag
    assert_same(network, load_file(fetch(first)))


def test_without_pretrained_nothing_is_loaded(shipped):
    assert not torch.equal(timm.create_model(TAGGED).fc.weight, shipped["fc.weight"])


def test_an_unknown_tag_names_those_there_are():
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm.create_model(f"{NAME}.typo", pretrained=True)  # timm's own words
    for name, message in ((f"{NAME}.typo", "it has .*digits"), ("bam_resnet50.typo", "there are none")):
        for pretrained in (False, True):
            with pytest.raises(ValueError, match=message):
                ddfnet.create_model(name, pretrained=pretrained)
    with pytest.raises(ValueError, match=TAGGED):
        ddfnet.create_model(f"{NAME}.typo", pretrained=True)


def test_one_input_channel_sums_the_three(shipped):
    network = timm.create_model(TAGGED, pretrained=True, in_chans=1)
    assert_same(network, {**shipped, "conv1.weight": shipped["conv1.weight"].sum(1, keepdim=True)})
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("create", [timm.create_model, ddfnet.create_model])
def test_another_number_of_classes_keeps_the_rest(create, shipped):
    network = create(TAGGED, pretrained=True, num_classes=4)
    assert_same(network, shipped, without="fc.")
    assert network.fc.weight.shape == (4, 512)


def test_features(shipped):
    network = timm.create_model(TAGGED, pretrained=True, features_only=True)
    assert_same(network, shipped, without="fc.")
    assert_no_tensors_left(network)
    assert [y.shape[1] for y in network(torch.randn(1, 3, 32, 32))] == network.feature_info.channels()


def test_features_by_hooks_keep_no_tensors_inside_either():
    network = timm.create_model(TAGGED, pretrained=True, features_only=True, feature_cls="getter")
    assert_no_tensors_left(network)


def test_options_that_need_other_weights_are_refused():
    with pytest.raises(RuntimeError, match=r"Missing key|size mismatch"):
        timm.create_model(TAGGED, pretrained=True, squeeze_ratio=0.5)


@pytest.mark.parametrize("key", ["file", "state_dict"])
def test_weights_the_user_names_win(key, shipped, tmp_path, monkeypatch):
    monkeypatch.setattr("ddfnet.models.pretrained.fetch", lambda entry: pytest.fail("asked the zoo"))
    own = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in shipped.items()}
    save_file(own, tmp_path / "own.safetensors")
    overlay = {"file": str(tmp_path / "own.safetensors")} if key == "file" else {"state_dict": dict(own)}
    assert_same(timm.create_model(TAGGED, pretrained=True, pretrained_cfg_overlay=overlay), own)


def test_a_repository_the_user_names_wins(shipped, monkeypatch):
    own = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in shipped.items()}
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(own))
    overlay = {"hf_hub_id": "some/one"}
    assert_same(timm.create_model(TAGGED, pretrained=True, pretrained_cfg_overlay=overlay), own)


def test_an_official_checkpoint_in_the_cache(official):
    weights = official()
    network = timm.create_model(TAGGED, pretrained=True)
    assert_same(network, weights)
    assert_no_tensors_left(network)


def test_an_official_checkpoint_with_code_is_refused_and_not_run(official, tmp_path):
    class RunsCode:
        def __reduce__(self):
            return type(tmp_path).touch, (tmp_path / "ran",)

    official(optimizer=RunsCode())
    with pytest.raises(CheckpointError, match="could run code: refused"):
        timm.create_model(TAGGED, pretrained=True)
    assert not (tmp_path / "ran").exists()


def test_official_weights_that_nobody_has_here_say_how_to_get_them():
    with pytest.raises(ZooError, match=r"cannot be downloaded by a program\. By hand: get it from the README"):
        timm.create_model("ddf_add_resnet101", pretrained=True)


def test_a_model_without_weights_names_those_that_have_some():
    with pytest.raises(ValueError, match=rf"no weights of ddf_mul_resnet152 yet, only of .*{TAGGED}") as raised:
        ddfnet.create_model("ddf_mul_resnet152", pretrained=True)
    assert OFFICIAL in str(raised.value)
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("ddf_mul_resnet152", pretrained=True)
    assert list(tagged_cfgs("ddf_mul_resnet152", {})) == ["ddf_mul_resnet152.untrained"]


def test_timm_lists_all_of_the_zoo_and_nothing_else_of_ours():
    listed = timm.list_models("*", pretrained=True, module="ddf_resnet")
    assert sorted(listed) == sorted(entry.name for entry in entries())
    assert not timm.is_model_pretrained("ddf_mul_resnet152")


@pytest.mark.parametrize("classes", [10, 4])
def test_a_run_can_start_from_the_zoo(classes, shipped):
    network = ddfnet.create_model(NAME, num_classes=classes)
    note = load_initial_weights(network, f"zoo:{TAGGED}")
    assert_same(network, shipped, without="" if classes == 10 else "fc.")
    assert note.startswith(f"weights from zoo:{TAGGED} (raw)")
    assert ("new classifier: fc.weight, fc.bias" in note) == (classes == 4)


def test_the_tensors_are_those_that_eval_reads(shipped):
    assert_same(timm.create_model(TAGGED, pretrained=True), read_weights(file_path(find(TAGGED))).state_dict)


def test_the_cache_folder_of_timm_is_that_of_the_zoo(tmp_path):
    with pytest.raises(ValueError, match="By hand") as caught:  # no Google Drive here; the message names the folder
        timm.create_model("ddf_add_resnet101", pretrained=True, cache_dir=tmp_path / "mine")
    assert str(tmp_path / "mine") in str(caught.value)
