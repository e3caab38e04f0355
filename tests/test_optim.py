"""Schedule against timm's, optimizer groups, clipping, and errors."""

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

import ddfnet
from ddfnet.optim import ScheduleConfig, build_optimizer, clip_gradients, learning_rate
from ddfnet.tasks import check_config
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.errors import ConfigError


def config(**optim):
    return check_config(
        {
            "model": {"name": "m"},
            "data": {"root": "r"},
            "optim": {"lr": 0.1, **optim},
            "train": {"epochs": 1, "batch_size": 2, "device_batch_size": 2},
        }
    )


@pytest.mark.parametrize("warmup", [0, 7])
def test_cosine_equals_timms_at_every_step(warmup):
    schedule = ScheduleConfig(warmup_epochs=warmup / 10, warmup_lr=1e-4, min_lr=1e-5)
    derived = RunPlan(1, 1, 0.4, 10, schedule_steps=60, warmup_steps=warmup, total_steps=75)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    timms = CosineLRScheduler(
        optimizer, t_initial=60, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-4, t_in_epochs=False
    )
    for step in range(75):
        timms.step_update(step)
        assert learning_rate(step, schedule, derived) == pytest.approx(optimizer.param_groups[0]["lr"]), step


def test_constant_schedule():
    derived = RunPlan(1, 1, 0.4, 10, schedule_steps=60, warmup_steps=10, total_steps=60)
    schedule = ScheduleConfig(name="constant", warmup_epochs=1)
    assert [learning_rate(s, schedule, derived) for s in (0, 5, 10, 59)] == pytest.approx([0.0, 0.2, 0.4, 0.4])


def test_step_schedule_falls_at_its_milestones():
    derived = RunPlan(1, 1, 0.4, 10, schedule_steps=120, warmup_steps=5, total_steps=120)
    schedule = ScheduleConfig(name="step", milestones=[8, 11], warmup_epochs=0.5)
    rates = [learning_rate(step, schedule, derived) for step in (0, 5, 79, 80, 109, 110, 119)]
    assert rates == pytest.approx([0, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_no_weight_decay_on_one_dimensional_parameters():
    model = ddfnet.create_model("ddf_mul_resnet14_32px")
    groups = build_optimizer(model, config(weight_decay=0.05).optim, 0.1).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.0 if parameter.ndim <= 1 else 0.05
        assert decay[id(parameter)] == expected, name
    assert decay[id(model.layer1[0].conv2.channel_branch[4].std)] == 0


def test_sgd_is_nesterov_as_in_the_released_recipe():
    assert build_optimizer(nn.Linear(2, 2), config().optim, 0.1).param_groups[0]["nesterov"]


def test_unknown_optimizer_and_argument():
    with pytest.raises(ConfigError, match=r"optim.name=adamww.*adamw"):
        build_optimizer(nn.Linear(2, 2), config(name="adamww").optim, 0.1)
    with pytest.raises(ConfigError, match=r"optim.kwargs.*betta"):
        build_optimizer(nn.Linear(2, 2), config(name="adamw", kwargs={"betta": 1}).optim, 0.1)


def gradients(model):
    torch.manual_seed(0)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_clipping_by_norm_value_and_agc():
    model = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=3)
    before = gradients(model)
    norm = clip_gradients(model, None, "norm")
    assert norm.item() == pytest.approx(before.norm().item(), rel=1e-5)
    assert clip_gradients(model, 0.5, "norm").item() == pytest.approx(before.norm().item(), rel=1e-5)
    after = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert after.norm().item() == pytest.approx(0.5, rel=1e-4)
    clip_gradients(model, 1e-3, "value")
    assert max(p.grad.abs().max().item() for p in model.parameters()) <= 1.001e-3

    model.zero_grad()
    gradients(model)
    head, stem = model.fc.weight.grad.clone(), model.conv1.weight.grad.clone()
    clip_gradients(model, 1e-3, "agc")
    assert torch.equal(model.fc.weight.grad, head)  # the classifier is exempt
    assert model.conv1.weight.grad.norm() < stem.norm()
