"""All decoders against Pillow alone: pixels, and which files are refused. Those that are not installed are skipped."""

import io
import random
import struct

import numpy as np
import pytest
from PIL import Image

from ddfnet.data import decode
from ddfnet.data.decode import Decoder, decode_error, open_rgb
from ddfnet.data.image_file import ImageTooLargeError
from ddfnet.data.jpeg import is_turned, read_header
from ddfnet.utils.errors import ConfigError

RNG = np.random.default_rng(0)


def photo(width=120, height=90, mode="RGB"):
    pixels = RNG.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def jpeg(image=None, **options):
    file = io.BytesIO()
    (image or photo()).save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif)


def png_named_jpeg():
    file = io.BytesIO()
    photo().save(file, "PNG")
    return file.getvalue()


CASES = {
    "4:2:0": lambda: jpeg(subsampling=2),
    "4:2:2": lambda: jpeg(subsampling=1),
    "4:4:4": lambda: jpeg(subsampling=0),
    "gray": lambda: jpeg(photo(mode="L")),
    "progressive": lambda: jpeg(progressive=True),
    "optimized": lambda: jpeg(optimize=True),
    "restart markers": lambda: jpeg(restart_marker_blocks=4),
    "cmyk": lambda: jpeg(photo(mode="CMYK")),
    "rgb": lambda: jpeg(keep_rgb=True),
    "one pixel": lambda: jpeg(photo(8, 8).crop((0, 0, 1, 1))),
    "odd sides": lambda: jpeg(photo(117, 91), subsampling=2),
    "long": lambda: jpeg(photo(2000, 16)),
    "profile": lambda: jpeg(icc_profile=bytes(3000)),
    "comment": lambda: jpeg(comment=b"\xff\xd9 not the end"),
    "EXIF 1": lambda: turned(1),
    "EXIF 3": lambda: turned(3),
    "EXIF 6": lambda: turned(6),
    "png": png_named_jpeg,
    "trailing bytes": lambda: jpeg() + b"trailing",
    "two images": lambda: jpeg() + jpeg(photo(16, 16)),
}


@pytest.fixture(params=["simplejpeg", "torchcodec", "pillow"])
def decoder(request):
    try:
        return Decoder(request.param)
    except ConfigError:
        pytest.skip(f"{request.param} is not installed")


def outcome(call, data):
    """Pixels, or the reason that is told."""
    try:
        return np.asarray(call(data))
    except Exception as error:
        return (decode_error(error),)


def assert_as_pillow(decoder, data):
    expected, made = outcome(open_rgb, data), outcome(decoder, data)
    if isinstance(expected, tuple):
        assert made == expected
    else:
        assert made.dtype == np.uint8
        assert np.array_equal(made, expected)
    return expected


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_pillows(decoder, name):
    assert isinstance(assert_as_pillow(decoder, CASES[name]()), np.ndarray)


def test_colors_sampled_down_the_columns_only(decoder):
    """4:4:0, which Pillow does not write: the blocks of 4:2:2 under another header."""
    data = bytearray(jpeg(photo(16, 16), subsampling=1))
    header = read_header(bytes(data))
    data[header.frame + 6] = 0x12  # luma 2 x 1 -> 1 x 2: as many blocks of each component in an MCU
    assert read_header(bytes(data)).mcu == (8, 16)
    assert isinstance(assert_as_pillow(decoder, bytes(data)), np.ndarray)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_files_that_are_cut_off_are_errors(decoder, share):
    for data in (jpeg(), jpeg(progressive=True), jpeg(photo(mode="L"))):
        assert isinstance(assert_as_pillow(decoder, data[: int(share * len(data))]), tuple)
        with pytest.raises(Exception):  # noqa: B017, PT011
            decoder.crop(data[: int(share * len(data))], lambda width, height: (0, 0, 1, 1))


def test_a_missing_end_is_an_error(decoder):
    assert isinstance(assert_as_pillow(decoder, jpeg()[:-2]), tuple)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"<html>404</html>", bytes(100)])
