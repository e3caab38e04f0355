"""Settings that are not those of the checkpoint a run resumes from: used, or a line says why not."""

import pytest
import torch

from ddfnet.checkpoint import read_checkpoint
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.signals import StopSignal
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from tests.engine.runs import whole_run
from tests.engine.test_resume import assert_same_bits

ALLOWED = "run.allow_changes=true"


def groups(state):
    return [
        {key: value for key, value in group.items() if key != "params"} for group in state["optimizer"]["param_groups"]
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "lamb", "lookahead_adam"])
def test_another_optimizer_starts_without_state(tiny_config, tmp_path, optimizer, capsys):
    whole_run(tiny_config, tmp_path, "train.epochs=1", "optim.name=lion")
    state = whole_run(tiny_config, tmp_path, "train.epochs=2", f"optim.name={optimizer}", ALLOWED)
    text = f"optim.name was lion and is {optimizer} now: the optimizer starts without its former state"
    assert text in capsys.readouterr().err
    fresh = whole_run(tiny_config, tmp_path / "fresh", "train.epochs=2", f"optim.name={optimizer}")
    assert state["step"] == 8
    assert [group.keys() for group in groups(state)] == [group.keys() for group in groups(fresh)]


@pytest.mark.parametrize(
    ("optimizer", "key", "before", "after"),
    [("adamw", "layer_decay", 0.9, 0.1), ("momentum", "dampening", 0.0, 0.2), ("adamw", "amsgrad", "false", "true"),
     ("rmsprop", "centered", "false", "true"), ("lamb", "max_grad_norm", 1.0, 2.0), ("adopt", "clip_exp", 0.333, 0.25)],
)  # fmt: skip
def test_changed_arguments_of_the_optimizer_are_used(tiny_config, tmp_path, optimizer, key, before, after):
    given = [f"optim.name={optimizer}", "optim.kwargs={%s: %s}"]
    once = whole_run(tiny_config, tmp_path / "run", "train.epochs=1", given[0], given[1] % (key, before))
    again = whole_run(tiny_config, tmp_path / "run", "train.epochs=2", given[0], given[1] % (key, after), ALLOWED)
    fresh = whole_run(tiny_config, tmp_path / "fresh", "train.epochs=2", given[0], given[1] % (key, after))
    name = {"layer_decay": "lr_scale"}.get(key, key)
    values = [[group[name] for group in groups(state)] for state in (once, again, fresh)]
    assert values[1] == values[2] != values[0]


def test_a_state_kept_in_a_group_continues(tiny_config, tmp_path):
    """LAMB counts its steps there."""
    once = ["optim.name=lamb", "schedule.name=constant"]
    whole = whole_run(tiny_config, tmp_path / "whole", *once, "train.epochs=2")
    whole_run(tiny_config, tmp_path / "parts", *once, "train.epochs=1")
    parts = whole_run(tiny_config, tmp_path / "parts", *once, "train.epochs=2", "optim.weight_decay=0.3", ALLOWED)
    assert groups(parts)[0]["step"] == groups(whole)[0]["step"] == 8
    assert groups(parts)[1]["weight_decay"] == 0.3
    same = whole_run(tiny_config, tmp_path / "same", *once, "train.epochs=1")
    assert same["step"] == 4
    same = whole_run(tiny_config, tmp_path / "same", *once, "train.epochs=2", ALLOWED)
    assert_same_bits(same["model"], whole["model"], "model")


def test_another_batch_size_is_spoken_of(tiny_config, tmp_path, capsys):
    whole_run(tiny_config, tmp_path, "train.epochs=2")
    capsys.readouterr()
    assert whole_run(tiny_config, tmp_path, "train.epochs=2", "train.batch_size=32", ALLOWED)["step"] == 8
    output = capsys.readouterr()
    assert "run.allow_changes: train.batch_size: 8 -> 32" in output.out
    assert "step 8 ended epoch 2.00 and is epoch 8.00 of this run, whose epochs have 1 step" in output.err
    assert "is at step 8, and the run ends at 2: nothing is left to train; raise train.epochs" in output.err


def test_early_stopping_by_another_metric_counts_anew(tiny_config, tmp_path, capsys):
    still = ["optim.lr=1e-9", "schedule.warmup_epochs=0", "train.early_stop=2", "train.freeze=all_but_head"]
    whole_run(tiny_config, tmp_path, *still, "train.epochs=2")
    state = whole_run(tiny_config, tmp_path, *still, "train.epochs=9", "checkpoints.metric=loss", ALLOWED)
    assert state["step"] > 8
    assert state["best"]["step"] is not None
    assert state["metric"] == "loss"


@pytest.mark.parametrize(("steps", "more"), [("100:110", ()), ("1:3", ("train.epochs=2",))])
def test_profiled_steps_that_are_never_reached(tiny_config, tmp_path, steps, more, capsys):
    if more:
        whole_run(tiny_config, tmp_path, "train.epochs=1")
    whole_run(tiny_config, tmp_path, f"profile.steps={steps}", *more, ALLOWED)
    first, end = (4, 7) if more else (0, 11)
    text = f"profile.steps={steps} has no effect: this start trains steps {first} to {end}"
    assert text in capsys.readouterr().err


def test_no_finite_evaluation(tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "ddfnet.engine.trainer.Trainer._evaluate", lambda *_: {"top1": float("nan"), "loss": float("nan"), "n": 25}
    )
    assert train(load_config(tiny_config, [f"run.dir={tmp_path / 'run'}", "train.epochs=1"])) == 0
    assert "finished at step 4; no evaluation gave a finite top1: there is no best.pt" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "run" / "last.pt")["best"]["step"] is None


class _Two(Distributed):
    """The first of two processes, the other one of which says the same."""

    def reduce_(self, tensor, op):
        return tensor


def test_a_signal_is_seen_at_the_first_steps_after_a_resume_and_after_going_back(monkeypatch):
    stop = StopSignal(_Two(0, 2, torch.device("cpu")))
    try:
        stop._asked_at -= 60  # what the start took
        assert not stop.agreed(10_000)
        stop.received = "SIGTERM"
        assert stop.agreed(10_001)
        stop.received = None
        monkeypatch.setattr("ddfnet.engine.signals._AGREE_SECONDS", 1000.0)
        assert not stop.agreed(10_002)
        stop.received = "SIGTERM"
        assert not stop.agreed(10_003)
        assert stop.agreed(9_000)
    finally:
        stop.restore()
