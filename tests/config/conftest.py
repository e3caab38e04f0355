"""Configurations in a folder of the test."""

import pytest

MINIMAL = """
model: {name: resnet18}
data: {root: somewhere}
optim: {lr: 0.1}
train: {epochs: 3, batch_size: 8, device_batch_size: 4}
"""


@pytest.fixture
def write(tmp_path):
    def _write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return _write


@pytest.fixture
def minimal(write):
    return write("minimal.yaml", MINIMAL)
