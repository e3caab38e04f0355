"""A published folder: timm gives back the same network, and the card says what is known."""

import json
import os
import sys
import types

import pytest
import timm
import torch
import yaml

import ddfnet
from ddfnet.checkpoint import read_weights, save_checkpoint, save_safetensors
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.inference import publish as publishing
from ddfnet.inference.publish import publish
from ddfnet.models.classifier import load_classifier
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.zoo import download
from scripts.publish_weights import main, parse_arguments
from tests.conftest import CLASSES

NAME = "ddf_mul_resnet14_32px"
DIGITS = f"zoo:{NAME}.digits"
OPTIONS = {"heads": 2, "squeeze_ratio": 0.5, "normalization": "batch"}
OLD_TIMM = tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 26)
HOW = Preprocessing(size=24, crop_pct=0.75, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def run_weights(path, *, ema=False, model=NAME, **options):
    """The best.pt or best.safetensors of a run."""
    torch.manual_seed(0)
    network = ddfnet.create_model(model, num_classes=5, **options)
    weights = network.state_dict()
    meta = {
        "task": "classification",
        "model": {"name": model, "num_classes": 5, "kwargs": options},
        "classes": list(CLASSES),
        "preprocessing": HOW.to_dict(),
        "precision": "fp32",
        "ddfnet": ddfnet.__version__,
    }
    if path.suffix == ".safetensors":
        save_safetensors(path, weights, meta, kind="model")
    else:
        average = {key: value + 0.01 if value.is_floating_point() else value for key, value in weights.items()}
        save_checkpoint(path, {"model": weights, "ema": average if ema else None, "meta": meta})
    return path


def assert_timm_reads(folder, checkpoint, **about):
    expected = load_classifier(checkpoint, **about)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    how = expected.preprocessing
    images = torch.randn(2, 3, how.size, how.size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(network(images), expected.network(images))
    assert network.num_classes == expected.network.num_classes
    found = timm.data.resolve_model_data_config(network)
    assert tuple(found["input_size"]) == (3, how.size, how.size)
    assert (found["crop_pct"], found["interpolation"]) == (how.crop_pct, how.interpolation)
    assert (tuple(found["mean"]), tuple(found["std"])) == (how.mean, how.std)
    assert "state_dict" not in network.pretrained_cfg
    return network


def test_an_entry_of_the_zoo(tmp_path):
    folder = publish(DIGITS, tmp_path / "new" / "digits")
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    assert os.listdir(folder.parent) == ["digits"]
    network = assert_timm_reads(folder, DIGITS)
    assert network.pretrained_cfg["tag"] == "digits"
    assert list(network.pretrained_cfg["label_names"]) == [str(digit) for digit in range(10)]
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == (NAME, 10)
    assert config["pretrained_cfg"]["license"] == "mit"


def test_a_model_of_timms_own_where_timm_can_read_it(tmp_path, monkeypatch):
    checkpoint = run_weights(tmp_path / "best.safetensors", model="test_resnet")
    if OLD_TIMM:
        with pytest.raises(UserError, match=r'cannot read model.safetensors .* pip install "timm>=1.0.26,<1.1"'):
            publish(str(checkpoint), tmp_path / "out")
        assert os.listdir(tmp_path) == ["best.safetensors"]
    else:
        assert_timm_reads(publish(str(checkpoint), tmp_path / "out"), checkpoint)
        monkeypatch.setattr(timm, "__version__", "1.0.24")
        with pytest.raises(UserError, match=r"timm 1.0.24 cannot read .*, as test_resnet is: pip install"):
            publish(str(checkpoint), tmp_path / "other")


def test_timms_way_of_loading_is_tried(tmp_path, monkeypatch):
    """With label_offset timm drops rows of the classifier as it loads them, and only then."""
    config_for = publishing.config_for

    def with_offset(*arguments, **about):
        config = config_for(*arguments, **about)
        config["pretrained_cfg"]["label_offset"] = 1
        return config

    monkeypatch.setattr(publishing, "config_for", with_offset)
    with pytest.raises(RuntimeError):
        publish(DIGITS, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_the_file_is_verified_once(tmp_path, monkeypatch):
    hashed, sha256_of = [], download.sha256_of
    monkeypatch.setattr(download, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    publish(DIGITS, tmp_path / "out")
    assert [path.name for path in hashed if path.name.startswith(NAME)] == [f"{NAME}.digits.safetensors"]


def test_the_folder_can_be_fine_tuned_from(tmp_path):
    folder = publish(DIGITS, tmp_path / "digits")
    weights = read_weights(folder / "model.safetensors").state_dict
    network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3, in_chans=1)
    assert network.fc.out_features == 3
    assert torch.equal(network.conv1.weight, weights["conv1.weight"].sum(1, keepdim=True))
    features = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True)
    assert torch.equal(features.conv1.weight, weights["conv1.weight"])


@pytest.mark.parametrize("file", ["best.pt", "best.safetensors"])
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
def test_a_run_with_model_options(tmp_path, file, options):
    checkpoint = run_weights(tmp_path / file, **options)
    folder = publish(str(checkpoint), tmp_path / "out")
    network = assert_timm_reads(folder, checkpoint)
    assert tuple(network.pretrained_cfg["label_names"]) == CLASSES
    assert json.loads((folder / "config.json").read_text()).get("model_args", {}) == options
    assert network.pretrained_cfg["pool_size"] is None  # 24 pixels are not the model's usual 32


def test_the_ema_weights_unless_told_otherwise(tmp_path):
    checkpoint = run_weights(tmp_path / "best.pt", ema=True)
    average = publish(str(checkpoint), tmp_path / "average")
    raw = publish(str(checkpoint), tmp_path / "raw", weights="raw")
    assert_timm_reads(average, checkpoint, weights="ema")
    assert_timm_reads(raw, checkpoint, weights="raw")
    assert read_weights(average / "model.safetensors").kind == "ema"


def test_a_file_that_does_not_say_its_model(tmp_path):
    torch.save({"state_dict": ddfnet.create_model(NAME, num_classes=7).state_dict()}, tmp_path / "o.pth.tar")
    with pytest.raises(CheckpointError, match="give --model"):
        publish(str(tmp_path / "o.pth.tar"), tmp_path / "out")
    folder = publish(str(tmp_path / "o.pth.tar"), tmp_path / "out", model=NAME)
    assert_timm_reads(folder, tmp_path / "o.pth.tar", model=NAME)
    assert "label_names" not in json.loads((folder / "config.json").read_text())


def test_eval_reads_the_published_file(tmp_path, image_tree):
    checkpoint = run_weights(tmp_path / "best.pt", **OPTIONS)
    folder = publish(str(checkpoint), tmp_path / "out")
    options = {"data": image_tree, "workers": 0, "device": "cpu", "output": tmp_path / "report"}
    before = evaluate_checkpoint(checkpoint, **options).to_dict()
    after = evaluate_checkpoint(folder / "model.safetensors", **options).to_dict()
    for key in ("top1", "loss", "n", "preprocessing", "precision"):
        assert before[key] == after[key]


def card(folder):
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_of_an_entry_has_its_figures(tmp_path):
    front, body = card(publish(DIGITS, tmp_path / "digits"))
    assert front == {
        "license": "mit",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "ddfnet"],
    }
    for words in (f"# {NAME}.digits\n", "98.05 % (352 of 359) | measured", "make_data.py digits", "| crop | center"):
        assert words in body


def test_the_card_of_a_run_says_what_is_not_known(tmp_path):
    checkpoint = run_weights(tmp_path / "best.pt")
    front, body = card(publish(str(checkpoint), tmp_path / "a"))
    assert front["license"] == "unknown"
    for words in (f"# {NAME}\n", "None stated. Measure it", "## Data\n\nNot stated.", "## License\n\nNot stated: ask"):
        assert words in body
    assert "short side to 32 pixels, bilinear" in body
    folder = publish(
        str(checkpoint), tmp_path / "b", name=f"{NAME}.mine", license="Free for study", data="shapes: 5 kinds"
    )
    front, body = card(folder)
    assert (front["license"], front["license_name"]) == ("other", "Free for study")
    for words in (f"# {NAME}.mine\n", "## Data\n\nshapes: 5 kinds", "## License\n\nFree for study"):
        assert words in body
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["tag"] == "mine"


def test_a_folder_that_is_taken_stays_as_it_is(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "own.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="full is not empty: name a new folder"):
        publish(DIGITS, tmp_path / "full")
    with pytest.raises(UserError, match="file is a file: name a new folder"):
        publish(DIGITS, tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        publish(DIGITS, tmp_path / "file" / "below")
    assert os.listdir(tmp_path / "full") == ["own.txt"]
    assert len(os.listdir(publish(DIGITS, tmp_path / "empty"))) == 3


def test_a_folder_that_timm_reads_otherwise_does_not_appear(tmp_path, monkeypatch):
    checkpoint = run_weights(tmp_path / "best.pt", stem_stride=2)  # the same tensors as with 1
    config_for = publishing.config_for

    def without_options(*arguments, **about):
        return {key: value for key, value in config_for(*arguments, **about).items() if key != "model_args"}

    monkeypatch.setattr(publishing, "config_for", without_options)
    with pytest.raises(RuntimeError, match="other logits"):
        publish(str(checkpoint), tmp_path / "out")
    assert os.listdir(tmp_path) == ["best.pt"]


class Hub:
    """Stands in for huggingface_hub.HfApi; keeps what it was asked."""

    def __init__(self, existing=None):
        self.asked = []
        self.private = existing  # None: there is no such repository

    def create_repo(self, name, *, private, exist_ok):
        assert exist_ok
        self.asked.append(("create", name))
        if self.private is None:  # as the hub does: nothing happens to a repository that is there
            self.private = bool(private)

    def repo_info(self, name):
        return types.SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.asked.append(("upload", repo_id, sorted(os.listdir(folder_path)), commit_message))
        return f"https://hub.example/{repo_id}"


def test_push_uploads_the_complete_folder(tmp_path, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=lambda: hub))
    arguments = parse_arguments([DIGITS, "--output", str(tmp_path / "out"), "--push", "some-one/digits"])
    assert main(arguments) == 0
    files = ["README.md", "config.json", "model.safetensors"]
    assert hub.asked == [("create", "some-one/digits"), ("upload", "some-one/digits", files, "Add model")]
    assert hub.private is False
    assert capsys.readouterr().out.endswith("https://hub.example/some-one/digits\n")
    assert 'create_model("hf-hub:some-one/digits", pretrained=True)' in (tmp_path / "out" / "README.md").read_text()


def test_push_into_a_private_repository(tmp_path, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=lambda: hub))
    with pytest.raises(UserError, match="--private belongs to --push"):
        publish(DIGITS, tmp_path / "a", private=True)
    command = [DIGITS, "--output", str(tmp_path / "b"), "--push", "some/one", "--private"]
    assert main(parse_arguments(command)) == 0
    assert hub.private is True
    hub = Hub(existing=False)
    with pytest.raises(UserError, match="not uploaded to some/one: it exists and is public"):
        publish(DIGITS, tmp_path / "c", push="some/one", private=True)
    assert hub.asked == [("create", "some/one")]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    assert "a new repository is public, even where no license is stated" in capsys.readouterr().out


def test_push_fails_with_one_line(tmp_path, monkeypatch):
    class Refuses(Hub):
        def create_repo(self, name, **options):
            raise OSError("401: no token")

    with pytest.raises(UserError, match="--push takes ORG/NAME, got 'digits'"):
        publish(DIGITS, tmp_path / "a", push="digits")
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=Refuses))
    with pytest.raises(UserError, match=r"b is written, but not uploaded to some/one: 401: no token"):
        publish(DIGITS, tmp_path / "b", push="some/one")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        publish(DIGITS, tmp_path / "c", push="some/one")
    assert sorted(os.listdir(tmp_path)) == ["b"]


def test_without_push_the_hub_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "_uploader", lambda *name, **options: pytest.fail("asked the hub"))
    assert main(parse_arguments([DIGITS, "--output", str(tmp_path / "out")])) == 0
