"""EMA weights beside timm's, and of weights with several names."""

import copy

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

from ddfnet.engine.ema import Ema

DECAY = 0.9


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = self.second = self.third = nn.Linear(3, 3)
        self.alone = nn.Linear(3, 3)


def steps(model, count=4):
    """The model after each of some steps."""
    torch.manual_seed(0)
    for step in range(1, count + 1):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.add_(torch.randn(tensor.shape)) if tensor.is_floating_point() else tensor.add_(1)
        yield step


@pytest.mark.parametrize("warmup", [False, True])
def test_the_bits_are_those_of_timm_where_each_weight_has_one_name(warmup):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    ours, theirs = (kind(model, decay=DECAY, use_warmup=warmup) for kind in (Ema, ModelEmaV3))
    for step in steps(model):
        for average in (ours, theirs):
            average.update(model, step=step)
    own, expected = ours.module.state_dict(), theirs.module.state_dict()
    assert own["1.num_batches_tracked"] == 4
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], expected[key]) for key in own)


def test_a_weight_with_several_names_is_averaged_once_a_step():
    model = Tied()
    average = Ema(model, decay=DECAY, use_warmup=False)
    slow = {name: copy.deepcopy(value).double() for name, value in model.named_parameters()}
    for step in steps(model):
        average.update(model, step=step)
        # timm's decay is 0 in the first step, warm-up or not
        decay = DECAY if step > 1 else 0.0
        slow = {name: decay * value + (1 - decay) * model.get_parameter(name).double() for name, value in slow.items()}
    for name, value in slow.items():
        torch.testing.assert_close(average.module.get_parameter(name).double(), value, rtol=1e-6, atol=1e-6)
    assert average.module.first is average.module.third


def test_there_are_classifiers_with_such_weights():
    with torch.device("meta"):
        model = timm.create_model("coat_tiny")
    assert len(list(model.named_parameters(remove_duplicate=False))) > len(list(model.parameters()))
