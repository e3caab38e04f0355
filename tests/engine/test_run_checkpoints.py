"""Which checkpoints a run keeps, that they are written in the background, and that an older one takes over."""

import os
import shutil
import threading

import pytest
import torch

from ddfnet.checkpoint import read_checkpoint, read_weights
from ddfnet.engine import run_checkpoints
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.run_checkpoints import best_files, link_or_copy, resumable
from ddfnet.engine.saver import Saver
from ddfnet.engine.train import train
from ddfnet.engine.trainer import Trainer
from ddfnet.tasks import load_config
from ddfnet.tasks.classification import ClassificationTask
from ddfnet.utils.errors import CheckpointError, ConfigError
from ddfnet.utils.files import read_jsonl
from tests.conftest import TINY
from tests.engine.test_resume import assert_same_bits, assert_same_run, kept


def run(config, folder, *overrides):
    return train(load_config(config, [f"run.dir={folder}", *overrides]))


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, image_tree):
    """A finished run of 3 epochs, 12 steps."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY.format(root=image_tree))
    run(folder / "tiny.yaml", folder / "run")
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """Its folder, copied, and a function that resumes it."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run", lambda *overrides: run(finished / "tiny.yaml", tmp_path / "run", *overrides)


def test_last_and_two_older_ones_stay(finished):
    assert names(finished / "run") == ["step_00000004.pt", "step_00000008.pt", "step_00000012.pt"]
    assert [read_checkpoint(path)["step"] for path in resumable(finished / "run")] == [12, 12, 8, 4]
    assert not read_checkpoint(finished / "run" / "checkpoints" / "step_00000004.pt")["evaluation_due"]


def test_milestones_stay_for_good(tiny_config, tmp_path):
    run(tiny_config, tmp_path, "train.epochs=5", "checkpoints.keep=1", "checkpoints.every_epochs=2", "run.save_every=3")
    assert names(tmp_path) == [f"step_{step:08d}.pt" for step in (8, 16, 18, 20)]
    run(tiny_config, tmp_path / "b", "train.epochs=3", "checkpoints.keep=0", "checkpoints.every_epochs=2")
    assert names(tmp_path / "b") == ["step_00000008.pt"]
    assert read_checkpoint(tmp_path / "b" / "last.pt")["step"] == 12


@pytest.fixture
def results(monkeypatch):
    """Makes the evaluations of a run give these figures."""

    def _results(**figures):
        figures = {key: iter(values) for key, values in figures.items()}
        monkeypatch.setattr(
            Trainer,
            "_evaluate",
            lambda *_: {"top1": 0.0, "loss": 0.0, "n": 25, **{key: next(values) for key, values in figures.items()}},
        )

    return _results


def test_the_best_three_stay_and_the_best_is_best_pt(tiny_config, tmp_path, results):
    results(top1=[50.0, 40.0, 60.0, 45.0, 60.0, float("nan")])
    run(tiny_config, tmp_path, "train.epochs=6", "checkpoints.best=3", "checkpoints.keep=0")
    assert names(tmp_path) == [f"best_step_{step:08d}.pt" for step in (4, 12, 20)]
    assert read_checkpoint(tmp_path / "best.pt")["meta"]["step"] == 12  # of equal ones the earlier
    assert read_checkpoint(tmp_path / "last.pt")["ranking"] == [(60.0, 12), (60.0, 20), (50.0, 4)]
    assert {path.name: read_checkpoint(path)["meta"]["step"] for path in (tmp_path / "checkpoints").iterdir()} == {
        "best_step_00000004.pt": 4,
        "best_step_00000012.pt": 12,
        "best_step_00000020.pt": 20,
    }


def test_more_best_ones_later_include_the_best_of_before(tiny_config, tmp_path, results):
    results(top1=[60.0, 50.0, 40.0, 30.0])
    run(tiny_config, tmp_path, "train.epochs=2", "checkpoints.keep=0")
    assert not (tmp_path / "checkpoints").exists()
    run(tiny_config, tmp_path, "train.epochs=4", "checkpoints.keep=0", "checkpoints.best=3", "run.allow_changes=true")
    assert names(tmp_path) == [f"best_step_{step:08d}.pt" for step in (4, 12, 16)]
    assert [read_checkpoint(path)["meta"]["step"] for path in best_files(tmp_path)] == [4, 12, 16]


def test_a_run_that_goes_back_has_the_best_of_then(tiny_config, tmp_path, results):
    results(top1=[20.0, 10.0, 60.0, 15.0])
    run(tiny_config, tmp_path)
    (tmp_path / "checkpoints" / "step_00000012.pt").unlink()
    (tmp_path / "last.pt").unlink()
    run(tiny_config, tmp_path)
    assert read_checkpoint(tmp_path / "best.pt")["meta"]["step"] == 4
    assert read_checkpoint(tmp_path / "best.pt.former")["meta"]["step"] == 12
    assert read_weights(tmp_path / "best.safetensors").meta["step"] == 4


