"""Where the texts of detections stand."""

import pytest

from ddfnet.tasks.detection.drawing import _corner


@pytest.mark.parametrize("image", [(640, 240), (240, 640)])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 0, 0, 0), (0.9, 0.9, 1, 1), (0.8, 0, 1, 1), (0, 0.8, 1, 1)])
def test_texts_stay_in_images_that_are_wide_or_high(image, box):
    (wide, high), (width, height) = image, (150, 30)
    taken = []
    for _ in range(4):  # of boxes in the same place, too
        x, y = _corner((box[0] * wide, box[1] * high, box[2] * wide, box[3] * high), (width, height), image, taken)
        assert 0 <= x <= wide - width
        assert 0 <= y <= high - height


def test_a_text_wider_than_the_image_begins_at_its_left():
    assert _corner((0, 0, 100, 400), (150, 30), (100, 400), [])[0] == 0
