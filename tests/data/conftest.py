"""Fixtures of the data tests."""

from pathlib import Path

import pytest
import torch
from synthetic_images import make_tree

from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.sources.folder import index_folder


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
