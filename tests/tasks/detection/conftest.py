"""A small detection run on synthetic shapes."""

import pytest

from ddfnet.tasks.detection.synthetic import render_shapes

TINY = """
task: detection
model: {{backbone: resnet10t, frozen_stages: 0, frozen_norm: false, channels: 16, box_samples: 16, upsampling: ddfup}}
data: {{root: {root}, train_images: train, train_annotations: annotations/train.json, val_images: val,
        val_annotations: annotations/val.json, workers: 0, min_size: [64], max_size: 64}}
optim: {{name: adamw, lr: 1e-3, clip_grad: 5.0}}
train: {{epochs: 2, batch_size: 4, device_batch_size: 2, channels_last: false}}
run: {{log_every: 1, tensorboard: false, device: cpu}}
"""


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    render_shapes(root, train=8, val=5, size=64)
    return root


@pytest.fixture
def tiny(tmp_path, shapes):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=shapes))
    return path
