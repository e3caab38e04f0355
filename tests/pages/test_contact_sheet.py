"""Many small images in one."""

import numpy as np
import torch

from ddfnet.pages.contact_sheet import contact_sheet


def test_small_images_are_enlarged_by_a_whole_factor_and_large_ones_fit():
    small = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    sheet = contact_sheet([(small, "one"), (torch.ones(3, 400, 200), "x" * 100)])
    assert sheet.shape == (6 + 160 + 2 * 26 + 6, 6 + 2 * 166, 3)
    tile = sheet[6:166, 6:166]
    expected = (small * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(tile[2::5, 2::5], expected)
    np.testing.assert_array_equal(np.kron(expected, np.ones((5, 5, 1), np.uint8)), tile)
    below, beside = sheet[166:192, :172], sheet[192:218, :172]
    assert (below < 128).any()  # the caption
    assert not (beside < 128).any()  # in one line
    assert (sheet[192:, 172:] < 128).any()  # the long one, in two


def test_rows():
    assert contact_sheet([(torch.zeros(3, 8, 8), "")] * 5).shape[:2] == (2 * 192 + 6, 4 * 166 + 6)
