"""Each format in its own runtime: the digits that the network predicts, how to use it. Skips without the runtime."""

import json
import math
import re
import sys
import zipfile

import pytest
import torch
from PIL import Image

from ddfnet.data.generated import render_digits
from ddfnet.data.preprocessing import eval_transform
from ddfnet.data.sources.folder import index_folder
from ddfnet.inference.formats import ABOUT, find_format, missing_packages
from ddfnet.models.classifier import load_classifier
from ddfnet.utils.errors import UserError
from scripts import export
from tests.conftest import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/export.md").read_text(), re.DOTALL)
DIGITS = "zoo:ddf_mul_resnet14_32px.digits"


def call(*arguments):
    return export.main(export.parse_arguments([str(argument) for argument in arguments]))


def need(name):
    if missing := missing_packages(name):
        pytest.skip(f"needs {', '.join(missing)}")


def digit_images(index):
    """The images of a folder as evaluation gives them to the network, (N, 3, 32, 32)."""
    how = load_classifier(DIGITS).preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    rgb = (Image.open(index.name(i)).convert("RGB") for i in range(len(index)))
    return torch.stack([(torch.as_tensor(eval_transform(how)(image)).float() / 255 - mean) / std for image in rgb])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """(images, labels, logits of the network) of the 359 digits for validation."""
    pytest.importorskip("sklearn")
    root = tmp_path_factory.mktemp("digits")
    render_digits(root / "digits")
    index = index_folder(root / "digits/val")
    images = digit_images(index)
    with torch.inference_mode():
        logits = load_classifier(DIGITS).network(images)
    return images, torch.tensor([index.label(i) for i in range(len(index))]), logits


def read_about(name, path):
    """The description, as another program would find it."""
    if name == "openvino":
        import openvino

        model = openvino.Core().read_model(path)
        return {key: model.get_rt_info(["ddfnet", key]).value for key in ("classes", "input", "input_shape")}
    if name == "executorch":
        from executorch.runtime import Runtime

        return json.loads(Runtime.get().load_program(path).load_method("ddfnet").execute([])[0])
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(ABOUT))


@pytest.mark.parametrize(
    ("name", "batch"), [("openvino", None), ("openvino", 1), ("executorch", 1), ("executorch", 5), ("litert", 1)]
)
def test_digits_in_the_runtime_of_the_format(name, batch, digits, tmp_path, capsys, monkeypatch):
    need(name)
    images, labels, expected = digits
    path = tmp_path / f"digits{find_format(name).SUFFIX}"
    size = ["--dynamic-batch"] if batch is None else ["--batch-size", batch]
    assert call("--checkpoint", DIGITS, "--format", name, "--output", path, *size) == 0
    names = {path.name, "digits.bin"} if name == "openvino" else {path.name}
    assert {item.name for item in tmp_path.iterdir()} == names
    printed = capsys.readouterr().out
    assert f"{sum(item.stat().st_size for item in tmp_path.iterdir()):,} bytes" in printed

    run = find_format(name).load(path)
    whole = [chunk for chunk in images.split(batch or 100) if batch in (None, len(chunk))]
    chunks = [chunk.contiguous(memory_format=torch.channels_last) for chunk in whole]
    got = torch.cat([run(chunk) for chunk in chunks])
    torch.testing.assert_close(got, expected[: len(got)], rtol=0, atol=1e-4)
    assert torch.equal(got.argmax(1), expected[: len(got)].argmax(1))
    if len(got) == 359:
        assert (got.argmax(1) == labels).sum() == 352

    if batch in (1, None):
        path.rename(tmp_path / f"{DIGITS.removeprefix('zoo:')}{path.suffix}")
        for part in tmp_path.glob("digits.bin"):
            part.rename(tmp_path / f"{DIGITS.removeprefix('zoo:')}.bin")
        path = tmp_path / f"{DIGITS.removeprefix('zoo:')}{path.suffix}"
        monkeypatch.chdir(tmp_path)
        space = {}
        if not (name == "openvino" and batch == 1):  # the block takes two images
            (block,) = (block for block in BLOCKS if f"digits{path.suffix}" in block)
            exec(compile(block, "docs/guides/export.md", "exec"), space)
            assert len(space["logits"][0]) == 10

    about = read_about(name, path)
    assert json.loads(about["classes"])[9] == "9"
    assert json.loads(about["input_shape"]) == [batch, 3, 32, 32]
    assert "RGB in [0, 1]" in about["input"]


def test_openvino_computes_in_float32_when_told(digits, tmp_path):
    """By default it may take bfloat16: right on the digits, but off by far more than rounding of float32."""
    need("openvino")
    import openvino

    images, _, expected = digits
    path = tmp_path / "digits.xml"
    assert call("--checkpoint", DIGITS, "--format", "openvino", "--output", path, "--dynamic-batch") == 0
    default = openvino.Core().compile_model(path, "CPU")
    exact = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    off = {
        name: (torch.from_numpy(compiled({"image": images.numpy()})["logits"]) - expected).abs().max().item()
        for name, compiled in (("default", default), ("float32", exact))
    }
    assert off["float32"] < 1e-4
    if default.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16:  # the processor has it
        assert 1e-2 < off["default"] < 1


def test_executorch_does_not_look_at_strides(digits, tmp_path):
    """So its metadata say that the input has to be contiguous. Should this change, the sentence can go."""
    need("executorch")
    from executorch.runtime import Runtime

    images, _, expected = digits
    path = tmp_path / "digits.pte"
    assert call("--checkpoint", DIGITS, "--format", "executorch", "--output", path) == 0
    method = Runtime.get().load_program(path).load_method("forward")
    permuted = images[:1].contiguous(memory_format=torch.channels_last)
    assert (method.execute([permuted])[0] - expected[:1]).abs().max() > 0.1
    torch.testing.assert_close(method.execute([permuted.contiguous()])[0], expected[:1], rtol=0, atol=1e-4)
    assert "contiguous in memory" in read_about("executorch", path)["input"]


def test_core_ml_converts(tmp_path, capsys):
    need("coreml")
    import coremltools

    path = tmp_path / "digits.mlpackage"
    options = ["--checkpoint", DIGITS, "--format", "coreml", "--output", path]
    if sys.platform != "darwin":
        with pytest.raises(UserError, match="Core ML runs on macOS alone"):
            call(*options)
        options.append("--unchecked")
    for _ in range(2):  # the second takes the place of the first
        assert call(*options) == 0
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert sys.platform == "darwin" or "not compared with the network" in capsys.readouterr().out
    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    assert json.loads(spec.description.metadata.userDefined["input_shape"]) == [1, 3, 32, 32]
    assert [list(item.type.multiArrayType.shape) for item in spec.description.input] == [[1, 3, 32, 32]]
    assert [item.name for item in spec.description.output] == ["logits"]
    assert math.prod(spec.description.output[0].type.multiArrayType.shape) == 10


@pytest.mark.parametrize("name", ["executorch", "openvino", "litert", "coreml"])
def test_a_missing_runtime_is_named(name, monkeypatch):
    modules = find_format(name).PACKAGES
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"--format {name} needs .*: pip install {next(iter(modules.values()))}"):
        call("--checkpoint", DIGITS, "--format", name)
