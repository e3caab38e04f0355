"""Micro-batches of one image: refused where batch norm would fail, before anything is written; else they train."""

import pytest
import torch
from torch import nn

from ddfnet.engine.batch_of_one import check_batch_of_one, explained_batch_of_one
from ddfnet.engine.freeze import Freeze
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils.errors import ConfigError

ONE = ("train.device_batch_size=1", "train.batch_size=4", "train.epochs=1", "model.name=resnet18")


def test_one_value_per_channel_is_refused(tiny_config, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"train\.device_batch_size=1 \(command line\): a batch norm gets one value"):
        train(load_config(tiny_config, [*ONE, "data.input.size=32", f"run.dir={folder}"]))
    assert not folder.exists()


@pytest.mark.parametrize("key", ["data.input.size=64", "train.freeze=all_but_head"])
def test_larger_images_or_frozen_norms_train(tiny_config, tmp_path, key):
    small = "data.input.size=32" if "freeze" in key else key
    assert train(load_config(tiny_config, [*ONE, small, key, f"run.dir={tmp_path / 'run'}"])) == 0


def test_trying_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    model[2].eval()
    before, draws = model[1].running_mean.clone(), torch.random.get_rng_state()
    check_batch_of_one(model, Freeze(model, None), (3, 8, 8))
    assert torch.equal(model[1].running_mean, before)
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert [module.training for module in model] == [True, True, False]


def test_in_a_step_it_is_explained_and_other_errors_stay():
    expected = r"device_batch_size=1.*\[1, 4, 1, 1\]"
    with pytest.raises(ConfigError, match=expected), explained_batch_of_one(1):
        nn.BatchNorm2d(4)(torch.zeros(1, 4, 1, 1))
    with pytest.raises(ValueError, match=r"^something else$"), explained_batch_of_one(1):
        raise ValueError("something else")
