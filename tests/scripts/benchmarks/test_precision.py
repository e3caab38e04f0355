"""precision.py: every precision is measured on the same images, against float32."""

import re
import shlex
import weakref

import pytest
import torch

import ddfnet
from ddfnet.checkpoint import save_safetensors
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.models.classifier import load_classifier
from ddfnet.utils.errors import DataError, UserError
from scripts.benchmarks import precision as parity
from tests.conftest import CLASSES, ROOT

GUIDE = ROOT / "docs/guides/export.md"
COMMAND = r"^ *python scripts/benchmarks/precision.py (.*)$"


def weights(path, *, num_classes, classes):
    torch.manual_seed(0)
    network = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=num_classes)
    meta = {
        "task": "classification",
        "model": {"name": "ddf_mul_resnet14_32px", "num_classes": num_classes, "kwargs": {}},
        "classes": classes, "preprocessing": Preprocessing(size=16, crop_pct=1.0).to_dict(), "precision": "fp32",
    }  # fmt: skip
    save_safetensors(path, network.state_dict(), meta, kind="model")
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "weights.safetensors"
    return weights(path, num_classes=5, classes=list(CLASSES))


def call(*arguments):
    return parity.main(parity.parse_arguments([str(argument) for argument in arguments]))


def test_each_precision_is_a_row(checkpoint, image_tree, tmp_path, capsys):
    output = tmp_path / "parity.md"
    options = ["--checkpoint", checkpoint, "--data", image_tree / "val", "--batch-size", 10, "--output", output]
    options += ["--calibration", image_tree / "train", "--keep", tmp_path / "kept"]
    assert call(*options) == 0
    text = output.read_text()
    assert capsys.readouterr().out == text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    names = [row[0] for row in rows[2:]]
    assert names[:5] == [
        "float32",
        "bfloat16 autocast",
        "float16 autocast",
        "bfloat16 weights and input",
        "int8, dynamic, 1 linear layer only",
    ]
    assert names[-1] == "(standard deviation of the logits of an image, float32)"
    figures = {row[0]: row[1:] for row in rows[2:]}
    assert figures["float32"][1:4] == ["0", "0", "0"]
    for name in ("float32", "bfloat16 autocast", "float16 autocast"):
        assert re.fullmatch(r"\d+\.\d\d % \(\d+ of 25\)", figures[name][0])
    largest = {name: float(row[2]) for name, row in figures.items() if row[2]}
    assert 0 < largest["float16 autocast"] < largest["bfloat16 autocast"] < 1
    assert largest["int8, dynamic, 1 linear layer only"] > 0
    if not figures["float32, onnxruntime"][0].startswith("not measured"):
        assert largest["float32, onnxruntime"] < 1e-4
        assert largest["float32, onnxruntime"] < largest["float16, onnxruntime"] < largest["static int8, onnxruntime"]
        sizes = {path.stem: path.stat().st_size for path in (tmp_path / "kept").glob("*.onnx")}
        assert sizes["float16"] < 0.7 * sizes["float32"]
        assert sizes["static_int8"] < sizes["float16"]
    if not figures["PT2E static int8, simulated"][0].startswith("not measured"):
        assert 0 < largest["PT2E static int8, simulated"] < 1
    if "float32, OpenVINO" in largest:
        assert largest["float32, OpenVINO"] < 1e-4
    assert "scripts/benchmarks/precision.py" in text


@pytest.fixture
def few_variants(monkeypatch):
    """float32 and one network 0.5 higher in the first class, so that every figure can be worked out by hand."""
    seen, alive = [], []

    def variants(network, size, scratch, calibration):
        def shifted(image):
            seen.append(weakref.ref(image))
            alive.append(sum(image() is not None for image in seen))
            return network(image) + torch.eye(network.num_classes)[0] / 2

        return {"float32": network, "shifted": shifted, "absent": "not measured"}

    monkeypatch.setattr(parity, "variants", variants)
    return alive


def test_batches_are_not_kept_and_do_not_change_the_figures(checkpoint, image_tree, few_variants):
    classifier = load_classifier(checkpoint)
    alone = parity.compare(classifier, image_tree / "val", 3)
    assert len(few_variants) == 9
    assert max(few_variants) <= 2  # batches in memory at once: not all of the set
    rows = {row[0]: row for row in alone}
    assert (rows["shifted"][3], rows["shifted"][4]) == ("0.5", "0.1")  # one of five logits moved
    assert rows["absent"] == ("absent", "not measured", "", "", "", "")
    whole = parity.compare(classifier, image_tree / "val", 25)
    assert [row[:-1] for row in whole] == [row[:-1] for row in alone]  # the last is time


def test_more_outputs_than_named_classes(image_tree, tmp_path, few_variants):
    """As eval.py: the names say which output is which folder; without names the numbers must agree."""
    named = weights(tmp_path / "named.safetensors", num_classes=8, classes=list(CLASSES))
    rows = parity.compare(load_classifier(named), image_tree / "val", 25)
    assert re.fullmatch(r"\d+\.\d\d % \(\d+ of 25\)", rows[0][1])
    unnamed = weights(tmp_path / "unnamed.safetensors", num_classes=8, classes=None)
    with pytest.raises(DataError, match="has 5 classes, the checkpoint knows 8"):
        parity.compare(load_classifier(unnamed), image_tree / "val", 25)


def test_what_cannot_be_measured_says_why(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    network = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=5).eval()
    assert parity.variants(network, 16, tmp_path, [])["float32, onnxruntime"] == "not measured: pip install onnxscript"


def test_mistakes_are_named(checkpoint, image_tree, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call("--checkpoint", checkpoint, "--data", image_tree, "--batch-size", 0)
    assert "--batch-size: must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(UserError, match="is a folder"):
        call("--checkpoint", checkpoint, "--data", image_tree, "--output", tmp_path)
    with pytest.raises(DataError):
        call("--checkpoint", checkpoint, "--data", image_tree)  # holds train and val, not the classes


def test_commands_of_the_guide_are_accepted():
    for text in ((ROOT / "docs/results/precision.md").read_text(), GUIDE.read_text(), parity.__doc__):
        commands = re.findall(COMMAND, text.replace("\\\n", " "), re.MULTILINE)
        assert commands
        for command in commands:
            parity.parse_arguments(shlex.split(command))
