"""Arrays in pages: what comes out is what went in, within the stated precision."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ddfnet.pages.pack import image_url, pack
from tests.browser import unpacked


@pytest.mark.parametrize("size", [1e-9, 1.0, 3e4, 1e9])
def test_numbers_keep_eleven_bits(size):
    values = np.random.default_rng(0).normal(size=(3, 40)) * size
    packed = pack(values)
    assert packed["type"] == "f16"
    back = unpacked(packed)
    assert back.shape == values.shape
    largest = np.abs(values).max()
    assert np.all(np.abs(back - values) <= np.maximum(np.abs(values) * 2.0**-11, largest * 2.0**-39))


@pytest.mark.parametrize(("largest", "kind"), [(255, "u1"), (256, "u2"), (65535, "u2"), (65536, "u4")])
def test_integers_are_exact_and_small(largest, kind):
    values = np.array([0, largest, 3])
    packed = pack(values)
    assert packed["type"] == kind
    assert unpacked(packed).tolist() == values.tolist()


def test_tensors_zeros_and_nothing_can_be_packed():
    assert unpacked(pack(torch.zeros(2, 2))).tolist() == [[0, 0], [0, 0]]
    assert unpacked(pack(torch.empty(0, 3, dtype=torch.int64))).shape == (0, 3)
    assert unpacked(pack(torch.tensor([1, 2]))).tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"integers must be in \[0, 2\^32\), got -1"):
        pack(np.array([-1]))


def test_small_images_are_kept_to_the_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 20, 3), dtype=np.uint8)
    kind, _, data = image_url(pixels, most=112).partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)
    kind, _, data = image_url(np.zeros((300, 200, 3), np.uint8), most=112).partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (75, 112)