def test_what_is_no_image_has_pillows_error(decoder, data):
    assert isinstance(assert_as_pillow(decoder, data), tuple)


def test_damage_has_pillows_outcome(decoder):
    """300 damaged files: bytes changed, lost, zeroed or doubled, headers included. Whole, and down to a crop's edge."""
    rng, outcomes = random.Random(3), set()
    originals = [jpeg(photo(160, 120), subsampling=2), jpeg(photo(), progressive=True), jpeg(restart_marker_blocks=3)]
    for _ in range(300):
        data = bytearray(rng.choice(originals))
        at, length = rng.randrange(2, len(data) - 2), rng.randrange(1, 200)
        match rng.randrange(5):
            case 0:
                for _ in range(5):
                    data[rng.randrange(2, len(data))] = rng.randrange(256)
            case 1:
                del data[at : min(at + length, len(data) - 2)]
            case 2:
                data[at : at + length] = bytes(min(length, len(data) - at))
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:] = b"\xff\xd9"
        expected = assert_as_pillow(decoder, bytes(data))
        outcomes.add(type(expected))
        q = rng.random()

        def part(data, q=q):
            pixels, box = decoder.crop(data, lambda width, height: (0, 0, width, max(1, int(q * height))))
            return pixels[: box[3]]

        made = outcome(part, bytes(data))
        if isinstance(expected, tuple):
            assert made == expected
        else:
            assert np.array_equal(made, expected[: len(made)])
    assert outcomes == {tuple, np.ndarray}


@pytest.mark.parametrize("name", CASES)
def test_down_to_the_edge_of_a_crop_the_pixels_are_those_of_the_whole(decoder, name):
    data, asked = CASES[name](), []
    whole = np.asarray(open_rgb(data))
    for bottom in {1, 7, 8, 16, 31, 32, 33, len(whole) // 2, len(whole) - 1, len(whole)}:

        def box_of(width, height, bottom=bottom):
            asked.append((width, height))
            return 0, 0, width, min(max(1, bottom), height)

        pixels, box = decoder.crop(data, box_of)
        assert np.array_equal(pixels[: box[3]], whole[: box[3]])
    assert set(asked) == {(whole.shape[1], whole.shape[0])}


def test_less_is_decoded():
    try:
        decoder = Decoder("simplejpeg")
    except ConfigError:
        pytest.skip("simplejpeg is not installed")
    data = jpeg(photo(160, 160), subsampling=2)
    pixels, _ = decoder.crop(data, lambda width, height: (10, 10, 60, 60))
    assert pixels.shape == (64, 160, 3)
    pixels, _ = decoder.crop(data, lambda width, height: (10, 10, 60, 159))  # not worth it
    assert pixels.shape == (160, 160, 3)


def test_turned_images_are_known():
    for orientation in range(1, 9):
        data = turned(orientation)
        assert is_turned(data, read_header(data)) == (orientation != 1)
    data = jpeg()
    assert not is_turned(data, read_header(data))
    cut = turned(6).replace(struct.pack(">H", 0x0112), b"\xff\xff")
    assert not is_turned(cut, read_header(cut))
    unclear = jpeg(exif=b"Exif\0\0XX*\0\0\0\0\x08")
    assert is_turned(unclear, read_header(unclear))


def test_sizes_come_from_the_header():
    for name, case in CASES.items():
        assert Decoder("pillow").size(case()) == open_rgb(case()).size, name


def test_auto_takes_the_first_that_works(monkeypatch):
    for works, expected in (
        ({"simplejpeg", "torchcodec"}, "simplejpeg"),
        ({"torchcodec"}, "torchcodec"),
        (set(), "pillow"),
    ):
        monkeypatch.setattr(decode, "_works", lambda backend, works=works: backend in works)
        assert Decoder().name == expected
    with pytest.raises(ConfigError, match=r"data.decoder=simplejpeg cannot be used: pip install simplejpeg"):
        Decoder("simplejpeg")


def test_a_large_image_is_refused_by_every_decoder(decoder):
    decoder.max_pixels = 100
    with pytest.raises(ImageTooLargeError):
        decoder(jpeg())
