"""Losses that are not finite: stop, skip, go back; and runs that repeat bit for bit."""

import pytest
import torch

from ddfnet.checkpoint import read_checkpoint
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.numerics import FiniteCheck, KeptBuffers
from ddfnet.engine.signals import StopSignal
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.tasks.classification import ClassificationTask
from ddfnet.utils.errors import NonFiniteLossError
from ddfnet.utils.files import read_jsonl
from tests.engine.test_resume import assert_same_bits
from tests.processes import launch_forked

STEP = 2  # micro-batches


def run(config, folder, *overrides):
    return train(load_config(config, [f"run.dir={folder}", *overrides]))


@pytest.fixture
def poison(monkeypatch):
    """Makes the loss NaN for batches that hold given images in given epochs, of data or of any."""

    def _poison(bad):
        plain = ClassificationTask.loss

        def loss(self, model, batch):
            result = plain(self, model, batch)
            seen.append((batch["epoch"], batch["index"].tolist()))
            if bad(len(seen), *seen[-1]):
                result["loss"] = result["loss"] * float("nan")
            return result

        seen = []
        monkeypatch.setattr(ClassificationTask, "loss", loss)
        return seen

    return _poison


def losses(folder):
    return {r["step"]: r["loss"] for r in read_jsonl(folder / "metrics.jsonl") if r["kind"] == "train"}


def test_the_message_has_step_rate_norm_and_samples(tiny_config, tmp_path, poison):
    poison(lambda count, epoch, index: count == 6 * STEP)
    with pytest.raises(NonFiniteLossError) as error:
        run(tiny_config, tmp_path)
    text = str(error.value)
    assert "step 5 is not finite (epoch 1.25, lr 0.0315, gradient norm nan; " in text
    assert ".png and 5 more)" in text
    assert f"checkpoint list {tmp_path}" in text


def test_a_skipped_step_changes_nothing(tiny_config, tmp_path, poison, capsys):
    """Weights, momentum, EMA, running statistics: as if the step had not been."""
    poison(lambda count, epoch, index: count == 2 * STEP)
    options = ["train.epochs=1", "train.ema={decay: 0.5}", "run.save_every=1", "checkpoints.keep=9"]
    run(tiny_config, tmp_path, *options, "train.non_finite=skip", "schedule.warmup_epochs=0")
    one, two = (read_checkpoint(tmp_path / "checkpoints" / f"step_0000000{step}.pt") for step in (1, 2))
    for part in ("model", "ema"):
        assert_same_bits(one[part], two[part], part)
    assert_same_bits(one["optimizer"]["state"], two["optimizer"]["state"])
    assert torch.equal(one["local"]["model"], two["local"]["model"])
    assert two["non_finite"] == 1
    last = read_checkpoint(tmp_path / "last.pt")
    assert all(tensor.isfinite().all() for tensor in last["model"].values())
    assert not torch.equal(last["model"]["fc.weight"], two["model"]["fc.weight"])
    text = capsys.readouterr().err
    assert "step 1 is not finite (lr 0.0427, gradient norm nan; " in text
    assert "skipped, number 1 of at most 10" in text
    assert losses(tmp_path)[2] is None
    assert all(loss > 0.1 for step, loss in losses(tmp_path).items() if step != 2)


def test_more_than_so_many_skipped_steps_end_the_run(tiny_config, tmp_path, poison):
    poison(lambda count, epoch, index: count > STEP)
    with pytest.raises(NonFiniteLossError, match=r"step 3 .*: one more than the 2 of train\.max_non_finite"):
        run(tiny_config, tmp_path, "train.non_finite=skip", "train.max_non_finite=2")