def test_only_the_metric_that_ranks_and_the_loss_must_be_finite(tiny_config, tmp_path, results):
    nan = float("nan")
    results(loss=[3.0, 2.0, nan], top5=[nan, nan, nan], top1=[1.0, 2.0, 3.0])
    run(tiny_config, tmp_path)
    assert read_checkpoint(tmp_path / "last.pt")["ranking"] == [(2.0, 8)]


def test_the_best_by_another_metric(tiny_config, tmp_path, results, capsys):
    results(loss=[3.0, 1.0, 2.0], top1=[1.0, 2.0, 3.0])
    run(tiny_config, tmp_path / "run", "checkpoints.metric=loss")
    assert read_checkpoint(tmp_path / "run" / "best.pt")["meta"]["step"] == 8
    assert "best loss 1.00" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"checkpoints\.metric: 'loss' -> None"):
        run(tiny_config, tmp_path / "run")
    results(top1=[1.0])  # with another metric the best begins anew
    run(tiny_config, tmp_path / "run", "train.epochs=4", "run.allow_changes=true")
    assert read_checkpoint(tmp_path / "run" / "last.pt")["ranking"] == [(1.0, 16)]
    with pytest.raises(
        ConfigError, match=r"checkpoints\.metric=top2 \(command line\) is no metric .*did you mean top5 or"
    ):
        run(tiny_config, tmp_path / "other", "checkpoints.metric=top2")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("damage", ["cut", "missing", "emptied"])
def test_the_newest_whole_one_takes_the_place_of_a_damaged_last(damage, copy, finished, capsys):
    folder, resume = copy
    last = folder / "last.pt"
    (folder / "checkpoints" / "step_00000012.pt").unlink()
    if damage == "missing":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:3000] if damage == "cut" else b"")
    assert resume() == 0
    output = capsys.readouterr()
    assert f"resuming from {folder / 'checkpoints' / 'step_00000008.pt'}: step 8 of 12" in output.out
    if damage != "missing":
        assert "last.pt cannot be used, an older checkpoint takes its place:" in output.err
        assert (folder / "last.pt.damaged").exists()
    assert_same_run(folder, finished / "run")
    assert kept(folder) == kept(finished / "run")


