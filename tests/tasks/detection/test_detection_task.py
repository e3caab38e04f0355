"""The detection task on the common engine: training, resume, processes, eval.py."""

import json
import re
from pathlib import Path

import pytest
import torch

from ddfnet.engine import train as training
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.signals import StopSignal
from ddfnet.tasks import create_task, load_config
from ddfnet.tasks.detection.metrics import METRICS
from ddfnet.tasks.detection.network import create_backbone, create_detector
from ddfnet.tasks.plan import plan_run
from ddfnet.utils.errors import CheckpointError, DataError, UserError
from ddfnet.utils.files import read_jsonl
from tests.processes import launch_forked
from tests.tasks.detection.conftest import TINY

pytest.importorskip("pycocotools")

CPU = torch.device("cpu")


def run(tiny, folder, *overrides):
    return training.train(load_config(tiny, [f"run.dir={folder}", *overrides]))


def records(folder, kind):
    return [r for r in read_jsonl(folder / "metrics.jsonl") if r["kind"] == kind]


def state(folder, name="last.pt"):
    return torch.load(folder / name, weights_only=True)


def task_of(tiny, *overrides):
    return create_task(load_config(tiny, overrides).config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes):
    """Four steps with EMA weights, and one evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY.format(root=shapes))
    assert run(folder / "tiny.yaml", folder / "run", "train.ema={decay: 0.5}", "eval.every=2") == 0
    return folder / "run"


def test_checkpoint_says_what_it_holds(trained):
    best = state(trained, "best.pt")
    meta = best["meta"]
    assert meta["task"] == "detection"
    assert [c["name"] for c in meta["categories"]] == ["disc", "square", "triangle"]
    assert set(meta["metrics"]) == {*METRICS, "n"}
    said = dict(meta["model"])
    assert said.pop("name") == "faster_rcnn"
    backbone = create_backbone(said.pop("backbone"), **said.pop("backbone_kwargs"))
    create_detector(backbone, **said).load_state_dict(best["ema"])  # nothing else is needed
    assert meta["metrics"]["n"] == 5


def test_eval_repeats_the_figures_of_training(trained, tmp_path, capsys):
    report = evaluate_checkpoint(trained / "best.pt", output=tmp_path, device="cpu", workers=0, batch_size=3).to_dict()
    said = records(trained, "val_ema")[-1]
    for key in ("map", "map50", "map_medium", "n"):
        assert report[key] == pytest.approx(said[key]), key
    assert (report["weights"], report["task"]) == ("ema", "detection")
    assert json.loads((tmp_path / "report.json").read_text())["map"] == report["map"]
    out = capsys.readouterr().out
    assert re.search(r"map50 +\d+\.\d\d %\n", out)
    assert (report["map_large"], bool(re.search(r"map_large +-\n", out))) == (-1, True)  # no such object


def test_eval_needs_only_the_validation_part(trained, shapes, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    for name in ("val", "annotations/val.json"):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).symlink_to(shapes / name)
    report = evaluate_checkpoint(
        trained / "best.pt", data=elsewhere, weights="raw", device="cpu", output=tmp_path
    ).to_dict()
    assert (report["weights"], report["data"], report["n"]) == ("model", str(elsewhere), 5)
    assert report["map"] == pytest.approx(records(trained, "val")[-1]["map"])


def test_eval_refuses_what_makes_no_sense(trained, shapes, tmp_path):
    best = trained / "best.pt"
    with pytest.raises(UserError, match="--model, --input-size cannot be used with a checkpoint of detection"):
        evaluate_checkpoint(best, model="resnet50", input_size=64)
    with pytest.raises(CheckpointError, match=r"does not hold the configuration.*best\.pt"):
        evaluate_checkpoint(trained / "best.safetensors")
    with pytest.raises(DataError, match="annotations not found"):
        evaluate_checkpoint(best, data=tmp_path)
    other = tmp_path / "other"
    (other / "annotations").mkdir(parents=True)
    (other / "val").symlink_to(shapes / "val")
    content = json.loads((shapes / "annotations" / "val.json").read_text())
    content["categories"][0]["name"] = "ring"
    (other / "annotations" / "val.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"trained on other data \(categories differ\)"):
        evaluate_checkpoint(best, data=other, device="cpu")


def test_resume_is_exact(tiny, trained, tmp_path):
    once = ["train.ema={decay: 0.5}", "eval.every=2"]
    stopped = tmp_path / "stopped"
    loaded = load_config(tiny, [f"run.dir={stopped}", *once])

    class StopAfterTheFirstEpoch(StopSignal):
        def agreed(self, step, *, save=False):
            return step >= 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "StopSignal", StopAfterTheFirstEpoch)
        assert training.train(loaded) == 75
    assert state(stopped)["step"] == 3
    assert run(tiny, stopped, *once) == 0
    for kind in ("model", "ema"):
        expected, found = state(trained)[kind], state(stopped)[kind]
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_two_processes_train_and_evaluate_as_one(tiny, tmp_path):
    """In bf16. What two processes found of the images, one finds again to the digit."""
    folder = tmp_path / "run"
    result = launch_forked(
        "train.py", "--config", tiny, f"run.dir={folder}", "train.precision=bf16", "train.epochs=10", "eval.every=10",
        "data.train_images=val", "data.train_annotations=annotations/val.json", processes=2,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    losses = [r["loss"] for r in records(folder, "train")]
    assert len(losses) == 10
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    said = records(folder, "val")[-1]
    report = evaluate_checkpoint(folder / "last.pt", device="cpu", workers=0, batch_size=5).to_dict()
    assert {key: report[key] for key in (*METRICS, "n")} == {key: said[key] for key in (*METRICS, "n")}


def test_new_classes_start_afresh(tiny, trained):
    model = task_of(tiny, "model.num_classes=9").build_model()
    note = training.load_initial_weights(model, trained / "best.pt")
    assert "new classifier: roi_heads.box_predictor.cls_score.weight" in note
    assert torch.equal(model.state_dict()["rpn.head.cls_logits.weight"],
                       state(trained, "best.pt")["ema"]["rpn.head.cls_logits.weight"])  # fmt: skip


def test_losses_and_samples(tiny):
    task = task_of(tiny)
    derived = plan_run(task.config, world_size=1, train_images=task.train_images)
    batch = next(task.train_batches(derived, rank=0, start_step=1, device=CPU))
    losses = task.loss(task.build_model(), batch)
    parts = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert set(losses) == {"loss", *parts}
    assert losses["loss"].item() == pytest.approx(sum(losses[part].item() for part in parts), rel=1e-5)
    assert task.batch_images(batch) == 2
    names = task.sample_names(derived, 1)
    assert len(names) == 4
    assert [Path(task._train.name(i)).name for i in batch["index"]] == [n.rsplit("/", 1)[-1] for n in names[::2]]


def test_categories_must_agree(tiny, shapes, tmp_path):
    content = json.loads((shapes / "annotations" / "train.json").read_text())
    content["categories"].append({"id": 8, "name": "ring"})
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="different categories"):
        _ = task_of(tiny, f"data.train_annotations={tmp_path / 'train.json'}").train_images