def test_a_rollback_takes_the_checkpoint_before_and_other_data(tiny_config, tmp_path, poison, capsys):
    """Images of one step are poison: without moving the data the run would never get past them."""
    first = poison(lambda *_: False)
    run(tiny_config, tmp_path / "whole")
    first = list(first)
    bad = first[5 * STEP]  # the first micro-batch of step 5
    second = poison(lambda count, epoch, index: (epoch, index) == bad)
    assert run(tiny_config, tmp_path / "run", "train.non_finite=rollback") == 0
    last = read_checkpoint(tmp_path / "run" / "last.pt")
    assert (last["step"], last["data_offset"], last["non_finite"]) == (12, 2, 1)
    # Steps 0 to 5, then from step 4 again with what follows step 5.
    entries = [first[i] for i in range(6 * STEP)] + first[6 * STEP :]
    assert second[: len(entries)] == entries
    assert len(second) == (6 + 8) * STEP
    text = capsys.readouterr().err
    assert "step_00000004.pt" not in text
    assert f"back to {tmp_path / 'run' / 'last.pt'}, step 4, number 1 of at most 10" in text
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
    whole = losses(tmp_path / "whole")
    assert {step: losses(tmp_path / "run")[step] for step in range(1, 5)} == {s: whole[s] for s in range(1, 5)}


