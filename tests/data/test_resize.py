import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ddfnet.data import resize
from ddfnet.data.resize import resize_into, resized_size, through_interpolate, torch_resize

WHOLE = {"small": (3, 5), "wide": (40, 7), "tall": (7, 300), "photo": (375, 500), "one": (1, 1), "line": (1, 64)}


def image_of(height, width, key=0):
    return np.random.default_rng(key).integers(0, 256, (height, width, 3)).astype(np.uint8)


def by_interpolate(image, size, mode):
    planar = torch.from_numpy(image).permute(2, 0, 1)[None]
    return F.interpolate(planar, size, mode=mode, antialias=True)[0].permute(1, 2, 0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("size", [(24, 24), (224, 224), (1, 1), (31, 9)])
def test_rows_are_what_interpolate_makes(name, interpolation, size):
    """Written into the middle of a batch, and nowhere else."""
    image = image_of(*WHOLE[name])
    batch = torch.full((3, *size, 3), 7, dtype=torch.uint8)
    resize_into(image, (0, 0, image.shape[1], image.shape[0]), batch[1], interpolation)
    assert torch.equal(batch[1], by_interpolate(image, size, interpolation))
    assert (batch[[0, 2]] == 7).all()


def test_the_operator_writes_into_the_row_itself():
    """On a version of torch where it does not, the public function and a copy stand in: right, and slower."""
    for interpolation in ("bilinear", "bicubic"):
        assert torch_resize(interpolation).__name__ == "direct"


@pytest.mark.parametrize("fault", ["missing", "another signature", "another result"])
def test_without_the_operator_interpolate_takes_its_place(fault, monkeypatch):
    class Operators:
        def __getattr__(self, name):
            if fault == "missing":
                raise AttributeError(name)
            return self

        def out(self, source, size, *rest, **out):
            if fault == "another signature":
                raise TypeError(fault)
            out["out"].zero_()

    monkeypatch.setattr(resize.torch.ops, "aten", Operators())
    torch_resize.cache_clear()
    try:
        assert torch_resize("bicubic").__name__ == "interpolate"
    finally:
        monkeypatch.undo()
        torch_resize.cache_clear()
    image, rows = image_of(40, 50), torch.zeros(2, 24, 24, 3, dtype=torch.uint8)
    planar = torch.from_numpy(image).permute(2, 0, 1)[None]
    through_interpolate("bicubic")(planar, rows[0].permute(2, 0, 1)[None])
    resize_into(image, (0, 0, 50, 40), rows[1], "bicubic")
    assert torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("kernel", ["torch", "pillow"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"])
def test_a_crop_is_resized_as_if_it_were_the_image(kernel, interpolation):
    image, box = image_of(90, 120), (13, 20, 101, 77)
    row, alone = torch.empty(2, 32, 32, 3, dtype=torch.uint8)
    resize_into(image, box, row, interpolation, kernel=kernel)
    crop = np.ascontiguousarray(image[20:77, 13:101])
    resize_into(crop, (0, 0, 88, 57), alone, interpolation, kernel=kernel)
    assert torch.equal(row, alone)
    if kernel == "pillow" or interpolation not in ("bilinear", "bicubic"):
        expected = Image.fromarray(image).crop(box).resize((32, 32), Image.Resampling[interpolation.upper()])
        assert np.array_equal(row.numpy(), np.asarray(expected))


@pytest.mark.parametrize("kernel", ["torch", "pillow"])
@pytest.mark.parametrize(("hflip", "vflip"), [(True, False), (False, True), (True, True)])
def test_flips(kernel, hflip, vflip):
    """After the resize with Pillow; with torch before it, which moves pixels by one level at most."""
    image, box = image_of(90, 120), (13, 20, 101, 77)
    row, plain = torch.empty(2, 32, 32, 3, dtype=torch.uint8)
    resize_into(image, box, row, "bicubic", kernel=kernel, hflip=hflip, vflip=vflip)
    resize_into(image, box, plain, "bicubic", kernel=kernel)
    expected = plain.flip([0] * vflip + [1] * hflip)
    assert (row.int() - expected.int()).abs().max() <= (0 if kernel == "pillow" or not hflip else 1)


@pytest.mark.parametrize("kernel", ["torch", "pillow"])
def test_a_crop_of_the_right_size_is_copied(kernel):
    image, row = image_of(40, 50), torch.empty(24, 24, 3, dtype=torch.uint8)
    resize_into(image, (5, 6, 29, 30), row, "bicubic", kernel=kernel)
    assert np.array_equal(row.numpy(), image[6:30, 5:29])
    resize_into(image, (5, 6, 29, 30), row, "bicubic", kernel=kernel, hflip=True)
    assert np.array_equal(row.numpy(), image[6:30, 5:29][:, ::-1])


def test_short_sides_are_torchvisions():
    from torchvision.transforms.functional import _compute_resized_output_size

    for height, width in ((375, 500), (500, 375), (100, 100), (33, 1000), (1, 7)):
        assert list(resized_size(height, width, 73)) == _compute_resized_output_size((height, width), [73])
