"""eval.py: exact however many processes, self-contained, clear about what is wrong."""

import argparse
import json
import shutil
import sys

import pytest
import torch
from PIL import Image

import ddfnet
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.train import train
from ddfnet.evaluation.metrics import ClassificationEvaluator
from ddfnet.tasks import load_config
from ddfnet.utils.errors import CheckpointError, DataError, UserError
from ddfnet.utils.files import read_jsonl
from tests.conftest import TINY
from tests.processes import launch_forked

NAME = "ddf_mul_resnet14_32px"


def evaluated(*arguments, **options):
    """The content of report.json, or of sets.json."""
    return evaluate_checkpoint(*arguments, **options).to_dict()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, image_tree):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY.format(root=image_tree))
    overrides = [f"run.dir={folder / 'run'}", "train.epochs=4", "optim.name=adamw", "optim.lr=3e-3"]
    assert train(load_config(folder / "tiny.yaml", overrides)) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Drawing takes longer than these evaluations do; tests/engine/test_evaluate_reports.py draws."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_metrics_equal_a_plain_loop(trained, image_tree, tmp_path):
    """Pillow, a division and a model: the whole evaluation by hand."""
    best = torch.load(trained / "best.pt", weights_only=True)
    model = ddfnet.create_model(NAME, num_classes=5).eval()
    model.load_state_dict(best["model"])
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    hits, losses = 0, []
    for label, kind in enumerate(best["meta"]["classes"]):
        for path in sorted((image_tree / "val" / kind).iterdir()):
            image = Image.open(path).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
            pixels = torch.tensor(list(image.tobytes())).view(16, 16, 3).permute(2, 0, 1) / 255
            with torch.no_grad():
                logits = model(((pixels - mean) / std)[None])[0]
            hits += int(logits.argmax() == label)
            losses.append(-logits.log_softmax(0)[label].item())
    found = evaluated(trained / "best.pt", output=tmp_path, device="cpu", workers=0, batch_size=7)
    assert found["top1_count"] == hits
    assert found["n"] == 25
    assert found["loss"] == pytest.approx(sum(losses) / 25, abs=1e-4)
    # ... and what training reported of this checkpoint
    records = [r for r in read_jsonl(trained / "metrics.jsonl") if r["kind"] == "val"]
    assert found["top1"] == pytest.approx(max(r["top1"] for r in records))


