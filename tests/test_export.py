"""export.py: what it writes computes what the network computes, says how to be used, and holds standard operators."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import export
import exporting
import pytest
import torch

import ddfnet
from ddfnet.checkpoint import save_safetensors
from ddfnet.data import EvalBatchTransform, Preprocessing, eval_batches, eval_transform, index_folder
from ddfnet.errors import UserError
from ddfnet.ops import ddf_reference, ddf_up_reference
from ddfnet.ops.decomposition import plain_ddf
from ddfnet.zoo.classifier import load_classifier
from tests.conftest import ROOT, environment

DIGITS = "zoo:ddf_mul_resnet14_32px.digits"
NAME = "ddf_mul_resnet14_32px.digits"


def call(*arguments):
    return export.main(export.parse_arguments([str(argument) for argument in arguments]))


def random_checkpoint(path, model, size, num_classes=5, **kwargs):
    torch.manual_seed(0)
    network = ddfnet.create_model(model, num_classes=num_classes, **kwargs)
    meta = {
        "task": "classification", "model": {"name": model, "num_classes": num_classes, "kwargs": kwargs},
        "classes": None, "preprocessing": Preprocessing(size, 1.0).to_dict(), "precision": "fp32",
    }  # fmt: skip
    save_safetensors(path, network.state_dict(), meta, kind="model")
    return path


# --- the decomposition ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize(("stride", "dilation", "heads"), [(1, 1, 1), (2, 1, 2), (1, 2, 2), (3, 2, 1)])
@pytest.mark.parametrize("filters", ["both", "channel", "spatial"])
def test_the_decomposition_is_the_definition(combine, stride, dilation, heads, filters):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 7, 10, dtype=torch.float64)
    height, width = (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1
    channel = torch.randn(2, 4, 3, 3, dtype=torch.float64) if filters != "spatial" else None
    spatial = torch.randn(2, heads * 9, height, width, dtype=torch.float64) if filters != "channel" else None
    expected = ddf_reference(x, channel, spatial, stride=stride, dilation=dilation, combine=combine, kernel_size=3)
    torch.testing.assert_close(plain_ddf(x, channel, spatial, 3, stride, dilation, combine == "mul", 1), expected)


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_the_decomposition_of_upsampling_is_the_definition(combine):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    channel, spatial = torch.randn(2, 4, 4, 3, 3, dtype=x.dtype), torch.randn(2, 4 * 2 * 9, 5, 6, dtype=x.dtype)
    expected = ddf_up_reference(x, channel, spatial, scale=2, combine=combine, kernel_size=3)
    torch.testing.assert_close(plain_ddf(x, channel, spatial, 3, 1, 1, combine == "mul", 2), expected)


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_onnx(tmp_path_factory):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / f"{NAME}.onnx"
    assert call("--checkpoint", DIGITS, "--format", "onnx", "--dynamic-batch", "--output", path) == 0
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    pytest.importorskip("sklearn")
    root = tmp_path_factory.mktemp("digits") / "digits"
    ddfnet.data.render_digits(root)
    return root


def test_onnx_has_standard_operators_and_says_how_to_be_used(digits_onnx):
    import onnx

    model = onnx.load(digits_onnx)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert {entry.domain for entry in model.opset_import} == {""}
    about = {entry.key: entry.value for entry in model.metadata_props}
    classifier = load_classifier(DIGITS)
    assert json.loads(about["classes"]) == [str(digit) for digit in range(10)] == classifier.classes
    assert json.loads(about["preprocessing"]) == classifier.preprocessing.to_dict()
    assert json.loads(about["model"]) == {"name": "ddf_mul_resnet14_32px", "kwargs": {}}
    (image,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    assert str(ROOT).encode() not in digits_onnx.read_bytes()  # no paths of the machine it was made on


def test_onnx_predicts_the_digits_that_the_network_predicts(digits_onnx, digits):
    classifier = load_classifier(DIGITS)
    session = exporting.load_onnx(digits_onnx)
    batches = eval_batches(
        index_folder(digits / "val", classes=classifier.classes), transform=eval_transform(classifier.preprocessing),
        batch_transform=EvalBatchTransform(classifier.preprocessing, device="cpu"), batch_size=100, rank=0,
        world_size=1, device="cpu", num_workers=0,
    )  # fmt: skip
    hits = pictures = 0
    with torch.inference_mode():
        for batch in batches:
            expected, got = classifier.network(batch["image"]), session(batch["image"])
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
            assert torch.equal(got.argmax(1), expected.argmax(1))
            hits, pictures = hits + int((got.argmax(1) == batch["target"]).sum()), pictures + len(got)
    assert (hits, pictures) == (352, 359)


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [
        ("ddf_mul_resnet14_32px", {"heads": 2}),
        ("ddf_add_resnet14_32px", {}),
    ],
)
def test_small_models_agree_in_onnxruntime(model, kwargs, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    checkpoint = random_checkpoint(tmp_path / "weights.safetensors", model, 32, **kwargs)
    output = tmp_path / "model.onnx"
    options = ["--input-size", 16, "--batch-size", 3, "--opset", 18]
    assert call("--checkpoint", checkpoint, "--format", "onnx", "--output", output, *options) == 0
    difference = float(re.search(r"batch 3: largest difference of a logit (\S+)", capsys.readouterr().out)[1])
    assert 0 < difference < 1e-4
    import onnx

    written = onnx.load(output)
    assert written.opset_import[0].version == 18
    assert json.loads({e.key: e.value for e in written.metadata_props}["preprocessing"])["input_size"] == 16
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3


# --- torch.export -----------------------------------------------------------------------------------------------------


def test_torch_programs_with_and_without_the_operator(tmp_path):
    kept, standalone = tmp_path / "kept.pt2", tmp_path / "standalone.pt2"
    common = ["--checkpoint", DIGITS, "--format", "torch", "--dynamic-batch"]
    assert call(*common, "--output", kept) == 0
    assert call(*common, "--output", standalone, "--standalone") == 0
    extra = {exporting.EXTRA_FILE: ""}
    program = torch.export.load(kept, extra_files=extra)
    assert sum(node.target is torch.ops.ddfnet.ddf.default for node in program.graph.nodes) == 4
    assert json.loads(json.loads(extra[exporting.EXTRA_FILE])["classes"])[9] == "9"

    image = torch.randn(4, 3, 32, 32)
    torch.save(image, tmp_path / "image.pt")
    script = (
        "import sys, torch; image = torch.load('image.pt');"
        "torch.save(torch.export.load('standalone.pt2').module()(image).detach(), 'logits.pt');"
        "assert 'ddfnet' not in sys.modules"
    )
    env = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, check=True)
    with torch.inference_mode():
        expected = load_classifier(DIGITS).network(image)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch, capsys, error):
    load = exporting.load_torch
    monkeypatch.setattr(exporting, "load_torch", lambda path: lambda image: load(path)(image) + error)
    output = tmp_path / "model.pt2"
    output.write_bytes(b"an earlier export")
    assert call("--checkpoint", DIGITS, "--format", "torch", "--output", output) == 1
    assert output.read_bytes() == b"an earlier export"
    assert [item.name for item in tmp_path.iterdir()] == ["model.pt2"]
    assert "failed: above 0.0001" in capsys.readouterr().err


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "torch", "--opset", "18"], "--opset belongs to --format onnx"),
        (["--format", "aoti", "--standalone"], "--standalone belongs to --format torch"),
        (["--format", "torch", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--format", "torch", "--input-size", "0"], "--input-size: input_size must be a positive integer"),
        (["--format", "torch", "--output", "model.onnx"], "ends in .pt2"),
        (["--format", "torch", "--model", "resnet50"], "holds ddf_mul_resnet14_32px, not resnet50"),
        (["--format", "torch", "--output", "/proc/x/model.pt2"], "cannot be written"),
    ],
)
def test_mistakes_are_named(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        call("--checkpoint", DIGITS, *options)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="--format onnx needs onnxscript: pip install onnxscript"):
        call("--checkpoint", DIGITS, "--format", "onnx")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="--format aoti needs a C\\+\\+ compiler"):
        call("--checkpoint", DIGITS, "--format", "aoti")


def test_the_command_fails_with_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/export.py"), "--checkpoint", "no.pt", "--format", "torch"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "export.py: error: checkpoint not found: no.pt\n"


# --- the guide --------------------------------------------------------------------------------------------------------

GUIDE = (ROOT / "docs/export.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_commands_of_the_guide_are_accepted():
    commands = re.findall(
        r"^python scripts/export.py (.*)$", GUIDE + export.__doc__.replace("\n    ", "\n"), re.MULTILINE
    )
    assert len(commands) == 6
    for command in commands:
        export._check(export.parse_arguments(shlex.split(command)))


def run_block(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    space = {}
    exec(compile(block, "docs/export.md", "exec"), space)
    return space


def test_block_of_the_guide_for_onnxruntime(digits_onnx, digits, tmp_path, monkeypatch):
    shutil.copy(digits_onnx, tmp_path)
    for digit in "3", "8":
        shutil.copy(sorted((digits / "val" / digit).iterdir())[0], tmp_path / "digit.png")
        space = run_block(BLOCKS[0], tmp_path, monkeypatch)
        assert space["classes"][space["logits"][0].argmax()] == digit
        classifier = load_classifier(DIGITS)  # the few lines of numpy are the preprocessing of training
        pixels = eval_transform(classifier.preprocessing)(space["Image"].open("digit.png").convert("RGB"))
        expected = (torch.as_tensor(pixels).float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(torch.from_numpy(space["image"][0]), expected, rtol=0, atol=1e-6)


def test_block_of_the_guide_for_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("--checkpoint", DIGITS, "--format", "torch", "--dynamic-batch", "--standalone") == 0
    space = run_block(BLOCKS[1], tmp_path, monkeypatch)
    assert space["logits"].shape == (3, 10)
    assert "preprocessing" in space["about"]


def test_block_of_the_guide_for_ones_own_network(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    import onnxruntime

    space = run_block(BLOCKS[3], tmp_path, monkeypatch)
    session = onnxruntime.InferenceSession(tmp_path / "own.onnx")
    image = torch.randn(1, 3, 24, 24)
    (got,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert got.shape == (1, 16, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(got), space["network"](image), rtol=0, atol=1e-4)


# --- minutes ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_aoti_and_its_block_of_the_guide(tmp_path, monkeypatch):
    if not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    monkeypatch.chdir(tmp_path)
    assert call("--checkpoint", DIGITS, "--format", "aoti", "--output", "digits_aoti.pt2") == 0
    space = run_block(BLOCKS[2], tmp_path, monkeypatch)
    assert space["logits"].shape == (1, 10)
    assert json.loads(space["about"]["classes"])[3] == "3"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_ddf_resnet50(kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    checkpoint = random_checkpoint(tmp_path / "weights.safetensors", "ddf_mul_resnet50", 64, num_classes=1000)
    output = tmp_path / f"model{export.SUFFIXES[kind]}"
    assert call("--checkpoint", checkpoint, "--format", kind, "--output", output, "--dynamic-batch") == 0
