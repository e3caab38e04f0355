"""The options of fine-tuning in whole runs: exact under resume, and the same on two processes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddfnet.checkpoint import read_checkpoint
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.train import train
from ddfnet.evaluation.figures import figures_available
from ddfnet.inference.predict import predict, predict_images
from ddfnet.models.classifier import Classifier, load_classifier
from ddfnet.tasks import load_config
from ddfnet.utils.errors import ConfigError, UserError
from ddfnet.utils.files import read_jsonl
from tests.conftest import CLASSES, TINY, draw
from tests.engine.runs import assert_resumes_exactly
from tests.engine.test_distributed_equivalence import TOLERANCE, run_here, run_two_processes
from tests.tasks.test_distill import save_teacher

OPTIONS = {
    "imbalance": ("loss.class_weights=[1, 2, 1, 1, 0.5]", "data.sampler=balanced", "augment.mixup=0.2"),
    "multi-label": ("data.labels=labels.csv", "data.multi_label=true", "loss.name=bce", "loss.label_smoothing=0",
                    "loss.class_weights=auto", "augment.mixup=0.2"),
    "paced": ("schedule.name=plateau", "schedule.patience=0", "train.early_stop=2", "augment.mixup=0.2",
              "augment.mixup_mode=elem", "model.head_init_scale=0.1"),
    "distilled": ("distill.teacher=TEACHER", "distill.temperature=2", "train.freeze=[conv1, bn1]", "augment.cutmix=1"),
}  # fmt: skip


def options(name, tmp_path):
    """Overrides of one of `OPTIONS`; its teacher is made."""
    teacher = tmp_path / "teacher.pt"
    if not teacher.exists():
        save_teacher(teacher, mean=(0.4, 0.4, 0.4))
    return [override.replace("TEACHER", str(teacher)) for override in OPTIONS[name]]


@pytest.fixture(scope="module")
def uneven_tree(tmp_path_factory):
    """38 training images, 20 of one class and 3 of another; 10 for validation."""
    root, rng = tmp_path_factory.mktemp("uneven"), np.random.default_rng(0)
    for kind, count in zip(CLASSES, (20, 3, 5, 5, 5), strict=True):
        for split, images in (("train", count), ("val", 2)):
            (root / split / kind).mkdir(parents=True)
            for i in range(images):
                draw(kind, rng).save(root / split / kind / f"{i}.png")
    return with_labels(root)


def with_labels(root):
    """Of each image its class, and round where it applies; of the stripes none."""
    tags = {"cross": "cross", "disc": "disc|round", "grid": "grid", "ring": "round", "stripes": ""}
    files = sorted(path.relative_to(root) for path in root.glob("*/*/*.png"))
    lines = [f"{path.as_posix()},{tags[path.parts[1]]}" for path in files]
    (root / "labels.csv").write_text("\n".join(["image,labels", *lines]))
    return root


@pytest.fixture
def uneven_config(tmp_path, uneven_tree):
    path = tmp_path / "uneven.yaml"
    path.write_text(TINY.format(root=uneven_tree).replace("ddf_mul_resnet14_32px", "resnet14_32px"))
    return path


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_ends_with_the_same_bits(uneven_config, tmp_path, monkeypatch, name):
    assert_resumes_exactly(uneven_config, tmp_path, monkeypatch, *options(name, tmp_path))


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_train_alike(uneven_config, tmp_path, name):
    one = run_here(uneven_config, tmp_path / "one", *options(name, tmp_path))
    two = run_two_processes(uneven_config, tmp_path / "two", *options(name, tmp_path))
    assert len(one) >= 8
    torch.testing.assert_close(two, one, rtol=TOLERANCE, atol=0)


def test_class_weights_are_printed_and_a_wrong_number_is_refused(uneven_config, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(load_config(uneven_config, ["loss.class_weights=auto", f"run.dir={folder}", "train.epochs=1"])) == 0
    assert "class weights: cross 0.254, disc 1.69, grid 1.02, ring 1.02, stripes 1.02" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"loss\.class_weights \(command line\) has 2 values"):
        train(load_config(uneven_config, ["loss.class_weights=[1, 2]", f"run.dir={tmp_path / 'none'}"]))
    assert not (tmp_path / "none").exists()


MULTI = OPTIONS["multi-label"]


def test_multi_label_from_training_to_prediction(uneven_config, uneven_tree, tmp_path, capsys):
    folder, best = tmp_path / "run", tmp_path / "run" / "best.pt"
    overrides = [*MULTI, f"run.dir={folder}", "eval.threshold=0.3", "train.epochs=8", "optim.lr=0.3"]
    assert train(load_config(uneven_config, overrides)) == 0
    out = capsys.readouterr().out
    assert "multi-label: 4 classes, 0.95 per image, 5 images without any" in out
    assert "best map_macro" in out
    records = [record for record in read_jsonl(folder / "metrics.jsonl") if record["kind"] == "val"]
    best_record = max(records, key=lambda record: record["map_macro"])
    assert f"  val  map_macro {records[0]['map_macro']:.2f}  map_micro {records[0]['map_micro']:.2f}  f1" in out
    report = evaluate_checkpoint(best, device="cpu", workers=0)
    assert report.metrics == {key: best_record[key] for key in report.metrics}
    assert set(report.metrics) == {"map_macro", "map_micro", "f1_macro", "f1_micro", "loss", "n"}
    written = json.loads((folder / "eval_best" / "report.json").read_text())
    assert (written["threshold"], written["classes"]) == (0.3, 4)
    assert (folder / "eval_best" / "per_class.csv").read_text().count("\n") == 5
    page = (folder / "eval_best" / "report.md").read_text()
    assert "mAP, mean over classes" in page
    if figures_available():
        for name in ("calibration.png", "precision_recall.png"):
            assert f"]({name})" in page
            assert min(Image.open(folder / "eval_best" / name).size) > 500
    again = evaluate_checkpoint(best, device="cpu", workers=0, threshold="0.9")
    (kept,) = (folder / "eval_best" / "earlier").iterdir()
    assert json.loads((kept / "report.json").read_text()) == written
    assert json.loads((folder / "eval_best" / "report.json").read_text())["threshold"] == again.threshold == 0.9
    evaluate_checkpoint(best, device="cpu", workers=0, threshold="0.9")  # the same replaces
    assert [*(folder / "eval_best" / "earlier").iterdir()] == [kept]
    assert "had a report that differs in threshold: it is kept in" in capsys.readouterr().out
    other = evaluate_checkpoint(best, device="cpu", workers=0, threshold="0.9", data=uneven_tree, output=tmp_path / "e")
    assert (other.metrics["map_macro"], other.threshold) == (report.metrics["map_macro"], 0.9)
    with pytest.raises(UserError, match="--tta cannot be used with a multi-label checkpoint"):
        evaluate_checkpoint(best, device="cpu", workers=0, tta=True)

    classifier = load_classifier(best)
    image = uneven_tree / "val" / "disc" / "0.png"
    probabilities = predict(classifier, image)
    assert 0 < probabilities.sum().item() != pytest.approx(1, abs=1e-3)
    for threshold, expected in ((None, 0.3), (0.01, 0.01)):
        (answer,) = predict_images(classifier, [image], top=4, threshold=threshold)
        shown = {row["class"] for row in answer["predictions"]}
        assert shown == {n for n, p in zip(classifier.classes, probabilities.tolist(), strict=True) if p >= expected}
    assert Classifier.meta(classifier)["multi_label"] == {"threshold": 0.3}


def test_multi_label_ranks_by_its_own_metrics(uneven_config, tmp_path):
    run_here(uneven_config, tmp_path / "f1", *MULTI, "train.epochs=1", "checkpoints.metric=f1_micro")
    assert read_checkpoint(tmp_path / "f1" / "last.pt")["metric"] == "f1_micro"
    with pytest.raises(ConfigError, match=r"checkpoints\.metric=top5 \(command line\) is no metric .* has map_macro"):
        run_here(uneven_config, tmp_path / "top5", *MULTI, "checkpoints.metric=top5")


def test_labels_of_a_file_may_be_one_for_each_image(uneven_config, uneven_tree, tmp_path):
    """... which then is plain classification: the same run as with class folders."""
    lines = [f"{path.relative_to(uneven_tree)},{path.parent.name}" for path in uneven_tree.glob("*/*/*.png")]
    (tmp_path / "single.csv").write_text("\n".join(["image,label", *lines]))
    one = ("train.epochs=1", f"data.labels={tmp_path / 'single.csv'}")
    assert torch.equal(run_here(uneven_config, tmp_path / "file", *one),
                       run_here(uneven_config, tmp_path / "folders", "train.epochs=1"))  # fmt: skip
    report = evaluate_checkpoint(tmp_path / "file" / "best.pt", device="cpu", workers=0)
    assert report.metrics["n"] == 10


def test_single_label_checkpoints_have_no_threshold(uneven_config, tmp_path):
    run_here(uneven_config, tmp_path / "run", "train.epochs=1")
    with pytest.raises(UserError, match="--threshold is of multi-label checkpoints"):
        evaluate_checkpoint(tmp_path / "run" / "best.pt", device="cpu", workers=0, threshold=0.5)