def test_a_rollback_continues_over_a_restart_bit_for_bit(tiny_config, tmp_path, poison):
    first = poison(lambda *_: False)
    run(tiny_config, tmp_path / "whole")
    bad = first[5 * STEP]
    poison(lambda count, epoch, index: (epoch, index) == bad)
    options = ["train.non_finite=rollback", "checkpoints.keep=5"]
    run(tiny_config, tmp_path / "one", *options)
    run(tiny_config, tmp_path / "two", *options)
    (tmp_path / "two" / "last.pt").unlink()
    (tmp_path / "two" / "checkpoints" / "step_00000012.pt").unlink()
    run(tiny_config, tmp_path / "two", *options)  # from step 8
    one, two = (read_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    for part in ("model", "optimizer", "data_offset", "non_finite"):
        assert_same_bits(one[part], two[part], part)


def test_a_failure_that_other_data_does_not_cure_goes_further_back(tiny_config, tmp_path, poison, capsys):
    """All data is poison after the ninth step, until the run has been back at step 4."""
    seen = poison(lambda count, epoch, index: 10 * STEP < count <= 12 * STEP)
    assert run(tiny_config, tmp_path, "train.non_finite=rollback") == 0
    text = capsys.readouterr().err
    assert "step 8, number 1 of at most 10" in text
    assert "step 4, number 2 of at most 10" in text
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 12
    assert len(seen) > 12 * STEP


def test_a_start_after_a_rollback_goes_as_far_back(tiny_config, tmp_path, poison, monkeypatch):
    """The ninth step fails twice. One run is stopped in between, right after its first rollback."""
    options = ["train.non_finite=rollback", "checkpoints.keep=5", "run.save_every=2"]
    poison(lambda count, epoch, index: count in (10 * STEP, 12 * STEP))
    assert run(tiny_config, tmp_path / "one", *options) == 0
    poison(lambda count, epoch, index: count == 10 * STEP)
    steps = []

    def agreed(self, step, save=False):
        steps.append(step)
        return steps[-2:] == [9, 9]

    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "agreed", agreed)
        assert run(tiny_config, tmp_path / "two", *options) == 75
    assert read_checkpoint(tmp_path / "two" / "last.pt")["step"] == 9
    poison(lambda count, epoch, index: count == STEP)
    assert run(tiny_config, tmp_path / "two", *options) == 0
    one, two = (read_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    for part in ("model", "optimizer", "data_offset", "non_finite", "rollback"):
        assert_same_bits(one[part], two[part], part)


def test_all_processes_wait_for_what_is_being_written(tiny_config, tmp_path):
    """A save takes a second, and the loss of the next step is NaN on the other process alone."""
    script = f'''
import os, time
from ddfnet.engine.run_checkpoints import RunCheckpoints
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.tasks.classification import ClassificationTask
write, loss, count = RunCheckpoints.write, ClassificationTask.loss, []
def slow(self, *given, **more):
    time.sleep(1)
    write(self, *given, **more)
def poisoned(self, model, batch):
    result = loss(self, model, batch)
    count.append(0)
    if len(count) == 6 and os.environ["RANK"] == "1":
        result["loss"] = result["loss"] * float("nan")
    return result
RunCheckpoints.write, ClassificationTask.loss = slow, poisoned
overrides = ["run.dir={tmp_path / "run"}", "train.non_finite=rollback", "train.epochs=2"]
raise SystemExit(train(load_config("{tiny_config}", overrides)))
'''
    (tmp_path / "script.py").write_text(script)
    done = launch_forked(tmp_path / "script.py", processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 4, number 1 of at most 10" in done.stderr
    assert read_checkpoint(tmp_path / "run" / "last.pt")["step"] == 8


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_gradients_that_no_scale_of_fp16_helps_end_the_run(tiny_config, tmp_path, monkeypatch, policy):
    plain = ClassificationTask.loss

    def loss(self, model, batch):
        return {"loss": plain(self, model, batch)["loss"] + (0 * self.weight.sum()).sqrt()}  # finite, its gradient not

    def build(self):
        model = build_model(self)
        self.weight = next(model.parameters())
        return model

    build_model = ClassificationTask.build_model
    monkeypatch.setattr(ClassificationTask, "loss", loss)
    monkeypatch.setattr(ClassificationTask, "build_model", build)
    options = [f"train.non_finite={policy}", "train.precision=fp16", "train.epochs=3", "train.batch_size=4"]
    with pytest.raises(NonFiniteLossError, match="step 16 is beyond fp16 at any loss scale down to 1"):
        run(tiny_config, tmp_path, *options)


def test_rollbacks_end(tiny_config, tmp_path, poison):
    poison(lambda count, *_: count > 5 * STEP)
    with pytest.raises(NonFiniteLossError, match="There is no checkpoint to go back to"):
        run(tiny_config, tmp_path, "train.non_finite=rollback")
    poison(lambda count, *_: count > 1)
    with pytest.raises(NonFiniteLossError, match=r"It went back 0 times, train\.max_non_finite=0"):
        run(tiny_config, tmp_path / "b", "train.non_finite=rollback", "train.max_non_finite=0")


def test_deterministic(tiny_config, tmp_path):
    asked = []
    plain = ClassificationTask.build_model

    def build(self):
        asked.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationTask, "build_model", build)
        run(tiny_config, tmp_path, "train.epochs=1", "train.deterministic=true")
    assert asked == [(True, False)]
    assert not torch.are_deterministic_algorithms_enabled()


def test_kept_buffers():
    model = torch.nn.BatchNorm2d(2)
    kept = KeptBuffers(model)
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    model(torch.randn(4, 2, 3, 3))
    assert not torch.equal(model.running_mean, before["running_mean"])
    kept.restore()
    assert all(torch.equal(buffer, before[key]) for key, buffer in model.named_buffers())
    model(torch.randn(4, 2, 3, 3))
    after = model.running_mean.clone()
    kept.keep()
    model(torch.randn(4, 2, 3, 3))
    kept.restore()
    assert torch.equal(model.running_mean, after)
    assert int(model.num_batches_tracked) == 1
    KeptBuffers(torch.nn.Linear(1, 1)).keep()  # none


def test_the_first_step_is_noted():
    check, one = FiniteCheck(torch.device("cpu")), Distributed(0, 1, torch.device("cpu"))
    check.note(3, torch.tensor(1.0), torch.tensor(2.0))
    assert check.read(one) is None
    check.note(4, torch.tensor(float("inf")), torch.tensor(5.0))
    check.note(5, torch.tensor(float("nan")), torch.tensor(6.0))
    assert (check.read(one).step, check.read(one).grad_norm) == (4, 5.0)
    check.reset()
    assert check.read(one) is None
