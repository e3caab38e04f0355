import io
import os
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin
from synthetic_images import draw

from ddfnet.data.decode import open_rgb

GRADIENT = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
COLORS = np.stack([GRADIENT, GRADIENT.T, 255 - GRADIENT], axis=2)


def modes():
    rgb = Image.fromarray(COLORS)
    return {
        "rgb.png": rgb,
        "gray.png": Image.fromarray(GRADIENT),
        "gray.jpg": Image.fromarray(GRADIENT),
        "bit.png": Image.fromarray(GRADIENT).convert("1"),
        "palette.png": rgb.quantize(32),
        "palette.gif": rgb.quantize(32),
        "rgba.png": rgb.convert("RGBA"),
        "la.png": Image.fromarray(GRADIENT).convert("LA"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "cmyk.tif": rgb.convert("CMYK"),
        "rgb.webp": rgb,
        "rgb.bmp": rgb,
        "rgb.ppm": rgb,
    }


@pytest.mark.parametrize("name", list(modes()))
def test_all_modes_become_rgb_as_in_timm(tmp_path, name):
    modes()[name].save(tmp_path / name)
    image = open_rgb((tmp_path / name).read_bytes())
    assert (image.mode, image.size) == ("RGB", (8, 8))
    with Image.open(tmp_path / name) as theirs:
        assert np.array_equal(np.asarray(image), np.asarray(theirs.convert("RGB")))
    assert np.asarray(image).std() > 20


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_16_bit_gray_keeps_its_upper_bits(tmp_path, name):
    deep = GRADIENT.astype(np.uint16) * 256 + 77
    if name == "deep.pgm":  # older versions of Pillow read 16-bit PGM but do not write it
        (tmp_path / name).write_bytes(b"P5\n8 8\n65535\n" + deep.astype(">u2").tobytes())
    else:
        Image.fromarray(deep).save(tmp_path / name)
    assert np.array_equal(np.asarray(open_rgb((tmp_path / name).read_bytes()))[..., 1], GRADIENT)


def test_png_named_jpeg_decodes(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "x.JPEG", format="PNG")
    assert np.array_equal(np.asarray(open_rgb((tmp_path / "x.JPEG").read_bytes())), COLORS)


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLORS[:4]).save(tmp_path / "x.png", exif=exif)
    assert open_rgb((tmp_path / "x.png").read_bytes()).size == (8, 4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_truncated_files_are_errors(tmp_path, suffix, share):
    path = tmp_path / f"x.{suffix}"
    draw(path, 1, size=(200, 160))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises((OSError, SyntaxError)):
        open_rgb(path.read_bytes())
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"<html>404</html>"])
def test_non_images_are_errors(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(OSError):  # noqa: PT011 - Pillow's texts vary
        open_rgb((tmp_path / "x.jpg").read_bytes())


def test_pillows_metadata_warnings_are_silenced(tmp_path):
    palette = Image.fromarray(COLORS).quantize(32)
    info = PngImagePlugin.PngInfo()
    palette.save(tmp_path / "p.png", transparency=bytes(range(32)), pnginfo=info)
    buffer = io.BytesIO()
    Image.fromarray(COLORS).save(buffer, "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05\x01\x12")
    (tmp_path / "e.jpg").write_bytes(buffer.getvalue())
    with warnings.catch_warnings(record=True) as loud:
        warnings.simplefilter("always")
        Image.open(tmp_path / "p.png").convert("RGB")
    assert loud, "the case must warn without us"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_rgb((tmp_path / "p.png").read_bytes())
        open_rgb((tmp_path / "e.jpg").read_bytes())


def test_files_are_closed_at_once(tmp_path):
    draw(tmp_path / "x.png", 1)
    draw(tmp_path / "y.jpg", 2)
    (tmp_path / "z.jpg").write_bytes(b"junk")
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("needs /proc")
    kept = [open_rgb((tmp_path / name).read_bytes()) for name in ("x.png", "y.jpg")]
    with pytest.raises(OSError, match="cannot identify"):
        open_rgb((tmp_path / "z.jpg").read_bytes())
    assert len(os.listdir("/proc/self/fd")) == opened
    assert [image.size for image in kept] == [(40, 32)] * 2