def test_folded_batch_normalization_gives_the_same_figures(trained, tmp_path):
    options = {"device": "cpu", "workers": 0}
    plain = evaluated(trained / "best.pt", output=tmp_path / "plain", **options)
    folded = evaluated(trained / "best.pt", output=tmp_path / "folded", fuse_bn=True, **options)
    assert folded["batch_norms_folded"] > 0
    assert "batch_norms_folded" not in plain
    assert folded["top1_count"] == plain["top1_count"]
    assert folded["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    evaluated(trained / "best.pt", fuse_bn=True, **options)
    assert (trained / "eval_best_fuse_bn" / "report.json").exists()  # not where the plain report lies


def test_one_two_and_three_processes_agree_to_the_count(trained, tmp_path):
    reports, tables = [], []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        result = launch_forked(
            "eval.py", "--checkpoint", trained / "best.pt", "--output", folder, "--workers", 0, "--device", "cpu",
            "--batch-size", 4, processes=processes,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        reports.append(report(folder))
        assert f"({reports[0]['top1_count']} of 25)" in result.stdout
        rows = (folder / "per_class.csv").read_text().splitlines()
        tables.append([line.split(",")[:7] + line.split(",")[8:] for line in rows])  # all but the mean confidence
    assert tables[0] == tables[1] == tables[2]
    for key in ("n", "top1_count", "top5_count", "top1", "top5"):
        assert len({r[key] for r in reports}) == 1, key
    assert [r["processes"] for r in reports] == [1, 2, 3]
    for r in reports:
        assert r["loss"] == pytest.approx(reports[0]["loss"], rel=1e-5)
        assert r["ece"] == pytest.approx(reports[0]["ece"], abs=1e-3)


def test_all_formats_and_spellings_give_the_same(trained, image_tree, tmp_path):
    best = torch.load(trained / "best.pt", weights_only=True)
    how = best["meta"]["preprocessing"]  # timm's record of the model has CIFAR's mean and std
    args = argparse.Namespace(lr=1, mean=how["mean"], std=how["std"])
    state = {f"module.{key}": tensor for key, tensor in best["model"].items()}
    official = {"arch": NAME, "args": args, "state_dict": state}
    torch.save(official, tmp_path / "official.pth.tar")
    common = {"device": "cpu", "workers": 0, "output": tmp_path / "out"}
    how = {"input_size": 16, "crop_pct": 1.0, "resize": "torch"}  # the file of others does not say it
    expected = evaluated(trained / "best.pt", **common)
    assert evaluated(trained / "last.pt", **common)["n"] == 25
    by_data = [
        evaluated(trained / "best.safetensors", data=image_tree, **common),
        evaluated(trained / "best.pt", data=image_tree / "val", **common),
        evaluated(tmp_path / "official.pth.tar", model=NAME, data=image_tree, **how, **common),
    ]
    for found in by_data:
        assert found["top1_count"] == expected["top1_count"]
        assert found["loss"] == pytest.approx(expected["loss"])


def test_nothing_but_the_data_is_needed(trained, image_tree, tmp_path):
    shutil.copy(trained / "best.pt", tmp_path / "alone.pt")
    result = launch_forked("eval.py", "--checkpoint", "alone.pt", "--data", image_tree, "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert report(tmp_path / "eval_alone")["model"] == NAME


def test_perfect_and_useless_predictions_are_counted_as_such():
    evaluator = ClassificationEvaluator(torch.device("cpu"))
    target = torch.tensor([0, 3, 6, 6])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 3, 5, 1]), 7).float() * 9
    logits[2, 6] = 8  # the second best is correct
    logits[3] = torch.tensor([6.0, 9, 5, 4, 3, 2, 1])  # the correct one is the last of all
    evaluator.update_logits(logits, target)
    assert evaluator.state()[:3].tolist() == [4, 2, 3]
    assert evaluator.compute([evaluator.state()])["top1"] == 50
    expected = torch.nn.functional.cross_entropy(logits.double(), target)
    assert evaluator.compute([evaluator.state()])["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_mistakes_are_named_and_nothing_is_written(trained, image_tree, tmp_path):
    def fails(kind, pattern, checkpoint=trained / "best.pt", **arguments):
        with pytest.raises(kind, match=pattern):
            evaluated(checkpoint, **{"output": tmp_path / "out", "device": "cpu", "workers": 0, **arguments})

    fails(CheckpointError, "holds ddf_mul_resnet14_32px, not resnet18", model="resnet18")
    fails(CheckpointError, "no EMA weights", weights="ema")
    fails(DataError, "nowhere", data="nowhere")
    fails(UserError, "interpolation", interpolation="magic")
    fails(UserError, "--batch-size", batch_size=0)
    fails(UserError, "--workers", workers="many")
    bare = tmp_path / "bare.pt"
    torch.save(ddfnet.create_model(NAME, num_classes=5).state_dict(), bare)
    fails(CheckpointError, "give --model", bare, data=image_tree)
    fails(CheckpointError, "does not hold weights of resnet18", bare, data=image_tree, model="resnet18")
    fails(UserError, "unknown model 'ddf_mul_resnet5'", bare, data=image_tree, model="ddf_mul_resnet5")
    fails(DataError, "give --data", bare, model=NAME)
    fewer = tmp_path / "fewer"
    shutil.copytree(image_tree / "val", fewer)
    shutil.rmtree(fewer / "ring")
    fails(DataError, "ring", data=fewer)
    fails(DataError, "4 classes.*5 classes", bare, data=fewer, model=NAME)
    (fewer / "ring").mkdir()
    fails(DataError, "no images in 1 of 5 class folders in .*: ring", data=fewer)
    (fewer / "ring" / "0.png").write_bytes(b"not an image")
    fails(DataError, r"ring/0\.png", data=fewer)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    fails(UserError, "cannot write a report", output=tmp_path / "file" / "out")


def test_precision_is_that_of_training_unless_told(tmp_path, image_tree):
    (tmp_path / "tiny.yaml").write_text(TINY.format(root=image_tree))
    overrides = [f"run.dir={tmp_path / 'run'}", "train.epochs=1", "train.precision=bf16"]
    assert train(load_config(tmp_path / "tiny.yaml", overrides)) == 0
    common = {"device": "cpu", "workers": 0, "output": tmp_path / "out", "batch_size": 4}
    auto = evaluated(tmp_path / "run" / "best.pt", **common)
    full = evaluated(tmp_path / "run" / "best.safetensors", data=image_tree, precision="fp32", **common)
    (record,) = [r for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "val"]
    assert (auto["precision"], full["precision"]) == ("bf16", "fp32")
    assert auto["loss"] == pytest.approx(record["loss"], abs=1e-9)
    assert auto["loss"] != full["loss"]
