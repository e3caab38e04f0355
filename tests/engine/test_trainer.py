"""What a run leaves behind, and how it fails."""

import functools
import json
import shutil

import numpy as np
import pytest
import torch

import ddfnet
from ddfnet.checkpoint import read_weights
from ddfnet.engine.numerics import seed_at
from ddfnet.engine.run_folder import run_folder_lock
from ddfnet.engine.train import load_initial_weights, train
from ddfnet.tasks import load_config
from ddfnet.utils.errors import CheckpointError, ConfigError, NonFiniteLossError
from ddfnet.utils.files import read_jsonl


def run(config, folder, *overrides):
    return train(load_config(config, [f"run.dir={folder}", *overrides]))


def test_run_folder_holds_config_provenance_metrics_and_checkpoints(tiny_config, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(tiny_config, folder, "run.tensorboard=true", "train.ema={decay: 0.5}") == 0
    assert {p.name for p in folder.iterdir()} == {
        ".lock", "best.pt", "best.safetensors", "checkpoints", "config.yaml", "last.pt", "metrics.jsonl", "run.json",
        "tensorboard",
    }  # fmt: skip
    assert "# derived: accumulation = 2" in (folder / "config.yaml").read_text()
    facts = json.loads((folder / "run.json").read_text())["starts"][0]
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["parameters"] > 300_000
    records = read_jsonl(folder / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
    assert [r["n"] for r in records if r["kind"] == "val_ema"] == [25, 25, 25]
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["meta"]["classes"] == ["cross", "disc", "grid", "ring", "stripes"]
    assert best["meta"]["model"] == {"name": "ddf_mul_resnet14_32px", "num_classes": 5, "kwargs": {}}
    evaluations = [r for r in records if r["kind"] == "val_ema"]
    assert best["meta"]["metrics"]["top1"] == max(r["top1"] for r in evaluations)
    printed = [line for line in capsys.readouterr().out.splitlines() if "  val" in line]
    marks = [line.endswith("  new best") for line in printed if "  val_ema  " in line]
    assert marks == [r["top1"] > max([-1, *(e["top1"] for e in evaluations[:i])]) for i, r in enumerate(evaluations)]
    assert not any("best" in line for line in printed if "  val  " in line)  # the EMA weights rank


def test_learning_happens(tiny_config, tmp_path):
    overrides = ("train.epochs=20", "optim.name=adamw", "optim.lr=3e-3", "eval.every=20", "run.log_every=8")
    run(tiny_config, tmp_path / "run", *overrides)
    losses = [r["loss"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert losses[-1] < 0.75 * losses[0]


def test_compiled_model_keeps_raw_keys(tiny_config, tmp_path, monkeypatch):
    # Traced like any compiled model, but not handed to a compiler: that takes minutes and is tested with the operator.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    run(tiny_config, tmp_path / "run", "train.compile=true", "train.epochs=1", "train.ema={decay: 0.5}")
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    keys = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=5).state_dict().keys()
    assert last["model"].keys() == last["ema"].keys() == keys


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_close_to_float32(tiny_config, tmp_path, precision):
    def losses(name, value):
        run(tiny_config, tmp_path / name, f"train.precision={value}", "train.epochs=1")
        return [r["loss"] for r in read_jsonl(tmp_path / name / "metrics.jsonl") if r["kind"] == "train"]

    assert losses("a", precision) == pytest.approx(losses("b", "fp32"), rel=0.05)


def test_ema_is_the_average(tiny_config, tmp_path):
    run(tiny_config, tmp_path / "run", "train.ema={decay: 0.0, warmup: false}", "train.epochs=1")
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    for key, value in last["model"].items():  # decay 0: the average is the last value
        torch.testing.assert_close(last["ema"][key], value)


def test_non_finite_loss_stops_names_the_step_and_saves_nothing(tiny_config, tmp_path):
    folder = tmp_path / "run"
    diverge = ("optim.lr=1e30", "optim.clip_grad=null", "schedule.warmup_epochs=0", "train.epochs=4", "run.log_every=4")
    with pytest.raises(
        NonFiniteLossError, match=r"loss or gradient of step \d+ .* not finite.*Lower the learning rate"
    ):
        run(tiny_config, folder, *diverge)
    assert not (folder / "last.pt").exists()  # the first one was due after the step that broke it
    report = json.loads(next(folder.glob("nonfinite_step*.json")).read_text())
    assert 1 <= report["step"] < 4
    assert len(report["samples"]) == 8
    assert all(path.endswith(".png") for path in report["samples"])


def test_another_configuration_does_not_continue_a_run(tiny_config, tmp_path):
    folder = tmp_path / "run"
    run(tiny_config, folder, "train.epochs=1")
    before = {p: p.read_bytes() for p in folder.rglob("*.*")}
    with pytest.raises(ConfigError, match=r"train\.epochs: 1 -> 2") as caught:
        run(tiny_config, folder, "train.epochs=2")
    assert "run.dir=NEW_FOLDER" in str(caught.value)
    assert "run.allow_changes=true" in str(caught.value)
    assert {p: p.read_bytes() for p in folder.rglob("*.*")} == before
    with pytest.raises(CheckpointError, match=r"another model .* start a new run with run\.dir=NEW_FOLDER"):
        run(tiny_config, folder, "train.epochs=2", "model.name=resnet18", "run.allow_changes=true")
    with pytest.raises(ConfigError, match=r"(?s)model\.name: .*run\.dir=NEW_FOLDER$"):  # no more than that would do
        run(tiny_config, folder, "model.name=resnet18")


def test_truncated_last_checkpoint_is_not_overwritten(tiny_config, tmp_path):
    folder = tmp_path / "run"
    run(tiny_config, folder, "train.epochs=1", "checkpoints.keep=0")
    cut = (folder / "last.pt").read_bytes()[:5000]
    (folder / "last.pt").write_bytes(cut)
    with pytest.raises(CheckpointError, match="truncated"):
        run(tiny_config, folder, "train.epochs=1")
    assert (folder / "last.pt").read_bytes() == cut


def test_dry_run_writes_nothing(tiny_config, tmp_path, capsys):
    assert train(load_config(tiny_config, [f"run.dir={tmp_path / 'run'}"]), dry_run=True) == 0
    assert not (tmp_path / "run").exists()
    out = capsys.readouterr().out
    assert "dry run: 2 steps of 8 images" in out
    assert "step 2/2" in out


def test_initial_checkpoint(tiny_config, tmp_path, capsys):
    run(tiny_config, tmp_path / "a", "train.epochs=1")
    best = tmp_path / "a" / "best.safetensors"
    run(tiny_config, tmp_path / "b", "train.epochs=1", f"model.init_checkpoint={best}")
    assert f"weights from {best}" in capsys.readouterr().out
    # At learning rate 0 (the first step of the warm-up) the weights are still those of the file.
    model = ddfnet.create_model("ddf_mul_resnet14_32px", num_classes=5)
    load_initial_weights(model, best)
    for key, value in read_weights(best).state_dict.items():
        assert torch.equal(model.state_dict()[key], value), key
    # Going on needs the file no more.
    best.unlink()
    assert run(tiny_config, tmp_path / "b", "train.epochs=1", f"model.init_checkpoint={best}") == 0


def test_infinite_gradient_of_a_finite_loss_is_not_saved(tiny_config, tmp_path, monkeypatch):
    """Clipping turns an infinite gradient into NaN weights while the loss still looks well."""
    from ddfnet.tasks.classification import ClassificationTask

    steps = iter(range(1, 100))
    plain = ClassificationTask.loss

    def poisoned(self, model, batch):
        result = plain(self, model, batch)
        if next(steps) == 16:  # the last micro-batch of the second epoch
            result["loss"] = result["loss"] + (result["loss"] - result["loss"].detach()) * float("1e39")
        return result

    monkeypatch.setattr(ClassificationTask, "loss", poisoned)
    with pytest.raises(NonFiniteLossError, match="gradient of step 7 "):
        run(tiny_config, tmp_path / "run", "run.log_every=100")
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert last["step"] == 4
    assert all(value.isfinite().all() for value in last["model"].values())


def test_failed_evaluation_does_not_cost_the_epoch(tiny_config, image_tree, tmp_path, monkeypatch):
    from ddfnet.engine.trainer import Trainer

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_evaluate", lambda *args: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            run(tiny_config, folder, "train.epochs=1")
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == 4
    assert run(tiny_config, folder, "train.epochs=1") == 0  # evaluates what was saved, trains no more
    kinds = [(r["kind"], r["step"]) for r in read_jsonl(folder / "metrics.jsonl")]
    assert kinds == [("train", 1), ("train", 2), ("train", 3), ("train", 4), ("val", 4)]
    assert (folder / "best.pt").exists()


def test_changed_settings_are_used_when_accepted(tiny_config, tmp_path):
    folder = tmp_path / "run"
    run(tiny_config, folder, "train.epochs=1")
    run(tiny_config, folder, "train.epochs=2", "optim.weight_decay=0.5", "optim.momentum=0.1", "run.allow_changes=true")
    groups = torch.load(folder / "last.pt", weights_only=True)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    assert {group["momentum"] for group in groups} == {0.1}


def test_other_data_do_not_continue_a_run(tiny_config, image_tree, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    run(tiny_config, folder, "train.epochs=1")
    shutil.copytree(image_tree, other)
    (other / "train" / "disc" / "0.png").unlink()
    with pytest.raises(CheckpointError, match=r"other data.*images differ.*run\.allow_changes=true"):
        run(tiny_config, folder, "train.epochs=1", f"data.root={other}")


def test_a_run_without_its_last_checkpoint_is_not_written_over(tiny_config, tmp_path):
    folder = tmp_path / "run"
    run(tiny_config, folder, "train.epochs=1", "checkpoints.keep=0")
    (folder / "last.pt").unlink()
    best = (folder / "best.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"best\.pt but no last\.pt.*run\.dir=NEW_FOLDER"):
        run(tiny_config, folder, "train.epochs=1")
    assert (folder / "best.pt").read_bytes() == best


def test_two_runs_cannot_share_a_folder(tiny_config, tmp_path):
    with run_folder_lock(tmp_path / "run"), pytest.raises(ConfigError, match="another process is training"):
        run(tiny_config, tmp_path / "run")


def test_a_step_is_seeded_as_torch_seeds_all_devices():
    position = (3, 10**6, 7)
    seed_at(*position, device=torch.device("cpu"))
    drawn = torch.rand(3)
    torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0]))
    assert torch.equal(torch.rand(3), drawn)
