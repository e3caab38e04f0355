"""export.py: what it writes computes what the network computes, says how to be used, and holds standard operators."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import ddfnet
from ddfnet.checkpoint import save_safetensors
from ddfnet.data.generated import render_digits
from ddfnet.data.preprocessing import Preprocessing, eval_transform
from ddfnet.data.sources.folder import index_folder
from ddfnet.inference import export as exporting
from ddfnet.inference.formats import ABOUT, FORMATS, find_format, missing_packages, onnx_file, torch_program
from ddfnet.inference.programs import decomposed, traced
from ddfnet.models.classifier import load_classifier
from ddfnet.ops.ddf import ddf_reference, ddf_up_reference
from ddfnet.ops.ddf.decompose import plain_ddf
from ddfnet.utils.errors import UserError
from scripts import export
from tests.conftest import ROOT, environment
from tests.processes import launch_forked

DIGITS = "zoo:ddf_mul_resnet14_32px.digits"
NAME = "ddf_mul_resnet14_32px.digits"
GUIDE = (ROOT / "docs/guides/export.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def call(*arguments):
    return export.main(export.parse_arguments([str(argument) for argument in arguments]))


def random_checkpoint(path, model, size, num_classes=5, **kwargs):
    torch.manual_seed(0)
    network = ddfnet.create_model(model, num_classes=num_classes, **kwargs)
    meta = {
        "task": "classification", "model": {"name": model, "num_classes": num_classes, "kwargs": kwargs},
        "classes": None, "preprocessing": Preprocessing(size=size, crop_pct=1.0).to_dict(), "precision": "fp32",
    }  # fmt: skip
    save_safetensors(path, network.state_dict(), meta, kind="model")
    return path


def need_onnx():
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


def prepared(image, how):
    """An image as evaluation gives it to the network."""
    pixels = torch.as_tensor(eval_transform(how)(image)).float() / 255
    return (pixels - torch.tensor(how.mean)[:, None, None]) / torch.tensor(how.std)[:, None, None]


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


@pytest.fixture(scope="module")
def digits_onnx(tmp_path_factory):
    need_onnx()
    path = tmp_path_factory.mktemp("onnx") / f"{NAME}.onnx"
    assert call("--checkpoint", DIGITS, "--format", "onnx", "--dynamic-batch", "--output", path) == 0
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    pytest.importorskip("sklearn")
    root = tmp_path_factory.mktemp("digits") / "digits"
    render_digits(root)
    return root


def test_onnx_has_standard_operators_and_says_how_to_be_used(digits_onnx):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(digits_onnx)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert {entry.domain for entry in model.opset_import} == {""}
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["classes"]) == [str(digit) for digit in range(10)]
    assert json.loads(about["preprocessing"]) == load_classifier(DIGITS).preprocessing.to_dict()
    assert json.loads(about["model"]) == {"name": "ddf_mul_resnet14_32px", "kwargs": {}}
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    assert str(ROOT).encode() not in digits_onnx.read_bytes()  # no paths of the machine it was made on


def test_onnx_predicts_the_digits_that_the_network_predicts(digits_onnx, digits):
    classifier, session = load_classifier(DIGITS), onnx_file.load(digits_onnx)
    how, index = classifier.preprocessing, index_folder(digits / "val", classes=classifier.classes)
    images = torch.stack([prepared(Image.open(index.name(i)).convert("RGB"), how) for i in range(len(index))])
    with torch.inference_mode():
        expected, got = classifier.network(images), session(images)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert torch.equal(got.argmax(1), expected.argmax(1))
    hits = sum(int(label) == index.label(i) for i, label in enumerate(got.argmax(1)))
    assert (hits, len(index)) == (352, 359)


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [("ddf_mul_resnet14_32px", {"heads": 2}), pytest.param("ddf_add_resnet14_32px", {}, marks=pytest.mark.slow)],
)
def test_small_models_agree_in_onnxruntime(model, kwargs, tmp_path, capsys):
    need_onnx()
    checkpoint = random_checkpoint(tmp_path / "weights.safetensors", model, 32, **kwargs)
    output = tmp_path / "model.onnx"
    options = ["--input-size", 16, "--batch-size", 3, "--opset", 18]
    assert call("--checkpoint", checkpoint, "--format", "onnx", "--output", output, *options) == 0
    error = float(re.search(r"batch 3: off by (\S+) of the largest logit", capsys.readouterr().out)[1])
    assert 0 < error < 1e-5
    onnx = pytest.importorskip("onnx")
    written = onnx.load(output)
    assert written.opset_import[0].version == 18
    assert json.loads({e.key: e.value for e in written.metadata_props}["preprocessing"])["input_size"] == 16
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3


def test_a_transformer_is_exported_for_another_image_size(tmp_path, capsys):
    """Its position embeddings are resized."""
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    checkpoint = random_checkpoint(tmp_path / "w.safetensors", "vit_tiny_patch16_224", 224, **small)
    output = tmp_path / "vit.pt2"
    options = ["--format", "torch", "--standalone", "--input-size", 64, "--output", output]
    assert call("--checkpoint", checkpoint, *options) == 0
    assert "of the largest logit" in " ".join(capsys.readouterr().out.split())
    program = torch.export.load(output).module()
    assert program(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    with pytest.raises((RuntimeError, ValueError, AssertionError), match=r"224|64"):
        program(torch.zeros(1, 3, 224, 224))


@pytest.fixture(scope="module")
def digits_standalone(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / f"{NAME}_standalone.pt2"
    options = ["--format", "torch", "--dynamic-batch", "--standalone", "--output", path]
    assert call("--checkpoint", DIGITS, *options) == 0
    return path


def test_batch_normalization_is_folded_on_demand(tmp_path):
    path, counts = tmp_path / "folded.pt2", {}
    for options in ((), ("--fuse-bn",)):
        assert call("--checkpoint", DIGITS, "--format", "torch", "--output", path, *options) == 0
        targets = [str(node.target) for node in torch.export.load(path).graph.nodes]
        counts[options] = sum("batch_norm" in target for target in targets)
    assert counts[()] > counts["--fuse-bn",] == 4  # behind its four DDFs


def test_torch_programs_with_and_without_the_operator(digits_standalone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("--checkpoint", DIGITS, "--format", "torch", "--dynamic-batch") == 0
    kept, extra = tmp_path / f"{NAME}.pt2", {ABOUT: ""}  # the name it gets without --output
    program = torch.export.load(kept, extra_files=extra)
    assert sum(node.target is torch.ops.ddfnet.ddf.default for node in program.graph.nodes) == 4
    assert json.loads(json.loads(extra[ABOUT])["classes"])[9] == "9"

    image = torch.randn(4, 3, 32, 32)
    torch.save(image, tmp_path / "image.pt")
    script = (
        "import sys, torch; image = torch.load('image.pt');"
        f"torch.save(torch.export.load({str(digits_standalone)!r}).module()(image).detach(), 'logits.pt');"
        "assert 'ddfnet' not in sys.modules"
    )
    env = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, check=True)
    with torch.inference_mode():
        expected = load_classifier(DIGITS).network(image)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=1e-4)


def _reads_memory_in_order(network):
    """A runtime that takes any image for a contiguous one."""
    return lambda image: network(image.as_strided(image.shape, image.contiguous().stride()))


@pytest.mark.parametrize(
    "fault",
    [
        lambda network: lambda image: network(image) + 0.01,  # of logits up to 19
        lambda network: lambda image: network(image) * float("nan"),
        _reads_memory_in_order,
    ],
)
def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch, capsys, fault):
    load = torch_program.load
    monkeypatch.setattr(torch_program, "load", lambda path: fault(load(path)))
    output = tmp_path / "model.pt2"
    output.write_bytes(b"an earlier export")
    assert call("--checkpoint", DIGITS, "--format", "torch", "--output", output) == 1
    assert output.read_bytes() == b"an earlier export"
    assert [item.name for item in tmp_path.iterdir()] == ["model.pt2"]
    assert "failed: above 0.0001" in capsys.readouterr().err


def test_the_limit_is_relative_to_the_largest_logit(tmp_path, capsys):
    """Logits of a thousand cannot be exact to 1e-4: a float32 has seven digits."""
    torch.manual_seed(0)
    network = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=5)
    with torch.no_grad():
        network.fc.weight.mul_(1e5)
    meta = load_classifier(random_checkpoint(tmp_path / "w.safetensors", "ddf_mul_resnet14_32px", 32)).meta()
    save_safetensors(tmp_path / "w.safetensors", network.state_dict(), meta, kind="model")
    output = tmp_path / "model.pt2"
    options = ["--format", "torch", "--standalone", "--output", output]
    assert call("--checkpoint", tmp_path / "w.safetensors", *options) == 0
    printed = capsys.readouterr().out
    printed = " ".join(printed.split())
    error, largest, own = map(float, re.search(r"off by (\S+) .*?\((\S+)\).*?: (\S+)", printed).groups())
    assert largest > 1000
    assert error * largest > 1e-4  # the absolute limit of old
    assert 0 < error < 1e-5
    assert 0 < own < 1e-5
    image = exporting.random_images(1, 32, "cpu")
    with torch.inference_mode():
        exact = network.eval().double()(image.double())
        got = torch_program.load(output)(image)
    assert largest == pytest.approx(exact.abs().max().item(), rel=1e-2)
    assert error >= (got - exact).abs().max().item() / exact.abs().max().item() * 0.99


@pytest.mark.parametrize(
    ("error", "own_error", "agrees"),
    [(9e-5, 0, True), (1.1e-4, 0, False), (3e-3, 1e-3, True), (5e-3, 1e-3, False), (float("nan"), 1.0, False)],
)
def test_a_network_that_is_off_itself_has_a_wider_limit(error, own_error, agrees):
    assert exporting.Comparison(1, 10.0, error, own_error).agrees is agrees


@pytest.mark.parametrize("model", ["ddf_mul_resnet14_32px", "ddf_add_resnet14_32px"])
def test_standalone_programs_hold_core_operators_alone(model):
    """ExecuTorch and Core ML take no other: torch.std_mean of FilterNorm would leave `var_mean`."""
    network = ddfnet.create_model(model).eval()
    program = traced(network, 32, batch=None)
    core = decomposed(program)
    operators = {node.target for node in core.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    assert torch.ops.aten.var.correction in operators
    assert {str(operator) for operator in operators if torch.Tag.core not in operator.tags} <= {"aten.sym_size.int"}
    image = exporting.random_images(3, 32, "cpu")
    with torch.inference_mode():
        torch.testing.assert_close(core.module()(image), network(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "torch", "--opset", "18"], "--opset belongs to --format onnx"),
        (["--format", "torch", "--unchecked"], "--unchecked belongs to --format coreml"),
        (["--format", "executorch", "--dynamic-batch"], "--format executorch takes one size of batches alone"),
        (["--format", "litert", "--dynamic-batch"], "give --batch-size N"),
        (["--format", "aoti", "--standalone"], "--standalone belongs to --format torch"),
        (["--format", "torch", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--format", "torch", "--input-size", "0"], "--input-size 0 must be at least 1"),
        (["--format", "torch", "--output", "model.onnx"], "ends in .pt2"),
        (["--format", "torch", "--model", "resnet50"], "holds ddf_mul_resnet14_32px, not resnet50"),
        (["--format", "torch", "--output", "/proc/x/model.pt2"], "cannot write /proc/x/model.pt2"),
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
    done = launch_forked("scripts/export.py", "--checkpoint", "no.pt", "--format", "torch", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "export.py: error: checkpoint not found: no.pt\n"


def test_commands_of_the_guide_are_accepted():
    commands = re.findall(r"^ *python scripts/export.py (.*)$", GUIDE + export.__doc__, re.MULTILINE)
    assert len(commands) == 10
    for command in commands:
        arguments = vars(export.parse_arguments(shlex.split(command)))
        if not missing_packages(arguments["format"]):
            exporting.ExportOptions(**arguments)


def run_block(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    space = {}
    exec(compile(block, "docs/guides/export.md", "exec"), space)
    return space


def test_block_of_the_guide_for_onnxruntime(digits_onnx, digits, tmp_path, monkeypatch):
    shutil.copy(digits_onnx, tmp_path)
    for digit in "3", "8":
        shutil.copy(sorted((digits / "val" / digit).iterdir())[0], tmp_path / "digit.png")
        space = run_block(BLOCKS[0], tmp_path, monkeypatch)
        assert space["classes"][space["logits"][0].argmax()] == digit


@pytest.mark.parametrize(("crop_pct", "interpolation"), [(0.875, "bicubic"), (0.95, "bilinear"), (1.0, "bicubic")])
def test_the_guide_prepares_any_image_as_evaluation_does(digits_onnx, tmp_path, monkeypatch, crop_pct, interpolation):
    onnx = pytest.importorskip("onnx")
    how = Preprocessing(
        size=32,
        crop_pct=crop_pct,
        interpolation=interpolation,
        resize="pillow",
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
    )
    model = onnx.load(digits_onnx)
    about = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**about, "preprocessing": json.dumps(how.to_dict())})
    onnx.save(model, tmp_path / digits_onnx.name)
    noise = np.random.default_rng(0)
    # Long sides whose exact length is no whole number, and margins of odd width, which halves round differently.
    for width, height in [(500, 333), (123, 457), (333, 500), (40, 33), (33, 41), (32, 35), (20, 37), (641, 480)]:
        image = Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(tmp_path / "digit.png")
        fed = run_block(BLOCKS[0], tmp_path, monkeypatch)["image"][0]
        torch.testing.assert_close(torch.from_numpy(fed), prepared(image, how), rtol=0, atol=1e-6)


def test_block_of_the_guide_for_torch(digits_standalone, monkeypatch):
    space = run_block(BLOCKS[1], digits_standalone.parent, monkeypatch)
    assert space["logits"].shape == (3, 10)
    assert "preprocessing" in space["about"]


def test_block_of_the_guide_for_ones_own_network(tmp_path, monkeypatch):
    onnxruntime = need_onnx()
    space = run_block(BLOCKS[6], tmp_path, monkeypatch)
    session = onnxruntime.InferenceSession(tmp_path / "own.onnx")
    image = torch.randn(1, 3, 24, 24)
    (got,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert got.shape == (1, 16, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(got), space["network"](image), rtol=0, atol=1e-4)


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
        need_onnx()
    checkpoint = random_checkpoint(tmp_path / "weights.safetensors", "ddf_mul_resnet50", 64, num_classes=1000)
    output = tmp_path / f"model{find_format(kind).SUFFIX}"
    assert call("--checkpoint", checkpoint, "--format", kind, "--output", output, "--dynamic-batch") == 0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--checkpoint", DIGITS, "--format", "onnx"], NAME),
        (["--checkpoint", DIGITS, "--format", "aoti"], f"{NAME}_aoti"),
        (["--checkpoint", "runs/mine/best.pt", "--format", "torch"], "mine"),
        (["--checkpoint", "official.pth.tar", "--format", "torch", "--standalone"], "official_standalone"),
    ],
)
def test_files_of_other_runs_and_formats_have_other_names(arguments, name):
    if "onnx" in arguments:
        pytest.importorskip("onnxscript")
    assert exporting.ExportOptions(**vars(export.parse_arguments(arguments))).path.stem == name


def test_a_missing_format_lists_them(capsys):
    with pytest.raises(SystemExit):
        export.parse_arguments(["--checkpoint", DIGITS])
    assert f"--format {'|'.join(FORMATS)}" in " ".join(capsys.readouterr().err.split())
