"""JPEGs that can be cut: a cut has the pixels that the whole has."""

import io

import numpy as np
import pytest
from PIL import Image

from ddfnet.data.jpeg import cut, interval_starts, read_header, restart_interval

SIZES = [(97, 64), (64, 97), (500, 375), (8, 8), (1, 1), (17, 200), (333, 40)]
SAMPLINGS = {"444": 0, "422": 1, "420": 2, "gray": None}
BLOCKS = {"444": (8, 8), "422": (16, 8), "420": (16, 16), "gray": (8, 8)}


def image(size, key=0, mode="RGB"):
    """Smooth colors with edges and noise."""
    rng = np.random.default_rng(key)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.int16) + rng.integers(-30, 31, (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(size, sampling, *, interval=None, key=0, **options):
    picked = SAMPLINGS[sampling]
    out = io.BytesIO()
    if picked is not None:
        options["subsampling"] = picked
    interval = restart_interval(size[0], BLOCKS[sampling][0]) if interval is None else interval
    if interval:
        options["restart_marker_blocks"] = interval
    image(size, key, "L" if picked is None else "RGB").save(out, "JPEG", quality=85, **options)
    return out.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", SIZES)
def test_a_cut_has_the_pixels_of_the_whole(size, sampling):
    data = jpeg(size, sampling)
    header = read_header(data)
    assert (header.width, header.height, header.mcu, header.sequential) == (*size, BLOCKS[sampling], True)
    starts = interval_starts(data, header)
    whole = pixels(data)
    rng = np.random.default_rng(1)
    smaller = 0
    for _ in range(40):
        left, right = sorted(rng.integers(0, size[0] + 1, 2).tolist())
        top, bottom = sorted(rng.integers(0, size[1] + 1, 2).tolist())
        if left == right or top == bottom:
            continue
        part, x, y = cut(data, header, starts, (left, top, right, bottom))
        smaller += len(part) < len(data)
        region = pixels(part)[top - y : bottom - y, left - x : right - x]
        assert np.array_equal(region, whole[top:bottom, left:right])
        again = read_header(part)
        assert interval_starts(part, again) is not None or again.width // again.mcu[0] % again.interval
    assert smaller or min(size) <= 17
    everything, x, y = cut(data, header, starts, (0, 0, *size))
    assert (everything, x, y) == (data, 0, 0)


def test_the_margin_is_needed():
    """Without it the color at the edges of a 4:2:0 cut differs: this test would see it."""
    data = jpeg((500, 375), "420")
    header = read_header(data)
    starts, whole = interval_starts(data, header), pixels(data)
    box = (header.mcu[0] * header.interval, 16, 3 * header.mcu[0] * header.interval, 64)
    part, x, y = cut(data, header, starts, box, margin=0)
    assert not np.array_equal(pixels(part)[box[1] - y : box[3] - y, box[0] - x : box[2] - x],
                              whole[box[1] : box[3], box[0] : box[2]])  # fmt: skip


def test_intervals_divide_a_row():
    for width in range(1, 2000):
        for block in (8, 16):
            row, interval = -(-width // block), restart_interval(width, block)
            assert row % interval == 0
            assert interval >= min(3, row)
    assert restart_interval(500, 8) == 7 * 9 // 9
    assert restart_interval(500, 16) == 4


def test_files_that_cannot_be_cut():
    assert interval_starts(*with_header(jpeg((97, 64), "444", interval=0))) is None
    assert interval_starts(*with_header(jpeg((97, 64), "444", interval=5))) is None  # 13 blocks in a row
    assert interval_starts(*with_header(jpeg((97, 64), "420", progressive=True))) is None
    good = jpeg((97, 64), "444")
    assert interval_starts(*with_header(good[:-200])) is None
    starts = interval_starts(*with_header(good))
    bad = bytearray(good)
    bad[starts[2] - 1] = 0xD7
    assert interval_starts(bytes(bad), read_header(good)) is None


def with_header(data):
    return data, read_header(data)


def test_headers_that_are_none():
    good = jpeg((97, 64), "444")
    for data in (b"", b"\xff", b"\x89PNG\r\n\x1a\n" + bytes(50), good[:100], good[:20], b"\xff\xd8\xff\xd9"):
        with pytest.raises(ValueError, match=r"JPEG|header|marker|frame"):
            read_header(data)
    for size in range(read_header(good).data):
        with pytest.raises(ValueError, match=r"JPEG|header|marker|frame"):
            read_header(good[:size])


def test_damaged_headers_never_raise_anything_else():
    good = jpeg((97, 64), "420")
    rng = np.random.default_rng(0)
    for _ in range(3000):
        bad = bytearray(good[:700])
        for at in rng.integers(0, 700, 3):
            bad[at] = rng.integers(0, 256)
        try:
            header = read_header(bytes(bad))
            interval_starts(bytes(bad), header)
        except ValueError:
            pass
