"""The plateau schedule and early stopping: torch's rule, and the same end however often a run is interrupted."""

import math
from dataclasses import replace

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ddfnet.engine.pacing import paced_learning_rate, plateau_after, stops_early
from ddfnet.engine.train import train
from ddfnet.tasks import check_config, load_config
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.files import read_jsonl
from tests.engine.runs import assert_resumes_exactly, state, whole_run

PLAN = RunPlan(1, 1, 0.4, 10, schedule_steps=200, warmup_steps=15, total_steps=200)


def config(**sections):
    values = {
        "model": {"name": "m"}, "data": {"root": "r"}, "optim": {"lr": 0.4},
        "train": {"epochs": 20, "batch_size": 2, "device_batch_size": 2},
    }  # fmt: skip
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    return check_config(values)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_plateau_falls_where_torchs_does(lower_is_better):
    run = config(schedule={"name": "plateau", "patience": 1, "gamma": 0.5, "min_lr": 0.06, "warmup_epochs": 1.5})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = ReduceLROnPlateau(optimizer, "min" if lower_is_better else "max", 0.5, 1, min_lr=0.06)
    values = [50, 60, 60.001, 59, float("nan"), 70, 69, 70, 70, 65, 64, 63, 62, 61, 60]
    plateau = plateau_after(40, 10, run, PLAN, {}, lower_is_better=lower_is_better)  # within the warm-up
    assert plateau == {}
    assert paced_learning_rate(12, run, PLAN, plateau) == pytest.approx(0.4 * 12 / 15)
    rates = []
    for epoch, value in enumerate(values, 2):
        value = -value if lower_is_better else value
        theirs.step(value)
        plateau = plateau_after(value, 10 * epoch, run, PLAN, plateau, lower_is_better=lower_is_better)
        rates.append(paced_learning_rate(10 * epoch, run, PLAN, plateau))
        assert rates[-1] == optimizer.param_groups[0]["lr"]
    assert len(set(rates)) == 4  # 0.4, 0.2, 0.1, 0.06
    assert plateau["falls"] == 3


def test_changes_of_rate_and_schedule_are_heard_after_falls():
    run = config(schedule={"name": "plateau", "patience": 0, "gamma": 0.5, "min_lr": 0.15, "warmup_epochs": 1.5})
    plateau = {}
    for epoch in range(2, 9):  # falls at the 2nd and 3rd to 0.2 and 0.15; those after these change nothing
        plateau = plateau_after(50, 10 * epoch, run, PLAN, plateau, lower_is_better=False)
    assert paced_learning_rate(90, run, PLAN, plateau) == 0.15

    def after(plan=PLAN, **schedule):
        return paced_learning_rate(90, config(schedule={"warmup_epochs": 1.5, **schedule}), plan, plateau)

    assert after(replace(PLAN, lr=4.0), name="plateau", gamma=0.5, min_lr=0.15) == 1.0  # two falls
    assert after(name="plateau", gamma=0.1) == pytest.approx(0.004)
    assert after(name="plateau", gamma=0.5, min_lr=0.01) == 0.1
    assert after(name="constant") == 0.4
    assert after(name="cosine") == pytest.approx(0.2 * (1 + math.cos(math.pi * 90 / 200)))


def test_a_run_resumes_with_another_rate_or_schedule(tiny_config, tmp_path):
    folder, keys = tmp_path / "run", (*STILL, "checkpoints.keep=0")
    paced = ("schedule.name=plateau", "schedule.patience=0", "schedule.gamma=0.5")
    whole_run(tiny_config, folder, *keys, *paced, "train.epochs=3")
    falls = state(folder)["plateau"]["falls"]
    assert falls >= 1

    def rate(epochs, *more):
        whole_run(tiny_config, folder, *keys, *more, f"train.epochs={epochs}", "run.allow_changes=true")
        return [record["lr"] for record in read_jsonl(folder / "metrics.jsonl") if record["kind"] == "train"][-1]

    assert rate(4, *paced, "optim.lr=1e-8") == pytest.approx(1e-8 * 0.5**falls)
    assert rate(5, "schedule.name=constant") == 1e-9


@pytest.mark.parametrize(
    ("step", "best", "every", "stops"),
    [(50, 20, 1, True), (50, 30, 1, False), (55, 20, 1, False), (30, None, 1, True), (20, None, 1, False),
     (50, 20, 2, False), (60, 20, 2, True)],
)  # fmt: skip
def test_a_run_stops_when_its_best_is_so_many_epochs_ago(step, best, every, stops):
    run = config(train={"early_stop": 3}, eval={"every": every})
    assert stops_early(step, {"step": best}, run, PLAN) == stops
    assert not stops_early(step, {"step": best}, config(), PLAN)


def test_a_run_whose_metric_has_changed_counts_from_then():
    run, best = config(train={"early_stop": 3}), {"step": None, "since": 40}
    assert [stops_early(step, best, run, PLAN) for step in (60, 70)] == [False, True]


STILL = (
    "optim.lr=1e-9",
    "schedule.warmup_epochs=0",
    "train.epochs=9",
    "train.freeze=all_but_head",
)  # nothing gets better


def test_plateau_in_a_run_is_exact_under_resume(tiny_config, tmp_path, monkeypatch):
    keys = ("schedule.name=plateau", "schedule.patience=1", "schedule.gamma=0.5", "train.ema={decay: 0.5}")
    end = assert_resumes_exactly(tiny_config, tmp_path, monkeypatch, *STILL, *keys, stops=(6, 12, 21))
    records = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    rates = [record["lr"] for record in records if record["kind"] == "train"]
    assert rates[0] == 1e-9
    assert rates[-1] < 3e-10
    assert rates[-1] == 1e-9 * 0.5 ** (end["plateau"]["falls"] - 1)  # the last epoch's evaluation is a fall, too


def test_early_stopping_keeps_its_count_and_stays_stopped(tiny_config, tmp_path, monkeypatch, capsys):
    keys = ("schedule.name=constant", "train.early_stop=3")
    end = assert_resumes_exactly(tiny_config, tmp_path, monkeypatch, *STILL, *keys, stops=(6, 9))
    assert end["step"] - end["best"]["step"] == 12
    assert end["step"] < 36
    assert "stopped early: top1 has not been better for 3 epochs" in capsys.readouterr().out
    before = (tmp_path / "whole" / "last.pt").read_bytes()
    assert train(load_config(tiny_config, [f"run.dir={tmp_path / 'whole'}", *STILL, *keys])) == 0
    assert (tmp_path / "whole" / "last.pt").read_bytes() == before
    assert state(tmp_path / "whole")["step"] == end["step"]
