"""precision_parity.py: every precision is measured on the same pictures, against float32."""

import re
import shlex

import precision_parity as parity
import pytest
import torch

import ddfnet
from ddfnet.checkpoint import save_safetensors
from ddfnet.data import Preprocessing
from ddfnet.errors import DataError, UserError
from tests.conftest import CLASSES, ROOT

COMMAND = r"^ *python scripts/precision_parity.py (.*)$"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    network = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=5)
    meta = {
        "task": "classification", "model": {"name": "ddf_mul_resnet14_32px", "num_classes": 5, "kwargs": {}},
        "classes": list(CLASSES), "preprocessing": Preprocessing(16, 1.0).to_dict(), "precision": "fp32",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("parity") / "weights.safetensors"
    save_safetensors(path, network.state_dict(), meta, kind="model")
    return path


def call(*arguments):
    return parity.main(parity.parse_arguments([str(argument) for argument in arguments]))


def test_each_precision_is_a_row(checkpoint, picture_tree, tmp_path, capsys):
    output = tmp_path / "parity.md"
    options = ["--checkpoint", checkpoint, "--data", picture_tree / "val", "--batch-size", 10, "--output", output]
    assert call(*options) == 0
    text = output.read_text()
    assert capsys.readouterr().out == text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == [
        "float32",
        "bfloat16 autocast",
        "float16 autocast",
        "bfloat16 weights and input",
        "int8, dynamic, 1 linear layer only",
        "float32, onnxruntime",
        "(standard deviation of the logits of a picture, float32)",
    ]
    figures = {row[0]: row[1:] for row in rows[2:]}
    assert figures["float32"][1:] == ["0", "0", "0"]
    for name in ("float32", "bfloat16 autocast", "float16 autocast"):
        assert re.fullmatch(r"\d+\.\d\d % \(\d+ of 25\)", figures[name][0])
    largest = {name: float(row[2]) for name, row in figures.items() if row[2]}
    assert 0 < largest["float16 autocast"] < largest["bfloat16 autocast"] < 1
    assert largest["int8, dynamic, 1 linear layer only"] > 0
    if not figures["float32, onnxruntime"][0].startswith("not measured"):
        assert largest["float32, onnxruntime"] < 1e-4
    assert "scripts/precision_parity.py" in text


def test_what_cannot_be_measured_says_why(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    network = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=5).eval()
    assert parity.variants(network, 16, tmp_path)["float32, onnxruntime"] == "not measured: pip install onnxscript"


def test_mistakes_are_named(checkpoint, picture_tree, tmp_path):
    with pytest.raises(UserError, match="--batch-size must be at least 1"):
        call("--checkpoint", checkpoint, "--data", picture_tree, "--batch-size", 0)
    with pytest.raises(UserError, match="is a folder"):
        call("--checkpoint", checkpoint, "--data", picture_tree, "--output", tmp_path)
    with pytest.raises(DataError):
        call("--checkpoint", checkpoint, "--data", picture_tree)  # holds train and val, not the classes


def test_commands_of_the_guide_are_accepted():
    for text in ((ROOT / "docs/precision.md").read_text(), parity.__doc__):
        commands = re.findall(COMMAND, text, re.MULTILINE)
        assert commands
        for command in commands:
            parity.parse_arguments(shlex.split(command))
