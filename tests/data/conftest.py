"""Fixtures of the data tests."""

import runpy
from pathlib import Path

import pytest
import torch
from synthetic_images import make_tree
from test_jpeg import image

from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.sources.folder import index_folder
from tests.conftest import ROOT, exit_code


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tree(tmp_path) -> Path:
    """3 classes of 6 images."""
    return make_tree(tmp_path / "train")


@pytest.fixture
def index(tree):
    return index_folder(tree)


@pytest.fixture
def small() -> Preprocessing:
    return Preprocessing(size=24)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """2 classes of 7 JPEGs each, of all kinds of sampling."""
    for c, name in enumerate(("cat", "dog")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(7):
            options = {"subsampling": i % 3} if i < 6 else {}
            mode = "L" if i == 6 else "RGB"
            image((130 + 9 * i, 90), 7 * c + i, mode).save(folder / f"{i}.jpg", quality=88, **options)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def prepare_command():
    script = runpy.run_path(str(ROOT / "scripts" / "prepare_images.py"))
    return lambda *arguments: exit_code(script["main"], list(arguments))
