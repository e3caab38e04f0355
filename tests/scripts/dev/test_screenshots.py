"""Screenshots of the docs."""

import pytest
from PIL import Image

from scripts.dev import screenshots
from tests.browser import chromium
from tests.conftest import exit_code


def test_a_folder_without_digits_is_named(tmp_path, capsys):
    assert exit_code(screenshots.main, ["--data", tmp_path]) == 2
    assert f"make_data.py digits {tmp_path}" in capsys.readouterr().err


@pytest.mark.slow
def test_every_page_at_every_width(tmp_path):
    pytest.importorskip("tensorboard")
    datasets = pytest.importorskip("ddfnet.data.generated")
    pytest.importorskip("sklearn")
    with chromium():  # skips without
        pass
    datasets.render_digits(tmp_path / "digits", size=32, val_fraction=0.2, seed=0)
    assert exit_code(screenshots.main, ["--data", tmp_path / "digits", "--look", tmp_path / "out"]) == 0
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").iterdir()}
    assert len(sizes) == 8 + len(screenshots.TABS)
    for page in ("report", "explorer"):
        for theme in ("light", "dark"):
            assert sizes[f"{page}_1280_{theme}.png"][0] == 1280
            assert sizes[f"{page}_390_{theme}.png"][0] == 390
