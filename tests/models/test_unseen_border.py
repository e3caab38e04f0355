"""Images that are no whole number of patches: a note says what the network does not see."""

import pytest
import timm
import torch
from torch import nn

from ddfnet.engine.train import train
from ddfnet.models.input_size import unseen_border
from ddfnet.tasks import load_config


@pytest.mark.parametrize(
    ("size", "seen"), [(48, None), (50, "48 x 48 of 50 x 50"), ((50, 64), "48 x 64 of 50 x 64"), ((32, 48), None)]
)
def test_what_is_said_is_what_is_cut_off(size, seen):
    shape = (size, size) if isinstance(size, int) else size
    network = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=shape, num_classes=3).eval()
    note = unseen_border(network, size)
    assert (f"patches of 16 x 16 pixels see {seen}: the last rows" in note) if seen else note == ""
    image = torch.randn(1, 3, *shape)
    other = image.clone()
    other[:, :, shape[0] // 16 * 16 :] = other[:, :, :, shape[1] // 16 * 16 :] = 0
    with torch.no_grad():
        assert torch.equal(network(image), network(other))


def test_networks_without_patches_have_no_note():
    assert unseen_border(nn.Conv2d(3, 3, 3), 50) == ""
    assert unseen_border(timm.create_model("resnet10t"), 50) == ""


def test_a_run_says_it(tiny_config, tmp_path, capsys):
    vit = ["model.name=vit_tiny_patch16_224", "model.kwargs={depth: 1}", "data.input.size=50"]
    train(load_config(tiny_config, [*vit, f"run.dir={tmp_path / 'run'}"]), dry_run=True)
    assert capsys.readouterr().out.count("see 48 x 48 of 50 x 50") == 1
