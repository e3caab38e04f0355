"""A classifier from a file that anybody may have written: it is described there, and nothing else happens."""

import argparse
import pickle

import pytest
import torch
from timm.data import resolve_model_data_config

import ddfnet
from ddfnet.checkpoint import save_safetensors
from ddfnet.models.classifier import load_classifier
from ddfnet.utils.errors import CheckpointError
from ddfnet.zoo import ZooError

NAME = "ddf_mul_resnet14_32px"
MEAN = [0.5, 0.5, 0.5]


@pytest.fixture
def written(tmp_path):
    """Writes a good file with some of its description changed; a value of None takes the key out."""

    def _written(**changes):
        meta = {
            "task": "classification",
            "model": {"name": NAME, "num_classes": 3, "kwargs": {}},
            "classes": ["a", "b", "c"],
            "preprocessing": {"input_size": 32, "crop_pct": 1.0, "interpolation": "bicubic", "mean": MEAN, "std": MEAN},
            "precision": "fp32",
            **changes,
        }
        path = tmp_path / "w.safetensors"
        weights = ddfnet.create_model(NAME, num_classes=3).state_dict()
        save_safetensors(path, weights, {key: value for key, value in meta.items() if value is not None}, kind="model")
        return path

    return _written


def model(**kwargs):
    return {"name": NAME, "num_classes": 3, "kwargs": kwargs}


def test_a_good_file_gives_its_network_classes_and_preprocessing(written):
    loaded = load_classifier(written())
    assert loaded.classes == ["a", "b", "c"]
    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
    assert loaded.network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert not loaded.network.training


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["checkpoint_path", "pretrained_cfg_overlay"])
def test_a_file_cannot_make_timm_read_another_one(written, tmp_path, how):
    pickled, proof = tmp_path / "evil.pt", tmp_path / "ran"
    pickled.write_bytes(pickle.dumps({"state_dict": Evil(proof)}))
    asked = {how: str(pickled)} if how == "checkpoint_path" else {"pretrained": True, how: {"file": str(pickled)}}
    with pytest.raises(CheckpointError, match=f"asks for .*{how}.*refused"):
        load_classifier(written(model=model(**asked)))
    assert not proof.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": {"name": NAME}},
        {"model": [1, 2]},
        {"model": {"name": NAME, "num_classes": "3", "kwargs": {}}},
        {"classes": ["a", "b", "a"]},
        {"classes": ["a", "b", "c", "d"]},
        {"classes": [0, 1, 2]},
        {"preprocessing": {"input_size": 32}},
        {"preprocessing": None},
    ],
)
def test_a_wrong_description_is_one_clear_error(written, changes):
    with pytest.raises(CheckpointError, match="describes its network wrongly"):
        load_classifier(written(**changes))


@pytest.mark.parametrize(("task", "message"), [("detection", "but the task detection"), (None, "holds no classifier")])
def test_another_task_is_named(written, task, message):
    with pytest.raises(CheckpointError, match=message):
        load_classifier(written(task=task))


def test_more_outputs_than_names_are_allowed(written):
    assert load_classifier(written(classes=["a", "b"])).network.num_classes == 3


@pytest.mark.parametrize(
    "name", [NAME, "ddf_mul_resnet50", "vit_tiny_patch16_224", "resnet18", "tinynet_e", "eva02_tiny_patch14_336"]
)
def test_a_bare_file_is_prepared_as_timm_prepares_images_for_its_model(tmp_path, name):
    """One record, one answer: who trains the model with timm's train.py gives it these pixels."""
    network = ddfnet.create_model(name, num_classes=3)
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    how = load_classifier(tmp_path / "bare.pt", model=name).preprocessing
    timms = resolve_model_data_config(network, use_test_size=True)
    assert (how.size, how.mean, how.std) == (timms["input_size"][-1], timms["mean"], timms["std"])
    assert (how.crop_pct, how.crop_mode, how.interpolation) == (
        timms["crop_pct"], timms["crop_mode"], timms["interpolation"]
    )  # fmt: skip


def test_values_that_are_no_numbers_are_refused(tmp_path):
    weights = ddfnet.create_model(NAME, num_classes=3).state_dict()
    weights["layer1.0.bn1.weight"][0] = float("nan")
    torch.save(weights, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match=r"1 tensors hold NaN or infinite values \(layer1\.0\.bn1\.weight\)"):
        load_classifier(tmp_path / "nan.pt", model=NAME)


def test_a_name_of_the_zoo_without_its_prefix_is_recognized():
    with pytest.raises(ZooError, match=f"the weights of that name are zoo:{NAME}.digits"):
        load_classifier(f"{NAME}.digits")


def test_a_web_page_is_called_one(tmp_path):
    (tmp_path / "w.pth.tar").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    with pytest.raises(CheckpointError, match="web page"):
        load_classifier(tmp_path / "w.pth.tar", model=NAME)


@pytest.mark.parametrize(("name", "channels"), [(NAME, 1), ("resnet10t", 4), ("vit_tiny_patch16_224", 1)])
def test_a_bare_file_says_its_channels_by_its_stem(tmp_path, name, channels):
    kwargs = {"depth": 1, "embed_dim": 24, "num_heads": 2} if "vit" in name else {}
    network = ddfnet.create_model(name, num_classes=3, in_chans=channels, **kwargs).eval()
    state = {f"module.{key}": tensor for key, tensor in network.state_dict().items()}
    args = argparse.Namespace(model_kwargs=kwargs)
    torch.save({"state_dict": state, "arch": name, "args": args} if kwargs else state, tmp_path / "bare.pt")
    loaded = load_classifier(tmp_path / "bare.pt", model=name)
    assert loaded.kwargs["in_chans"] == channels
    assert len(loaded.preprocessing.mean) == loaded.preprocessing.input_size[0] == channels
    image = torch.randn(1, *loaded.preprocessing.input_size)
    assert torch.equal(loaded.network(image), network(image))


def test_a_stem_of_channels_that_no_image_has_is_one_sentence(tmp_path):
    torch.save(ddfnet.create_model("resnet10t", num_classes=3, in_chans=6).state_dict(), tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match="is of images with 6 channels: here they have 1, 2, 3, 4"):
        load_classifier(tmp_path / "bare.pt", model="resnet10t")
