"""Each schedule against timm's scheduler of that name, at every step."""

import itertools
import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler, TanhLRScheduler
from torch import nn

from ddfnet.optim import OptimConfig, ScheduleConfig, learning_rate, peak_learning_rate
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.errors import ConfigError

STEPS, WARMUP, PEAK = 60, 8, 0.4


def ours(**keys):
    schedule = ScheduleConfig(warmup_epochs=WARMUP / 10, warmup_lr=1e-4, **keys)
    plan = RunPlan(1, 1, PEAK, 10, schedule_steps=STEPS, warmup_steps=WARMUP, total_steps=STEPS + 10)
    return [learning_rate(step, schedule, plan) for step in range(STEPS + 10)]


def timms(scheduler, **keys):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    built = scheduler(optimizer, warmup_t=WARMUP, warmup_lr_init=1e-4, t_in_epochs=False, **keys)
    rates = []
    for step in range(STEPS + 10):
        built.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


FALLING = {"cosine": CosineLRScheduler, "poly": PolyLRScheduler, "tanh": TanhLRScheduler}


@pytest.mark.parametrize(("name", "prefix"), list(itertools.product(FALLING, [False, True])))
@pytest.mark.parametrize(("cycles", "mul"), [(1, 1.0), (3, 1.0), (2, 2.0)])
def test_falling_schedules(name, prefix, cycles, mul):
    """timm's first cycle is given a length with which all of them fill the run."""
    first = (STEPS - WARMUP * prefix) / sum(mul**i for i in range(cycles))
    keys = {"cycle_mul": mul, "cycle_decay": 0.7}
    own = {"power": 0.6} if name == "poly" else {}
    k = {"k_decay": 1.5} if name != "tanh" else {}
    got = ours(name=name, min_lr=1e-5, warmup_prefix=prefix, cycles=cycles, **keys, **own, **k)
    theirs = timms(
        FALLING[name], t_initial=first, lr_min=1e-5, cycle_limit=cycles, warmup_prefix=prefix, **keys, **own, **k
    )
    assert got == pytest.approx(theirs, rel=1e-9)
    assert len({round(rate, 9) for rate in got[WARMUP:STEPS]}) > 40


@pytest.mark.parametrize("prefix", [False, True])
def test_steps_of_equal_length(prefix):
    got = ours(name="step", decay_epochs=1.5, gamma=0.3, warmup_prefix=prefix)
    assert got == pytest.approx(timms(StepLRScheduler, decay_t=15, decay_rate=0.3, warmup_prefix=prefix))
    assert len(set(got[WARMUP:])) == 5


def test_plateau_is_constant_until_it_falls():
    assert set(ours(name="plateau")[WARMUP:]) == {PEAK}


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 0.4), ("sqrt", 0.1 * 2)])
def test_base_rate_and_batch(scaling, expected):
    optim = OptimConfig(base_lr=0.1, base_scaling=scaling)
    assert peak_learning_rate(optim, ScheduleConfig(), 1024) == pytest.approx(expected)
    assert math.sqrt(1024 / 256) == 2


def test_a_last_cycle_below_the_lowest_rate_is_refused():
    schedule = ScheduleConfig(cycles=3, cycle_decay=0.1, min_lr=0.01)
    with pytest.raises(ConfigError, match=r"schedule\.min_lr=0\.01 is above the peak of the last cycle 0\.004"):
        peak_learning_rate(OptimConfig(lr=0.4), schedule, 8)
