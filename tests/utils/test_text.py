"""Text for consoles and pages."""

import pytest

from ddfnet.utils.text import plural, rate_text, with_weights


def test_plurals():
    assert [plural(n, "image") for n in (0, 1, 2, 1234)] == ["0 images", "1 image", "2 images", "1,234 images"]
    assert [plural(n, "class", "classes") for n in (1, 3)] == ["1 class", "3 classes"]


def test_no_rate_that_is_not_0_reads_as_0():
    rates = [rate_text(rate) for rate in (12_345.6, 10, 9.96, 1, 0.34, 0.0123, 0)]
    assert rates == ["12,346", "10", "10.0", "1.0", "0.34", "0.012", "0"]


@pytest.mark.parametrize(
    ("checkpoint", "text"),
    [
        ("/a/weights/ddf_x.digits.safetensors", "ddf_x.digits"),
        ("zoo:ddf_x.digits", "ddf_x.digits"),
        ("runs/demo/best.pt", "ddf_x (demo/best.pt)"),
        ("official/ddf_x.pth.tar", "ddf_x (official/ddf_x.pth.tar)"),
        ("best.pt", "ddf_x (best.pt)"),
    ],
)
def test_the_weights_of_a_title(checkpoint, text):
    assert with_weights("ddf_x", checkpoint) == text
