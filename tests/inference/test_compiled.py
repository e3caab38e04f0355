"""load_compiled: a compiled package never reads an image in the wrong order, or one it was not compiled for."""

import json
import re
import shutil
from types import MappingProxyType

import pytest
import torch

import ddfnet
from ddfnet.data.generated import render_digits
from ddfnet.data.sources.folder import index_folder
from ddfnet.models.classifier import load_classifier
from ddfnet.utils.errors import UserError
from scripts import export
from tests.inference.test_formats import DIGITS, digit_images


class Package:
    """What PyTorch loads: it takes any tensor, and reads its memory in order."""

    metadata = MappingProxyType({"input_shape": "[null, 3, 4, 4]", "AOTI_DEVICE_KEY": "cpu"})

    def get_metadata(self):
        return self.metadata

    def __call__(self, image):
        return image.as_strided((image.numel(),), (1,)).clone()


@pytest.fixture
def package(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.touch()
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: Package())
    return path


def test_any_layout_is_read_in_the_order_of_its_pixels(package):
    compiled = ddfnet.load_compiled(package)
    image = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    for layout in (image, image.contiguous(memory_format=torch.channels_last), image.mT.contiguous().mT):
        assert torch.equal(compiled(layout), torch.arange(96.0))
    assert torch.equal(compiled(image[:, :, ::2].repeat_interleave(2, 2)[1:]), image[1:, :, [0, 0, 2, 2]].flatten())
    assert compiled.shape == (None, 3, 4, 4)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.float64), TypeError, "of torch.float32, got torch.float64"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, "got torch.uint8"),
        ([[1.0]], TypeError, "got list"),
        (torch.zeros(1, 3, 5, 5), ValueError, "expected shape (B, 3, 4, 4), got (1, 3, 5, 5)"),
        (torch.zeros(1, 4, 4, 3), ValueError, "got (1, 4, 4, 3)"),
        (torch.zeros(3, 4, 4), ValueError, "got (3, 4, 4)"),
        (torch.zeros(0, 3, 4, 4), ValueError, "got (0, 3, 4, 4)"),
        (torch.zeros(1, 3, 4, 4, device="meta"), ValueError, "compiled for cpu, got a tensor on meta"),
    ],
)
def test_what_cannot_be_meant_is_named(package, image, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ddfnet.load_compiled(package)(image)


def test_packages_that_cannot_be_used_are_named(package, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="not found"):
        ddfnet.load_compiled(tmp_path / "no.pt2")
    monkeypatch.setattr(Package, "metadata", {})
    with pytest.raises(UserError, match="does not say which input it takes"):
        ddfnet.load_compiled(package)
    monkeypatch.undo()
    with pytest.raises(UserError, match="cannot be loaded as a compiled package"):
        ddfnet.load_compiled(package)  # an empty file


@pytest.mark.slow
def test_a_permuted_image_gets_its_own_logits(tmp_path):
    """Images as decoders lay them, height x width x channels, through a real package: 352 of 359 digits."""
    pytest.importorskip("sklearn")
    if not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    render_digits(tmp_path / "digits")
    index = index_folder(tmp_path / "digits/val")
    output = tmp_path / "digits.pt2"
    options = ["--checkpoint", DIGITS, "--format", "aoti", "--output", str(output), "--dynamic-batch"]
    assert export.main(export.parse_arguments(options)) == 0
    compiled, images = ddfnet.load_compiled(output), digit_images(index)
    assert "contiguous in memory" in compiled.metadata["input"]
    assert json.loads(compiled.metadata["input_shape"]) == [None, 3, 32, 32]
    with torch.inference_mode():
        expected = load_classifier(DIGITS).network(images)
    permuted = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for got in (compiled(images), compiled(permuted), torch.cat([compiled(image[None]) for image in permuted])):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert sum(int(label) == index.label(i) for i, label in enumerate(got.argmax(1))) == 352
    with pytest.raises(ValueError, match="got \\(1, 3, 33, 33\\)"):
        compiled(torch.zeros(1, 3, 33, 33))