@pytest.mark.parametrize("damage", ["missing", "cut"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_lost_best_checkpoint_is_made_again_or_named(damage, kept, copy, caplog):
    folder, resume = copy
    content = (folder / "best.pt").read_bytes()
    best = read_checkpoint(folder / "best.pt")
    step = best["meta"]["step"]
    (folder / "best.pt").unlink()
    if damage == "cut":
        (folder / "best.pt").write_bytes(content[:-1000])
    if not kept:
        (folder / "checkpoints" / f"step_{step:08d}.pt").unlink()  # last.pt stays, by whichever name
    assert resume() == 0  # nothing left to evaluate
    if kept:
        assert f"{folder / 'best.pt'} is made again from the checkpoint of step {step}" in caplog.text
        assert torch.equal(read_checkpoint(folder / "best.pt")["model"]["fc.weight"], best["model"]["fc.weight"])
    else:
        assert f"of step {step}, has lost its file {folder / 'best.pt'}" in caplog.text
        assert not (folder / "best.pt").exists()


def test_a_whole_best_checkpoint_is_not_remarked_on(copy, caplog):
    _, resume = copy
    assert resume() == 0
    assert "best.pt" not in caplog.text


def test_a_finished_run_gets_its_last_checkpoint_back(copy):
    folder, resume = copy
    (folder / "last.pt").unlink()
    (folder / "last.pt").mkdir()
    assert resume() == 0
    assert (folder / "last.pt").samefile(folder / "checkpoints" / "step_00000012.pt")
    assert (folder / "last.pt.damaged").is_dir()


def test_where_none_is_whole_the_last_is_named(copy):
    folder, resume = copy
    for path in resumable(folder):
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"/last\.pt \(7 bytes\) is truncated"):
        resume()
    assert not list(folder.rglob("*.damaged"))


def test_another_run_is_no_damage(copy):
    """Older checkpoints of another task would only hide that."""
    _, resume = copy
    with pytest.raises(ConfigError, match="another configuration"):
        resume("train.epochs=4")


def test_records_of_a_run_without_checkpoints_are_kept(tiny_config, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 7}\n')
    assert run(tiny_config, tmp_path, "train.epochs=1") == 0
    assert read_jsonl(tmp_path / "metrics.jsonl.former") == [{"kind": "train", "step": 1, "loss": 7}]
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["loss"] != 7
    assert "they are kept as" in capsys.readouterr().err


def test_checkpoints_of_steps_that_the_run_went_back_from_are_left(copy):
    folder, resume = copy
    shutil.copy(folder / "checkpoints" / "step_00000004.pt", folder / "last.pt")
    (folder / "checkpoints" / "step_00000099.pt").write_bytes(b"of another future")
    assert resume() == 0
    assert names(folder) == ["step_00000004.pt", "step_00000008.pt", "step_00000012.pt"]


def test_links_are_copies_where_the_disk_has_none(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"one")
    for _ in range(2):  # a second time, both are one file already
        link_or_copy(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b").samefile(tmp_path / "a")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links")))
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"one"
    assert not (tmp_path / "c").samefile(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_in_the_background_the_same_bits(tiny_config, tmp_path, finished):
    run(tiny_config, tmp_path, "checkpoints.background=false")
    for path in resumable(tmp_path):
        other = read_checkpoint(finished / "run" / path.relative_to(tmp_path))
        own = read_checkpoint(path)
        assert own["config"]["checkpoints"].pop("background") is False
        other["config"]["checkpoints"].pop("background")
        own["config"]["run"].pop("dir"), other["config"]["run"].pop("dir")
        assert_same_bits(own, other)


def test_training_does_not_change_what_is_being_written(tiny_config, tmp_path, monkeypatch):
    """The writer waits until training has taken its next steps, and writes what there was before."""
    steps, written = threading.Semaphore(0), []
    plain_step, plain_save = Trainer.train_step, run_checkpoints.save_checkpoint

    def counted(self, batches):
        plain_step(self, batches)
        steps.release()

    def late(path, payload):
        if payload.get("step") == 2:  # in the middle of an epoch: training does not wait for it
            assert all(steps.acquire(timeout=60) for _ in range(3))
        written.append((path.name, payload.get("step")))
        plain_save(path, payload)

    monkeypatch.setattr(Trainer, "train_step", counted)
    monkeypatch.setattr(run_checkpoints, "save_checkpoint", late)
    options = ["train.epochs=1", "run.save_every=2", "checkpoints.keep=5", "optim.name=adamw", "train.ema={decay: 0.5}"]
    run(tiny_config, tmp_path / "late", *options)
    monkeypatch.undo()
    assert ("step_00000002.pt", 2) in written
    run(tiny_config, tmp_path / "plain", *options, "checkpoints.background=false")
    for part in ("model", "ema", "optimizer", "local", "step"):
        one, two = (read_checkpoint(tmp_path / name / "checkpoints" / "step_00000002.pt") for name in ("late", "plain"))
        assert_same_bits(one[part], two[part], part)


def test_one_save_at_a_time():
    saver, running, most, gate = Saver(background=True), [], [], threading.Event()

    def job():
        running.append(1)
        most.append(len(running))
        gate.wait(60)
        running.pop()

    saver.submit(job)
    waiting = threading.Thread(target=saver.submit, args=(job,))
    waiting.start()
    assert waiting.is_alive()  # the second waits for the first
    gate.set()
    waiting.join(60)
    saver.wait()
    assert most == [1, 1]


def test_a_save_that_fails_ends_the_run(tiny_config, tmp_path, monkeypatch):
    def fails(path, payload):
        raise CheckpointError("the disk is gone")

    monkeypatch.setattr(run_checkpoints, "save_checkpoint", fails)
    with pytest.raises(CheckpointError, match="the disk is gone"):
        run(tiny_config, tmp_path)
    assert max(record["step"] for record in read_jsonl(tmp_path / "metrics.jsonl")) < 12


def test_a_kept_best_is_evaluated(tiny_config, image_tree, tmp_path):
    run(tiny_config, tmp_path, "checkpoints.best=2")
    best = sorted((tmp_path / "checkpoints").glob("best_step_*.pt"))[0]
    report = evaluate_checkpoint(best, data=image_tree, device="cpu", workers=0, output=tmp_path / "report")
    assert report.metrics["top1"] == pytest.approx(read_checkpoint(best)["meta"]["metrics"]["top1"])


def test_every_further_metric_is_one_of_the_evaluation(tiny_config):
    task = ClassificationTask(load_config(tiny_config, []).config)
    evaluator = task.evaluator(torch.device("cpu"))
    evaluator.update_logits(torch.eye(5), torch.arange(5))
    assert {name for name, _ in task.other_metrics} < set(evaluator.compute([evaluator.state()]))


def test_a_checkpoint_gets_no_older_than_it_may(tiny_config, tmp_path):
    """With an age of nothing each step is saved."""
    run(tiny_config, tmp_path, "train.epochs=1", "checkpoints.max_age=1e-9", "checkpoints.keep=9")
    assert names(tmp_path) == [f"step_{step:08d}.pt" for step in (1, 2, 3, 4)]
