"""Schedule against timm's, optimizer groups, clipping, and errors."""

import importlib.util

import pytest
import timm
import torch
from timm.optim import Lookahead
from timm.scheduler import CosineLRScheduler
from torch import nn

import ddfnet
from ddfnet.engine.freeze import Freeze
from ddfnet.models.weights import classifier_names
from ddfnet.optim import ScheduleConfig, build_optimizer, clip_gradients, learning_rate
from ddfnet.tasks import check_config
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.errors import ConfigError

HAS_EINSUM = importlib.util.find_spec("opt_einsum") is not None


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
    clip_gradients(model, 1e-3, "agc", classifiers=classifier_names(model))
    assert torch.equal(model.fc.weight.grad, head)  # the classifier is exempt
    assert model.conv1.weight.grad.norm() < stem.norm()


@pytest.mark.parametrize(
    ("name", "heads"),
    [("deit_tiny_distilled_patch16_224", {"head", "head_dist"}), ("volo_d1_224", {"head", "aux_head"})],
)
def test_agc_spares_what_all_but_head_leaves_to_train(name, heads):
    model = timm.create_model(name, num_classes=3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    clip_gradients(model, 1e-4, "agc", classifiers=classifier_names(model))
    spared = {name for name, parameter in model.named_parameters() if (parameter.grad == 1).all()}
    assert spared == {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}
    Freeze(model, "all_but_head")
    assert spared == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bnbadam", "from the package bitsandbytes"),
        ("fusedadam", "from the package apex"),
        ("adahessian", "needs second derivatives"),
        pytest.param("kron", "pip install opt_einsum", marks=pytest.mark.skipif(HAS_EINSUM, reason="it is here")),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the packages may be here, and a GPU")
def test_optimizers_that_need_what_is_absent_say_so(name, message):
    with pytest.raises(ConfigError, match=f"optim.name={name} .*{message}"):
        build_optimizer(nn.Linear(2, 2), config(name=name).optim, 0.1)


def test_kron_is_not_given_weights_in_channels_last(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    model = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    with pytest.raises(ConfigError, match=r"set train\.channels_last=false"):
        build_optimizer(model, config(name="kron").optim, 0.1)


def test_lookahead_is_timms():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [
        build_optimizer(ours, config(name="lookahead_adamw", weight_decay=0.1).optim, 0.1),
        Lookahead(torch.optim.AdamW([{"params": [theirs.weight], "weight_decay": 0.1},
                                     {"params": [theirs.bias], "weight_decay": 0.0}], lr=0.1)),
    ]  # fmt: skip
    for step in range(8):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.full((1, 3), float(step))).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)
    with pytest.raises(ConfigError, match="lookahead_adamww is no optimizer of timm: did you mean adamw"):
        build_optimizer(ours, config(name="lookahead_adamww").optim, 0.1)
